"""The log of full validation: a text table that grows with the run, in DeePMD-kit's form (`val.log`).

::

    # step   E_MAE(meV/atom)  E_RMSE(meV/atom)      F_MAE(meV/A)  ...
       1000        3.1234e+00        4.2345e+00        8.1234e+01  ...
    # best checkpoint: best.ckpt-1000.t-1.dp (E:MAE, step 1000)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpmodel.errors import InputError
from dpmodel.files.atomic import atomic_write

__all__ = ["ValidationLog"]

logger = logging.getLogger(__name__)


class ValidationLog:
    """Writes the table, one row at a time. Only one process writes, and nothing is written before the first row.

    A new run replaces an older file with its first row. A restart (`restored_step` given) keeps the rows up to that step.
    """

    def __init__(
        self, path: str | os.PathLike[str], columns: Sequence[str], *, restored_step: int | None = None
    ) -> None:
        self.path = Path(path)
        self._widths = [max(18, len(name) + 2) for name in columns]
        cells = "".join(f"{name:>{width}s}" for name, width in zip(columns, self._widths, strict=True))
        self._header = f"# step {cells}\n"
        self._restored = restored_step
        self._begun = False

    def write(self, step: int, row: Mapping[str, float], note: str | None = None) -> None:
        """Append the row of a step, values in the order of the columns, and a line of comment.

        Raises OSError when the disk refuses, and what `resume` raises.
        """
        if not self._begun:
            self.resume()
        if not self._begun:
            self._begin([])
        cells = "".join(f"{value:{width}.4e}" for value, width in zip(row.values(), self._widths, strict=True))
        text = f"{step:7d}{cells}\n" + ("" if note is None else f"# {note}\n")
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
        except OSError as error:
            what = f"cannot write the log of validations {self.path}: {error.strerror or error}"
            raise (OSError(what) if error.errno is None else OSError(error.errno, what)) from error

    def resume(self) -> None:
        """Of a restart: drop the rows beyond its step. Raises InputError where the file is no such log, OSError."""
        if self._restored is None or not self.path.exists():
            return
        kept = self._kept()
        if kept and kept[0] == self._header:
            self._begin(kept)
        elif kept:
            aside = self.path.with_name(self.path.name + ".old")
            self.path.replace(aside)
            logger.warning("%s has other columns than this run; it is kept as %s", self.path, aside)

    def _begin(self, kept: list[str]) -> None:
        text = "".join(kept or [self._header])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._begun = True

    def _kept(self) -> list[str]:
        """The lines up to the restored step; a line cut short by a kill is dropped."""
        assert self._restored is not None
        kept = []
        try:
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                words = line.split()
                row = bool(words) and not words[0].startswith("#")
                if not line.endswith("\n") or (row and int(words[0]) > self._restored):
                    break
                kept.append(line)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise InputError(
                f"{self.path}: this is no log of validations ({error}); move it away, or choose another "
                "validating.full_val_file"
            ) from error
        return kept
