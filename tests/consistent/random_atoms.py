"""Random atoms: frames, cells and types of any kind that a model has to take."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import numpy as np

from dpmodel.geometry import neighbour_counts

__all__ = ["Atoms", "draw_atoms"]

MOST_NEIGHBOURS = 45
"""Within 4 Å."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Atoms:
    """Frames of equal size. Real atoms are at least 0.9 Å apart."""

    coord: np.ndarray
    atype: np.ndarray
    cell: np.ndarray | None
    pbc: tuple[bool, bool, bool]
    ntypes: int
    seed: int
    """Of everything else that is random."""

    def with_virtual(self, shift: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None, int]]:
        """(coord, atype, cell, ntypes) of every frame, with a virtual atom beside every atom where there is a shift."""
        for k, (coord, atype) in enumerate(zip(self.coord, self.atype, strict=True)):
            cell = None if self.cell is None else self.cell[k]
            if shift is None:
                yield coord, atype, cell, self.ntypes
                continue
            kind = np.where(atype < 0, -1, atype + self.ntypes)
            yield np.concatenate([coord, coord + shift[k]]), np.concatenate([atype, kind]), cell, 2 * self.ntypes


def _cell(rng: np.random.Generator) -> np.ndarray:
    """Tilted, of either hand, mostly smaller than two cutoffs."""
    length = rng.uniform(2.6, 6.5, 3)
    cell = np.diag(length) + np.tril(rng.uniform(-0.5, 0.5, (3, 3)), -1) * length
    return cell[rng.permutation(3)] @ np.linalg.qr(rng.normal(size=(3, 3)))[0]


def _frame(rng: np.random.Generator, count: int, cell: np.ndarray | None, pbc: tuple[bool, ...]) -> np.ndarray | None:
    """(count, 3), or None where they find no room."""
    base = np.eye(3) * 3.5 if cell is None else cell
    found = np.zeros((0, 3))
    for _ in range(60 * count):
        if len(found) == count:
            return found
        trial = np.concatenate([found, rng.uniform(-0.5, 1.5, (1, 3)) @ base])
        _, total, closest = neighbour_counts(trial, np.zeros(len(trial), np.int64), cell, pbc, 4.0, 1)
        if closest > 0.9 and total <= MOST_NEIGHBOURS:
            found = trial
    return found if len(found) == count else None


def draw_atoms(draw: random.Random) -> Atoms:
    """One to three frames of up to five atoms, some of them virtual; open, periodic, or periodic along some axes."""
    ntypes, nframes = draw.randint(1, 3), draw.randint(1, 3)
    axes = draw.choice([None, (True,) * 3, (True,) * 3, (True, False, True), (False, True, False)])
    pbc = (True,) * 3 if axes is None else axes
    real, virtual, seed = draw.choice([1, 2, 3, 3, 4, 5]), draw.choice([0, 0, 1, 2]), draw.randrange(2**32)
    rng = np.random.default_rng(seed)
    frames: list[np.ndarray] = []
    cells: list[np.ndarray] = []
    while len(frames) < nframes:
        cell = None if axes is None else _cell(rng)
        frame = _frame(rng, real, cell, pbc)
        if frame is not None:
            frames.append(np.concatenate([frame, rng.normal(size=(virtual, 3))]))
            cells.append(np.zeros((3, 3)) if cell is None else cell)
    kinds = [np.concatenate([rng.integers(0, ntypes, real), np.full(virtual, -1)]) for _ in frames]
    orders = [rng.permutation(real + virtual) for _ in frames]
    return Atoms(
        coord=np.stack([frame[order] for frame, order in zip(frames, orders, strict=True)]),
        atype=np.stack([kind[order] for kind, order in zip(kinds, orders, strict=True)]),
        cell=None if axes is None else np.stack(cells), pbc=pbc, ntypes=ntypes, seed=seed,
    )  # fmt: skip
