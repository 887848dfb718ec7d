"""Symmetries of the physics: rotation, translation, permutation, periodicity, batches."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

from dpmodel.geometry import neighbour_counts
from dpmodel.models import Model

from .cases import each_base, each_case, model_of, single
from .runners import Backend, runner
from .systems import System, graph_of, random_system
from .tolerance import assert_close, distance

Outputs = dict[str, np.ndarray]


def outputs(case: str, system: System) -> Outputs:
    """Outputs with a frame axis."""
    flat = runner(case, Backend.TORCH)(graph_of(model_of(case), system))
    frames, atoms = system.atype.shape
    return {
        key: value if key in ("energy", "virial") else value.reshape(frames, atoms, *value.shape[1:])
        for key, value in flat.items()
    }


def tolerance(case: str) -> float:
    return 2e-5 if single(case) else 1e-10


def orthogonal(rng: np.random.Generator, *, proper: bool) -> np.ndarray:
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q if (np.linalg.det(q) > 0) == proper else -q


def rotated(system: System, q: np.ndarray) -> System:
    cell = None if system.cell is None else system.cell @ q.T
    return system.replace(coord=system.coord @ q.T, cell=cell)


def rotated_outputs(result: Outputs, q: np.ndarray) -> Outputs:
    """What the outputs become where all vectors turn by `q`."""
    turned = dict(result)
    turned["force"] = result["force"] @ q.T
    for key in ("virial", "atom_virial"):
        tensor = result[key].reshape(*result[key].shape[:-1], 3, 3)
        turned[key] = (q @ tensor @ q.T).reshape(result[key].shape)
    return turned


@each_case
@pytest.mark.parametrize("proper", [True, False])
def test_rotation(case: str, proper: bool) -> None:
    system = random_system(model_of(case))
    q = orthogonal(np.random.default_rng(5), proper=proper)
    expected = rotated_outputs(outputs(case, system), q)
    assert_close(outputs(case, rotated(system, q)), expected, tolerance(case))


@each_case
def test_rotation_of_features(case: str) -> None:
    model = model_of(case)
    system, q = random_system(model), orthogonal(np.random.default_rng(6), proper=True)
    here, there = (model.descriptor(graph_of(model, s)) for s in (system, rotated(system, q)))
    assert here.node.shape == (system.atype.size, model.descriptor.dim_out)
    assert distance(there.node, here.node) <= tolerance(case)
    assert (here.rotation is None) == (model.descriptor.dim_emb == 0)
    if here.rotation is not None:
        assert here.rotation.shape == (system.atype.size, model.descriptor.dim_emb, 3)
        assert distance(there.rotation, here.rotation @ q.T) <= tolerance(case)


@each_case
def test_translation_and_images(case: str) -> None:
    """Moving everything, and atoms by whole cells, changes nothing; forces of a frame add up to zero."""
    system = random_system(model_of(case))
    rng = np.random.default_rng(7)
    expected = outputs(case, system)
    images = rng.integers(-3, 4, system.coord.shape).astype(float)
    moved = system.replace(coord=system.coord + [3.3, -17.0, 0.2] + images @ system.cell)
    assert_close(outputs(case, moved), expected, tolerance(case))
    assert distance(expected["force"].sum(axis=1), np.zeros((2, 3))) <= tolerance(case)


@each_case
def test_permutation(case: str) -> None:
    system = random_system(model_of(case))
    order = np.random.default_rng(8).permutation(system.atype.shape[1])
    expected = outputs(case, system)
    permuted = {key: value if key in ("energy", "virial") else value[:, order] for key, value in expected.items()}
    assert_close(outputs(case, system.atoms(order)), permuted, tolerance(case))


@each_case
def test_supercell(case: str) -> None:
    system = random_system(model_of(case))
    expected, na = outputs(case, system), system.atype.shape[1]
    double = system.atoms(np.tile(np.arange(na), 2))
    coord = double.coord.copy()
    coord[:, na:] += system.cell[:, None, 1]
    big = outputs(case, double.replace(coord=coord, cell=system.cell * [[1], [2], [1]]))
    for key, value in expected.items():
        whole = 2 * value if key in ("energy", "virial") else np.tile(value, (1, 2, *(1,) * (value.ndim - 2)))
        assert distance(big[key], whole) <= tolerance(case), key


@each_case
def test_frames_do_not_depend_on_their_batch(case: str) -> None:
    system = random_system(model_of(case), frames=3)
    expected = outputs(case, system)
    for k in range(3):
        alone = {key: value[k : k + 1] for key, value in expected.items()}
        assert_close(outputs(case, system.frames(slice(k, k + 1))), alone, tolerance(case))
    backwards = {key: value[::-1] for key, value in expected.items()}
    assert_close(outputs(case, system.frames(slice(None, None, -1))), backwards, tolerance(case))


@each_case
def test_virtual_atoms_change_nothing(case: str) -> None:
    system = random_system(model_of(case), virtual=0)
    expected, na = outputs(case, system), system.atype.shape[1]
    kept = np.array([1, 2, 4, 5, 6, 8, 9])  # between, before and behind virtual ones
    padded = system.atoms(np.zeros(11, np.int64))
    coord, atype = np.full((2, 11, 3), 1.0), np.full((2, 11), -1)
    coord[:, 0] = coord[:, 3] = np.nan
    coord[:, kept], atype[:, kept] = system.coord, system.atype
    aparam = None if system.aparam is None else padded.aparam.copy()
    if aparam is not None:
        aparam[:, kept] = system.aparam
    found = outputs(case, padded.replace(coord=coord, atype=atype, aparam=aparam))
    assert na == len(kept)
    for key, value in expected.items():
        assert distance(found[key] if key in ("energy", "virial") else found[key][:, kept], value) <= tolerance(case), (
            key
        )
    others = np.setdiff1d(np.arange(11), kept)
    assert all((found[key][:, others] == 0).all() for key in ("atom_energy", "force", "atom_virial", "mask"))


@each_case
def test_far_atoms_change_nothing(case: str) -> None:
    model = model_of(case)
    reach = 1 if not model.message_passing else 10  # cutoffs that information travels
    system = random_system(model, periodic=False)
    expected, na = outputs(case, system), system.atype.shape[1]
    double = system.atoms(np.tile(np.arange(na), 2))
    coord = double.coord.copy()
    width = np.ptp(coord[..., 0])
    coord[:, na:, 0] += width + reach * model.rcut + 0.01
    found = outputs(case, double.replace(coord=coord))
    for key in ("atom_energy", "force", "atom_virial"):
        assert distance(found[key][:, :na], expected[key]) <= tolerance(case), key


# --- anything that hypothesis comes up with -------------------------------------------------------------


@st.composite
def crystals(draw: st.DrawFn, model: Model) -> System:
    """One frame: any cell of moderate size (tilted, left-handed, smaller than the cutoff), any axes periodic."""
    length, tilt = st.floats(2.6, 7.0), st.floats(-3.0, 3.0)
    cell = np.diag([draw(length) for _ in range(3)])
    cell[1, 0], cell[2, 0], cell[2, 1] = draw(tilt), draw(tilt), draw(tilt)
    cell = cell[draw(st.permutations(range(3)))]
    na = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    coord = rng.uniform(-1, 2, (na, 3)) @ cell
    atype = np.array(draw(st.lists(st.integers(-1, model.ntypes - 1), min_size=na, max_size=na)))
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    counts, _, closest = neighbour_counts(coord, atype, cell, pbc, model.rcut, model.ntypes)
    assume(closest > 0.7)
    for request in model.requests():  # where neighbours are cut off, exact ties break symmetries
        assume(counts.sum() <= min(*request.sel, request.angles.sel if request.angles is not None else request.sel[0]))
    return System(coord=coord[None], atype=atype[None], cell=cell[None], pbc=pbc)


@each_base
@settings(max_examples=12)
@given(data=st.data())
def test_any_crystal(case: str, data: st.DataObject) -> None:
    model = model_of(case)
    system = data.draw(crystals(model))
    expected = outputs(case, system)
    assert distance(outputs_numpy(case, system)["energy"], expected["energy"]) <= 1e-12
    q = orthogonal(np.random.default_rng(data.draw(st.integers(0, 99))), proper=data.draw(st.booleans()))
    assert_close(outputs(case, rotated(system, q)), rotated_outputs(expected, q), 1e-10)
    order = np.array(data.draw(st.permutations(range(system.atype.shape[1]))))
    images = np.array(data.draw(st.tuples(*[st.integers(-2, 2)] * 3))) * system.pbc
    moved = system.replace(coord=system.coord + images @ system.cell[0] + 0.37).atoms(order)
    permuted = {key: value if key in ("energy", "virial") else value[:, order] for key, value in expected.items()}
    assert_close(outputs(case, moved), permuted, 1e-10)


def outputs_numpy(case: str, system: System) -> Outputs:
    return runner(case, Backend.NUMPY)(graph_of(model_of(case), system))
