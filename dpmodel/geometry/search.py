"""Neighbour search in the array API: linked cells over explicit periodic images.

The images of all atoms that come within the cutoff of the cell are written out, sorted into cubic bins one cutoff
wide, and every atom is compared with the images in the 27 bins around its own. Time and memory grow linearly
with the number of atoms; candidates are compared in chunks, so their memory is bounded.
"""

from __future__ import annotations

import itertools
from typing import Any

from dpmodel.errors import InputError
from dpmodel.geometry.cells import Lattice
from dpmodel.op import Array
from dpmodel.ops import array_namespace, device_of, take_rows

__all__ = ["search_pairs"]

_CANDIDATES = 2_000_000
"""Candidate pairs compared at once."""
_MAX_IMAGES = 30_000_000
"""Periodic images written out at most: about 2 GB."""
_MAX_BINS = 2**20
"""Bins per axis at most, so that the number of a bin fits int64."""


def search_pairs(coord: Array, lattice: Lattice | None, cutoff: float) -> tuple[Array, Array, Array]:
    """All directed pairs nearer than `cutoff`, in no order: centre (e,), neighbour (e,), image (e, 3), all int64.

    coord: (n, 3) float64 of any array library, wrapped along the periodic axes. An atom is no neighbour of itself
    but of its own images. Raises InputError where the cell is so small that its images do not fit into memory.
    """
    xp, device = array_namespace(coord), device_of(coord)
    if coord.shape[0] == 0:
        empty = xp.zeros((0,), dtype=xp.int64, device=device)
        return empty, empty, xp.zeros((0, 3), dtype=xp.int64, device=device)
    atom, image = _images(coord, lattice, cutoff)
    position = take_rows(coord, atom)
    if lattice is not None:
        vectors = xp.asarray(lattice.vectors.tolist(), dtype=coord.dtype, device=device)
        position = position + xp.matmul(xp.astype(image, coord.dtype), vectors)
    order, start, count = _bins(coord, position, cutoff)
    position, atom, image = take_rows(position, order), take_rows(atom, order), take_rows(image, order)

    found: list[tuple[Array, Array]] = []
    for first, last in _chunks(xp.sum(count, axis=1)):
        centre, place = _expand(start[first:last, :], count[first:last, :])
        centre = centre + first
        vec = take_rows(position, place) - take_rows(coord, centre)
        near = xp.sum(vec * vec, axis=1) <= cutoff * cutoff
        kept = xp.nonzero(near)[0]
        found.append((take_rows(centre, kept), take_rows(place, kept)))
    centre = xp.concat([pair[0] for pair in found])
    place = xp.concat([pair[1] for pair in found])
    neighbour, shift = take_rows(atom, place), take_rows(image, place)
    other = xp.nonzero((neighbour != centre) | xp.any(shift != 0, axis=1))[0]
    return take_rows(centre, other), take_rows(neighbour, other), take_rows(shift, other)


def _images(coord: Array, lattice: Lattice | None, cutoff: float) -> tuple[Array, Array]:
    """Atom (g,) and image (g, 3) of every copy that may lie within the cutoff of a point in the cell."""
    xp, device = array_namespace(coord), device_of(coord)
    atom = xp.arange(coord.shape[0], dtype=xp.int64, device=device)
    image = xp.zeros((coord.shape[0], 3), dtype=xp.int64, device=device)
    if lattice is None:
        return atom, image
    fractional = xp.matmul(coord, xp.asarray(lattice.inverse.tolist(), dtype=coord.dtype, device=device))
    for axis, (reach, height) in enumerate(zip(lattice.reach(cutoff), lattice.heights.tolist(), strict=True)):
        if reach == 0:
            continue
        margin = cutoff / height + 1e-6
        if atom.shape[0] * (1.0 + 2.0 * margin) > _MAX_IMAGES:
            raise InputError(
                f"the cutoff of {cutoff:.6g} Å spans {margin:.3g} cells (faces {height:.3g} Å apart) of "
                f"{coord.shape[0]} atoms: too many images for the built-in search. "
                "Is the cell in Å? If so, give a smaller cutoff."
            )
        position = take_rows(fractional[:, axis], atom)
        parts = []
        for shift in range(-reach, reach + 1):
            moved = position + float(shift)
            kept = xp.nonzero((moved >= -margin) & (moved <= 1.0 + margin))[0]
            columns = [xp.full(kept.shape, shift, dtype=xp.int64, device=device) if k == axis
                       else take_rows(image[:, k], kept) for k in range(3)]  # fmt: skip
            parts.append((take_rows(atom, kept), xp.stack(columns, axis=1)))
        atom = xp.concat([part[0] for part in parts])
        image = xp.concat([part[1] for part in parts])
    return atom, image


