"""The learning curve: a text table that grows with the run, in DeePMD-kit's form (`lcurve.out`).

::

    # step        rmse_val    rmse_trn      rmse_e_val  rmse_e_trn         lr
    # If there is no available reference data, rmse_*_{val,trn} will print nan
          1       3.33e+01    3.41e+01        1.03e+01    1.03e+01    1.0e-03

Without validation data only the `_trn` columns are there. With several tasks the names end in `_<task>`. ::

    curve = LearningCurve("lcurve.out")
    curve.write(1, {"rmse": 34.1}, {"rmse": 33.3}, 1e-3)
    read_lcurve("lcurve.out")["rmse_trn"]
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dpmodel.errors import InputError
from dpmodel.files.atomic import atomic_write

__all__ = ["LearningCurve", "Metrics", "read_lcurve"]

logger = logging.getLogger(__name__)

Metrics = Mapping[str, float]
"""Values by the name of the metric, such as `rmse_e`."""

NOTE = "# If there is no available reference data, rmse_*_{val,trn} will print nan"


class LearningCurve:
    """Writes the table, one row at a time; each row is on the disk's way when `write` returns.

    A new run replaces an older file with its first row. A restart (`restored_step` given) keeps the rows up to that
    step and appends. Only one process writes.

    Raises InputError when the file of a restart is not a learning curve, OSError when the disk refuses.
    """

    def __init__(self, path: str | os.PathLike[str], *, restored_step: int | None = None) -> None:
        self.path = Path(path)
        self._columns: list[tuple[str, ...]] | None = None
        self._append = False
        if restored_step is not None and self.path.exists() and self.path.stat().st_size:
            _drop_rows(self.path, restored_step)
            self._append = True

    def write(
        self,
        step: int,
        training: Metrics | Mapping[str, Metrics],
        validation: Metrics | Mapping[str, Metrics] | None,
        lr: float,
    ) -> None:
        """Append the row of a step, numbered from 1.

        `training` and `validation` are metrics, or metrics by task in the order of the model. What a later row lacks
        is nan. Without validation data `validation` is None.

        Raises ValueError when a row has metrics that the first one had not.
        """
        values = {f"{name}_trn{task}": value for name, task, value in _flat(training)}
        values |= {f"{name}_val{task}": value for name, task, value in _flat(validation or {})}
        if self._columns is None:
            self._start(_columns(training, validation))
        assert self._columns is not None
        unknown = values.keys() - {name for group in self._columns for name in group}
        if unknown:
            raise ValueError(f"{self.path}: the columns {sorted(unknown)} were not in the first row of this run")
        cells = [" ".join(f"{values.get(name, math.nan):11.2e}" for name in group) for group in self._columns]
        self._put(f"{step:7d}" + "".join(f"   {cell}" for cell in cells) + f"   {lr:8.1e}\n")

    def _start(self, columns: list[tuple[str, ...]]) -> None:
        self._columns = columns
        header = "# step " + "".join("   " + " ".join(f"{name:>11s}" for name in group) for group in columns)
        header += "   lr      "
        if self._append and _names(self.path) != header.split()[1:]:
            aside = self.path.with_name(self.path.name + ".old")
            self.path.replace(aside)
            logger.warning("%s has other columns than this run; it is kept as %s", self.path, aside)
            self._append = False
        if not self._append:
            atomic_write(self.path, lambda temporary: temporary.write_text(f"{header}\n{NOTE}\n", encoding="utf-8"))

    def _put(self, line: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(line)
        except OSError as error:
            what = f"cannot write the learning curve {self.path}: {error.strerror or error}"
            raise (OSError(what) if error.errno is None else OSError(error.errno, what)) from error


def read_lcurve(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of a learning curve: `step` (n,) int64, the metrics and `lr` (n,) float64, in the file's order.

    A last line that is still being written is left out. Repeated headers are skipped.

    Raises InputError naming the line where the file is not a learning curve.
    """
    path = Path(path)
    names: list[str] = []
    rows: list[list[float]] = []
    lines = _read_lines(path)
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words[:2] == ["#", "step"] or words[:1] == ["#step"]:
            found = line.replace("#", " ", 1).split()
            if names and found != names:
                raise InputError(f"{path}, line {number}: the columns change in the middle; split the file there")
            names = found
        elif words and not words[0].startswith("#"):
            row = _row(words, len(names))
            if row is None and number == len(lines) and not line.endswith("\n"):
                break
            if not names or row is None:
                raise InputError(
                    f"{path}, line {number}: expected "
                    + (f"{len(names)} numbers ({', '.join(names[:4])}, ...)" if names else "a header '# step ... lr'")
                    + f", found {line.strip()[:60]!r}. Is it a learning curve (lcurve.out)?"
                )
            rows.append(row)
    if not names:
        raise InputError(f"{path}: there is no header '# step ... lr'. Is it a learning curve (lcurve.out)?")
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return {name: table[:, k].astype(np.int64) if k == 0 else table[:, k] for k, name in enumerate(names)}


def _drop_rows(path: Path, step: int) -> None:
    """Remove the rows beyond a step, and a last line cut short by a kill, in one piece."""
    read_lcurve(path)
    kept = []
    for line in _read_lines(path):
        first = line.split()[:1]
        if line.endswith("\n") and (not first or first[0].startswith("#") or float(first[0]) <= step):
            kept.append(line)
    atomic_write(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"{path}: this learning curve cannot be read: {what}") from error


def _row(words: list[str], width: int) -> list[float] | None:
    if len(words) != width:
        return None
    try:
        return [float(int(words[0])), *map(float, words[1:])]
    except ValueError:
        return None


def _names(path: Path) -> list[str]:
    return list(read_lcurve(path))


def _flat(metrics: Metrics | Mapping[str, Metrics]) -> list[tuple[str, str, float]]:
    """(metric, suffix of the task, value); metrics sorted, tasks in their order."""
    out: list[tuple[str, str, float]] = []
    plain: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            task = "_" + "_".join(name.split())
            out += [(metric, task, float(value[metric])) for metric in sorted(value)]
        else:
            plain[name] = value
    return [(metric, "", float(plain[metric])) for metric in sorted(plain)] + out


def _columns(
    training: Metrics | Mapping[str, Metrics], validation: Metrics | Mapping[str, Metrics] | None
) -> list[tuple[str, ...]]:
    """Groups of column names: (k_val, k_trn), or (k_trn,) where the metric has no validation value."""
    validated = [(name, task) for name, task, _ in _flat(validation or {})]
    trained = [(name, task) for name, task, _ in _flat(training)]
    tasks = list(dict.fromkeys(task for _, task in trained + validated))
    names = sorted({*trained, *validated}, key=lambda item: (tasks.index(item[1]), item[0]))
    both = {pair: (f"{pair[0]}_val{pair[1]}", f"{pair[0]}_trn{pair[1]}") for pair in names}
    return [both[pair] if pair in validated else both[pair][1:] for pair in names]
