"""Neighbour lists: every pair of atoms, periodic images included, within a cutoff.

    >>> import numpy as np
    >>> pairs = neighbour_pairs(np.zeros((1, 3)), 3.0 * np.eye(3), True, 3.0)   # one atom, cubic cell
    >>> pairs.distance.tolist()                                                # its six nearest images
    [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]

Two searches find candidates, vesin's (C++) and that of `dpmodel.geometry.search`; which pairs lie within the cutoff,
their displacements and their order are decided here, once, so both give the same arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpmodel.errors import InputError
from dpmodel.geometry import _vesin
from dpmodel.geometry.cells import Lattice, check_coord, make_lattice, wrap
from dpmodel.geometry.estimate import check_memory, extents
from dpmodel.geometry.search import search_pairs
from dpmodel.op import Array
from dpmodel.ops import array_namespace, as_dtype, device_of, take_rows

__all__ = ["Pairs", "neighbour_pairs"]

_MAX_REACH = 3000
"""Images along one axis at most; keeps the order of images within int64."""
_VESIN_SPAN = 256.0
"""Cutoffs that atoms may span along open axes for vesin; beyond, the built-in search serves."""
_VESIN_BINS = 5e4
"""Half of what vesin makes at most."""


class Pairs(NamedTuple):
    """Directed pairs (both directions of each), sorted as `neighbour_pairs` says."""

    centre: Array
    """(e,) int64: the atom that sees."""
    neighbour: Array
    """(e,) int64: the atom that is seen."""
    shift: Array
    """(e, 3) int64: the image of the neighbour, in cell vectors."""
    vec: Array
    """(e, 3) float64, Å: x[neighbour] + shift @ cell - x[centre]."""
    distance: Array
    """(e,) float64, Å: length of `vec`."""


def neighbour_pairs(
    coord: Array, cell: Array | None, pbc: bool | Sequence[bool], rcut: float, *, method: str = "auto", where: str = ""
) -> Pairs:
    """All directed pairs with distance <= rcut (Å).

    coord (n, 3): anywhere, inside the cell or not. cell (3, 3): rows are vectors; None, or no True in `pbc`: open.
    An atom sees its own images, never itself; different atoms at one place see each other.

    Sorted by centre, then distance; exact ties in the order of images (those of the wrapped atoms: by length of the
    integer triple, then lexicographic) and then of atoms.

    method: "vesin" (NumPy arrays only), "search" (arrays of any library), or "auto": vesin where it is installed and
    the arrays are NumPy's. Both leave boxes and atoms that spread over hundreds of cutoffs to the built-in search.
    `where` begins the messages of InputError: shapes, NaN, coordinates beyond 1e10 Å, a singular cell, a bad cutoff or
    method, and a list that would not fit into memory.
    """
    if method not in ("auto", "vesin", "search"):
        raise InputError(f"unknown neighbour search {method!r}; known are 'auto', 'vesin' and 'search'")
    if not (math.isfinite(rcut) and rcut > 0.0):
        raise InputError(f"{where}the cutoff must be a positive number in Å, got {rcut}")
    check_coord(coord, where=where)
    if method == "auto":
        method = "vesin" if isinstance(coord, np.ndarray) and _vesin.installed() else "search"
    elif method == "vesin" and not _vesin.installed():
        raise InputError("vesin is not installed; install it (pip install vesin), or use method='search'")
    lattice = make_lattice(cell, pbc, where=where)
    coord = as_dtype(coord, "float64")
    _check_reach(lattice, rcut, where)
    wrapped, cells = wrap(coord, lattice)
    check_memory(wrapped, lattice, rcut, where=where)
    xp = array_namespace(coord)
    largest = float(xp.max(xp.abs(wrapped))) if wrapped.shape[0] else 0.0
    # The searches compare rounded displacements; a little more is asked for, and cut exactly below.
    cutoff = rcut + 1e-9 * (rcut + largest)
    if method == "vesin" and not _too_wide(wrapped, lattice, cutoff):
        box = np.eye(3) if lattice is None else lattice.vectors
        periodic = (False, False, False) if lattice is None else lattice.pbc
        centre, neighbour, image = _vesin.vesin_pairs(np.asarray(wrapped), box, periodic, cutoff)
    else:
        centre, neighbour, image = search_pairs(wrapped, lattice, cutoff)
    return _finish(coord, lattice, rcut, cells, centre=centre, neighbour=neighbour, image=image)


def _check_reach(lattice: Lattice | None, rcut: float, where: str) -> None:
    """Refuse cells that a search would hang on."""
    if lattice is None:
        return
    reach = max(lattice.reach(rcut))
    if reach > _MAX_REACH:
        raise InputError(
            f"{where}the cutoff of {rcut} Å spans {reach} cells (faces {lattice.heights.min():.3g} Å apart), "
            f"more than {_MAX_REACH}. Is the cell in Å, and is it not nearly flat?"
        )


def _too_wide(coord: Array, lattice: Lattice | None, cutoff: float) -> bool:
    """Whether the box or the atoms along open axes span so many cutoffs that vesin should not be asked.

    vesin 0.6 takes a minute for three atoms of a slab 1e5 Å apart, and crashes (SIGFPE) for 1e9 Å without a cell: it
    shrinks the numbers of its bins by one factor until 1e5 bins remain, and none may be left along the shortest axis.
    """
    if coord.shape[0] == 0:
        return False
    is_open = np.ones(3, np.bool_) if lattice is None else ~np.array(lattice.pbc)
    bins = np.maximum(extents(np.asarray(coord), lattice) / cutoff, 1.0)
    total = float(np.prod(bins))
    few = total > _VESIN_BINS and float(bins.min()) * (_VESIN_BINS / total) ** (1 / 3) < 2.0
    return few or bool(np.max(bins[is_open], initial=0.0) > _VESIN_SPAN)


def _finish(
    coord: Array,
    lattice: Lattice | None,
    rcut: float,
    cells: Array | None,
    *,
    centre: Array,
    neighbour: Array,
    image: Array,
) -> Pairs:
    """Displacements, the exact cutoff and the order. `image` counts from the wrapped atoms."""
    xp = array_namespace(coord)
    shift = image if cells is None else image + take_rows(cells, centre) - take_rows(cells, neighbour)
    vec = _displacements(coord, lattice, centre, neighbour, shift)
    distance = xp.sqrt(vec[0] * vec[0] + vec[1] * vec[1] + vec[2] * vec[2])
    inside = distance <= rcut
    if not bool(xp.all(inside)):
        kept = xp.nonzero(inside)[0]
        centre, neighbour, image, shift, distance = (
            take_rows(x, kept) for x in (centre, neighbour, image, shift, distance)
        )
        vec = [take_rows(x, kept) for x in vec]
    order = _order(centre, neighbour, image, distance, n=coord.shape[0], rcut=rcut)
    centre, neighbour, shift, distance = (take_rows(x, order) for x in (centre, neighbour, shift, distance))
    return Pairs(centre, neighbour, shift, xp.stack([take_rows(x, order) for x in vec], axis=1), distance)


def _displacements(coord: Array, lattice: Lattice | None, i: Array, j: Array, shift: Array) -> list[Array]:
    """x[j] - x[i] + shift @ cell by component.

    Written out: a matrix product may round the same row differently in different places, and then exact ties and
    the antisymmetry of a pair's two directions would be lost.
    """
    xp = array_namespace(coord)
    moved = [] if lattice is None else [(k, as_dtype(shift[:, k], coord.dtype)) for k in range(3) if lattice.pbc[k]]
    vec = []
    for component in range(3):
        column = coord[:, component]
        x = xp.take(column, j) - xp.take(column, i)
        for k, count in moved:
            step = 0.0 if lattice is None else float(lattice.vectors[k, component])
            if step != 0.0:
                x = x + count * step
        vec.append(x)
    return vec


def _order(centre: Array, neighbour: Array, image: Array, distance: Array, *, n: int, rcut: float) -> Array:
    """The permutation that sorts pairs by centre, distance, image and neighbour.

    One sort of an integer that holds the centre and the distance rounded down; only runs that this leaves tied are
    sorted further (rare in a liquid, most pairs in a perfect crystal).
    """
    xp = array_namespace(distance)
    bits = min(50, 62 - max(1, n).bit_length())
    level = xp.astype(distance * (float(2**bits - 1) / rcut), xp.int64)
    key = centre * 2**bits + level
    order = xp.argsort(key, stable=False)
    key = take_rows(key, order)
    equal = key[1:] == key[:-1]
    if not bool(xp.any(equal)):
        return order
    no = xp.zeros((1,), dtype=xp.bool, device=device_of(key))
    places = xp.nonzero(xp.concat([equal, no]) | xp.concat([no, equal]))[0]
    rows = take_rows(order, places)
    keys = (key, take_rows(distance, order), _image_rank(take_rows(image, order)), take_rows(neighbour, order))
    rows = take_rows(rows, _lexsort([take_rows(x, places) for x in keys]))
    # Tied runs keep their places; within them the rows change.
    everything = xp.arange(order.shape[0], dtype=places.dtype, device=device_of(key))
    near = xp.clip(xp.searchsorted(places, everything), None, places.shape[0] - 1)
    return xp.where(take_rows(places, near) == everything, take_rows(rows, near), order)


def _image_rank(image: Array) -> Array:
    """(e, 3) -> (e,) int64 that grows with the length of the triple, then lexicographically."""
    xp = array_namespace(image)
    largest = int(xp.max(xp.abs(image)))
    base = 2 * largest + 1
    x, y, z = image[:, 0], image[:, 1], image[:, 2]
    rank = x * x + y * y + z * z
    for component in (x, y, z):
        rank = rank * base + (component + largest)
    return rank


def _lexsort(keys: list[Array]) -> Array:
    """The stable permutation that sorts by the first key, then the second, and so on."""
    xp = array_namespace(keys[0])
    order: Any = xp.argsort(keys[-1], stable=True)
    for key in reversed(keys[:-1]):
        order = take_rows(order, xp.argsort(take_rows(key, order), stable=True))
    return order
