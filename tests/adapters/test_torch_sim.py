"""The TorchSim model: its own validator, numbers of the potential, and an NVE run."""

from __future__ import annotations

import warnings
from pathlib import Path

import ase
import numpy as np
import pytest
import torch

import dpmodel
from dpmodel.descriptors import SeAConfig
from dpmodel.errors import BackendError, InputError
from dpmodel.fittings import EnerFittingConfig
from dpmodel.models import StandardModel
from dpmodel.potential import Potential

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_sim as ts
    from torch_sim.models.interface import validate_model_outputs

    from dpmodel.backends.pt.torch_sim import TorchSimModel

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CPU = torch.device("cpu")
CELL = np.array([[8.0, 0.0, 0.0], [0.7, 7.5, 0.0], [-0.4, 0.9, 7.0]])


def water(count: int, **options) -> ase.Atoms:
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3) * 2.2
    positions = (grid + np.random.default_rng(count).uniform(-0.3, 0.3, (8, 3)))[:count]
    return ase.Atoms(("OHH" * 3)[:count], positions=positions, **{"cell": CELL, "pbc": True, **options})


def state(*systems: ase.Atoms):
    return ts.io.atoms_to_state(list(systems), CPU, torch.float64)


def test_the_validator_of_torch_sim() -> None:
    descriptor = SeAConfig(sel=(40, 40), rcut=4.5, rcut_smth=1.0, neuron=(4, 8), axis_neuron=2, seed=1)
    built = descriptor.build(2, ("Fe", "Si"))
    net = EnerFittingConfig(neuron=(6, 6), seed=2).build(2, built.dim_out, mixed_types=False)
    potential = Potential.from_model(StandardModel.assemble(built, net, ("Fe", "Si")), "pt")
    for dtype in (torch.float64, torch.float32):
        validate_model_outputs(TorchSimModel(potential, device="cpu", dtype=dtype), CPU, dtype)


@pytest.mark.parametrize("periodic", [True, False])
def test_numbers_of_a_batch(periodic: bool) -> None:
    potential = dpmodel.load(GOLDEN / "dpa3.dp", "pt")
    systems = [water(count, pbc=periodic) for count in (3, 8, 5)]
    out = TorchSimModel(potential, device="cpu").forward(state(*systems))
    first = 0
    for k, atoms in enumerate(systems):
        types = [potential.type_map.index(name) for name in atoms.get_chemical_symbols()]
        expected = potential.evaluate(atoms.positions, types, CELL if periodic else None)
        rows = slice(first, first + len(atoms))
        np.testing.assert_allclose(out["energy"][k].numpy(), expected["energy"][0, 0], rtol=1e-13)
        np.testing.assert_allclose(out["forces"][rows].numpy(), expected["force"][0], rtol=0, atol=1e-12)
        virial = expected["virial"].reshape(3, 3)
        stress = -(virial + virial.T) / 2 / atoms.get_volume() if periodic else np.zeros((3, 3))
        np.testing.assert_allclose(out["stress"][k].numpy(), stress, rtol=0, atol=1e-14)
        first += len(atoms)
    assert "stress" not in TorchSimModel(potential, device="cpu", compute_stress=False).forward(state(*systems))


def test_dynamics_conserve_energy() -> None:
    """20 steps of 0.25 fs with TorchSim's own integrator, two systems at once."""
    model = TorchSimModel(GOLDEN / "se_e2_a.dp", device="cpu")
    unit = ts.units.MetalUnits
    init, update = ts.nve(model=model, dt=torch.tensor(0.00025 * unit.time, dtype=torch.float64), kT=torch.tensor(300 * unit.temperature, dtype=torch.float64))  # fmt: skip
    moving = init(state(water(8), water(5)), seed=1)

    def total() -> np.ndarray:
        kinetic = ts.calc_kinetic_energy(masses=moving.masses, momenta=moving.momenta, system_idx=moving.system_idx)
        return (moving.energy + kinetic).numpy()

    start, positions, energy = total(), moving.positions.clone(), moving.energy.clone()
    for _ in range(20):
        moving = update(moving)
    assert float((moving.positions - positions).abs().max()) > 1e-2
    drift = np.abs(total() - start)
    assert np.all(drift < 1e-3 * np.abs((moving.energy - energy).numpy()) + 1e-6)


def test_refusals() -> None:
    with pytest.raises(InputError, match="TorchSim runs models of energies, without spins and aparam"):
        TorchSimModel(GOLDEN / "spin_sea.dp", device="cpu")
    model = TorchSimModel(GOLDEN / "se_e2_a.dp", device="cpu")
    copper = ase.Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2]], cell=CELL, pbc=True)
    with pytest.raises(InputError, match=r"the model has no type for Cu; its type_map is \['O', 'H'\]"):
        model.forward(state(copper))
    file = GOLDEN / "se_e2_a.dp"
    with pytest.raises(InputError, match="unknown argument 'fparm'; models take fparam, aparam, charge_spin"):
        TorchSimModel(file, device="cpu", parameters={"fparm": [1.0]})
    with pytest.raises(BackendError, match="xpuu"):
        TorchSimModel(file, device="xpuu")
    with pytest.raises(BackendError, match="expected backend pt or pt_expt, got numpy"):
        TorchSimModel(file, "numpy", device="cpu")
    with pytest.raises(InputError, match="backend and head belong to loading"):
        TorchSimModel(model.potential, head="a")
    several = GOLDEN.parent / "checkpoints" / "multi.pt"
    with pytest.raises(InputError, match="choose one of its heads"):
        TorchSimModel(several, device="cpu")
    assert TorchSimModel(several, device="cpu", head="water_b").potential.type_map == ("O", "H")
