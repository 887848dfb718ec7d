"""`Batch`: frames on their way into a model; `System`: where they come from.

A system is a set of frames with one number of atoms, one kind of boundary and the same labels. Each format of data is
a class that answers to `System` (`dpmodel.data.discovery` chooses); datasets and samplers do not know the difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpmodel.data.labels import LabelRequest

__all__ = ["Batch", "Boundaries", "Floats", "Integers", "System"]

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Boundaries: TypeAlias = bool | tuple[bool, bool, bool]
"""True: periodic. False: open. Three flags: one per cell vector, neither all True nor all False."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Frames of one system, or of several (`dpmodel.data.mixing`). Arrays are fresh copies that may be written to.

    Sizes: f frames, n atoms (virtual ones included).
    """

    coord: Floats
    """(f, n, 3) float64, Å."""
    atype: Integers
    """(f, n): types as the model counts them; -1 is a virtual atom (padding)."""
    cell: Floats | None
    """(f, 3, 3) float64, Å, rows are cell vectors; None: open boundaries."""
    pbc: Boundaries
    """False: open boundaries; three flags: periodic along some of the cell vectors."""
    labels: dict[str, Floats]
    """By name, shapes as in `LabelRequest`: (f, *shape), (f, n, *shape) or (f, 3n, 3n)."""
    found: dict[str, float]
    """By name, 1.0 where the system has the label, 0.0 where the array holds defaults."""
    system: int
    """Index of the system in its dataset."""
    frames: Integers
    """(f,): indices of the frames in their system."""
    systems: Integers | None = None
    """(f,): index of the system of every frame, where they are of several; `system` is that of the first."""

    @property
    def nframes(self) -> int:
        """Number of frames."""
        return int(self.coord.shape[0])

    @property
    def natoms(self) -> int:
        """Number of atoms per frame, virtual ones included."""
        return int(self.coord.shape[1])


class System(Protocol):
    """What datasets and samplers need to know of a data system."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        ...

    @property
    def natoms(self) -> int:
        """Atoms per frame, virtual ones included."""
        ...

    @property
    def nframes(self) -> int:
        """Number of frames, at least 1."""
        ...

    @property
    def pbc(self) -> Boundaries:
        """Whether frames are periodic, or along which cell vectors."""
        ...

    @property
    def found(self) -> Mapping[str, float]:
        """By label, 1.0 where the system has it, else 0.0."""
        ...

    @property
    def copies(self) -> Integers | None:
        """(nframes,) how often each frame counts in training; None: once."""
        ...

    def place_of(self, request: LabelRequest) -> str:
        """Where the system would have that label, for messages."""
        ...

    def batch(self, frames: Integers, index: int = 0) -> Batch:
        """The frames with these indices, in this order. `index` becomes `Batch.system`."""
        ...
