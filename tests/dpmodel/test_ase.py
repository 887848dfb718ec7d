"""The ASE calculator: numbers, boundaries, elements, inputs, caching."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dpmodel
from dpmodel.descriptors import SeAConfig
from dpmodel.errors import InputError
from dpmodel.fittings import DOSFittingConfig, EnerFittingConfig
from dpmodel.models import StandardModel
from dpmodel.potential import Potential

ase = pytest.importorskip("ase")
pytest.importorskip("ase.io")
from ase.calculators.calculator import PropertyNotImplementedError  # noqa: E402  # after importorskip

from dpmodel.ase import Calculator  # noqa: E402  # after importorskip

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "se_e2_a.dp"
CELL = np.array([[8.0, 0.0, 0.0], [0.7, 7.5, 0.0], [-0.4, 0.9, 7.0]])


@pytest.fixture(scope="module")
def potential() -> dpmodel.Potential:
    return dpmodel.load(GOLDEN, "pt")


def water(**options) -> ase.Atoms:
    positions = np.random.default_rng(1).uniform(0, 7, (6, 3))
    return ase.Atoms("OHHOHH", positions=positions, **{"cell": CELL, "pbc": True, **options})


def make_with_parameters() -> dpmodel.Potential:
    descriptor = SeAConfig(sel=(8, 16), rcut=4.0, rcut_smth=1.0, neuron=(4, 8), axis_neuron=2, seed=1).build(
        2, ("O", "H")
    )
    fitting = EnerFittingConfig(neuron=(6, 6), numb_fparam=2, numb_aparam=1, seed=2).build(
        2, descriptor.dim_out, mixed_types=False
    )
    return dpmodel.Potential.from_model(StandardModel.assemble(descriptor, fitting, ("O", "H")), "pt")


def test_numbers_are_those_of_the_potential(potential) -> None:
    atoms = water()
    atoms.calc = Calculator(potential)
    out = potential.evaluate(atoms.positions, [0, 1, 1, 0, 1, 1], CELL, atomic=True)
    assert atoms.get_potential_energy() == out["energy"][0, 0]
    assert atoms.get_potential_energy(force_consistent=True) == out["energy"][0, 0]
    np.testing.assert_array_equal(atoms.get_forces(), out["force"][0])
    np.testing.assert_allclose(atoms.get_potential_energies(), out["atom_energy"][0, :, 0], rtol=1e-14)
    virial = out["virial"].reshape(3, 3)
    stress = -(virial + virial.T) / 2 / atoms.get_volume()
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(
        atoms.get_stress(), stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], rtol=1e-13, atol=1e-16
    )


def test_stress_is_the_derivative_by_strain(potential) -> None:
    atoms = water()
    atoms.calc = Calculator(potential)
    stress = atoms.get_stress(voigt=False)
    for a, b in ((0, 0), (1, 1), (0, 1), (1, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * 5e-6
            strain[b, a] += sign * 5e-6 * (a != b)
            moved = atoms.copy()
            moved.set_cell(CELL @ strain, scale_atoms=True)
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - energies[1]) / 1e-5 / atoms.get_volume() / (1 if a == b else 2)
        assert stress[a, b] == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False), (False, False, False)])
def test_each_axis_has_its_own_boundary(potential, pbc) -> None:
    atoms = water(pbc=pbc)
    atoms.calc = Calculator(potential)
    shift = 3 * CELL[2]  # along an open axis: only differences of positions count
    out = potential.evaluate(atoms.positions, [0, 1, 1, 0, 1, 1], CELL if any(pbc) else None, pbc=pbc)
    assert atoms.get_potential_energy() == out["energy"][0, 0]
    atoms.positions += shift
    assert atoms.get_potential_energy() == pytest.approx(out["energy"][0, 0], abs=1e-10)
    full = water()
    full.calc = Calculator(potential)
    assert abs(full.get_potential_energy() - out["energy"][0, 0]) > 1e-6


def test_a_slab_without_a_third_vector(potential) -> None:
    atoms = water(cell=[CELL[0], CELL[1], np.zeros(3)], pbc=(True, True, False))
    atoms.calc = Calculator(potential)
    out = potential.evaluate(atoms.positions, [0, 1, 1, 0, 1, 1], CELL, pbc=(True, True, False))
    assert atoms.get_potential_energy() == pytest.approx(out["energy"][0, 0], abs=1e-12)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    atoms.pbc = True
    with pytest.raises(InputError, match="periodic along axis 2"):
        atoms.get_potential_energy()


def test_a_molecule_has_no_stress(potential) -> None:
    atoms = ase.Atoms("OHH", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.calc = Calculator(potential)
    assert atoms.get_forces().shape == (3, 3)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_elements(potential) -> None:
    atoms = ase.Atoms("OHHe", positions=np.eye(3))
    atoms.calc = Calculator(potential)
    with pytest.raises(InputError, match=r"no type for He; it knows O, H \(type_map \['O', 'H'\]\)"):
        atoms.get_potential_energy()
    atoms.calc = Calculator(potential, type_dict={"O": 0, "H": 1, "He": 1})
    out = potential.evaluate(atoms.positions, [0, 1, 1])
    assert atoms.get_potential_energy() == out["energy"][0, 0]
    for wrong in ({"O": 2}, {"O": "O"}, {"O": 0.5}):
        with pytest.raises(InputError, match="type_dict"):
            Calculator(potential, type_dict=wrong)


def test_parameters_come_from_info() -> None:
    potential = make_with_parameters()
    atoms = water()
    atoms.calc = Calculator(potential)
    with pytest.raises(InputError, match="fparam is missing"):
        atoms.get_potential_energy()
    atoms.info.update(fparam=[0.3, 0.4], aparam=np.linspace(0, 1, 6)[:, None])
    types = [0, 1, 1, 0, 1, 1]
    given = {"fparam": [0.3, 0.4], "aparam": atoms.info["aparam"]}
    before = potential.evaluate(atoms.positions, types, CELL, **given)["energy"][0, 0]
    assert atoms.get_potential_energy() == before
    # Results are kept until something changes; what is in info counts as well, in place too.
    atoms.info["aparam"][2] += 1.0
    after = potential.evaluate(atoms.positions, types, CELL, **given)["energy"][0, 0]
    assert after != before
    assert atoms.get_potential_energy() == after
    atoms.info["fparam"] = [0.5, 0.4]
    assert atoms.get_potential_energy() != after


def test_results_are_kept(potential, monkeypatch) -> None:
    calls: list[int] = []
    evaluate = potential.evaluate
    monkeypatch.setattr(potential, "evaluate", lambda *args, **options: calls.append(1) or evaluate(*args, **options))
    atoms = water()
    atoms.calc = Calculator(potential)
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_stress()
    assert len(calls) == 1
    atoms.positions[0, 0] += 0.1
    atoms.get_forces()
    assert len(calls) == 2


def test_trajectories_hold_the_results(potential, tmp_path) -> None:
    atoms = water()
    atoms.calc = Calculator(potential)
    energy = atoms.get_potential_energy()
    for name in ("x.traj", "x.extxyz"):
        ase.io.write(tmp_path / name, atoms)
        assert ase.io.read(tmp_path / name).get_potential_energy() == pytest.approx(energy, abs=1e-7)
    assert ase.io.read(tmp_path / "x.traj").calc.name == "dpmodel"


def test_paths_and_backends(tmp_path) -> None:
    calculator = Calculator(GOLDEN, backend="numpy")
    atoms = water()
    atoms.calc = calculator
    assert atoms.get_potential_energy() == pytest.approx(
        dpmodel.load(GOLDEN, "pt").evaluate(atoms.positions, [0, 1, 1, 0, 1, 1], CELL)["energy"][0, 0], abs=1e-10
    )
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_forces()
    with pytest.raises(InputError, match="loaded already"):
        Calculator(calculator.potential, backend="pt")
    with pytest.raises(InputError, match="unknown argument 'devcie'; besides its own, the calculator takes label, dir"):
        Calculator(calculator.potential, devcie="cuda")
    atoms.info["fparam"] = "abc"
    with pytest.raises(InputError, match=r'atoms.info\["fparam"\]: expected numbers, got .abc'):
        atoms.get_potential_energy()


def test_models_that_ase_has_no_name_for_are_refused() -> None:
    section = SeAConfig(sel=(8,), rcut=4.0, neuron=(4,), axis_neuron=2).build(1, ("Cu",), seed=0)
    net = DOSFittingConfig(numb_dos=3, neuron=(4,)).build(1, section.dim_out, False, seed=0)
    potential = Potential.from_model(StandardModel.assemble(section, net, ("Cu",)), "numpy")
    with pytest.raises(InputError, match="a model of energies or dipoles: ASE has no name for 'dos'; use Potential"):
        Calculator(potential)


# --- Hessians, dipoles, spins -------------------------------------------------------------------------------


def molecule() -> ase.Atoms:
    positions = [[0, 0, 0], [0.9, 0.1, 0], [-0.3, 1.0, 0.2], [0.4, -0.6, 1.6], [1.1, 0.2, 2.2]]
    return ase.Atoms("OHHOH", positions=positions)


def test_vibrations_are_those_of_displacements(potential, tmp_path) -> None:
    from ase.vibrations import Vibrations, VibrationsData

    atoms = molecule()
    atoms.calc = Calculator(potential)
    hessian = atoms.calc.get_hessian(atoms)
    assert hessian.shape == (15, 15)
    np.testing.assert_array_equal(atoms.calc.get_property("hessian", atoms), hessian)
    np.testing.assert_allclose(atoms.get_forces(), potential.evaluate(atoms.positions, [0, 1, 1, 0, 1])["force"][0])
    displaced = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-4)
    displaced.run()
    expected, ours = displaced.get_vibrations(), VibrationsData.from_2d(atoms, hessian)
    np.testing.assert_allclose(ours.get_hessian_2d(), expected.get_hessian_2d(), rtol=0, atol=1e-7)
    assert np.abs(ours.get_energies()).max() > 1e-3  # eV
    square = [data.get_energies_and_modes()[0] ** 2 for data in (ours, expected)]  # imaginary ones too
    np.testing.assert_allclose(square[0], square[1], rtol=0, atol=1e-9)


def test_phonons_are_those_of_displacements(potential, tmp_path) -> None:
    """Force constants between a cell and its images, as the Hessian of the supercell has them."""
    from ase.phonons import Phonons

    cell = np.array([[4.2, 0.0, 0.0], [0.5, 4.4, 0.0], [0.1, -0.3, 4.6]])
    atoms = ase.Atoms("OHH", scaled_positions=[[0, 0, 0], [0.3, 0.1, 0.2], [0.6, 0.7, 0.4]], cell=cell, pbc=True)
    phonons = Phonons(atoms, Calculator(potential), supercell=(2, 1, 1), name=str(tmp_path / "phonon"), delta=1e-4)
    phonons.run()
    phonons.read(symmetrize=0, acoustic=False)
    whole = atoms * (2, 1, 1)
    hessian = Calculator(potential).get_hessian(whole)
    expected = phonons.get_force_constant()
    for image in range(2):
        np.testing.assert_allclose(hessian[:9, 9 * image : 9 * image + 9], expected[image], rtol=0, atol=1e-7)
    assert np.abs(hessian[:9, 9:]).max() > 1e-3


def test_hessians_need_derivatives() -> None:
    calculator = Calculator(GOLDEN, backend="numpy")
    with pytest.raises(PropertyNotImplementedError):
        calculator.get_hessian(molecule())


def test_dipoles() -> None:
    dipole = dpmodel.load(GOLDEN.parent / "dipole_sea.dp", "pt")
    atoms = water()
    atoms.calc = Calculator(dipole)
    expected = dipole.evaluate(atoms.positions, [0, 1, 1, 0, 1, 1], CELL)["global_dipole"][0]
    np.testing.assert_allclose(atoms.get_dipole_moment(), expected, rtol=1e-13)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy()


def test_spins_are_the_initial_moments() -> None:
    magnetic = dpmodel.load(GOLDEN.parent / "spin_sea.dp", "pt")
    atoms, rng = water(), np.random.default_rng(4)
    types = [magnetic.type_map.index(name) for name in ("O", "H", "H", "O", "H", "H")]
    atoms.calc = Calculator(magnetic)
    seen = []
    for moments in (rng.normal(size=(6, 3)), rng.normal(size=6)):
        atoms.set_initial_magnetic_moments(None)
        atoms.set_initial_magnetic_moments(moments)
        spin = moments if moments.ndim == 2 else np.stack([0 * moments, 0 * moments, moments], axis=1)
        expected = magnetic.evaluate(atoms.positions, types, CELL, spin=spin)
        assert atoms.get_potential_energy() == expected["energy"][0, 0]
        np.testing.assert_array_equal(atoms.get_forces(), expected["force"][0])
        np.testing.assert_array_equal(atoms.calc.results["force_mag"], expected["force_mag"][0])
        seen.append(expected["energy"][0, 0])
    assert seen[0] != seen[1]
    assert atoms.calc.get_hessian(atoms).shape == (18, 18)
