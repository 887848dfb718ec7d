"""From a file to checked `Config`s: read, rewrite old layouts, check, fill in defaults, build."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

from dpmodel.config import Config
from dpmodel.errors import InputError
from dpmodel.input import checks, legacy, schema
from dpmodel.input.read import read
from dpmodel.input.scope import check_sections
from dpmodel.input.sections import (
    InputFile,
    ModelFile,
    MultiInputFile,
    MultiTrainingConfig,
    TaskDataConfig,
    TrainingConfig,
    ValidatingConfig,
)
from dpmodel.input.tasks import Expanded, expand, folded
from dpmodel.models.config import ModelSection
from dpmodel.models.multi_task import Shared

__all__ = ["Input", "TaskInput", "load_input", "load_model"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskInput:
    """What an input says of one task."""

    model: ModelSection
    loss: Config
    data: TaskDataConfig
    """training_data, validation_data, stat_file, stat_file_mode."""

    @property
    def finetune_head(self) -> str | None:
        """The task of the pre-trained model that weights come from with --finetune, or "RANDOM"."""
        return self.model.finetune_head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A checked input, of one task (named "") or of several."""

    tasks: Mapping[str, TaskInput]
    """By name, in the order of model_dict."""
    learning_rate: Config
    optimizer: Config
    training: TrainingConfig | MultiTrainingConfig
    validating: ValidatingConfig
    shared: tuple[Shared, ...] = ()
    """What tasks share."""
    normalised: dict[str, Any]
    """Plain data for `out.json`: today's layout, aliases resolved, defaults filled in."""
    notes: tuple[str, ...]
    """Each to be logged once as a warning."""
    expanded: Expanded | None = dataclasses.field(default=None, repr=False, compare=False)
    """Of several tasks, which names stood in the model section."""

    @property
    def multi(self) -> bool:
        """Whether the input has model_dict (be it of one task)."""
        return "" not in self.tasks

    @property
    def model(self) -> ModelSection:
        """The model of an input of one task. Raises InputError for others."""
        return self._only().model

    @property
    def loss(self) -> Config:
        """The loss of an input of one task. Raises InputError for others."""
        return self._only().loss

    @property
    def models(self) -> dict[str, ModelSection]:
        """By task, its model."""
        return {name: task.model for name, task in self.tasks.items()}

    def _only(self) -> TaskInput:
        if self.multi:
            raise InputError(
                f"expected an input of one task, got one of several ({', '.join(self.tasks)}); use its `tasks`"
            )
        return self.tasks[""]

    def model_section(self, models: Mapping[str, ModelSection]) -> dict[str, Any]:
        """The model section as plain data, with other models of the tasks: such with numbers for `sel`."""
        plain = {name: model.to_dict() for name, model in models.items()}
        return plain[""] if self.expanded is None else folded(self.expanded, plain)

    def validated_tasks(self) -> tuple[str, ...]:
        """Tasks that full validation looks at: with validation data and the quantity of its metric."""
        return tuple(checks.validated(self.validating, {name: (t.loss, t.data) for name, t in self.tasks.items()}))


def load_input(source: str | os.PathLike[str] | Mapping[str, Any]) -> Input:
    """Read and check an input: a path (.json, .yaml) or the data itself, which is not changed.

    Relative paths inside (systems, files to write) are kept as they are: relative to the working directory.
    Raises InputError.
    """
    if isinstance(source, Input):
        raise InputError("expected a path or a dictionary, got an Input; use its `normalised`")
    data, old = legacy.convert(read(source))
    several = check_sections(data)
    if isinstance(nvnmd := data.get("nvnmd"), dict) and nvnmd.get("enable"):
        raise InputError("nvnmd.enable: training for the NVNMD hardware is out of scope; remove the section")
    inp, given, ignored = _several(data) if several else _single(data)
    checks.check_all(inp)
    return dataclasses.replace(inp, notes=(*old, *ignored, *checks.notes(inp, given)))


