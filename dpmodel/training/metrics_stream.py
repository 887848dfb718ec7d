"""The metrics of a run for other programs: every row of the learning curve and of full validation, in full precision.

A name that ends in .jsonl gives one JSON object per line, .csv a table with a header::

    {"step": 1000, "lr": 0.001, "rmse_e_trn": 0.0123, "rmse_e_val": 0.0131, "rmse_trn": 0.51, "rmse_val": null}
    {"step": 1000, "full_E_MAE(meV/atom)": 1.234, "full_E_RMSE(meV/atom)": 2.345, ...}

Names are those of the learning curve (with several tasks they end in `_<task>`) and of `val.log` with `full_` in front,
`full_ema_` for averaged weights. A metric without label is null, nan in a table; what a table has no place for on a line is
empty. A restart drops the lines beyond its step, so that the file is that of an undisturbed run.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpmodel.errors import InputError
from dpmodel.files.atomic import atomic_write
from dpmodel.training.lcurve import Metrics
from dpmodel.training.loop import Read

__all__ = ["MetricsStream", "check_metrics_file"]

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".jsonl")


def check_metrics_file(path: str | os.PathLike[str]) -> None:
    """Raise InputError for a name with another suffix."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"training.metrics_file: expected a name that ends in .csv or .jsonl, got {os.fspath(path)!r}")


class MetricsStream:
    """An observer (see `dpmodel.training.loop`) that writes each row at once. Only one process writes.

    A new run replaces an older file with its first row; a restart (`restored_step` given) keeps the lines up to that step.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, restored_step: int | None = None, validated: Sequence[str] = ()
    ) -> None:
        """validated: names that `on_validation` will give, for the header of a table; see `validated_name`.

        Raises InputError where the file of a restart is none of these.
        """
        check_metrics_file(path)
        self.path = Path(path)
        self._table = self.path.suffix.lower() == ".csv"
        self._validated = tuple(validated)
        self._columns: list[str] | None = None
        self._waiting: list[tuple[int, Mapping[str, float]]] = []
        self._append = False
        if restored_step is not None and self.path.exists() and self.path.stat().st_size:
            self._drop_lines(restored_step)
            self._append = True

    def on_step(self, step: int, read: Read, lr: float, task: str) -> None:
        """Nothing: only rows are written."""

    def on_row(
        self, step: int, training: Mapping[str, Metrics], validation: Mapping[str, Metrics] | None, lr: float
    ) -> None:
        """Write a row of the learning curve. Raises OSError, ValueError for metrics that the first row had not."""
        values: dict[str, float] = {"lr": lr}
        for task, metrics in training.items():
            suffix = f"_{'_'.join(task.split())}" if task else ""
            checked = (validation or {}).get(task, {})
            for name in sorted({*metrics, *checked}):
                values |= {f"{name}_val{suffix}": checked[name]} if name in checked else {}
                values |= {f"{name}_trn{suffix}": metrics[name]} if name in metrics else {}
        if self._columns is None:
            self._start(["step", *values, *self._validated])
            self._put_waiting()
        self._put(step, values)

    def on_validation(self, step: int, row: Mapping[str, float], *, averaged: bool) -> None:
        """Write a row of full validation, by column of its log. Raises OSError."""
        values = {validated_name(name, averaged=averaged): value for name, value in row.items()}
        if self._columns is None:
            header = self._header()
            if self._table and not set(values) <= set(header):
                self._waiting.append((step, values))  # the columns of the learning curve are not known yet
                return
            self._start(header)
        self._put(step, values)

    def close(self) -> None:
        """Write what waits for columns; other rows are written already."""
        if self._waiting:
            self._start(["step", *self._validated])
            self._put_waiting()

    # --- the file ---------------------------------------------------------------------------------------

    def _start(self, columns: list[str]) -> None:
        self._columns = columns
        if self._append and self._table and self._header() != columns:
            aside = self.path.with_name(self.path.name + ".old")
            self.path.replace(aside)
            logger.warning("%s has other columns than this run; it is kept as %s", self.path, aside)
            self._append = False
        if not self._append:
            text = _line(columns) if self._table else ""
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))

    def _put_waiting(self) -> None:
        for step, values in self._waiting:
            self._put(step, values)
        self._waiting = []

    def _put(self, step: int, values: Mapping[str, float]) -> None:
        assert self._columns is not None
        if self._table:
            unknown = [name for name in values if name not in self._columns]
            if unknown:
                raise ValueError(f"{self.path}: the columns {unknown} were not in the first row of this run")
            cells = {"step": str(step), **{name: repr(float(value)) for name, value in values.items()}}
            text = _line([cells.get(name, "") for name in self._columns])
        else:
            plain = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
            text = json.dumps({"step": step, **plain}, allow_nan=False) + "\n"
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
        except OSError as error:
            what = f"cannot write the metrics {self.path}: {error.strerror or error}"
            raise (OSError(what) if error.errno is None else OSError(error.errno, what)) from error

    def _header(self) -> list[str]:
        """The columns of the table that is there; none without."""
        if not (self._append and self._table):
            return []
        with self.path.open(encoding="utf-8", newline="") as stream:
            return next(csv.reader(stream), [])

    def _drop_lines(self, step: int) -> None:
        """Keep the lines up to a step; one that a kill cut short goes."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = lines[:1] if self._table else []
            if self._table and lines[0].split(",")[0].strip() != "step":
                raise ValueError("it has no header that begins with step")
            for line in lines[len(kept) :]:
                if line.endswith("\n") and self._step(line) <= step:
                    kept.append(line)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"training.metrics_file: {self.path} holds no metrics of a run ({error}); move it away, or choose another name"
            ) from error
        atomic_write(self.path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8", newline="\n"))

    def _step(self, line: str) -> int:
        return int(line.split(",", maxsplit=1)[0]) if self._table else int(json.loads(line)["step"])


def validated_name(column: str, *, averaged: bool) -> str:
    """What a column of the log of validations is called here."""
    return f"full_ema_{column}" if averaged else f"full_{column}"


def _line(cells: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()
