"""Batches of frames from several systems: what systems have to share, and how their frames are laid beside each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpmodel.data.labels import LabelRequest
from dpmodel.data.system import Batch, Floats, System
from dpmodel.errors import InputError

__all__ = ["check_mixable", "merge"]


def check_mixable(systems: Sequence[System], labels: Sequence[LabelRequest]) -> None:
    """Raise InputError, naming two systems, where frames of these cannot share a batch.

    A batch has one flag per label and one kind of boundary; matrices over all pairs of atoms have no common shape.
    """
    here = 'batch_size "mixed:n"'
    square = [request.name for request in labels if request.square]
    if square:
        raise InputError(f"{here}: batches of several systems have no {square[0]}: use a number of frames per batch")
    first = systems[0]
    for other in systems[1:]:
        if other.pbc != first.pbc:
            raise InputError(
                f"{here}: expected one kind of boundary, got pbc {first.pbc} in {first.path} and {other.pbc} in {other.path}: "
                "use a number of frames per batch, or give open systems a large cell"
            )
        for request in labels:
            one, two = first.found.get(request.name, 0.0), other.found.get(request.name, 0.0)
            if one != two:
                has, lacks = (first, other) if one else (other, first)
                raise InputError(
                    f"{here}: expected the same labels in all systems, got {request.name!r} in {has.path} and none in "
                    f"{lacks.path}: use a number of frames per batch, or give every system the label"
                )


def merge(batches: Sequence[Batch], atomic: frozenset[str]) -> Batch:
    """One batch, in that order; smaller frames are filled up with virtual atoms (type -1, zeros).

    atomic: names of the labels of atoms. The systems have passed `check_mixable`.
    """
    size = max(batch.natoms for batch in batches)
    first = batches[0]
    return dataclasses.replace(
        first,
        coord=np.concatenate([_filled(batch.coord, size, 0.0) for batch in batches]),
        atype=np.concatenate([_filled(batch.atype, size, -1) for batch in batches]),
        cell=None if first.cell is None else np.concatenate([_cell(batch) for batch in batches]),
        labels={
            name: np.concatenate([_filled(b.labels[name], size, 0.0) if name in atomic else b.labels[name] for b in batches])
            for name in first.labels
        },
        frames=np.concatenate([batch.frames for batch in batches]),
        systems=np.concatenate([np.full(batch.nframes, batch.system) for batch in batches]),
    )  # fmt: skip


def _cell(batch: Batch) -> Floats:
    assert batch.cell is not None
    return batch.cell


def _filled(x: np.ndarray, size: int, value: float) -> np.ndarray:
    """(f, n, *shape) -> (f, size, *shape)."""
    rest = [(0, 0)] * (x.ndim - 2)
    return np.pad(x, [(0, 0), (0, size - x.shape[1]), *rest], constant_values=value)
