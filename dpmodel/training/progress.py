"""What a run says while it goes: log lines in DeePMD-kit's form, and on a terminal a progress bar below them.

::

    Batch    1000: trn: rmse = 3.33e+01, rmse_e = 1.03e+01, lr = 1.00e-03
    Batch    1000: val: rmse = 3.41e+01, rmse_e = 1.05e+01
    Batch    1000: total wall time = 12.31 s, eta = 0:20:11 at 2025-06-01 12:30
    Average training time: 0.0122 s/batch (1000 batches excluded)

    with Progress(num_steps, disp_freq=1000) as progress:
        for step in range(1, num_steps + 1):
            ...
            progress.advance(step)
            if step % 1000 == 0:
                progress.report(step, training, validation, lr)

The lines go through `logging`. The bar needs rich and is drawn by `advance`, at most a few times a second, so there is
no thread that could disturb worker processes.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib import import_module
from types import TracebackType
from typing import Any, Self, TextIO

from dpmodel.training.lcurve import Metrics

__all__ = ["Progress", "hours", "metric_lines", "time_line"]

logger = logging.getLogger(__name__)

REFRESH = 0.25
"""Seconds between two drawings of the bar."""


def metric_lines(
    step: int,
    training: Metrics | Mapping[str, Metrics],
    validation: Metrics | Mapping[str, Metrics] | None,
    lr: float,
) -> list[str]:
    """The log lines of a step: `trn`, then `val` if there is one; with several tasks `<task>_trn`, `<task>_val`."""
    lines = []
    validated = _by_task(validation or {})
    trained = _by_task(training)
    for task in dict.fromkeys([*trained, *validated]):
        prefix = f"{task}_" if task else ""
        if task in trained:
            lines.append(_line(step, f"{prefix}trn", [*sorted(trained[task].items()), ("lr", lr)]))
        if validated.get(task):
            lines.append(_line(step, f"{prefix}val", sorted(validated[task].items())))
    return lines


def time_line(step: int, seconds: float, left: float | None = None, now: datetime | None = None) -> str:
    """The log line about time: of the interval that ends with `step`, and what is left (None: not known yet)."""
    line = f"Batch {step:7d}: total wall time = {seconds:.2f} s"
    if left is None:
        return line
    end = (datetime.now().astimezone() if now is None else now) + timedelta(seconds=left)
    return f"{line}, eta = {hours(left)} at {end:%Y-%m-%d %H:%M}"


def hours(seconds: float) -> str:
    """H:MM:SS, with as many hours as it takes."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """Follows a run of `num_steps` steps of which `start_step` are done; one process of a run enables it.

    `stream` decides on the bar (standard error by default): there is one where it is a terminal and rich is installed.
    `clock` counts seconds.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        start_step: int = 0,
        disp_freq: int = 1000,
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.num_steps, self.start_step, self.enabled = num_steps, start_step, enabled
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        # The first steps pay for compilation and cold caches; a short run has no others.
        self._excluded = disp_freq if num_steps - start_step >= 2 * disp_freq else 0
        self._begin = self._counted_from = self._last = self._reported_at = clock()
        self._reported_step, self._reports, self._done = start_step, 0, 0
        self._bar: _Bar | None = None

    def __enter__(self) -> Self:
        if self.enabled and _is_terminal(self._stream):
            self._bar = _Bar.open(self._stream, self.num_steps, self.start_step)
        self._begin = self._counted_from = self._last = self._reported_at = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self.enabled and self._done and kind is None:
            seconds, excluded = self.average()
            logger.info("Average training time: %.4f s/batch (%d batches excluded)", seconds, excluded)

    def advance(self, step: int) -> None:
        """Note that `step` steps are finished. Cheap; call it after each."""
        self._done += 1
        self._last = self._clock()
        if self._done == self._excluded:
            self._counted_from = self._last
        if self._bar is not None and not self._bar.draw(step, self._last, force=step == self.num_steps):
            self._bar = None

    def report(
        self,
        step: int,
        training: Metrics | Mapping[str, Metrics],
        validation: Metrics | Mapping[str, Metrics] | None,
        lr: float,
    ) -> None:
        """Log the metrics of a step, and the time since the last report with an estimate of what is left.

        There is no estimate in the first report: its interval is dominated by the start.
        """
        if not self.enabled:
            return
        now = self._clock()
        seconds, steps = now - self._reported_at, step - self._reported_step
        left = (self.num_steps - step) * seconds / steps if self._reports and steps > 0 else None
        self._reported_at, self._reported_step, self._reports = now, step, self._reports + 1
        for line in [*metric_lines(step, training, validation, lr), time_line(step, seconds, left)]:
            logger.info("%s", line)
        if self._bar is not None:
            self._bar.describe(training, lr)

    def average(self) -> tuple[float, int]:
        """(seconds per step, number of steps at the start that do not count)."""
        if self._done > self._excluded:
            return (self._last - self._counted_from) / (self._done - self._excluded), self._excluded
        return (self._last - self._begin) / max(self._done, 1), 0


