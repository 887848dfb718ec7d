"""Checkpoint files of a run: their names, which are kept, and which is the newest.

::

    model.ckpt-1000.dp   after 1000 finished steps
    model.ckpt-2000.dp
    model.ckpt.dp        relative symbolic link to the newest (a copy where links are impossible)
    checkpoint           text file in the working directory: the path of the newest

    family = Family("model.ckpt", keep=5)
    family.save(2000, checkpoint.save)
    latest("model.ckpt")                # Path("model.ckpt-2000.dp")
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from dpmodel.errors import ModelFileError
from dpmodel.files.atomic import atomic_symlink, atomic_write, remove_leftovers
from dpmodel.training.checkpoint import check_whole

__all__ = ["SUFFIX", "Family", "averaged_name", "keep_count", "latest"]

logger = logging.getLogger(__name__)

SUFFIX = ".dp"

POINTER = "checkpoint"
"""The file of a run that names its newest checkpoint."""


@dataclass(frozen=True)
class Family:
    """The numbered checkpoints that share a name."""

    save_ckpt: str
    """Name of the link to the newest one, with or without its suffix; may contain a folder."""
    save_dir: str | None = None
    """Folder of the numbered files; None: that of `save_ckpt`."""
    keep: int = 5
    """How many numbered files remain; below 1: all."""
    pointer: str | None = POINTER
    """File that will contain the path of the newest one; None: no such file (for averaged weights)."""

    @property
    def link(self) -> Path:
        """The name that always means the newest checkpoint."""
        return _with_suffix(Path(self.save_ckpt))

    @property
    def folder(self) -> Path:
        """Where the numbered files are."""
        return self.link.parent if self.save_dir is None else Path(self.save_dir)

    def path(self, step: int) -> Path:
        """The file of the checkpoint after `step` finished steps."""
        return self.folder / f"{self.link.stem}-{step}{SUFFIX}"

    def existing(self) -> list[tuple[int, Path]]:
        """(step, path) of the numbered files, by step. Links, folders and foreign names do not count."""
        return _numbered(self.folder, self.link.stem)

    def save(self, step: int, write: Callable[[Path], object]) -> Path:
        """Write the checkpoint of `step` by `write(path)`, let the link and the pointer name it, then tidy up.

        Files of a greater step are from an earlier run or from before a restart: they go first, and only once the new
        file is there. Raises what `write` raises, and OSError when link or pointer cannot be written; older
        checkpoints are then untouched.
        """
        for folder in (self.folder, self.link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        path = self.path(step)
        write(path)
        atomic_symlink(self.link, path)
        if self.pointer is not None:
            text = f"{path}\n"
            atomic_write(self.pointer, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._tidy(step)
        return path

    def _tidy(self, step: int) -> None:
        older = []
        for other, path in self.existing():
            if other > step:
                _remove(path)
            elif other < step:
                older.append(path)
        if self.keep >= 1:
            for path in older[: max(len(older) - self.keep + 1, 0)]:
                _remove(path)
        # One process writes a family, so a temporary file that is still there was left by a killed run.
        remove_leftovers(self.folder, rf"{re.escape(self.link.stem)}-\d+{re.escape(SUFFIX)}")
        remove_leftovers(self.link.parent, re.escape(self.link.name))
        if self.pointer is not None:
            remove_leftovers(Path(self.pointer).parent, re.escape(Path(self.pointer).name))


def keep_count(max_ckpt_keep: int, ckpt_keep_ratio: float | None, num_steps: int, save_freq: int) -> int:
    """How many checkpoints to keep: the ratio, where given, is one of all that a run writes, and wins.

    max(1, ceil(ratio * ceil(num_steps / save_freq))), in decimal arithmetic: 0.07 of 100 is 7, not 8.
    """
    if ckpt_keep_ratio is None:
        return max_ckpt_keep
    return max(1, math.ceil(Fraction(str(ckpt_keep_ratio)) * math.ceil(Fraction(num_steps, save_freq))))


def averaged_name(name: str) -> str:
    """`_ema` before the last suffix: model.ckpt -> model_ema.ckpt, val.log -> val_ema.log."""
    path = Path(name)
    return str(path.with_name(f"{path.stem}_ema{path.suffix}"))


def latest(save_ckpt: str | os.PathLike[str], save_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The checkpoint to go on from: the newest whole one of a family, or the one that is named with its step.

    Accepts "model.ckpt", "model.ckpt.dp", "model.ckpt-1000" and "model.ckpt-1000.dp". Damaged members of a family are
    skipped with a warning in the log. None if the family has no members.

    Raises ModelFileError when a file named with its step is missing or damaged, and when all members are damaged.
    """
    path = _with_suffix(Path(save_ckpt))
    members = _numbered(path.parent if save_dir is None else Path(save_dir), path.stem)
    if re.fullmatch(r".+-\d+", path.stem) and not members:
        check_whole(path)
        return path
    candidates = [member for _, member in reversed(members)]
    # A plain file is a copy of the newest one (no links there), or was moved here alone.
    candidates += [path] if path.is_file() else []
    damage: list[str] = []
    for candidate in candidates:
        try:
            check_whole(candidate)
        except ModelFileError as error:
            damage.append(str(error))
            logger.warning("%s. Trying the one before it.", error)
            continue
        return candidate
    if damage:
        raise ModelFileError(f"no checkpoint of {save_ckpt} is whole: {'; '.join(damage)}")
    return None


def _numbered(folder: Path, stem: str) -> list[tuple[int, Path]]:
    name = re.compile(rf"{re.escape(stem)}-(\d+){re.escape(SUFFIX)}")
    found = []
    if folder.is_dir():
        for path in folder.iterdir():
            match = name.fullmatch(path.name)
            if match and path.is_file() and not path.is_symlink():
                found.append((int(match[1]), path))
    return sorted(found)


def _with_suffix(path: Path) -> Path:
    return path if path.suffix.lower() == SUFFIX else path.with_name(path.name + SUFFIX)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # A checkpoint too many does no harm; the run goes on.
        logger.warning("cannot remove the old checkpoint %s: %s", path, error.strerror or error)