def _bins(coord: Array, position: Array, cutoff: float) -> tuple[Array, Array, Array]:
    """Sort images into bins: order (g,), and per centre nine runs of candidates in it, start (n, 9) and count (n, 9).

    Bins that differ along z alone are consecutive, so a run covers three of them.
    """
    xp, device = array_namespace(coord), device_of(coord)
    low = xp.min(position, axis=0)
    extent = xp.max(position, axis=0) - low
    width = xp.clip(extent / _MAX_BINS, cutoff, None)

    def bin_of(x: Array) -> Array:
        return xp.astype(xp.floor((x - low) / width), xp.int64) + 1

    # An empty bin on either side keeps neighbouring rows and planes of bins apart.
    size = [int(extent[k] / width[k]) + 4 for k in range(3)]
    of_image, of_centre = bin_of(position), bin_of(coord)
    number = (of_image[:, 0] * size[1] + of_image[:, 1]) * size[2] + of_image[:, 2]
    order = xp.argsort(number)
    number = take_rows(number, order)
    rows = xp.asarray([dx * size[1] + dy for dx in (-1, 0, 1) for dy in (-1, 0, 1)], dtype=xp.int64, device=device)
    own = of_centre[:, 0] * size[1] + of_centre[:, 1]
    middle = (own[:, None] + rows[None, :]) * size[2] + of_centre[:, 2][:, None]
    shape, middle = middle.shape, xp.reshape(middle, (-1,))
    start = xp.searchsorted(number, middle - 1, side="left")
    stop = xp.searchsorted(number, middle + 1, side="right")
    start, stop = (xp.reshape(xp.astype(x, xp.int64), shape) for x in (start, stop))
    return order, start, stop - start


def _chunks(count: Array) -> list[tuple[int, int]]:
    """Ranges of centres with about `_CANDIDATES` candidates each (more only for a single centre)."""
    xp = array_namespace(count)
    total = xp.cumulative_sum(count)
    bounds, n = [0], count.shape[0]
    while bounds[-1] < n:
        done = int(total[bounds[-1] - 1]) if bounds[-1] else 0
        limit = xp.asarray([done + _CANDIDATES], dtype=total.dtype, device=device_of(total))
        bounds.append(max(bounds[-1] + 1, int(xp.searchsorted(total, limit, side="right")[0])))
    return list(itertools.pairwise(bounds))


def _expand(start: Array, count: Array) -> tuple[Array, Array]:
    """Write out runs: (c, k) starts and lengths -> row (t,) in [0, c) and place (t,), t = sum of lengths."""
    xp, device = array_namespace(start), device_of(start)
    columns = start.shape[1]
    start, count = xp.reshape(start, (-1,)), xp.reshape(count, (-1,))
    run: Any = xp.repeat(xp.arange(start.shape[0], dtype=xp.int64, device=device), count)
    before = xp.cumulative_sum(count) - count
    within = xp.arange(run.shape[0], dtype=xp.int64, device=device) - take_rows(before, run)
    return run // columns, take_rows(start, run) + within
