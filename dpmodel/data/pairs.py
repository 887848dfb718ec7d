"""Frames with atoms that are too close to each other, for `min_pair_dist`."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from dpmodel.data.system import Batch, Floats, Integers, System
from dpmodel.geometry.cells import make_lattice

__all__ = ["too_close"]

_ROWS = 1 << 18
"""Distances that are computed at a time."""


def too_close(system: System, distance: float) -> NDArray[np.bool_]:
    """(nframes,) whether a pair of real atoms, periodic images included, is closer than `distance` (Å)."""
    out = np.zeros(system.nframes, bool)
    for k in range(system.nframes):
        out[k] = _frame_too_close(system.batch(np.array([k])), distance)
    return out


def _frame_too_close(batch: Batch, distance: float) -> bool:
    x = batch.coord[0][batch.atype[0] >= 0]
    if batch.cell is None:
        return any(_closer(x[i : i + 1], x[:i], distance) for i in range(1, len(x)))
    sides = batch.pbc if isinstance(batch.pbc, tuple) else (True, True, True)
    lattice = make_lattice(batch.cell[0], sides)
    if lattice is None:  # some side is periodic, or there would be no cell
        raise AssertionError
    cell = lattice.vectors
    inverse = np.linalg.inv(cell)
    # Rows of the cell are vectors, so columns of its inverse are normals over face distances.
    width = 1.0 / np.linalg.norm(inverse, axis=0)
    fraction = x @ inverse
    # |image| < d means |fraction along a| < d / width_a: the nearest image, and in small cells some beyond it.
    reach = [int(np.floor(distance / w + 0.5)) if side else 0 for w, side in zip(width, sides, strict=True)]
    shifts = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))), np.float64)
    own = shifts[np.any(shifts != 0, axis=1)] @ cell
    if len(own) and _closer(np.zeros((1, 3)), own, distance):
        return True
    step = max(1, _ROWS // (len(x) * len(shifts)))
    for start in range(0, len(x), step):
        rows: Integers = np.arange(start, min(start + step, len(x)))
        between: Floats = fraction[rows, None, :] - fraction[None, :, :]  # (k, n, 3)
        between -= np.where(sides, np.round(between), 0.0)
        vector = (between[:, :, None, :] + shifts) @ cell  # (k, n, s, 3)
        square = np.min(np.sum(vector * vector, axis=-1), axis=-1)
        square[np.arange(len(rows)), rows] = np.inf
        if np.any(square < distance**2):
            return True
    return False


def _closer(a: Floats, b: Floats, distance: float) -> bool:
    return bool(np.any(np.sum((a - b) ** 2, axis=-1) < distance**2))
