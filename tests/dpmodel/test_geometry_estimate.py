"""Lists that no memory holds are refused before the search; the estimate is right where it matters."""

from __future__ import annotations

import time

import array_api_strict
import numpy as np
import pytest

import dpmodel.geometry.estimate as module
from dpmodel.errors import InputError
from dpmodel.geometry import GraphBuilder, neighbour_pairs
from dpmodel.geometry.cells import make_lattice, wrap
from dpmodel.geometry.estimate import expected_pairs
from dpmodel.graph import NeighbourRequest

RNG = np.random.default_rng(11)
CUBE, SKEW = 12.0 * np.eye(3), np.array([[12.0, 0, 0], [7, 11, 0], [-5, 4, -13]])
SYSTEMS = {
    "a liquid, long cutoff": (RNG.uniform(0, 12, (200, 3)), CUBE, True, 14.0),
    "a liquid, short cutoff": (RNG.uniform(0, 12, (900, 3)), CUBE, True, 3.0),
    "a skewed cell": (RNG.uniform(0, 1, (300, 3)) @ SKEW, SKEW, True, 6.0),
    "a slab": (RNG.uniform(0, 1, (300, 3)) * [12, 12, 4], CUBE, (True, True, False), 9.0),
    "a wire": (RNG.uniform(0, 1, (200, 3)) * [12, 3, 4], CUBE, (True, False, False), 20.0),
    "a cluster within the cutoff": (RNG.uniform(0, 3, (300, 3)), None, False, 6.0),
    "a cluster": (RNG.uniform(0, 15, (900, 3)), None, False, 5.0),
    "a cluster and one atom far away": (
        np.concatenate([RNG.uniform(0, 1, (400, 3)), [[1e5, 0, 0]]]),
        None,
        False,
        4.0,
    ),
    "a dense spot in a large box": (RNG.uniform(0, 2, (400, 3)), 100 * np.eye(3), True, 6.0),
    "two dense spots across a face": (
        np.concatenate([RNG.uniform(0, 1, (200, 3)), RNG.uniform(98.9, 99.9, (200, 3))]),
        100 * np.eye(3),
        True,
        6.0,
    ),
    "a sheet": (RNG.uniform(0, 1, (500, 3)) * [20, 20, 0], None, False, 5.0),
    "atoms at one place": (np.zeros((50, 3)), None, False, 5.0),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_estimate_is_right_within_a_small_factor(system: str) -> None:
    coord, cell, pbc, rcut = SYSTEMS[system]
    lattice = make_lattice(cell, pbc)
    true = len(neighbour_pairs(coord, cell, pbc, rcut).centre)
    estimate = expected_pairs(wrap(coord, lattice)[0], lattice, rcut)
    assert 0.45 * true < estimate < 2.5 * true


def refused(coord: np.ndarray, cell: np.ndarray | None, pbc: object, rcut: float) -> str:
    start = time.monotonic()
    with pytest.raises(InputError, match="neighbours per atom: too many") as caught:
        neighbour_pairs(coord, cell, pbc, rcut, where="frame 7: ")  # type: ignore[arg-type]  # any kind of flags
    assert time.monotonic() - start < 2.0
    return str(caught.value)


def test_absurd_cutoffs_end_at_once() -> None:
    water = RNG.uniform(0, 12.4, (192, 3))
    message = refused(water, 12.4 * np.eye(3), True, 100.0)
    assert message.startswith("frame 7: about 8.") and "pairs of 192 atoms lie within 100.0 Å" in message
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_memory", lambda: 1e13)
        refused(water, 12.4 * np.eye(3), True, 100.0)


@pytest.mark.parametrize("library", [np, array_api_strict])
def test_slabs_and_dense_clusters_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    monkeypatch.setattr(module, "_memory", lambda: 8e9)
    cluster = library.asarray(RNG.uniform(0, 3, (6000, 3)))  # type: ignore[attr-defined]  # either library
    assert "9 GB; at most 40% of this machine's 8 GB" in refused(cluster, None, True, 6.0)
    refused(cluster, 100.0 * np.eye(3) if library is np else library.asarray(100 * np.eye(3)), True, 6.0)  # type: ignore[attr-defined]
    refused(RNG.uniform(0, 10, (2000, 3)), 10 * np.eye(3), (True, True, False), 60.0)


def test_many_frames_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_memory", lambda: 1e7)
    monkeypatch.setattr(module, "_SMALL", 1e4)
    coord, atype = RNG.uniform(0, 5, (40, 40, 3)), np.zeros((40, 40), int)
    builder = GraphBuilder((NeighbourRequest(rcut=9.0, sel=(50,), layout="slots"),), 1)
    builder.build(coord[:3], atype[:3], None)
    with pytest.raises(InputError, match=r"about 6.2e\+04 pairs .* in these 40 frames: too many at once.*DP_INFER"):
        builder.build(coord, atype, None)
