"""Neighbour lists: vesin against the built-in search, both against an oracle, and what must not matter."""

import itertools
import subprocess
import sys

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.errors import BackendError, InputError
from dpmodel.geometry import neighbour_pairs
from dpmodel.geometry import neighbours as module
from dpmodel.geometry import search as search_module

METHODS = ["vesin", "search"]


def oracle(coord, cell, pbc, rcut):
    """{(i, j, shift): distance} by trying every shift that could matter, without wrapping."""
    pbc = np.broadcast_to(pbc, 3) & (cell is not None)
    cell = np.eye(3) if cell is None else cell
    span = [0, 0, 0]
    if pbc.any() and len(coord):
        periodic = cell[pbc]
        inverse = np.linalg.pinv(periodic)  # columns are reciprocal vectors within the periodic subspace
        fractional = coord @ inverse
        reach = rcut * np.linalg.norm(inverse, axis=0) + np.ptp(fractional, axis=0) + 1
        for axis, count in zip(np.flatnonzero(pbc), reach, strict=True):
            span[axis] = int(count)
    found = {}
    for shift in itertools.product(*(range(-k, k + 1) for k in span)):
        vec = coord[None, :, :] + np.array(shift) @ np.where(pbc[:, None], cell, 0.0) - coord[:, None, :]
        r = np.sqrt(np.sum(vec**2, axis=-1))
        for i, j in zip(*np.nonzero(r <= rcut), strict=True):
            if i != j or any(shift):
                found[int(i), int(j), shift] = r[i, j]
    return found


def as_dict(pairs):
    keys = zip(pairs.centre.tolist(), pairs.neighbour.tolist(), map(tuple, pairs.shift.tolist()), strict=True)
    return dict(zip(keys, pairs.distance.tolist(), strict=True))


