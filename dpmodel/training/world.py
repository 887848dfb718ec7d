"""`World`: the processes that train one model together, as far as the loop is concerned.

A backend makes one (`Trainer.join`); without several processes it is `Alone`. Everything that decides what a process
does next (the number of steps, which task, when to save) comes from rank 0 as integers or text, and every collective
operation is entered by all ranks in the same order: no rank waits for one that has taken another way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from dpmodel.errors import BackendError, DPError

__all__ = ["Alone", "RankError", "World", "alone"]


class RankError(DPError):
    """What another process of the run could not do; its message is that of the process."""

    told = False
    """Whether that process (or rank 0) says it to the user, so that this one need not. Other errors may have it too."""

    @classmethod
    def heard(cls, message: str) -> RankError:
        """One that another process says."""
        error = cls(message)
        error.told = True
        return error


class World(Protocol):
    """The processes of a run. Methods other than properties are collective: all ranks call them, in the same order."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def chief(self) -> bool:
        """Whether this process writes files and logs: that of rank 0."""
        ...

    def integers(self, values: Sequence[int]) -> list[int]:
        """Those of rank 0, as 64-bit integers. All ranks give equally many."""

    def plain(self, value: Any) -> Any:
        """The plain data (JSON) of rank 0; other ranks give anything."""

    def arrays(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of rank 0, for ranks that have arrays of the same names, shapes and dtypes."""

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over ranks, float64."""

    def same(self, **values: int) -> None:
        """Raise RankError on all ranks where a value is not the same on all, with its name and what each rank has."""

    def agreement(self, what: str) -> AbstractContextManager[None]:
        """Everything inside succeeds on all ranks, or raises on all: the own error, else RankError with another's text.

        Nothing collective may be inside.
        """


class Alone:
    """One process."""

    rank = 0
    size = 1
    chief = True

    def integers(self, values: Sequence[int]) -> list[int]:
        """See `World`."""
        return [int(value) for value in values]

    def plain(self, value: Any) -> Any:
        """See `World`."""
        return value

    def arrays(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `World`."""
        return dict(values)

    def total(self, values: np.ndarray) -> np.ndarray:
        """See `World`."""
        return np.asarray(values, np.float64)

    def same(self, **values: int) -> None:
        """See `World`."""

    @contextmanager
    def agreement(self, what: str) -> Iterator[None]:
        """See `World`."""
        yield


@contextmanager
def alone(backend: str) -> Iterator[World]:
    """One process, for a backend that has no more. Raises BackendError where `torchrun` started several."""
    size = os.environ.get("WORLD_SIZE", "1").strip()
    if size not in ("", "1"):
        raise BackendError(
            f"WORLD_SIZE is {size}, but the {backend} backend trains in one process: start it without torchrun, or use "
            "--backend pt"
        )
    yield Alone()
