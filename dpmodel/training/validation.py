"""Full validation: the errors on the whole validation data, at intervals, and what follows from them.

At a validation the frames are dealt out to the ranks, the sums of errors (`dpmodel.metrics`) are added over them, a row is
written to `val.log`, and where the chosen metric is among the best so far a checkpoint is saved (`dpmodel.training.best`).
After `early_stop_patience` validations without a better one the run ends. ::

    # step  E_MAE(meV/atom) E_RMSE(meV/atom) ...
    # best checkpoint: best.ckpt-2000.t-1.dp (E:MAE, step 2000)

A metric is `LETTERS:KIND`, in any case, with MAE or RMSE. The letters are those of the loss:

=====================  =====================================================================================
ener                   E energy per atom, F force, V virial per atom (of periodic systems that have virials)
ener_spin              E, FR force on atoms, FM magnetic force
tensor, dos, property  G quantity of frames (per atom, where it is a sum over atoms), L of atoms
=====================  =====================================================================================

With several tasks the run is ranked by the mean of the metric over the tasks that have it (their loss knows the letters,
there is validation data), weighted by the tasks' probabilities; that mean is the first column of `val.log`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpmodel.backend import Backend, Evaluator
from dpmodel.data.dataset import Dataset
from dpmodel.errors import DataError, InputError
from dpmodel.files.model_file import ModelFile
from dpmodel.graph import Graph
from dpmodel.input.sections import DataConfig
from dpmodel.losses.base import LossConfig
from dpmodel.metrics import ErrorSum, add_errors, chunk_atoms, compare, requests_of
from dpmodel.models import HessianRequest, Model
from dpmodel.potential import Potential
from dpmodel.training.best import BEST_NAME, BestCheckpoints, restored
from dpmodel.training.rotation import averaged_name
from dpmodel.training.stepper import NonFiniteError, Stepper
from dpmodel.training.validation_log import ValidationLog
from dpmodel.training.world import World

__all__ = ["Family", "FullValidation", "Outcome", "ValidationTask", "families", "first_step", "validates"]

logger = logging.getLogger(__name__)

KINDS = ("MAE", "RMSE")


class Family(NamedTuple):
    """A quantity that metrics are about."""

    quantity: str
    """As `dpmodel.metrics` names it."""
    label: str
    """What a system must have."""
    unit: str
    factor: float
    """From the quantity's own unit to `unit`."""


_ENERGY = Family("energy_per_atom", "energy", "meV/atom", 1e3)
_ENERGIES = {
    "E": _ENERGY,
    "F": Family("force", "force", "meV/A", 1e3),
    "V": Family("virial_per_atom", "virial", "meV/atom", 1e3),
    "FR": Family("force", "force", "meV/A", 1e3),
    "FM": Family("force_mag", "force_mag", "meV/spin", 1e3),
}


def families(loss: LossConfig, model: Model) -> dict[str, Family]:
    """By letters, what can be validated of a model with that section of a loss."""
    output, letters = model.output(), loss.metric_terms()
    if output.loss == "ener":
        return {key: _ENERGIES[key] for key in letters}
    name = output.name
    own = {
        "G": Family(name if output.intensive else f"{name}_per_atom", name, "", 1.0),
        "L": Family(f"atom_{name}", f"atom_{name}", "", 1.0),
    }
    return {key: own[key] for key in letters}


def first_step(full_val_start: float, num_steps: int) -> int | None:
    """The step of the first validation; None: there is none.

    0: from the beginning; between 0 and 1: a share of the run; exactly 1: never; above: a number of steps. In decimal
    arithmetic: 0.07 of 100 steps is 7.
    """
    if full_val_start == 1:
        return None
    start = Fraction(str(full_val_start))
    step = int(start * num_steps) if start < 1 else int(start)
    return step if step <= num_steps else None


def validates(full_val_start: float, validation_freq: int, num_steps: int) -> bool:
    """Whether a run has a step after which it validates: see `FullValidation.due`."""
    start = first_step(full_val_start, num_steps)
    return start is not None and (start or validation_freq) <= num_steps


