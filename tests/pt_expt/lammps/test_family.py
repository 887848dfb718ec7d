"""Descriptors that pass messages side by side, virtual atoms, models of models: one rank equals Python, two equal one."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

import dpmodel

from .conftest import CENTROID, MAGNETIC, NKTV2P, Atoms, changed, cube
from .test_numbers import CENTROID_ORDER, SYMMETRIC, assert_equal, symmetric, triclinic

HBAR = 4.135667403e-3 / (2.0 * np.pi)
"""eV ps, as LAMMPS has it in units metal."""
nightly = pytest.mark.nightly
OTHERS = ("dpa2", "hybrid", "spin_dpa3", "spin_dpa2", "spin_se_a", "spin_all", "zbl", "linear")
KINDS = [pytest.param("spin_hybrid", "spin_hybrid"), *(pytest.param(kind, kind, marks=nightly) for kind in OTHERS)]


def has_spins(kind: str) -> bool:
    return kind.startswith("spin")


def with_spins(atoms: Atoms) -> Atoms:
    """Directions and lengths of all kinds, of O too, whose spins most models do not see."""
    rng = np.random.default_rng(4)
    return dataclasses.replace(atoms, spin=rng.normal(size=(len(atoms.coord), 3)))


def for_kind(kind: str, atoms: Atoms) -> Atoms:
    return with_spins(atoms) if has_spins(kind) else atoms


@pytest.fixture
def model(request, artefact, models):
    return artefact(request.param, models.small(request.param), atomic_virial=True)


def force_mag(run, atoms, step=0):
    """-dE/d(spin), eV per unit of spin."""
    return run.columns(step, *MAGNETIC.split()) * HBAR / np.linalg.norm(atoms.spin, axis=1)[:, None]


@pytest.mark.parametrize(("kind", "model"), KINDS, indirect=["model"])
@pytest.mark.parametrize("cell", ["cube", "triclinic"])
def test_one_rank_equals_evaluate(lammps, make_script, kind, model, cell):
    atoms = for_kind(kind, cube() if cell == "cube" else triclinic())
    run = lammps.good(make_script(atoms, model))
    given = {"spin": atoms.spin} if has_spins(kind) else {}
    expected = dpmodel.load(model).evaluate(atoms.coord, atoms.kind, atoms.cell, atomic=True, **given)
    assert np.abs(expected["force"]).max() > 1e-3
    assert abs(run.energy() - expected["energy"].item()) <= 1e-10 * max(1.0, abs(run.energy()))
    np.testing.assert_allclose(run.force(), expected["force"][0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.columns(0, "c_energy"), expected["atom_energy"][0], rtol=0, atol=1e-10)
    virial = symmetric(expected["virial"].reshape(1, 9))[0]
    np.testing.assert_allclose(run.virial(), virial[SYMMETRIC], rtol=0, atol=1e-10 * max(1.0, np.abs(virial).max()))
    shares = expected["atom_virial"].reshape(-1, 9)
    found = -run.columns(0, *CENTROID.split()) / NKTV2P
    np.testing.assert_allclose(found, shares[:, CENTROID_ORDER], rtol=0, atol=1e-10)
    if has_spins(kind):
        assert np.abs(expected["force_mag"]).max() > 1e-4
        np.testing.assert_allclose(force_mag(run, atoms), expected["force_mag"][0], rtol=0, atol=1e-10)
        assert force_mag(run, atoms)[atoms.kind == 0].any() == (kind == "spin_all")


@pytest.mark.parametrize(("kind", "model"), KINDS, indirect=["model"])
@pytest.mark.parametrize("style", ["brick", "tiled"])
def test_two_ranks_equal_one(lammps, make_script, kind, model, style):
    """At once, and after five steps with a new neighbour list in each."""
    atoms = for_kind(kind, cube())
    tiled = {"before": "comm_style tiled", "ready": "balance 1.0 rcb"} if style == "tiled" else {}
    text = make_script(atoms, model, after="run 5", **tiled)
    one, two = lammps.good(text), lammps.good(text, ranks=2)
    assert np.abs(one.force(5) - one.force(0)).max() > 1e-6
    for step, factor in ((0, 1.0), (5, 10.0)):
        assert_equal(two, one, step, factor=factor)
        if has_spins(kind):
            np.testing.assert_allclose(
                force_mag(two, atoms, step), force_mag(one, atoms, step), rtol=0, atol=factor * 1e-10
            )


@pytest.mark.nightly
@pytest.mark.parametrize("model", ["charged"], indirect=True)
def test_charge_and_spin(lammps, make_script, model):
    """Two numbers of the command are those of `evaluate`, on one rank and on two."""
    atoms = cube()
    found = []
    for numbers in ([1.0, 2.0], [-2.0, 1.0]):
        style = f"dpmodel {model} charge_spin {numbers[0]:g} {numbers[1]:g}"
        expected = dpmodel.load(model).evaluate(atoms.coord, atoms.kind, atoms.cell, charge_spin=[numbers])
        for ranks in (1, 2):
            run = lammps.good(make_script(atoms, model, style=style), ranks=ranks)
            assert abs(run.energy() - expected["energy"].item()) <= 1e-10 * max(1.0, abs(run.energy()))
            np.testing.assert_allclose(run.force(), expected["force"][0], rtol=0, atol=1e-10)
        found.append(run.energy())
    assert abs(found[0] - found[1]) > 1e-6


def test_spins_that_cannot_be_used(lammps, make_script, model_of_spins):
    """Every rank ends, with one message."""
    atoms = with_spins(cube())
    none = atoms.spin.copy()
    none[np.flatnonzero(atoms.kind == 1)[3]] *= 1e-9
    longer = "run 0\nset type 2 spin/atom 6.0 0 0 1\nrun 1 pre no"
    for other, options, message in (
        (cube(), {}, "this model takes spins: use atom_style spin"),
        (dataclasses.replace(atoms, spin=none), {}, "has no spin, or hardly any"),
        (atoms, {"after": longer}, "neighbours were looked for up to .*max_spin"),
        (
            atoms,
            {"ready": "fix 9 all nve/spin lattice moving", "before": "atom_modify map array"},
            "would leave out the model's",
        ),
        (atoms, {"style": f"dpmodel {model_of_spins} max_spin 0"}, "max_spin expects a length above 0"),
    ):
        run = lammps.run(make_script(other, model_of_spins, **options), ranks=2)
        assert run.status != 0
        assert len(re.findall(message, run.text)) == 1, run.text[-2000:]
    text = make_script(atoms, model_of_spins, style=f"dpmodel {model_of_spins} max_spin 6.5", after=longer)
    assert lammps.good(text, ranks=2).frames


@pytest.fixture
def model_of_spins(artefact, models):
    return artefact("spin_hybrid", models.small("spin_hybrid"), atomic_virial=True)


def test_spins_turn_to_lower_energies(lammps, make_script, model_of_spins):
    """LAMMPS's own minimiser reads the magnetic forces where the pair style has put them."""
    after = "min_style spin\nmin_modify alpha_damp 1.0 discrete_factor 10.0\nminimize 0 0 10 100"
    run = lammps.good(make_script(with_spins(cube()), model_of_spins, after=after, steps=10), ranks=2)
    assert run.energy(10) < run.energy(0)


def test_a_model_without_energies_is_refused(lammps, make_script, se_a_pt2, tmp_path):
    changed(se_a_pt2, tmp_path / "other.pt2", output="dos")
    run = lammps.run(make_script(cube(), "other.pt2"))
    assert run.status != 0
    assert "it predicts 'dos': only models of energies can run in LAMMPS" in run.text
