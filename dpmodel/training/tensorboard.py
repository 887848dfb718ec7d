"""Metrics of a run for TensorBoard, without any framework: `tensorboard --logdir log`.

By task (`Default` for a single one): `<task>/lr`, `<task>/loss` (of losses that show its root as rmse) and `<task>/<metric>`
of the step's batch; on PyTorch norms of the gradient over all ranks, before clipping: `<task>/grad/total_norm`, the histogram
`<task>/grad/param_norms` of those of parameters, and the ten largest as `<task>/grad_top10/<parameter>`; at rows of the
learning curve `<task>/<metric>_val`; at full validations `full_validation/<column>` (`full_validation_ema/...` of averaged
weights). Of several processes the numbers of steps are the chief's own.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dpmodel.errors import InputError
from dpmodel.training.lcurve import Metrics
from dpmodel.training.loop import Read

__all__ = ["ReadNorms", "TensorBoard", "check_tensorboard"]

ReadNorms: TypeAlias = Callable[[], tuple[float, Mapping[str, float]]]
"""Gives those of the last step's gradient: of all of it, or NaN, and by parameter."""

SINGLE = "Default"
"""What a single task is called, as in DeePMD-kit."""


def check_tensorboard() -> None:
    """Raise InputError where the package is missing that writes the files."""
    _parts()


def _parts() -> tuple[Any, Any, Any]:
    """The modules of the writer, of events and of summaries."""
    try:
        return (
            importlib.import_module("tensorboard.summary.writer.event_file_writer"),
            importlib.import_module("tensorboard.compat.proto.event_pb2"),
            importlib.import_module("tensorboard.compat.proto.summary_pb2"),
        )
    except ImportError as problem:
        raise InputError(
            f'training.tensorboard needs the package tensorboard ({problem}): pip install "dpmodel[tensorboard]", or use '
            f"training.metrics_file"
        ) from problem


class TensorBoard:
    """An observer (see `dpmodel.training.loop`) that writes event files. Only one process writes."""

    def __init__(
        self,
        folder: str | Path,
        *,
        freq: int = 1,
        restored_step: int | None = None,
        norms: ReadNorms | None = None,
    ) -> None:
        """freq: steps between those that are written. restored_step: TensorBoard forgets what an earlier run wrote beyond.

        Raises InputError where the package is missing, OSError where the folder cannot be made.
        """
        writer, self._events, self._summaries = _parts()
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._freq, self._norms = freq, norms
        self._writer: Any = writer.EventFileWriter(str(folder))
        if restored_step is not None:
            log = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(step=restored_step + 1, session_log=log)

    def on_step(self, step: int, read: Read, lr: float, task: str) -> None:
        """Write the metrics of a step's batch."""
        if step % self._freq:
            return
        metrics, name = read(), task or SINGLE
        values = {"lr": lr, **metrics}
        if "rmse" in metrics:
            values["loss"] = metrics["rmse"] ** 2
        if self._norms is not None:
            values["grad/total_norm"], own = self._norms()
            top = heapq.nlargest(10, own.items(), key=lambda item: item[1])
            values |= {f"grad_top10/{path}": value for path, value in top}
            self._histogram(step, f"{name}/grad/param_norms", list(own.values()))
        self._scalars(step, {f"{name}/{key}": value for key, value in values.items()})

    def on_row(
        self, step: int, training: Mapping[str, Metrics], validation: Mapping[str, Metrics] | None, lr: float
    ) -> None:
        """Write the validation metrics of a row of the learning curve."""
        for task, metrics in (validation or {}).items():
            self._scalars(step, {f"{task or SINGLE}/{key}_val": value for key, value in metrics.items()})

    def on_validation(self, step: int, row: Mapping[str, float], *, averaged: bool) -> None:
        """Write a row of full validation."""
        group = "full_validation_ema" if averaged else "full_validation"
        self._scalars(step, {f"{group}/{key}": value for key, value in row.items()})

    def close(self) -> None:
        """Write what is waiting."""
        with contextlib.suppress(ValueError):  # closed already
            self._writer.close()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        kind = self._summaries.Summary
        shown = {tag: float(value) for tag, value in values.items() if not math.isnan(value)}
        found = [kind.Value(tag=tag, simple_value=value) for tag, value in shown.items()]
        if found:
            self._add(step=step, summary=kind(value=found))

    def _histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        values = [value for value in values if math.isfinite(value)]
        if not values:
            return
        edges = np.linspace(min(values), max(values), 31)
        if not np.all(edges[1:] > edges[:-1]):  # all but equal: one bucket
            edges = np.array([min(values), max(values)])
        places = np.minimum(np.searchsorted(edges[1:], values), len(edges) - 2)
        found = self._summaries.HistogramProto(
            min=min(values), max=max(values), num=len(values), sum=math.fsum(values),
            sum_squares=math.fsum(x * x for x in values), bucket_limit=edges[1:].tolist(),
            bucket=np.bincount(places, minlength=len(edges) - 1).tolist(),
        )  # fmt: skip
        kind = self._summaries.Summary
        self._add(step=step, summary=kind(value=[kind.Value(tag=tag, histo=found)]))

    def _add(self, **content: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), **content))
