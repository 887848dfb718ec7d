"""The best checkpoints of a run, by a metric of full validation: which they are, and the names of their files.

::

    best.ckpt-4000.t-1.dp   the best so far, after 4000 steps
    best.ckpt-2500.t-2.dp   the second best

    best = BestCheckpoints("best.ckpt", folder, keep=2)
    place = best.place(0.031, 4000)         # 1: it would be the best; 0: not among them
    best.insert(0.031, 4000); save(best.path(4000)); best.tidy()

Less is better; of equal values the earlier step is. A new file gets its name first and then the others are renamed, so
that a kill at any time leaves whole checkpoints whose steps are in their names; the next `tidy` puts the rest right.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpmodel.errors import ModelFileError
from dpmodel.files.atomic import remove_leftovers
from dpmodel.training.rotation import SUFFIX

__all__ = ["BEST_NAME", "BestCheckpoints", "Record", "restored"]

logger = logging.getLogger(__name__)

BEST_NAME = "best.ckpt"


class Record(NamedTuple):
    """A validation; records sort by quality."""

    value: float
    step: int


class BestCheckpoints:
    """The list, which all ranks keep alike, and the files, which one process touches (`tidy`)."""

    def __init__(self, name: str, folder: Path, *, keep: int = 1) -> None:
        """name: of the files, before the step. folder: theirs. keep: how many, at least 1."""
        self.name, self.folder, self.keep = name, folder, keep
        self.records: list[Record] = []
        """The best first, at most `keep`."""

    def place(self, value: float, step: int) -> int:
        """The rank, from 1, that a validation would take; 0: none."""
        rank = 1 + sum(record < (value, step) for record in self.records)
        return rank if rank <= self.keep else 0

    def insert(self, value: float, step: int) -> None:
        """Take a validation into the list. One of the same step goes: it was made before a restart."""
        kept = [record for record in self.records if record.step != step]
        self.records = sorted([*kept, Record(value, step)])[: self.keep]

    def path(self, step: int) -> Path:
        """The file of a record. Raises ValueError where the step has none."""
        rank = 1 + [record.step for record in self.records].index(step)
        return self.folder / f"{self.name}-{step}.t-{rank}{SUFFIX}"

    def existing(self) -> list[tuple[int, Path]]:
        """(step, path) of the files there are, by step. Links, folders and foreign names do not count."""
        pattern = re.compile(rf"{re.escape(self.name)}-(\d+)\.t-\d+{re.escape(SUFFIX)}")
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match and path.is_file() and not path.is_symlink():
                found.append((int(match[1]), path))
        return sorted(found)

    def rename(self) -> None:
        """Give the files of the records the names of their ranks. Raises OSError."""
        for step, path in self.existing():
            if step in self._steps and path != self.path(step):
                if self.path(step).exists():  # just saved; the other one is an earlier run's
                    _remove(path)
                else:
                    path.replace(self.path(step))

    def tidy(self) -> None:
        """`rename`, and remove the files of other steps: displaced, of an earlier run, or from before a restart."""
        self.rename()
        for step, path in self.existing():
            if step not in self._steps:
                _remove(path)
        # One process writes these files, so a temporary one that is still there was left by a killed run.
        remove_leftovers(self.folder, rf"{re.escape(self.name)}-\d+\.t-\d+{re.escape(SUFFIX)}")

    def missing(self) -> list[int]:
        """Steps of records that have no file, as after a move to another folder."""
        there = {step for step, _ in self.existing()}
        return [record.step for record in self.records if record.step not in there]

    def state(self) -> list[list[float]]:
        """Plain data to go on from."""
        return [[record.value, record.step] for record in self.records]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """The inverse; of more records than `keep` the best. Raises ModelFileError."""
        try:
            found = sorted(Record(float(value), int(step)) for value, step in state)
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"the checkpoint's best validations: expected [value, step], got {state!r}") from error
        self.records = found[: self.keep]

    @property
    def _steps(self) -> set[int]:
        return {record.step for record in self.records}


def restored(state: Mapping[str, Any], metric: str) -> Sequence[Sequence[float]] | None:
    """The records in the state of a validation; None where they were ranked by another metric, or there are none."""
    if not state or state.get("metric") != metric:
        return None
    best: Sequence[Sequence[float]] = state.get("best", [])
    return best


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # A checkpoint too many does no harm; the run goes on.
        logger.warning("cannot remove the old checkpoint %s: %s", path, error.strerror or error)