def _single(data: dict[str, Any]) -> tuple[Input, dict[str, Any], list[str]]:
    """(input, the file's own keys, notes on keys without effect) of one task."""
    _inherit_types(data.get("model"))
    given = copy.deepcopy(data)
    data, ignored = schema.normalise(InputFile, data)
    config = schema.build(InputFile, data)
    training = config.training
    own = TaskDataConfig(**{name: getattr(training, name) for name in TaskDataConfig.options()})
    inp = Input(
        tasks={"": TaskInput(model=config.model, loss=config.loss, data=own)},
        learning_rate=config.learning_rate, optimizer=config.optimizer, training=training, validating=config.validating,
        normalised=config.to_dict(), notes=(),
    )  # fmt: skip
    return inp, given, ignored


def _several(data: dict[str, Any]) -> tuple[Input, dict[str, Any], list[str]]:
    """The same of several tasks."""
    expanded = expand(data["model"])
    data["model"] = {"model_dict": copy.deepcopy(expanded.models)}
    names = list(expanded.models)
    for model in data["model"]["model_dict"].values():
        _inherit_types(model)
    training = data.get("training")
    _check_names(names, data.get("loss_dict"), "loss_dict")
    if isinstance(training, dict):
        for key in ("data_dict", "model_prob", "num_epoch_dict"):
            _check_names(names, training.get(key), f"training.{key}")
    if not data.get("loss_dict"):
        data["loss_dict"] = {name: {} for name in names}
    given = copy.deepcopy(data)
    try:
        data, ignored = schema.normalise(MultiInputFile, data)
        config = schema.build(MultiInputFile, data)
    except InputError as problem:
        raise InputError(_as_written(str(problem), expanded.origins)) from problem
    training = config.training
    tasks = {
        name: TaskInput(model=config.model.model_dict[name], loss=config.loss_dict[name], data=training.data_dict[name])
        for name in names
    }
    normalised = config.to_dict()
    normalised["model"] = folded(expanded, normalised["model"]["model_dict"])
    inp = Input(
        tasks=tasks, learning_rate=config.learning_rate, optimizer=config.optimizer, training=training,
        validating=config.validating, shared=expanded.shared, normalised=normalised, notes=(), expanded=expanded,
    )  # fmt: skip
    return inp, given, ignored


def _check_names(tasks: Iterable[str], found: Any, path: str) -> None:
    """Raise InputError where a section by task does not name the tasks."""
    if not found or not isinstance(found, dict):
        return
    given = {name for name in found if not name.startswith("_")}
    missing, unknown = [name for name in tasks if name not in given], sorted(given - set(tasks))
    if missing or unknown:
        raise InputError(
            f"{path}: expected the tasks of model.model_dict ({', '.join(tasks)}); missing {', '.join(missing) or 'none'}, "
            f"unknown {', '.join(unknown) or 'none'}"
        )


def _as_written(message: str, origins: Iterable[tuple[str, str]]) -> str:
    """A message with the path where the user wrote what is wrong."""
    for expanded, own in origins:
        rest = message.removeprefix(expanded)
        if rest != message and rest[:1] in (".", ":"):
            return own + rest
    return message


def load_model(source: Mapping[str, Any]) -> ModelSection:
    """Check the `model` section of an input alone. Raises InputError with paths below `model`."""
    data = read({"model": source})
    _inherit_types(data["model"])
    data, _ = schema.normalise(ModelFile, data)
    config = schema.build(ModelFile, data).model
    checks.check_model(config)
    return config


def _inherit_types(model: Any) -> None:
    """The parts of a linear model that name no types have those of the whole."""
    if isinstance(model, dict) and isinstance(parts := model.get("models"), list) and "type_map" in model:
        for part in parts:
            if isinstance(part, dict):
                part.setdefault("type_map", model["type_map"])
