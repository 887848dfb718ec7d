"""`FrameSystem`: a data system as named columns over its frames; every format is one, and differs in how it opens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dpmodel.data.labels import LabelRequest
from dpmodel.data.system import Batch, Boundaries, Floats, Integers
from dpmodel.errors import DataError
from dpmodel.precision import ENERGY_DTYPE, global_dtype

__all__ = ["PLURALS", "FrameSystem", "MemoryColumn", "Values", "check_copies", "flat_cell"]

PLURALS = {"coord": "coords", "energy": "energies", "force": "forces", "virial": "virials"}
"""Names that some formats write in the plural."""

_FLAT = 1e-8
"""A cell whose volume is below this fraction of the product of its edges has no usable inverse."""


class Values(Protocol):
    """One quantity over all frames."""

    @property
    def nframes(self) -> int:
        """Number of frames."""
        ...

    def read(self, frames: Integers, dtype: str) -> Floats:
        """(f, size): the frames with these indices, converted. A fresh array."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryColumn:
    """Values that are held in memory."""

    values: np.ndarray[Any, Any]
    """(nframes, size)."""

    @property
    def nframes(self) -> int:
        """Number of frames."""
        return len(self.values)

    def read(self, frames: Integers, dtype: str) -> Floats:
        """(f, size): the frames with these indices, converted."""
        rows: Floats = self.values[frames].astype(dtype)
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrameSystem:
    """Frames with one number of atoms, one kind of boundary and the same labels; see `dpmodel.data.system.System`.

    Formats are subclasses that know how to open and check a path, so that `batch` meets no surprise.
    """

    path: str
    type_map: tuple[str, ...] | None
    """Symbols of the types of `Batch.atype`: the model's, else the system's own, else None."""
    natoms: int
    pbc: Boundaries
    order: Integers
    """(natoms,): batches hold file atom `order[k]` at place k. `x_file[order] = x_batch` maps back."""
    atype: Integers | None
    """(natoms,) in the order of batches; None where types differ between frames (mixed types)."""
    labels: tuple[LabelRequest, ...]
    found: Mapping[str, float]
    copies: Integers | None
    columns: Mapping[str, Values]
    """By name: coord, box, real_atom_types and the labels that were found."""
    table: Integers | None
    """(types of the system,) index in the model's map; None: unchanged. Used for mixed types."""

    @property
    def nframes(self) -> int:
        """Number of frames."""
        return self.columns["coord"].nframes

    @property
    def mixed(self) -> bool:
        """Whether types differ between frames."""
        return self.atype is None

    def place_of(self, request: LabelRequest) -> str:
        """Where the system would have that label, for messages."""
        return f"{' or '.join(request.files)} in its set.* folders"

    def batch(self, frames: Integers, index: int = 0) -> Batch:
        """The frames with these indices, in this order. Raises IndexError where there is no such frame."""
        frames = np.asarray(frames, np.int64)
        if frames.size and not 0 <= frames.min() <= frames.max() < self.nframes:
            raise IndexError(f"{self.path}: frames are 0 to {self.nframes - 1}, asked for {frames.tolist()}")
        count = len(frames)
        coord = self._sorted(self.columns["coord"].read(frames, "float64").reshape(count, self.natoms, 3))
        cell = self.columns["box"].read(frames, "float64").reshape(count, 3, 3) if self.pbc else None
        return Batch(
            coord=coord, atype=self._types(frames), cell=cell, pbc=self.pbc, system=index, frames=frames.copy(),
            labels={request.name: self._label(request, frames) for request in self.labels}, found=dict(self.found),
        )  # fmt: skip

    def _types(self, frames: Integers) -> Integers:
        if self.atype is not None:
            return np.repeat(self.atype[None, :], len(frames), axis=0)
        kinds = self.columns["real_atom_types"].read(frames, "int64").astype(np.int64, copy=False)
        return kinds if self.table is None else np.where(kinds < 0, -1, self.table[kinds])

    def _label(self, request: LabelRequest, frames: Integers) -> Floats:
        dtype = ENERGY_DTYPE if request.high_precision else global_dtype()
        shape = (len(frames), *request.frame_shape(self.natoms))
        column = self.columns.get(request.name)
        if column is None:
            default = np.asarray(request.default, dtype)
            return np.full(shape, default.reshape(request.shape) if default.ndim else default, dtype)
        values = column.read(frames, dtype)
        if request.repeat > 1:
            values = np.repeat(values, request.repeat, axis=1)
        values = values.reshape(shape)
        if request.square:
            rows = (3 * self.order[:, None] + np.arange(3)).reshape(-1)
            return values[:, rows[:, None], rows[None, :]]
        return self._sorted(values) if request.atomic else values

    def _sorted(self, values: Floats) -> Floats:
        """Atoms on axis 1 in the order of batches."""
        return values[:, self.order]


def flat_cell(cells: Floats) -> int | None:
    """The first of the cells (f, 3, 3) that has no volume, or None."""
    volume = np.abs(np.linalg.det(cells))
    flat = np.flatnonzero(volume <= _FLAT * np.prod(np.linalg.norm(cells, axis=2), axis=1))
    return int(flat[0]) if len(flat) else None


def check_copies(values: Floats, where: str) -> Integers:
    """(frames,) numb_copy as integers. Raises DataError unless they are at least 0, one of them above."""
    copies = values.astype(np.int64)
    if not np.array_equal(copies, values) or copies.min() < 0 or copies.max() == 0:
        raise DataError(
            f"{where}: expected integers of at least 0, one above; found {values.min():g} to {values.max():g}"
        )
    return copies
