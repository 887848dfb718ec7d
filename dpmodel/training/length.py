"""How long a run is, and how often each of its tasks is trained.

With B_k batches in an epoch of task k (see `Dataset.total_batches`)::

    numb_steps        S as given; model_prob as given, else by the number of systems of each task
    numb_epoch e      S = ceil(e B)
    num_epoch_dict    s_k = e_k B_k;  S = ceil(sum s_k);  probability of task k: s_k / sum s

Where a step takes several batches (`acc_freq`), B_k is that many times smaller. A run of passes that goes on with
other B_k or another `acc_freq`, because it has another number of processes, say, takes as many steps more as the passes
that were left (`Stopped`).

All of it is exact arithmetic on integers and on the decimals of the input, so that processes with the same B_k agree
to the last bit, whatever their hardware; the B_k come from rank 0. A task is drawn with integers too: `TaskDraw`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dpmodel.errors import InputError

__all__ = ["RunLength", "Stopped", "TaskDraw", "check_length", "run_length"]

logger = logging.getLogger(__name__)

_SCALE = 2**53
"""Probabilities are kept as integer shares of this."""


@dataclass(frozen=True)
class RunLength:
    """What follows from the options and the data."""

    num_steps: int
    shares: Mapping[str, Fraction]
    """Probability of each task, exact; the sum is 1."""

    @property
    def probabilities(self) -> dict[str, float]:
        """Of each task."""
        return {name: float(share) for name, share in self.shares.items()}


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A run of passes over the data that was stopped, with the batches of the processes that it had."""

    step: int
    num_steps: int
    batches: Mapping[str, int]
    accumulate: int = 1
    numb_epoch: float | None = None
    num_epoch_dict: Mapping[str, float] | None = None

    def goes_on(self, wanted: Fraction, batches: Mapping[str, int], accumulate: int) -> Fraction:
        """The steps in all: those done, and what is left of `wanted` (all passes as steps of these batches)."""
        before, now = (
            sum(
                _passes(each, size, numb_epoch=self.numb_epoch, num_epoch_dict=self.num_epoch_dict).values(),
                Fraction(0),
            )
            for each, size in ((self.batches, self.accumulate), (batches, accumulate))
        )
        # The length of a run that was stopped for the first time is exact, not the next integer.
        end = before if self.num_steps == math.ceil(before) else Fraction(self.num_steps)
        found = self.step + (end - self.step) * now / before + (wanted - now)
        return found if wanted < now else max(found, Fraction(self.step))


def check_length(
    tasks: Sequence[str],
    *,
    numb_steps: int | None = None,
    numb_epoch: float | None = None,
    num_epoch_dict: Mapping[str, float] | None = None,
    model_prob: Mapping[str, float] | None = None,
) -> None:
    """Raise InputError where options do not say the length of a run, or say it twice, or do not name the tasks.

    tasks: their names; that of the only one of a run without names is "".
    """
    if "" in tasks:
        if (numb_steps is None) == (numb_epoch is None):
            what = "neither; say how long to train" if numb_steps is None else "both; keep one"
            raise InputError(f"training: expected numb_steps or numb_epoch, got {what}")
        return
    if numb_epoch is not None:
        raise InputError("training.numb_epoch: it is for one task; give num_epoch_dict, one number per task")
    if num_epoch_dict:
        for name, given in (("numb_steps", numb_steps is not None), ("model_prob", bool(model_prob))):
            if given:
                raise InputError(f"training.{name}: num_epoch_dict says it already; keep one of them")
        _check_numbers(num_epoch_dict, tasks, "num_epoch_dict", above=True)
    elif numb_steps is None:
        raise InputError("training: expected numb_steps or num_epoch_dict, got neither; say how long to train")
    if model_prob:
        _check_numbers(model_prob, tasks, "model_prob", above=False)
        if not any(model_prob.values()):
            raise InputError("training.model_prob: expected at least one number above 0, got none")


