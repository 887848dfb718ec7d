"""The one training loop: batches, steps, display, checkpoints. A backend supplies the step, everything else is here."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dpmodel.data.sampler import Sampler
from dpmodel.geometry.build import GraphBuilder
from dpmodel.training.batches import Prepared, prepare
from dpmodel.training.lcurve import LearningCurve
from dpmodel.training.schedules import Schedule
from dpmodel.training.signals import Request
from dpmodel.training.stepper import NonFiniteError, Stepper

__all__ = ["Display", "Loop", "RunningMean"]

logger = logging.getLogger(__name__)


class Display(Protocol):
    """Where progress is shown (see `dpmodel.training.progress`)."""

    def advance(self, step: int) -> None:
        """A step was finished."""

    def report(
        self, step: int, training: Mapping[str, float], validation: Mapping[str, float] | None, lr: float
    ) -> None:
        """A row of the learning curve was written."""


class RunningMean:
    """Weighted means of metrics; a metric that is NaN (no label) counts only where it is a number."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._sums: dict[str, list[float]] = {k: list(v) for k, v in (state or {}).items()}

    def add(self, metrics: Mapping[str, float], weight: float = 1.0) -> None:
        """Take in the metrics of one batch."""
        for name, value in metrics.items():
            total = self._sums.setdefault(name, [0.0, 0.0])
            if not math.isnan(value):
                total[0] += weight * value
                total[1] += weight

    def means(self) -> dict[str, float]:
        """The means so far; NaN for what never was a number."""
        return {name: total / weight if weight else math.nan for name, (total, weight) in self._sums.items()}

    def state(self) -> dict[str, list[float]]:
        """Plain data to go on from."""
        return {name: list(pair) for name, pair in self._sums.items()}


@dataclasses.dataclass(kw_only=True)
class Loop:
    """One run of one task. `go` may be called once."""

    stepper: Stepper
    builder: GraphBuilder
    atomic_labels: frozenset[str]
    training: Sampler
    validation: Sampler | None
    validation_batches: int
    schedule: Schedule
    num_steps: int
    disp_freq: int
    save_freq: int
    disp_avg: bool
    curve: LearningCurve
    display: Display
    save: Callable[[int], object]
    """Write the checkpoint after so many finished steps."""
    average: RunningMean = dataclasses.field(default_factory=RunningMean)
    """With disp_avg: the means since the last row."""

    def go(self, start: int, stop: int | None, request: Request, *, saved: bool = False) -> int:
        """Train from `start` finished steps to `num_steps` (or `stop`), or until the request; returns the finished steps.

        A checkpoint is written every `save_freq` steps and at the end of whatever was run. `saved`: the one of `start`
        is there already. Raises NonFiniteError, OSError where a file cannot be written, and what the backend raises.
        """
        end = self.num_steps if stop is None else min(stop, self.num_steps)
        step, last = start, start if saved else -1
        while step < end and not request.name:
            lr = self.schedule.lr(step)
            try:
                read = self.stepper.step(*self._next(self.training), lr)
            except NonFiniteError as problem:
                raise NonFiniteError(
                    f"step {step + 1}: {problem}; nothing was saved since. Look for wrong frames in the data, lower "
                    "learning_rate.start_lr, or set training.gradient_max_norm; then go on with --restart"
                ) from problem
            step += 1
            if self.disp_avg:
                self.average.add(read())
            if step == 1 or step % self.disp_freq == 0:
                self._show(step, read, lr)
            self.display.advance(step)
            if step % self.save_freq == 0:
                self.save(step)
                last = step
        if last != step:
            self.save(step)
        return step

    def _next(self, sampler: Sampler) -> Prepared:
        batch = sampler.next()
        return prepare(batch, self.builder, self.atomic_labels, sampler.place(batch))

    def _show(self, step: int, read: Callable[[], dict[str, float]], lr: float) -> None:
        training = self.average.means() if self.disp_avg else read()
        self.average = RunningMean()
        validation = None
        if self.validation is not None:
            mean = RunningMean()
            for _ in range(self.validation_batches):
                batch = self._next(self.validation)
                mean.add(self.stepper.measure(*batch, lr), weight=float(batch.graph.natoms.sum()))
            validation = mean.means()
        self.curve.write(step, training, validation, lr)
        self.display.report(step, training, validation, lr)