@st.composite
def systems(draw):
    """Coordinates, cell, pbc, cutoff: tilted, left-handed, small cells; atoms inside and outside; 0 to 12 atoms."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = [draw(st.sampled_from([1.5, 3.0, 7.0, 12.0])) for _ in range(3)]
    tilt = draw(st.sampled_from([0.0, 0.5, 3.0]))
    cell = np.diag(lengths) + tilt * np.triu(rng.uniform(-1, 1, (3, 3)), 1) * np.array(lengths)[:, None]
    cell = cell[:, rng.permutation(3)] @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    pbc = draw(st.sampled_from([(True,) * 3, (True, True, False), (False, True, False), (True, False, True)]))
    outside = draw(st.sampled_from([1.0, 3.0]))
    atoms = draw(st.sampled_from([7, 12, 2, 1, 0]))
    coord = (rng.uniform(-0.5, 0.5, (atoms, 3)) * outside + 0.5) @ cell
    return coord, None if draw(st.integers(0, 9)) == 0 else cell, pbc, draw(st.sampled_from([3.5, 6.0, 1.0]))


@settings(max_examples=60, deadline=None)
@given(systems())
def test_vesin_search_and_oracle_agree(system):
    ours, theirs = (neighbour_pairs(*system, method=method) for method in ("search", "vesin"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    expected, found = oracle(*system), as_dict(ours)
    assert len(found) == len(ours.centre)
    # A pair whose rounded distance straddles the cutoff may be on either side of it.
    assert all(
        abs(r - system[3]) < 1e-9 for key, r in {**expected, **found}.items() if (key in expected) != (key in found)
    )
    for key in expected.keys() & found.keys():
        assert found[key] == pytest.approx(expected[key], abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(systems())
def test_vectors_order_and_antisymmetry(system):
    coord, cell, _, rcut = system
    pairs = neighbour_pairs(*system)
    moved = 0.0 if cell is None else pairs.shift @ cell
    np.testing.assert_allclose(pairs.vec, coord[pairs.neighbour] + moved - coord[pairs.centre], atol=1e-10)
    np.testing.assert_allclose(pairs.distance, np.linalg.norm(pairs.vec, axis=1), rtol=1e-14)
    assert (pairs.distance <= rcut).all()
    order = list(zip(pairs.centre.tolist(), pairs.distance.tolist(), strict=True))
    assert order == sorted(order)
    forward = {(i, j, *s): tuple(v) for i, j, s, v in zip(*(x.tolist() for x in pairs[:4]), strict=True)}
    for (i, j, *s), v in forward.items():
        assert forward[(j, i, *(-k for k in s))] == tuple(-x for x in v)


@settings(max_examples=20, deadline=None)
@given(systems(), st.integers(0, 1000))
def test_images_and_order_of_atoms_do_not_matter(system, seed):
    coord, cell, pbc, rcut = system
    rng, n = np.random.default_rng(seed), len(coord)
    images = rng.integers(-3, 4, (n, 3)) * np.array(pbc) if cell is not None else np.zeros((n, 3), int)
    order = rng.permutation(n)
    moved = coord + (images @ cell if cell is not None else 0.0)
    a, b = neighbour_pairs(coord, cell, pbc, rcut), neighbour_pairs(moved[order], cell, pbc, rcut)
    shift = b.shift + images[order][b.neighbour] - images[order][b.centre]
    back = dict(
        zip(
            zip(order[b.centre].tolist(), order[b.neighbour].tolist(), map(tuple, shift.tolist()), strict=True),
            b.distance.tolist(),
            strict=True,
        )
    )
    here = as_dict(a)
    assert all(abs(r - rcut) < 1e-9 for key, r in {**here, **back}.items() if (key in here) != (key in back))
    assert all(here[key] == pytest.approx(back[key], abs=1e-9) for key in here.keys() & back.keys())


@pytest.mark.parametrize("method", METHODS)
def test_cutoff_is_inclusive_and_images_of_oneself_count(method):
    pairs = neighbour_pairs(np.zeros((1, 3)), 3.0 * np.eye(3), True, 3.0, method=method)
    assert pairs.distance.tolist() == [3.0] * 6
    # Ties: equal norms, so lexicographic shifts.
    assert pairs.shift.tolist() == [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert (
        len(neighbour_pairs(np.zeros((1, 3)), 3.0 * np.eye(3), True, np.nextafter(3.0, 0), method=method).centre) == 0
    )


@pytest.mark.parametrize("method", METHODS)
def test_ties_follow_image_norm_then_atom(method):
    # On a square of edge 2 in a cell of edge 4 every neighbour has ties inside the cell and across its faces.
    coord = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0]])
    pairs = neighbour_pairs(coord, np.diag([4.0, 4.0, 50.0]), True, 2.0, method=method)
    first = [(j, tuple(s)) for i, j, s in zip(*(x.tolist() for x in pairs[:3]), strict=True) if i == 0]
    assert first == [(1, (0, 0, 0)), (2, (0, 0, 0)), (1, (-1, 0, 0)), (2, (0, -1, 0))]
    # The order is that of the images of wrapped atoms: where an atom is written down does not change it.
    moved = coord + np.array([[0.0, 0, 0], [8, -4, 0], [0, 0, 50], [4, 0, 0]])
    again = neighbour_pairs(moved, np.diag([4.0, 4.0, 50.0]), True, 2.0, method=method)
    np.testing.assert_array_equal(again.neighbour, pairs.neighbour)
    np.testing.assert_array_equal(again.vec, pairs.vec)


@pytest.mark.parametrize("method", METHODS)
def test_coincident_atoms_see_each_other(method):
    pairs = neighbour_pairs(np.array([[1.0, 1, 1], [1, 1, 1]]), None, True, 1.0, method=method)
    assert pairs.centre.tolist() == [0, 1]
    assert pairs.neighbour.tolist() == [1, 0]
    assert pairs.distance.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", [None, np.eye(3)])
def test_no_atoms(method, cell):
    pairs = neighbour_pairs(np.zeros((0, 3)), cell, True, 1.0, method=method)
    assert [x.shape for x in pairs] == [(0,), (0,), (0, 3), (0, 3), (0,)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distance", [1e5, 1e9])
@pytest.mark.parametrize("pbc", [False, (False, True, True)])
def test_far_atoms_along_open_axes_neither_hang_nor_crash(method, distance, pbc):
    coord = np.array([[0.0, 0, 0], [distance, 0, 0], [1, 1, 1]])
    pairs = neighbour_pairs(coord, 9 * np.eye(3), pbc, 4.0, method=method)
    assert list(zip(pairs.centre.tolist(), pairs.neighbour.tolist(), strict=True)) == [(0, 2), (2, 0)]


def test_needle_cell():
    # A cell 0.01 Å thin along one axis: hundreds of images of the one atom.
    cell = np.array([[0.01, 0, 0], [0, 10.0, 0], [0, 0, 10.0]])
    a, b = (neighbour_pairs(np.zeros((1, 3)), cell, True, 6.0, method=m) for m in METHODS)
    assert len(a.centre) == 1200
    np.testing.assert_array_equal(a.shift, b.shift)


def test_chunks_do_not_change_the_search(monkeypatch):
    coord = np.random.default_rng(3).uniform(0, 9, (60, 3))
    whole = neighbour_pairs(coord, 9 * np.eye(3), True, 4.0, method="search")
    monkeypatch.setattr(search_module, "_CANDIDATES", 100)
    parts = neighbour_pairs(coord, 9 * np.eye(3), True, 4.0, method="search")
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell", [None, np.array([[4.0, 0, 0], [3, 4, 0], [-5, 2, -4]])])
def test_search_takes_any_array_library(cell):
    coord = np.random.default_rng(4).uniform(-4, 8, (9, 3))
    coord[1] = coord[0] + (0 if cell is None else cell[0])  # a tie, so that the second sort runs
    strict = array_api_strict.asarray
    ours = neighbour_pairs(strict(coord), None if cell is None else strict(cell), True, 5.0)
    for a, b in zip(ours, neighbour_pairs(coord, cell, True, 5.0, method="vesin"), strict=True):
        assert type(a).__module__.startswith("array_api_strict")
        np.testing.assert_array_equal(np.asarray(a), b)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rcut": 0.0}, "cutoff must be a positive"),
        ({"rcut": float("nan")}, "cutoff must be a positive"),
        ({"method": "magic"}, "known are 'auto', 'vesin' and 'search'"),
        ({"coord": np.full((1, 3), np.nan)}, "atom 0 has NaN"),
        ({"cell": np.zeros((3, 3))}, "linearly dependent"),
        ({"cell": 1e-4 * np.eye(3)}, "Is the cell in Å"),
        ({"cell": 4e-3 * np.eye(3), "coord": np.zeros((9, 3))}, "too many"),
    ],
)
def test_bad_input_is_refused_at_once(change, match):
    given = {"coord": np.zeros((1, 3)), "cell": np.eye(3), "pbc": True, "rcut": 4.0, **change}
    with pytest.raises(InputError, match=match):
        neighbour_pairs(**given)


def test_without_vesin_the_search_serves(monkeypatch):
    monkeypatch.setattr(module._vesin, "installed", lambda: False)
    assert len(neighbour_pairs(np.zeros((1, 3)), np.eye(3), True, 1.0).centre) == 6
    with pytest.raises(InputError, match="vesin is not installed"):
        neighbour_pairs(np.zeros((1, 3)), np.eye(3), True, 1.0, method="vesin")


def test_what_vesin_refuses_is_an_error_of_ours():
    with pytest.raises(BackendError, match="vesin found no neighbours of 2 atoms within -1 Å: "):
        module._vesin.vesin_pairs(np.zeros((2, 3)), np.eye(3), (True, True, True), -1.0)


def test_vesin_is_used_and_brings_no_framework():
    code = (
        "import sys, numpy as np, dpmodel.geometry as g; from dpmodel.geometry import _vesin; "
        "assert _vesin._load.cache_info().currsize == 0; "
        "g.neighbour_pairs(np.zeros((1, 3)), np.eye(3), True, 1.0, method='vesin'); "
        "assert _vesin._load.cache_info().currsize == 1; "
        "assert not {'torch', 'jax', 'cupy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