class _Bar:
    """A rich progress bar without a thread; log handlers of the stream write above it while it is open."""

    def __init__(self, bar: Any, handlers: Any) -> None:
        self._bar, self._handlers = bar, handlers
        self._drawn = float("-inf")

    @classmethod
    def open(cls, stream: TextIO, num_steps: int, start_step: int) -> _Bar | None:
        """None where rich is missing or the terminal refuses."""
        try:
            # Only here: rich is optional and takes a while to import.
            console, rich = import_module("rich.console"), import_module("rich.progress")
        except ImportError:
            return None
        columns = (rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn())
        metrics = rich.TextColumn("{task.description}", markup=False)
        bar = rich.Progress(*columns, metrics, console=console.Console(file=stream), auto_refresh=False)
        bar.add_task("", total=num_steps, completed=start_step)
        handlers = _handlers_above(stream, bar)
        try:
            handlers.__enter__()
        except OSError:
            return None
        return cls(bar, handlers)

    def draw(self, step: int, now: float, *, force: bool = False) -> bool:
        """Draw, unless it was done a moment ago. False: the terminal is gone, and so is the bar."""
        if not force and now - self._drawn < REFRESH:
            return True
        self._drawn = now
        try:
            self._bar.update(self._bar.task_ids[0], completed=step)
            self._bar.refresh()
        except OSError:
            self.close()
            return False
        return True

    def describe(self, training: Metrics | Mapping[str, Metrics], lr: float) -> None:
        """Show the first few metrics behind the bar."""
        shown = [
            f"{task}{' ' if task else ''}{name} {value:.2e}"
            for task, metrics in _by_task(training).items()
            for name, value in sorted(metrics.items())
        ]
        self._bar.update(self._bar.task_ids[0], description="  ".join([*shown[:3], f"lr {lr:.1e}"]))

    def close(self) -> None:
        """Leave the last drawing on the screen and give the handlers their stream back."""
        self._handlers.__exit__(None, None, None)


@contextmanager
def _handlers_above(stream: TextIO, bar: Any) -> Iterator[None]:
    """Run the bar; log handlers that write to `stream` write above it. A vanished terminal is no error at the end."""
    bar.start()
    # While it runs, rich puts proxies in the place of the standard streams, but handlers hold the original.
    proxy = sys.stderr if getattr(sys.stderr, "rich_proxied_file", None) is stream else None
    moved = []
    for handler in [*logging.getLogger().handlers, *logging.getLogger("dpmodel").handlers]:
        if proxy is not None and isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            handler.setStream(proxy)
            moved.append(handler)
    try:
        yield
    finally:
        try:
            bar.stop()
        except OSError:
            logger.debug("the terminal went away before the progress bar")
        for handler in moved:
            handler.setStream(stream)


def _is_terminal(stream: TextIO) -> bool:
    return os.environ.get("TERM") != "dumb" and bool(getattr(stream, "isatty", bool)())


def _by_task(metrics: Metrics | Mapping[str, Metrics]) -> dict[str, dict[str, float]]:
    """Metrics by task; "" for those of a single one."""
    out: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            out[name] = dict(value)
        else:
            out.setdefault("", {})[name] = value
    return out


def _line(step: int, what: str, items: list[tuple[str, float]]) -> str:
    return f"Batch {step:7d}: {what}: " + ", ".join(f"{name} = {value:8.2e}" for name, value in items)