def run_length(
    batches: Mapping[str, int],
    systems: Mapping[str, int],
    *,
    accumulate: int = 1,
    numb_steps: int | None = None,
    numb_epoch: float | None = None,
    num_epoch_dict: Mapping[str, float] | None = None,
    model_prob: Mapping[str, float] | None = None,
    stopped: Stopped | None = None,
) -> RunLength:
    """The length of a run and the probabilities of its tasks.

    batches: per task, those of an epoch of this process; systems: how many systems of data a task has; accumulate: batches
    of a step; stopped: the run of passes that this one goes on with.

    Raises InputError as `check_length` does, and where there are no batches or too many steps.
    """
    tasks = list(batches)
    check_length(
        tasks, numb_steps=numb_steps, numb_epoch=numb_epoch, num_epoch_dict=num_epoch_dict, model_prob=model_prob
    )
    for name, count in batches.items():
        if count < 1:
            raise InputError(f"{_of(name)}training_data: an epoch has {count} batches; expected at least 1")
    passes = _passes(batches, accumulate, numb_epoch=numb_epoch, num_epoch_dict=num_epoch_dict)
    parts = passes or {name: _decimal(model_prob[name]) if model_prob else Fraction(systems[name]) for name in tasks}
    total = sum(parts.values(), Fraction(0))
    num_steps = int(numb_steps or 0)
    if passes:
        what = "num_epoch_dict: these passes" if numb_epoch is None else f"numb_epoch: {numb_epoch:g} passes"
        num_steps = _whole(total if stopped is None else stopped.goes_on(total, batches, accumulate), what)
    return RunLength(num_steps, {name: part / total for name, part in parts.items()})


class TaskDraw:
    """The task of every step, the same on all processes: a function of the seed and the step.

    ::

        draw = TaskDraw({"water": Fraction(3, 4), "ice": Fraction(1, 4)}, seed=1)
        draw(0), draw(1)        # names
    """

    def __init__(self, shares: Mapping[str, Fraction], seed: Sequence[int] | int) -> None:
        self.names = tuple(shares)
        self.seed = tuple(seed) if isinstance(seed, Sequence) else (seed,)
        edges, so_far = [], Fraction(0)
        for share in shares.values():
            so_far += share
            edges.append(round(so_far * _SCALE))
        self.edges = tuple(edges)
        """Integer upper edges of the tasks' intervals; the last is 2^53."""

    def __call__(self, step: int) -> str:
        """The task of the step of 0-based index `step`."""
        if len(self.names) == 1:
            return self.names[0]
        # PCG64 is named, because numpy may change what default_rng returns.
        stream = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(2, step)))
        value = int(stream.random_raw()) >> 11  # the upper 53 of 64 bits
        return next(name for name, edge in zip(self.names, self.edges, strict=True) if value < edge)


def _check_numbers(given: Mapping[str, float], tasks: Sequence[str], name: str, *, above: bool) -> None:
    missing, unknown = [task for task in tasks if task not in given], sorted(given.keys() - set(tasks))
    if missing or unknown:
        raise InputError(
            f"training.{name}: expected a number for each task, {', '.join(tasks)}; missing "
            f"{', '.join(missing) or 'none'}, unknown {', '.join(unknown) or 'none'}"
        )
    for task, value in given.items():
        if not math.isfinite(value) or value < 0 or (above and value == 0):
            raise InputError(
                f"training.{name}.{task}: expected a finite number {'above' if above else 'of at least'} 0, got {value!r}"
            )


def _passes(
    batches: Mapping[str, int],
    accumulate: int,
    *,
    numb_epoch: float | None,
    num_epoch_dict: Mapping[str, float] | None,
) -> dict[str, Fraction]:
    """Steps of each task that passes over its data are; nothing where the length is not given in passes."""
    given = dict.fromkeys(batches, numb_epoch) if numb_epoch is not None else num_epoch_dict or {}
    return {name: _decimal(given[name]) * Fraction(batches[name], accumulate) for name in batches if given}


def _decimal(value: float) -> Fraction:
    # In decimal arithmetic: 0.1 epochs of 30 batches are 3 steps, not 4.
    return Fraction(str(value))


def _whole(steps: Fraction, what: str) -> int:
    count = math.ceil(steps)
    if count >= 2**53:
        raise InputError(f"training.{what} are {float(steps):.3g} steps; lower it")
    return count


def _of(task: str) -> str:
    return f"training.data_dict.{task}." if task else "training."
