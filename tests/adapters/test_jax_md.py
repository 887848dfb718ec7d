"""JAX MD: energies and forces of the potential, in cells of any size, and a compiled NVE run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpmodel
from dpmodel.backends.jax.jax_md import energy_function, model_neighbor_list
from dpmodel.errors import BackendError, InputError

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NA = 6
CELL = np.array([[6.0, 0.0, 0.0], [0.8, 5.5, 0.0], [-0.4, 0.6, 6.2]])
COORD = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[:NA] * 2.2 + np.random.default_rng(3).uniform(
    -0.3, 0.3, (NA, 3)
)
ATYPE = np.array([0, 1, 1, 0, 1, 1])


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("name", "fractional", "pbc"),
    [
        ("se_e2_a", True, (True, False, True)), ("dpa3", True, (True, True, True)),
        ("se_e2_a_atom_pair_excl", False, (True, True, True)), ("dpa1", False, (False, False, False)),
        *(
            pytest.param(name, True, (True, True, True), marks=pytest.mark.nightly)
            for name in ("zbl_dpa1", "linear_sea_pairtab", "dpa2", "hybrid_dpa2_dpa3")
        ),
    ],
)  # fmt: skip
def test_numbers(name: str, fractional: bool, pbc: tuple[bool, bool, bool]) -> None:
    """The cells are smaller than twice the cutoff: atoms see several images of each other."""
    potential = dpmodel.load(GOLDEN / f"{name}.dp", "pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # neighbours beyond `sel`: both routes leave out the same ones
        expected = potential.evaluate(COORD, ATYPE, CELL, pbc=pbc)
    neighbor_fn, energy_fn = model_neighbor_list(
        potential, CELL.T, ATYPE, fractional_coordinates=fractional, pbc=pbc, dr_threshold=0.3
    )
    R = jnp.asarray(COORD @ np.linalg.inv(CELL) if fractional else COORD)
    neighbor = neighbor_fn.allocate(R)
    assert not neighbor.did_buffer_overflow
    energy, slope = jax.jit(jax.value_and_grad(energy_fn))(R, neighbor)
    np.testing.assert_allclose(energy, expected["energy"][0, 0], rtol=1e-12)
    np.testing.assert_allclose(-slope, expected["force"][0], rtol=0, atol=1e-11)


def test_dynamics_conserve_energy() -> None:
    from jax_md import simulate, space

    potential = dpmodel.load(GOLDEN / "se_e2_a.dp", "jax")
    neighbor_fn, energy_fn = model_neighbor_list(potential, CELL.T, ["O", "H", "H", "O", "H", "H"])
    _, shift = space.periodic_general(jnp.asarray(CELL.T), fractional_coordinates=True)
    R = jnp.asarray(COORD @ np.linalg.inv(CELL)) % 1.0
    neighbor = neighbor_fn.allocate(R)
    init, apply = simulate.nve(energy_fn, shift, 2e-3)
    state = init(jax.random.PRNGKey(0), R, kT=0.02, mass=10.0, neighbor=neighbor)

    def step(state, neighbor):
        neighbor = neighbor.update(state.position)
        return apply(state, neighbor=neighbor), neighbor

    def total(state, neighbor):
        return energy_fn(state.position, neighbor) + simulate.kinetic_energy(state)

    start, potential_energy, step = float(total(state, neighbor)), float(energy_fn(R, neighbor)), jax.jit(step)
    for _ in range(50):
        state, neighbor = step(state, neighbor)
    neighbor = neighbor.update(state.position)
    change = abs(float(energy_fn(state.position, neighbor)) - potential_energy)
    assert change > 1e-6
    assert abs(float(total(state, neighbor)) - start) < 1e-6 * change


def test_refusals() -> None:
    potential = dpmodel.load(GOLDEN / "se_e2_a.dp", "jax")
    with pytest.raises(InputError, match=r"types: the model knows no 'Na'; its type_map is \['O', 'H'\]"):
        energy_function(potential, ["O", "Na"])
    with pytest.raises(InputError, match=r"types: expected 0 to 1 \['O', 'H'\], got 0 to 2"):
        energy_function(potential, [0, 2])
    with pytest.raises(InputError, match="unknown argument 'colour'; models take fparam, aparam, charge_spin"):
        energy_function(potential, [0], colour=1)
    with pytest.raises(InputError, match="head belongs to loading"):
        model_neighbor_list(potential, CELL.T, [0], head="a")
    several = GOLDEN.parent / "checkpoints" / "multi.pt"
    with pytest.raises(InputError, match="choose one of its heads"):
        model_neighbor_list(several, CELL.T, [0])
    model_neighbor_list(several, CELL.T, ["O"], head="water_a")
    with pytest.raises(InputError, match="fparam: expected 0 numbers, got 1"):
        energy_function(potential, [0], fparam=[1.0])
    with pytest.raises(InputError, match="fparam is missing: this model takes 2 numbers"):
        energy_function(dpmodel.load(GOLDEN / "se_e2_a_fparam_aparam.dp", "pt"), [0])
    with pytest.raises(InputError, match="models of energies without spin"):
        energy_function(dpmodel.load(GOLDEN / "spin_sea.dp", "pt"), [0])
    with jax.enable_x64(False), pytest.raises(BackendError, match="jax_enable_x64"):
        energy_function(potential, [0])
