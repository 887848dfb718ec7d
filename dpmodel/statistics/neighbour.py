"""How many neighbours atoms have: what `sel` is chosen by, and the smallest distance in the data.

    found = neighbour_statistics(dataset, rcut=6.0, ntypes=2)
    resolve_sel("auto", found)          # (44, 80)

Every frame is searched once. Distances are those of images too, whether within the cutoff or not (up to 10 Å).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np

from dpmodel.data.dataset import Dataset
from dpmodel.data.frames import FrameSystem
from dpmodel.data.system import Batch
from dpmodel.errors import DataError, InputError
from dpmodel.geometry.build import neighbour_counts
from dpmodel.geometry.neighbours import neighbour_pairs

__all__ = ["NeighbourStatistics", "neighbour_statistics", "resolve_sel"]

log = logging.getLogger(__name__)

_CHUNK_ATOMS = 100_000
"""Atoms that are read from the disk at a time."""
_SAME_PLACE = 1e-6
"""Atoms closer than this (Å) are at one place; images of one place differ by rounding."""
_SAY_EVERY = 30.0
"""Seconds between words on the progress of a long search."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourStatistics:
    """What the frames of a dataset have in common."""

    by_type: tuple[int, ...]
    """Largest number of neighbours of each type around any atom (r < rcut)."""
    total: int
    """Largest number of neighbours of any type."""
    min_distance: float
    """Smallest distance between two atoms, Å; at most 10."""
    frames: int
    """Number of frames that were searched."""


def neighbour_statistics(
    dataset: Dataset, rcut: float, ntypes: int | None = None, *, allow_overlap: bool = False,
    spin_scales: Sequence[float] | None = None,
) -> NeighbourStatistics:  # fmt: skip
    """Search every frame that training may draw (not those that `min_pair_dist` leaves out).

    rcut: Å. ntypes: types of the model; None: those of the type map that the systems were opened with.
    allow_overlap: for models with a protected environment matrix, which atoms at one place do not harm.
    spin_scales: by type, displacement of the virtual atom per unit of spin, Å, of models with spin: virtual atoms are
    neighbours and have some, and a type's number is the larger one of its real and its virtual atoms. The systems were
    opened with the label spin. Distances and overlaps are those of real atoms.
    Raises DataError naming system and frame where atoms overlap (unless allowed), or where a frame cannot be searched.
    """
    if not (math.isfinite(rcut) and rcut > 0):
        raise InputError(f"rcut: expected a positive number in Å, got {rcut}")
    ntypes = _count_types(dataset) if ntypes is None else ntypes
    largest, total, closest, count = np.zeros(ntypes, np.int64), 0, math.inf, 0
    said = time.monotonic()
    for batch in _batches(dataset):
        path = dataset.systems[batch.system].path
        for k, frame in enumerate(batch.frames):
            cell = None if batch.cell is None else batch.cell[k]
            try:
                counts, most, distance = neighbour_counts(batch.coord[k], batch.atype[k], cell, batch.pbc, rcut, ntypes)
            except InputError as problem:
                raise DataError(f"{path}, frame {int(frame)}: {problem}") from problem
            if distance < _SAME_PLACE and not allow_overlap:
                raise _overlap(path, int(frame), batch, k)
            if spin_scales is not None:
                counts, most = _with_virtual(batch, k, rcut, spin_scales)
            largest, total, closest = np.maximum(largest, counts), max(total, most), min(closest, distance)
            count += 1
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                log.info("neighbour statistics: %d of %d frames", count, dataset.nframes)
    by_type = tuple(int(number) for number in largest)
    return NeighbourStatistics(by_type=by_type, total=total, min_distance=closest, frames=count)


def _with_virtual(batch: Batch, k: int, rcut: float, scales: Sequence[float]) -> tuple[np.ndarray, int]:
    """Largest counts in frame k by type, of real or virtual atoms, and of all of them."""
    n, coord, atype = len(scales), batch.coord[k], batch.atype[k]
    length = np.where(atype < 0, 0.0, np.asarray(scales)[atype])
    both = np.concatenate([coord, coord + length[:, None] * batch.labels["spin"][k]])
    kinds = np.concatenate([atype, np.where(atype < 0, -1, atype + n)])
    cell = None if batch.cell is None else batch.cell[k]
    counts, most, _ = neighbour_counts(both, kinds, cell, batch.pbc, rcut, 2 * n)
    return np.maximum(counts[:n], counts[n:]), most


def _batches(dataset: Dataset) -> Iterator[Batch]:
    """Every frame that training draws, once, some at a time."""
    for index, (system, drawn) in enumerate(zip(dataset.systems, dataset.frames, strict=True)):
        frames = np.unique(drawn)
        step = max(1, _CHUNK_ATOMS // system.natoms)
        for start in range(0, len(frames), step):
            yield system.batch(frames[start : start + step], index)


def _count_types(dataset: Dataset) -> int:
    """The length of the systems' common type map; without one, the largest type and one."""
    maps = [system.type_map for system in dataset.systems if isinstance(system, FrameSystem) and system.type_map]
    if maps:
        return max(map(len, maps))
    return 1 + max(int(np.max(batch.atype)) for batch in _batches(dataset))


def _overlap(path: str, frame: int, batch: Batch, k: int) -> DataError:
    """The error that names two atoms at one place."""
    rows = np.flatnonzero(batch.atype[k] >= 0)
    cell = None if batch.cell is None else batch.cell[k]
    pairs = neighbour_pairs(batch.coord[k][rows], cell, batch.pbc, 1e-3)
    here = np.flatnonzero(pairs.distance < _SAME_PLACE)[0]
    place = batch.coord[k][rows[pairs.centre[here]]].tolist()
    return DataError(
        f"{path}, frame {frame}: two atoms are at the same place, {place} Å (of types "
        f"{int(batch.atype[k][rows[pairs.centre[here]]])} and {int(batch.atype[k][rows[pairs.neighbour[here]]])}). "
        f"Remove the frame, or set training_data.min_pair_dist to leave such frames out"
    )


def resolve_sel(
    sel: str | int | Sequence[int], found: NeighbourStatistics, *, typed: bool = True, name: str = "sel"
) -> tuple[int, ...]:
    """`sel` as numbers: "auto" is 1.1 times what was found, "auto:f" f times, rounded up to multiples of 4.

    typed: one number per type of neighbour; False: one for all types together. Given numbers come back as they are,
    with a warning in the log where they do not hold the neighbours of the data. name: of the option, for messages.
    Raises InputError for another text, DataError where no atom has a neighbour.
    """
    counts = found.by_type if typed else (found.total,)
    if not isinstance(sel, str):
        given = (int(sel),) if isinstance(sel, int | np.integer) else tuple(int(number) for number in sel)
        if any(have < need for have, need in zip(given, counts, strict=False)):
            log.warning(
                "%s = %s is smaller than the neighbours of the data, at most %s: the furthest are left out, and "
                'energies jump where atoms enter or leave the list. Enlarge it, or use "auto"',
                name, list(given), list(counts),
            )  # fmt: skip
        return given
    head, _, tail = sel.partition(":")
    try:
        factor = float(tail or 1.1)
    except ValueError:
        factor = math.nan
    if head != "auto" or not (math.isfinite(factor) and factor > 0):
        raise InputError(f'{name}: expected numbers, "auto" or "auto:f" with a factor f above 0, got {sel!r}')
    if not any(counts):
        raise DataError(f"{name} {sel!r}: no atom of the data has a neighbour within rcut; choose a larger rcut")
    return tuple(4 * ((int(number * factor) + 3) // 4) for number in counts)
