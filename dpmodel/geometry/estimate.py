"""How many pairs a neighbour list will hold, before it is searched, and whether the memory suffices for them."""

from __future__ import annotations

import itertools
import math
import os
from functools import cache

import numpy as np
from array_api_compat import is_torch_array, to_device

from dpmodel.errors import InputError
from dpmodel.geometry.cells import Lattice
from dpmodel.op import Array

__all__ = ["check_memory", "check_total", "expected_pairs", "extents"]

_BYTES_PER_PAIR = 250
"""Peak: the pairs found, displacements, permutation and sorted copies (measured: 170), and the graph made of them."""
_SHARE = 0.4
"""Of the machine's memory, for one list."""
_SMALL = 10_000_000
"""Pairs that need no closer look."""
_MAX_NEIGHBOURS = 50_000
"""Per atom, in lists that are not small: a sphere of 50 Å in water. Certainly a mistake."""
_MAX_BINS = 2**20
"""Bins per axis at most, so that the number of a bin fits int64."""


@cache
def _memory() -> float:
    """Bytes of the machine's memory; 16 GB where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, other systems not every name
        return 16e9


def extents(coord: np.ndarray, lattice: Lattice | None) -> np.ndarray:
    """(3,), Å: heights of the cell along periodic axes, what the atoms span along open ones (Cartesian without cell).

    coord: (n, 3) with n > 0.
    """
    lengths = np.ptp(_along(coord, lattice), axis=0)
    return lengths if lattice is None else np.where(lattice.pbc, lattice.heights, lengths)


def _along(coord: np.ndarray, lattice: Lattice | None) -> np.ndarray:
    """(n, 3): distances along the heights of the cell, Å (an open axis has a unit vector, orthogonal to the others)."""
    return coord if lattice is None else coord @ (lattice.inverse * lattice.heights)


def check_memory(coord: Array, lattice: Lattice | None, rcut: float, *, where: str = "") -> None:
    """Raise InputError where the list of all pairs would not fit into memory, or holds absurdly many per atom.

    coord: (n, 3) of any array library, wrapped. `where` begins the message.
    """
    n = coord.shape[0]
    images = 1.0 if lattice is None else math.prod(2.0 * reach + 1.0 for reach in lattice.reach(rcut))
    if float(n) * n * images < _SMALL:
        return
    # Only PyTorch's arrays must be moved to become NumPy's.
    pairs = expected_pairs(np.asarray(to_device(coord, "cpu") if is_torch_array(coord) else coord), lattice, rcut)
    if pairs < _SMALL:
        return
    bytes_, memory = pairs * _BYTES_PER_PAIR, _memory()
    if bytes_ > _SHARE * memory or pairs > _MAX_NEIGHBOURS * n:
        raise InputError(
            f"{where}about {pairs:.2g} pairs of {n} atoms lie within {rcut} Å, {pairs / n:.2g} neighbours per atom: "
            f"too many (their list takes {bytes_ / 1e9:.3g} GB; at most {_SHARE:.0%} of this machine's "
            f"{memory / 1e9:.3g} GB, and {_MAX_NEIGHBOURS} neighbours per atom, are allowed). "
            "Lower the cutoff; are coordinates and cell in Å?"
        )


def check_total(pairs: int, done: int, frames: int) -> None:
    """Raise InputError where `frames` frames, of which `done` have so many pairs, will not fit into memory together."""
    expected, memory = pairs * frames / done, _memory()
    if expected >= _SMALL and expected * _BYTES_PER_PAIR > _SHARE * memory:
        raise InputError(
            f"about {expected:.2g} pairs lie within the cutoff in these {frames} frames: too many at once "
            f"({expected * _BYTES_PER_PAIR / 1e9:.3g} GB; at most {_SHARE:.0%} of this machine's {memory / 1e9:.3g} GB). "
            "Lower the batch size (training), DP_INFER_BATCH_SIZE (evaluation) or the cutoff"
        )


def expected_pairs(coord: np.ndarray, lattice: Lattice | None, rcut: float) -> float:
    """Roughly how many directed pairs lie within `rcut`, at any boundaries.

    coord: (n, 3), wrapped. Atoms are counted in bins at least one cutoff wide. Around each bin is a block of 27 (of the
    whole axis where that has fewer than three bins); the density of the block fills the sphere, or the part of it
    that open axes leave. Not less than the pairs in cubes whose diagonal is one cutoff, which all count.
    """
    if len(coord) == 0:
        return 0.0
    along, lengths = _along(coord, lattice), extents(coord, lattice)
    periodic = np.zeros(3, np.bool_) if lattice is None else np.array(lattice.pbc)
    skew = 1.0 if lattice is None else float(abs(np.linalg.det(lattice.vectors)) / np.prod(lattice.heights))
    bins = np.clip(np.floor(lengths / rcut), 1, _MAX_BINS)
    whole = bins < 3
    bins[whole] = 1
    width = np.maximum(lengths, 1e-3 * rcut) / bins
    block = np.where(whole, width, 3.0 * width)
    reached = np.where(periodic, 2.0 * rcut, np.minimum(2.0 * rcut, block))
    sphere = min(4.0 / 3.0 * math.pi * rcut**3, float(np.prod(reached)) * skew)
    seen = _block_sum(along, width, bins.astype(np.int64), periodic)
    return max(seen * sphere / (float(np.prod(block)) * skew), _within_cubes(coord, rcut))


def _block_sum(along: np.ndarray, width: np.ndarray, bins: np.ndarray, periodic: np.ndarray) -> float:
    """Sum over bins of the atoms in one times the atoms in its block of neighbouring bins."""
    low = np.where(periodic, 0.0, np.min(along, axis=0))
    index = np.clip(np.floor((along - low) / width).astype(np.int64), 0, bins - 1)
    size = bins + 2  # an empty bin on either side, so that what lies beyond an open end is another number

    def number(place: np.ndarray) -> np.ndarray:
        found: np.ndarray = (place[:, 0] * size[1] + place[:, 1]) * size[2] + place[:, 2]
        return found

    numbers, first, counts = np.unique(number(index + 1), return_index=True, return_counts=True)
    index, total = index[first], 0.0
    for offset in itertools.product(*[(0,) if k == 1 else (-1, 0, 1) for k in bins.tolist()]):
        place = index + np.array(offset)
        place = np.where(periodic, place % bins, place) + 1
        other = np.clip(np.searchsorted(numbers, number(place)), None, len(numbers) - 1)
        total += float(np.sum(counts * np.where(numbers[other] == number(place), counts[other], 0), dtype=np.float64))
    return total


def _within_cubes(coord: np.ndarray, rcut: float) -> float:
    """Pairs within cubes whose diagonal is the cutoff; 0 where the atoms lie too far apart to number the cubes."""
    place = np.floor((coord - np.min(coord, axis=0)) * (math.sqrt(3.0) / rcut))
    size = np.max(place, axis=0) + 1.0
    if np.max(size) > _MAX_BINS:
        return 0.0
    counts = np.unique((place[:, 0] * size[1] + place[:, 1]) * size[2] + place[:, 2], return_counts=True)[1]
    return float(np.sum(counts * (counts - 1.0)))
