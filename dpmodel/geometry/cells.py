"""Cells: what is accepted, how open axes are completed, and how atoms are wrapped.

A cell is three row vectors in Å, of any handedness and any shape; only its periodic vectors matter. Along an open
axis the given vector (zero, as ASE writes it, or anything) is replaced by a unit vector orthogonal to the
periodic ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpmodel.errors import InputError
from dpmodel.op import Array
from dpmodel.ops import array_namespace, device_of

__all__ = ["Lattice", "check_coord", "check_pbc", "make_lattice", "wrap"]

# Volume over the product of the lengths; rounding of a flat cell's determinant is of the order 1e-16.
_FLAT = 1e-10
# Beyond this many cells from the origin float64 keeps fewer than 7 digits of a position within its cell.
_FAR = 2.0**30
_LARGEST = 1e10
"""Å: float64 resolves 2e-6 Å there."""


@dataclasses.dataclass(frozen=True)
class Lattice:
    """A valid periodic cell. At least one axis is periodic."""

    vectors: np.ndarray
    """(3, 3) float64, Å; rows are vectors. Non-singular: open axes hold orthogonal unit vectors."""
    pbc: tuple[bool, bool, bool]
    """Which axes repeat."""

    @property
    def inverse(self) -> np.ndarray:
        """(3, 3): fractional = coord @ inverse."""
        return np.linalg.inv(self.vectors)

    @property
    def heights(self) -> np.ndarray:
        """(3,): distances between opposite faces, Å, positive for left-handed cells too."""
        a, b, c = self.vectors
        areas = np.linalg.norm([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
        return np.asarray(np.abs(np.linalg.det(self.vectors)) / areas)

    def reach(self, rcut: float) -> tuple[int, int, int]:
        """Images needed on either side of the cell, per axis, for atoms that were wrapped; 0 along open axes."""
        # The tiny extra keeps atoms that rounding put on the far face, at fractional 1 instead of 0.
        counts = np.ceil(rcut / self.heights + 1e-6)
        a, b, c = (int(count) if periodic else 0 for count, periodic in zip(counts, self.pbc, strict=True))
        return a, b, c


def check_pbc(pbc: bool | Sequence[bool]) -> tuple[bool, bool, bool]:
    """One flag per axis from one or three. Raises InputError for anything else."""
    flags = np.asarray(pbc)
    if flags.shape not in ((), (3,)) or flags.dtype.kind not in "bui" or not np.isin(flags, (0, 1)).all():
        raise InputError(f"pbc must be True, False, or three of these (one per cell vector), got {pbc!r}")
    a, b, c = np.broadcast_to(flags, (3,)).tolist()
    return bool(a), bool(b), bool(c)


def make_lattice(cell: Array | None, pbc: bool | Sequence[bool] = True, *, where: str = "") -> Lattice | None:
    """The validated cell, or None for open boundaries (no cell, or no periodic axis).

    cell: (3, 3) of any array library. `where` ("frame 3: ") begins the message of the InputError that is raised for a
    wrong shape, NaN or infinite numbers, and periodic vectors that are zero or linearly dependent.
    """
    flags = check_pbc(pbc)
    if cell is None:
        return None
    if tuple(cell.shape) != (3, 3):
        raise InputError(f"{where}the cell must have shape (3, 3), rows are cell vectors in Å; got {tuple(cell.shape)}")
    vectors = np.array([[float(cell[i, j]) for j in range(3)] for i in range(3)])
    if not np.isfinite(vectors).all():
        raise InputError(f"{where}the cell holds NaN or infinite numbers: {vectors.tolist()}")
    if not any(flags):
        return None
    if np.max(np.abs(vectors[list(flags)])) > _LARGEST:
        raise InputError(f"{where}the cell is too large, {vectors.tolist()}; its vectors go up to {_LARGEST:g} Å")
    vectors = _complete(vectors, flags)
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() == 0.0 or np.abs(np.linalg.det(vectors / lengths[:, None])) < _FLAT:
        raise InputError(
            f"{where}the periodic cell vectors are zero or linearly dependent: {vectors[list(flags)].tolist()}. "
            "For open boundaries give no cell, or set pbc to False along the open axes."
        )
    return Lattice(vectors, flags)


def _complete(vectors: np.ndarray, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    """Replace the vectors of open axes by unit vectors orthogonal to the periodic ones (and to each other)."""
    periodic = list(pbc)
    if all(periodic):
        return vectors
    # The last rows of V^T span what is orthogonal to the periodic vectors.
    _, _, basis = np.linalg.svd(vectors[periodic])
    completed = vectors.copy()
    completed[~np.array(pbc)] = basis[sum(pbc) :]
    return completed


def check_coord(coord: Array, *, where: str = "") -> None:
    """Raise InputError unless `coord` is (n, 3), floating, finite and not huge. The message names the first bad atom."""
    xp = array_namespace(coord)
    if coord.ndim != 2 or coord.shape[1] != 3:
        raise InputError(f"{where}coordinates must have shape (n, 3) in Å, got {tuple(coord.shape)}")
    if not xp.isdtype(coord.dtype, "real floating"):
        raise InputError(f"{where}coordinates must be floating-point numbers, got {coord.dtype}")
    good = xp.all(xp.isfinite(coord), axis=1)
    if not bool(xp.all(good)):
        atom = int(xp.argmin(xp.astype(good, xp.int64)))
        position = [float(coord[atom, k]) for k in range(3)]
        raise InputError(f"{where}atom {atom} has NaN or infinite coordinates: {position}")
    largest = xp.max(xp.abs(coord), axis=1) if coord.shape[0] else coord[:, 0]
    if bool(xp.any(largest > _LARGEST)):
        atom = int(xp.argmax(largest))
        raise InputError(
            f"{where}atom {atom} is too far away, at {[float(coord[atom, k]) for k in range(3)]} Å; "
            f"coordinates go up to {_LARGEST:g} Å"
        )


def wrap(coord: Array, lattice: Lattice | None) -> tuple[Array, Array | None]:
    """Move atoms into the cell along its periodic axes: (n, 3) -> (n, 3), and the integer cells moved by, (n, 3).

    coord = wrapped + cells @ vectors. The second is None where nothing moved. Raises InputError for atoms so many cells
    away that their coordinates no longer resolve a position within the cell.
    """
    if lattice is None or coord.shape[0] == 0:
        return coord, None
    xp, device = array_namespace(coord), device_of(coord)
    periodic = xp.asarray(np.array(lattice.pbc, np.float64).tolist(), dtype=coord.dtype, device=device)
    inverse = xp.asarray(lattice.inverse.tolist(), dtype=coord.dtype, device=device)
    cells = xp.floor(xp.matmul(coord, inverse)) * periodic
    furthest = float(xp.max(xp.abs(cells)))
    if furthest == 0.0:
        return coord, None
    if furthest > _FAR:
        raise InputError(
            f"an atom lies {furthest:.3g} cells away from the origin, where rounding hides its position. "
            "Wrap the coordinates into the cell where they are made."
        )
    vectors = xp.asarray(lattice.vectors.tolist(), dtype=coord.dtype, device=device)
    return coord - xp.matmul(cells, vectors), xp.astype(cells, xp.int64)
