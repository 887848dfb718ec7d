"""What goes into the checkpoints of a run, and the writing of them.

All processes take part, because a model or an optimizer's state that they share out has to be put together; the chief
alone touches files, and whether it could is agreed before anybody goes on.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel import __version__
from dpmodel.files.model_file import ModelFile, TasksFile, to_tree
from dpmodel.models.multi_task import MultiTask
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.rotation import Family
from dpmodel.training.stepper import NonFiniteError, Stepper
from dpmodel.training.tasks import Task
from dpmodel.training.world import World

__all__ = ["Saver"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Saver:
    """Writes the checkpoints of a run."""

    world: World
    stepper: Stepper
    tasks: Mapping[str, Task]
    normalised: Mapping[str, Any]
    num_steps: int
    versions: Mapping[str, str]
    family: Family
    averaged: Family | None = None
    """The checkpoints of the averaged weights, where there are any."""
    ema_decay: float | None = None
    first_step: int = 0
    """Where the run began."""
    bias_changed_at: int | None = None
    """The step after which the output bias was fitted anew; steps after it want that again."""
    seed: tuple[int, ...] = ()
    """What is drawn for a step is a function of it: the task, the atoms of a Kalman filter."""
    progress: Callable[[], dict[str, Any]] = dict
    """The state of the loop; collective."""
    validation: Callable[[bool], dict[str, Any]] = lambda _averaged: {}
    """What full validation of these weights remembers."""

    def save(self, step: int) -> Path:
        """Write the checkpoint after `step` finished steps, and that of the averaged weights; returns the first's path.

        Collective. Raises NonFiniteError where the model holds NaN or infinite numbers, OSError where a file cannot be
        written, on the chief, and RankError on the others; the checkpoint before it is whole.
        """
        regular = self._regular(step)
        average = None if self.averaged is None else self._average(step)
        with self.world.agreement("saving a checkpoint"):
            if self.world.chief:
                self._write(self.family, step, regular())
                if self.averaged is not None and average is not None:
                    self._write(self.averaged, step, average())
        return self.family.path(step)

    def save_best(self, step: int, averaged: bool, path: Path) -> None:
        """Write the checkpoint of one kind of weights to a path; collective, raises as `save`."""
        make = self._average(step) if averaged else self._regular(step)
        with self.world.agreement("saving the best checkpoint"):
            if self.world.chief:
                checkpoint = make()
                self._check(checkpoint)
                checkpoint.save(path)

    def _write(self, family: Family, step: int, checkpoint: Checkpoint) -> None:
        self._check(checkpoint)
        path = family.save(step, checkpoint.save)
        logger.info("Saved model to %s", path)

    def _regular(self, step: int) -> Callable[[], Checkpoint]:
        """Collect everything that a restart needs, on all processes; what makes a checkpoint of it."""
        progress, ema = self.progress(), dict[str, Any]()
        model: Any = self._kept(self.stepper.model())
        if self.ema_decay is not None:
            shadow = self._kept(self.stepper.averaged_state())
            ema = {"decay": self.ema_decay, "state": shadow, "validation": self.validation(True)}
        return functools.partial(
            self._checkpoint,
            step,
            model,
            optimizer=self._kept(self.stepper.optimizer_state()),
            schedule={
                "num_steps": self.num_steps, "average": progress.get("average", {}), "bias_changed": self.bias_changed_at == step
            },
            sampler={"tasks": progress.get("tasks", {})},
            random={"seed": list(self.seed)} if self.seed else {},
            ema=ema,
            validation=self.validation(False),
        )  # fmt: skip

    def _average(self, step: int) -> Callable[[], Checkpoint]:
        """The same of the averaged weights alone: no rank is asked for its part of an optimizer, which they have not."""
        model: Any = self._kept(self.stepper.model(averaged=True))
        ema = {"averaged": True, "decay": self.ema_decay}
        return functools.partial(self._checkpoint, step, model, ema=ema, schedule={"num_steps": self.num_steps})

    def _kept(self, whole: Any) -> Any:
        """What all processes have put together and the chief alone writes: others let it go before the next is made."""
        return whole if self.world.chief else None

    def _checkpoint(self, step: int, model: Any, **content: Any) -> Checkpoint:
        about: dict[str, Any] = {"definition": self._definition(), "provenance": {"dpmodel_input": self.normalised}}
        distances = {name: task.min_nbor_dist for name, task in self.tasks.items()}
        file: ModelFile | TasksFile
        if isinstance(model, MultiTask):
            file = TasksFile(model=model, min_nbor_dist=distances, **about)
        else:
            file = ModelFile(model=model, min_nbor_dist=distances[""], **about)
        return Checkpoint(
            step=step,
            model=to_tree(file),
            state={name: np.asarray(value) for name, value in model.state().items()},
            input=dict(self.normalised),
            versions={"dpmodel": __version__, **self.versions},
            **content,
        )

    def _definition(self) -> dict[str, Any]:
        """The model section, with the types that the data has."""
        section = copy.deepcopy(dict(self.normalised["model"]))
        for name, task in self.tasks.items():
            own = section["model_dict"][name] if name else section
            own["info"] = {**own.get("info", {}), "observed_type": task.observed}
        return section

    def _check(self, checkpoint: Checkpoint) -> None:
        """Raise NonFiniteError where the model or its average is not finite."""
        arrays = {**checkpoint.state, **{f"average of {k}": v for k, v in checkpoint.ema.get("state", {}).items()}}
        bad = [name for name, value in arrays.items() if not np.isfinite(value).all()]
        if not bad:
            return
        why = "Lower learning_rate.start_lr, or set training.gradient_max_norm"
        if checkpoint.step == self.first_step:  # nothing was learned yet
            why = "Look for wrong frames in the data, and for wrong values in the model that was the start"
        raise NonFiniteError(
            f"after step {checkpoint.step} the model holds NaN or infinite numbers in {', '.join(bad[:8])}; that was not "
            f"saved. {why}"
        )