@dataclass(frozen=True, kw_only=True)
class ValidationTask:
    """What one task is validated with; the same on all ranks."""

    model: Model
    """NumPy; its structure counts, not its numbers."""
    data: DataConfig
    """The section of the validation data: all frames of all its systems are used."""
    loss: LossConfig
    """The section of the loss."""
    weight: float = 1.0
    """The task's share of the ranking metric."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a validation found; the same on all ranks."""

    step: int
    errors: Mapping[str, Mapping[str, ErrorSum]]
    """By task and letters; a task's quantity without labels has no entry."""
    value: float
    """Of the metric that ranks, in the quantity's own unit (eV, Å)."""
    row: Mapping[str, float]
    """What was written to `val.log`, by column."""
    best: Path | None
    """The checkpoint that was saved, if this was one of the best."""
    stop: bool
    """Whether the run should end: too many validations without a better one."""


class FullValidation:
    """Validation of one kind of weights of a run: those that are trained, or their average.

    All ranks make one, with the same options, and call `run` for the same steps. Only the chief touches files.
    """

    def __init__(
        self,
        options: Any,
        tasks: Mapping[str, ValidationTask],
        *,
        backend: Backend,
        world: World,
        num_steps: int,
        save_ckpt: str = "model.ckpt",
        averaged: bool = False,
        state: Mapping[str, Any] | None = None,
        restored_step: int | None = None,
    ) -> None:
        """Open the data and check everything; collective. Writes nothing.

        options: the section `validating`. tasks: by name, "" for a single one, in the order of the model; those without
        validation data are left out. backend: that trains. averaged: of the averaged weights; file names get `_ema`
        (see `averaged_name`). state: of the checkpoint that is gone on from, whose step is `restored_step`.

        Raises InputError where the metric does not belong to a loss, or there is no validation data; DataError for bad
        data, or data without the label of the metric.
        """
        self.world, self.averaged, self.num_steps = world, averaged, num_steps
        self.metric = str(options.validation_metric).upper()
        self.letters, _, self.kind = self.metric.partition(":")
        start = first_step(options.full_val_start, num_steps)
        self._start, self._every = world.integers([-1 if start is None else start, options.validation_freq])
        if not tasks:
            raise InputError(
                "validating: full validation needs training.validation_data; add it, or remove full_validation"
            )
        with world.agreement("opening the validation data"):
            self.tasks = {name: _Task(name, task, backend) for name, task in tasks.items()}
            self.ranking = self._shares()
        folder = Path(save_ckpt).parent if options.save_best_dir is None else Path(options.save_best_dir)
        best, log = (averaged_name(name) if averaged else name for name in (BEST_NAME, options.full_val_file))
        self.best = BestCheckpoints(best, folder, keep=options.max_best_ckpt)
        self.save_best: bool = options.save_best
        self.patience: int | None = options.early_stop_patience
        self.lowest = math.inf
        self.since = 0
        """Validations since the lowest value of the metric."""
        self._resume(state or {})
        self.log = ValidationLog(log, self.columns(), restored_step=restored_step)
        self.observers: Sequence[Any] = ()
        """On the chief: each is told what was found by `on_validation` (see `dpmodel.training.observers`)."""

    def due(self, step: int) -> bool:
        """Whether to validate after `step` finished steps. Integers alone decide, those of rank 0."""
        return 0 <= self._start <= step and step > 0 and (step - self._start) % self._every == 0

    def columns(self) -> list[str]:
        """Of `val.log`, after the step: `E_MAE(meV/atom)`; with several tasks `E_MAE_<task>(meV/atom)`, the mean first."""
        names = [name for task in self.tasks.values() for name in task.columns(self._many)]
        return [self._mean_column(), *names] if self._many else names

    def state(self) -> dict[str, Any]:
        """Plain data for the checkpoint; the same on all ranks."""
        lowest = None if math.isinf(self.lowest) else self.lowest
        return {"metric": self.metric, "best": self.best.state(), "lowest": lowest, "since": self.since}

    def begin(self) -> None:
        """Put files right after a restart: before the first step, by the chief alone.

        Rows of the log beyond the restored step go, and best checkpoints get the names of their ranks. Files of other steps
        stay until the next best one is saved. Raises InputError where the log is none, OSError.
        """
        self.log.resume()
        if not self.save_best:
            return
        self.best.rename()
        if missing := self.best.missing():
            logger.warning(
                "the best checkpoints of steps %s are not in %s; new ones are saved only where they are better",
                missing, self.best.folder,
            )  # fmt: skip

    def run(self, step: int, stepper: Stepper, save: Callable[[Path], object]) -> Outcome:
        """Validate after `step` finished steps. Collective.

        save: called on all ranks where the checkpoint is one of the best, with the path that the chief writes to; of these
        weights (the average where `averaged`). It should contain `state()`.

        Raises NonFiniteError on all ranks where the metric is not a number; DataError, InputError, OSError on the rank that
        meets them and RankError on the others.
        """
        errors = {name: self._errors(task, stepper) for name, task in self.tasks.items()}
        value = self._value(errors, step)
        place, better = self.world.integers([self.best.place(value, step), int(value < self.lowest)])
        self.since = 0 if better else self.since + 1
        self.lowest = value if better else self.lowest
        stop = self.patience is not None and self.since >= self.patience
        path = None
        if place and self.save_best:
            self.best.insert(value, step)
            path = self.best.path(step)
            with self.world.agreement("making the folder of the best checkpoints"):
                if self.world.chief:
                    path.parent.mkdir(parents=True, exist_ok=True)
            save(path)
        row = self._row(errors, value)
        with self.world.agreement("writing what the validation found"):
            if self.world.chief:
                self._write(step, row, path)
        if stop and self.world.chief:
            logger.info(
                "Early stop: %s has not become better in %d validations (best %.4e)",
                self.metric, self.since, self.lowest,
            )  # fmt: skip
        return Outcome(step=step, errors=errors, value=value, row=row, best=path, stop=stop)

    # --- parts ------------------------------------------------------------------------------------------

    @property
    def _many(self) -> bool:
        return list(self.tasks) != [""]

    def _mean_column(self) -> str:
        task = self.tasks[next(iter(self.ranking))]
        return f"{self.letters}_{self.kind}({task.families[self.letters].unit})".removesuffix("()")

    def _shares(self) -> dict[str, float]:
        """The weight of every task that has the metric. Raises InputError, DataError."""
        for task in self.tasks.values():
            if not self._many or self.letters in task.families:
                task.given.loss.check_metric(self.metric)
        ranked = {name: task for name, task in self.tasks.items() if self.letters in task.families}
        if not ranked:
            known = {f"{name}: {', '.join(task.families) or 'none'}" for name, task in self.tasks.items()}
            raise InputError(
                f"validating.validation_metric: {self.metric!r} belongs to no task's loss; they have "
                f"{'; '.join(sorted(known))}"
            )
        for task in ranked.values():
            task.require(self.letters)
        total = sum(task.given.weight for task in ranked.values())
        if not total > 0:
            raise InputError(
                f"validating: the tasks that have {self.metric} are never trained (probability 0): {', '.join(ranked)}"
            )
        shares = {name: task.given.weight / total for name, task in ranked.items()}
        if self._many and self.world.chief:
            text = ", ".join(f"{name} ({share:.3g})" for name, share in shares.items())
            logger.info("Validation ranks by the mean of %s over the tasks %s", self.metric, text)
        return shares

    def _resume(self, state: Mapping[str, Any]) -> None:
        records = restored(state, self.metric)
        if records is None:
            if state and self.world.chief:
                logger.warning(
                    "the best checkpoints so far were ranked by %s; ranking by %s starts anew",
                    state.get("metric"), self.metric,
                )  # fmt: skip
            return
        self.best.restore(records)
        self.lowest = math.inf if state.get("lowest") is None else float(state["lowest"])
        self.since = int(state.get("since", 0))

    def _errors(self, task: _Task, stepper: Stepper) -> dict[str, ErrorSum]:
        """Errors over all frames of the task, by letters; the same on all ranks."""
        own: dict[str, ErrorSum] = {}
        agreed = self.world.agreement("full validation")
        with stepper.evaluating(task.name, averaged=self.averaged) as evaluator, agreed:
            # Nothing in here is collective: ranks have different numbers of frames.
            own = task.errors(evaluator, self.world.rank, self.world.size)
        sums = [own.get(family.quantity, ErrorSum()) for family in task.families.values()]
        table = np.array([[each.number, each.absolute, each.squares] for each in sums], np.float64)
        total = self.world.total(table)
        return {
            letters: ErrorSum(int(number), float(absolute), float(squares))
            for letters, (number, absolute, squares) in zip(task.families, total, strict=True)
            if number > 0
        }

    def _value(self, errors: Mapping[str, Mapping[str, ErrorSum]], step: int) -> float:
        """The metric that ranks. Raises NonFiniteError, on all ranks as all have the same numbers."""
        values = {name: _of_kind(errors[name].get(self.letters, ErrorSum()), self.kind) for name in self.ranking}
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"full validation after step {step}: {self.metric}{f' of task {name}' if name else ''} is {value}: the "
                    f"model or a label is not finite. Lower learning_rate.start_lr, or look for wrong frames in the data"
                )
        return sum(self.ranking[name] * value for name, value in values.items())

    def _row(self, errors: Mapping[str, Mapping[str, ErrorSum]], value: float) -> dict[str, float]:
        """What the log has, by column, in its units."""
        factor = self.tasks[next(iter(self.ranking))].families[self.letters].factor
        values = [value * factor] if self._many else []
        for name, task in self.tasks.items():
            for letters, family in task.families.items():
                found = errors[name].get(letters, ErrorSum())
                values += [_of_kind(found, kind) * family.factor for kind in KINDS]
        return dict(zip(self.columns(), values, strict=True))

    def _write(self, step: int, row: Mapping[str, float], path: Path | None) -> None:
        what = "Full validation of averaged weights" if self.averaged else "Full validation"
        shown = ", ".join(f"{name} = {value:.4e}" for name, value in row.items() if not math.isnan(value))
        logger.info("%s after step %d: %s", what, step, shown)
        note = None
        if path is not None:
            self.best.tidy()
            note = f"best checkpoint: {path.name} ({self.metric}, step {step})"
            logger.info("Saved best checkpoint to %s", path)
        self.log.write(step, row, note)
        for observer in self.observers:
            observer.on_validation(step, row, averaged=self.averaged)


