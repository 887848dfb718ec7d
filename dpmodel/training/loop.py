"""The one training loop: batches, steps, display, validation, checkpoints. A backend supplies the step.

It is the same on all processes of a run: each goes through the same steps, tasks, rows and checkpoints, so that what is
collective in them meets. What the chief alone does (the learning curve, log lines, observers) is not collective.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dpmodel.training.agree import Agreed
from dpmodel.training.feed import Feed
from dpmodel.training.lcurve import LearningCurve, Metrics
from dpmodel.training.means import RunningMean, over_ranks
from dpmodel.training.schedules import Schedule
from dpmodel.training.signals import Request
from dpmodel.training.stepper import NonFiniteError, Stepper
from dpmodel.training.world import Alone, World

__all__ = ["Display", "Loop", "Observer", "Read", "RunningMean", "Validation"]

logger = logging.getLogger(__name__)

Read = Callable[[], dict[str, float]]
"""Reads the metrics of a step on this process; not collective, and a wait for the device."""


class Display(Protocol):
    """Where progress is shown (see `dpmodel.training.progress`)."""

    def advance(self, step: int) -> None:
        """A step was finished."""

    def report(
        self,
        step: int,
        training: Metrics | Mapping[str, Metrics],
        validation: Metrics | Mapping[str, Metrics] | None,
        lr: float,
    ) -> None:
        """A row of the learning curve was written."""


class Observer(Protocol):
    """Follows a run without changing it, on the chief alone; nothing collective may be in it."""

    def on_step(self, step: int, read: Read, lr: float, task: str) -> None:
        """`step` steps are finished; the last one trained `task` ("" for a single one) with rate `lr`."""

    def on_row(
        self, step: int, training: Mapping[str, Metrics], validation: Mapping[str, Metrics] | None, lr: float
    ) -> None:
        """A row of the learning curve: metrics by task, in the order of the model; means over all processes."""

    def close(self) -> None:
        """The run ends, whatever the reason."""


class _Outcome(Protocol):
    @property
    def stop(self) -> bool:
        """Whether the run should end; the same on all processes."""
        ...


class Validation(Protocol):
    """Full validation (see `dpmodel.training.validation`)."""

    averaged: bool
    """Whether it is of the averaged weights."""

    def due(self, step: int) -> bool:
        """Whether to validate after `step` finished steps; the same on all processes."""

    def run(self, step: int, stepper: Stepper, save: Callable[[Path], object]) -> _Outcome:
        """Validate; collective. `save(path)`, collective too, writes a checkpoint of these weights."""


@dataclasses.dataclass(kw_only=True)
class Loop:
    """One run. `go` may be called once."""

    stepper: Stepper
    tasks: Mapping[str, Feed]
    """By name, in the order of the model; a single one is ""."""
    draw: Callable[[int], str] = lambda _step: ""
    """The task of the step of 0-based index `step`; the same on all processes."""
    accumulate: int = 1
    """Batches of a step, on each process."""
    schedule: Schedule
    num_steps: int
    disp_freq: int
    save_freq: int
    disp_avg: bool
    curve: LearningCurve | None
    """None on processes other than the chief."""
    display: Display
    save: Callable[[int], object]
    """Write the checkpoint after so many finished steps."""
    save_best: Callable[[int, bool, Path], object] = lambda *_place: None
    """Write one of `averaged` weights or of those that are trained to a path."""
    observers: Sequence[Observer] = ()
    validations: Sequence[Validation] = ()
    world: World = dataclasses.field(default_factory=Alone)
    averages: dict[str, RunningMean] = dataclasses.field(default_factory=dict)
    """With disp_avg: the means since the last row, by task."""
    stopped_early: bool = False
    """Whether full validation ended the run; that is an end as good as the last step."""

    def go(self, start: int, stop: int | None, request: Request, *, saved: bool = False) -> int:
        """Train from `start` finished steps to `num_steps` (or `stop`), or until the request; returns the finished steps.

        A checkpoint is written every `save_freq` steps and at the end of whatever was run. `saved`: the one of `start`
        is there already. Collective. Raises NonFiniteError, OSError where a file cannot be written, and what the backend
        raises.
        """
        end = self.num_steps if stop is None else min(stop, self.num_steps)
        step, last = start, start if saved else -1
        agreed = Agreed(self.world, request)
        while step < end and not self.stopped_early and not agreed.ends(step):
            task, lr = self.draw(step), self.schedule.lr(step)
            read = self._train(step, task, lr)
            step += 1
            for observer in self.observers:
                observer.on_step(step, read, lr, task)
            if self.disp_avg:
                self._average(task).add(read())
            if step == 1 or step % self.disp_freq == 0:
                self._show(step, task, read, lr)
            self.display.advance(step)
            self._validate(step)
            if step % self.save_freq == 0:
                self.save(step)
                last = step
        if last != step:
            self.save(step)
        return step

    def state(self) -> dict[str, Any]:
        """Plain data to go on from: `tasks` and `average`, by task. Collective; the same on all processes but rounding."""
        averages = over_ranks(self.world, [self._average(name) for name in self.tasks])
        return {
            "tasks": {name: feed.state() for name, feed in self.tasks.items()},
            "average": {name: mean.state() for name, mean in zip(self.tasks, averages, strict=True) if mean},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there; all processes give the same. Raises InputError or ModelFileError naming the section."""
        for name, feed in self.tasks.items():
            place = f"training.data_dict.{name}" if name else "training"
            feed.restore(state["tasks"].get(name, {}), place)
        for name, sums in state.get("average", {}).items():
            # The sums are over all processes: one goes on with them, and the others know that there are some.
            own = sums if self.world.chief else {metric: [0.0, 0.0] for metric in sums}
            self.averages[name] = RunningMean(own)

    # --- parts of a step --------------------------------------------------------------------------------

    def _train(self, step: int, task: str, lr: float) -> Read:
        batches = [self.tasks[task].next() for _ in range(self.accumulate)]
        try:
            return self.stepper.step(batches, lr, task)
        except NonFiniteError as problem:
            raise NonFiniteError(
                f"step {step + 1}{f' of task {task}' if task else ''}: {problem}; nothing was saved since. Look for wrong "
                "frames in the data, lower learning_rate.start_lr, or set training.gradient_max_norm; then go on with "
                "--restart"
            ) from problem

    def _average(self, task: str) -> RunningMean:
        return self.averages.setdefault(task, RunningMean())

    def _validate(self, step: int) -> None:
        for validation in self.validations:
            if validation.due(step):
                save = functools.partial(self.save_best, step, validation.averaged)
                self.stopped_early |= validation.run(step, self.stepper, save).stop

    def _show(self, step: int, task: str, read: Read, lr: float) -> None:
        """Write and show a row: of the other tasks, the next batch or what was trained since the last row."""
        own, checks = [], []
        for name, feed in self.tasks.items():
            mean = RunningMean()
            if self._average(name):
                mean = self.averages[name]
            elif name == task:
                mean.add(read())
            else:
                mean.add(self.stepper.measure(feed.peek(), lr, name))
            own.append(mean)
            check = RunningMean()
            for _ in range(feed.validation_batches if feed.validation is not None else 0):
                batch = feed.check()
                check.add(self.stepper.measure(batch, lr, name), weight=float(batch.graph.natoms.sum()))
            checks.append(check)
        self.averages = {}
        means = over_ranks(self.world, [*own, *checks])
        training = {name: mean.means() for name, mean in zip(self.tasks, means, strict=False)}
        found = {name: mean.means() for name, mean in zip(self.tasks, means[len(own) :], strict=True) if mean}
        self._write(step, training, found or None, lr)

    def _write(
        self, step: int, training: Mapping[str, Metrics], validation: Mapping[str, Metrics] | None, lr: float
    ) -> None:
        single = list(self.tasks) == [""]
        shown: Metrics | Mapping[str, Metrics] = training[""] if single else training
        checked: Metrics | Mapping[str, Metrics] | None = validation
        if single and validation is not None:
            checked = validation[""]
        with self.world.agreement("writing the learning curve"):
            if self.curve is not None:
                self.curve.write(step, shown, checked, lr)
            for observer in self.observers:
                observer.on_row(step, training, validation, lr)
        self.display.report(step, shown, checked, lr)
