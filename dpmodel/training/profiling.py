"""A look at where the time of a few steps goes, by the profiler of the backend.

The first step is left out, fifteen more warm up, and three are recorded: in `training.profiling_file` for
chrome://tracing or Perfetto (`profiling`), and in `training.tensorboard_log_dir` for TensorBoard (`enable_profiler`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dpmodel.errors import InputError
from dpmodel.training.lcurve import Metrics
from dpmodel.training.loop import Read

__all__ = ["ACTIVE", "WAIT", "WARMUP", "Profiler", "Profiling", "check_profiling"]

logger = logging.getLogger(__name__)

WAIT, WARMUP, ACTIVE = 1, 15, 3
"""Steps that are left out, that warm up, and that are recorded."""


class Profiler(Protocol):
    """What `backend.profiler(trace, folder)` makes: it writes `trace`, and a trace in `folder`, where they are not None."""

    def start(self) -> None:
        """Before the first step."""

    def step(self) -> None:
        """After every step."""

    def stop(self) -> bool:
        """At the end; whether the traces were written. May be called twice."""
        ...


def check_profiling(backend: Any) -> None:
    """Raise InputError where the backend has no profiler."""
    if not hasattr(backend, "profiler"):
        raise InputError(
            f"training.profiling and enable_profiler need the backend pt or pt_expt, and this run is on {backend.name}: "
            "choose it with --backend, or use a profiler from outside, such as py-spy"
        )


class Profiling:
    """An observer (see `dpmodel.training.loop`). Only one process of a run profiles."""

    def __init__(self, backend: Any, *, trace: str | Path | None, folder: str | Path | None) -> None:
        """Start. trace, folder: where the traces go, each may be None. Raises InputError as `check_profiling`."""
        check_profiling(backend)
        self._profiler: Profiler = backend.profiler(
            None if trace is None else Path(trace), None if folder is None else Path(folder)
        )
        self._where = " and ".join(str(place) for place in (trace, folder) if place is not None)
        self._profiler.start()

    def on_step(self, step: int, read: Read, lr: float, task: str) -> None:
        """Count."""
        self._profiler.step()

    def on_row(
        self, step: int, training: Mapping[str, Metrics], validation: Mapping[str, Metrics] | None, lr: float
    ) -> None:
        """Nothing."""

    def close(self) -> None:
        """Stop, and say what was written."""
        if self._profiler.stop():
            logger.info("The profile of %d steps is in %s", ACTIVE, self._where)
        else:
            logger.warning("The run ended before step %d, so there is no profile", WAIT + WARMUP + ACTIVE)