def _of_kind(error: ErrorSum, kind: str) -> float:
    return error.mae if kind == "MAE" else error.rmse


class _Task:
    """A task's data, opened."""

    def __init__(self, name: str, given: ValidationTask, backend: Backend) -> None:
        self.name, self.given = name, given
        self.families = families(given.loss, given.model)
        self._evaluator = _Borrowed(given.model)
        # Second derivatives are no metric here.
        self._potential = Potential(ModelFile(model=given.model), backend, self._evaluator, without=("hessian",))
        section = given.data
        systems = section.systems if isinstance(section.systems, str) else list(section.systems)
        self.dataset = Dataset.from_config(
            systems, rglob_patterns=section.rglob_patterns, batch_size=1, type_map=given.model.type_map,
            labels=requests_of(self._potential), sort_atoms=False, label_names=section.label_names,
        )  # fmt: skip

    def columns(self, many: bool) -> list[str]:
        """Of the log."""
        suffix = "_" + "_".join(self.name.split()) if many else ""
        return [
            f"{letters}_{kind}{suffix}({family.unit})".removesuffix("()")
            for letters, family in self.families.items()
            for kind in KINDS
        ]

    def require(self, letters: str) -> None:
        """Raise DataError where no system has the label."""
        label = self.families[letters].label
        if label == "virial" and not any(
            found > 0 and system.pbc is not False
            for found, system in zip(self.dataset.found(label), self.dataset.systems, strict=True)
        ):
            raise DataError(
                f"validating.validation_metric: no periodic system of the validation data{self._of_task()} has virials"
            )
        if not any(self.dataset.found(label)):
            raise DataError(
                f"validating.validation_metric: no system of the validation data{self._of_task()} has the label {label!r} "
                f"(first: {self.dataset.systems[0].path})"
            )

    def _of_task(self) -> str:
        return f" of task {self.name}" if self.name else ""

    def errors(self, evaluator: Evaluator, rank: int, size: int) -> dict[str, ErrorSum]:
        """Errors by quantity over this rank's frames: every `size`-th of all that there are."""
        self._evaluator.lender = evaluator
        try:
            return self._errors(rank, size)
        finally:
            self._evaluator.lender = None

    def _errors(self, rank: int, size: int) -> dict[str, ErrorSum]:
        found: dict[str, ErrorSum] = {}
        most, before = chunk_atoms(), 0
        for index, system in enumerate(self.dataset.systems):
            frames = np.arange((rank - before) % size, system.nframes, size)
            before += system.nframes
            step = max(1, most // system.natoms)
            for start in range(0, len(frames), step):
                batch = system.batch(frames[start : start + step], index)
                add_errors(found, compare(self._potential, batch, system.path, atomic=False))
        return found


class _Borrowed:
    """An evaluator whose work another one does, for as long as it is lent."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.lender: Evaluator | None = None

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        assert self.lender is not None
        return self.lender(graph, forces=forces, atomic=atomic, hessian=hessian)

    def model(self) -> Model:
        """The model's structure; its numbers are those of the start."""
        return self._model
