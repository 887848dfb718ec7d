"""The tasks of a run before it starts: losses, data, and how much of it there is."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Mapping
from typing import Any

from dpmodel.data import Dataset, LabelRequest
from dpmodel.data import labels as standard_labels
from dpmodel.data.labels import as_request
from dpmodel.data.sampler import world_of
from dpmodel.errors import InputError
from dpmodel.geometry.build import GraphBuilder
from dpmodel.input import Input
from dpmodel.input.load import TaskInput
from dpmodel.losses import build_loss
from dpmodel.models.config import ModelSection
from dpmodel.statistics.fit import bias_labels
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.length import RunLength, Stopped, run_length
from dpmodel.training.schedules import worker_scale
from dpmodel.training.world import World

__all__ = ["Task", "extent_of", "labels_of", "length_of", "make_tasks"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Task:
    """One task; a run of one has that of the name ""."""

    name: str
    given: TaskInput
    loss: Any
    data: Dataset = dataclasses.field(init=False)
    valid: Dataset | None = dataclasses.field(init=False, default=None)
    builder: GraphBuilder = dataclasses.field(init=False)
    """One for statistics and steps: it warns once of neighbours that it cuts off."""
    observed: list[str] = dataclasses.field(init=False, default_factory=list)
    """Symbols of the types that the data has."""
    min_nbor_dist: float | None = None
    """Of the training data, Å; where it was looked at."""

    @property
    def place(self) -> str:
        """The section that its data are in."""
        return f"training.data_dict.{self.name}" if self.name else "training"

    def title(self, what: str) -> str:
        """Of a table in the log."""
        return f"{self.name}, {what}" if self.name else what

    def open_data(self) -> None:
        """Open and check all systems. Raises DataError, InputError."""
        self.data = self._open(self.given.data.training_data)
        self.data.require()
        logger.info("%s", self.data.summary(self.title("training")))
        if self.given.data.validation_data is not None:
            self.valid = self._open(self.given.data.validation_data)
            logger.info("%s", self.valid.summary(self.title("validation")))

    def labels(self) -> tuple[LabelRequest, ...]:
        """What the loss, the statistics and the model read from the data."""
        return labels_of(self.given.model, self.loss)

    def _open(self, section: Any) -> Dataset:
        return Dataset.from_config(
            section.systems,
            rglob_patterns=section.rglob_patterns,
            batch_size=section.batch_size,
            auto_prob=section.auto_prob,
            sys_probs=section.sys_probs,
            type_map=self.given.model.type_map,
            labels=self.labels(),
            min_pair_dist=getattr(section, "min_pair_dist", 0.0),
            label_names=section.label_names,
        )


def make_tasks(inp: Input, workers: int = 1) -> dict[str, Task]:
    """The tasks of an input, without data yet. Raises InputError for a loss that learns nothing."""
    rates: Any = inp.learning_rate  # of one of the schedules
    start_lr = rates.start_lr * worker_scale(rates, workers)
    tasks = {}
    for name, given in inp.tasks.items():
        loss = build_loss(given.loss, start_lr, given.model.output())
        if not loss.terms:
            raise InputError(
                f"{f'loss_dict.{name}' if name else 'loss'}: all prefactors are 0, so there is nothing to learn; set "
                "start_pref_e or start_pref_f"
            )
        tasks[name] = Task(name=name, given=given, loss=loss)
    return tasks


def labels_of(model: ModelSection, loss: Any) -> tuple[LabelRequest, ...]:
    """What a loss, the statistics and a model read from the data."""
    found = {label.name: as_request(label) for label in loss.labels}
    for name, atomic in bias_labels(model.output()).items():  # of the output bias
        if atomic and name == "atom_ener":
            continue  # energies of atoms are a matter of the loss alone
        shape = model.output().shape
        found.setdefault(name, LabelRequest(name=name, shape=shape, atomic=atomic, high_precision=not atomic))
    (fparam, default_fparam), (charge_spin, default_charge_spin) = model.fparam(), model.charge_spin()
    for request in standard_labels.inputs(
        fparam_dim=fparam,
        default_fparam=default_fparam,
        aparam_dim=model.numb_aparam(),
        takes_charge_spin=charge_spin,
        default_charge_spin=default_charge_spin,
        takes_spin=model.has_spin(),
    ):
        found[request.name] = request
    excluded = model.atom_exclude_types
    atoms = next(name for name, atomic in bias_labels(model.output()).items() if atomic)
    if atoms in found and atoms != "atom_ener":
        found[atoms] = standard_labels.of_included(found[atoms], len(model.type_map), excluded)
    return tuple(found.values())


def extent_of(task: Task) -> int:
    """A number for how much data a task has, in which order: processes that do not read the same find it out by that."""
    systems = zip(task.data.systems, task.data.batch_sizes, task.data.frames, strict=True)
    return zlib.crc32(repr([(system.natoms, size, len(frames)) for system, size, frames in systems]).encode())


def length_of(inp: Input, tasks: Mapping[str, Task], world: World, checkpoint: Checkpoint | None = None) -> RunLength:
    """The length of the run, by what rank 0 counts of its data; collective.

    checkpoint: what it goes on from. Passes that were left with another number of processes are steps of this one.
    """
    training = inp.training
    batches = _batches(tasks, world, world.size)
    counts = list(batches.values())
    systems = world.integers([len(task.data.systems) for task in tasks.values()])
    found = run_length(
        batches,
        dict(zip(tasks, systems, strict=True)),
        accumulate=training.acc_freq,
        numb_steps=training.numb_steps,
        numb_epoch=training.numb_epoch,
        num_epoch_dict=training.num_epoch_dict,
        model_prob=training.model_prob,
        stopped=None if checkpoint is None else _stopped(checkpoint, tasks, world),
    )
    if training.numb_epoch is not None:
        logger.info("numb_epoch %g of %d batches: %d steps", training.numb_epoch, counts[0], found.num_steps)
    if inp.multi:
        if not training.num_epoch_dict and not training.model_prob:
            logger.info("model_prob is not given: tasks are drawn by their numbers of systems (an LMDB file is one)")
        logger.info("%d steps: %s", found.num_steps, "; ".join(
            f"{name}: {batches[name]} batches an epoch, probability {share:.4g}, {share * found.num_steps:.1f} steps"
            for name, share in found.probabilities.items()
        ))  # fmt: skip
    return found


def _batches(tasks: Mapping[str, Task], world: World, size: int) -> dict[str, int]:
    """Batches of an epoch of each task on `size` processes; collective."""
    counts = world.integers([task.data.total_batches(size) for task in tasks.values()])
    return dict(zip(tasks, counts, strict=True))


def _stopped(checkpoint: Checkpoint, tasks: Mapping[str, Task], world: World) -> Stopped | None:
    """The run of passes that was stopped; None where its length was not given so, or it had other tasks. Collective."""
    training, order = checkpoint.input.get("training", {}), checkpoint.sampler.get("tasks", {})
    epochs = {name: training.get(name) or None for name in ("numb_epoch", "num_epoch_dict")}
    if not any(epochs.values()) or order.keys() != tasks.keys() or "num_steps" not in checkpoint.schedule:
        return None
    size = world_of(next(iter(order.values())).get("training"))
    return Stopped(
        step=checkpoint.step,
        num_steps=checkpoint.schedule["num_steps"],
        batches=_batches(tasks, world, size),
        accumulate=training.get("acc_freq") or 1,
        **epochs,
    )
