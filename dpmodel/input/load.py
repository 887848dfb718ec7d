"""From a file to checked `Config`s: read, rewrite old layouts, check, fill in defaults, build."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from dpmodel.config import Config
from dpmodel.errors import InputError
from dpmodel.input import checks, legacy, schema
from dpmodel.input.read import read
from dpmodel.input.scope import refuse_multi_task
from dpmodel.input.sections import InputFile, ModelFile, TrainingConfig, ValidatingConfig
from dpmodel.models.config import ModelSection

__all__ = ["Input", "load_input", "load_model"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A checked input."""

    model: ModelSection
    learning_rate: Config
    optimizer: Config
    loss: Config
    training: TrainingConfig
    validating: ValidatingConfig
    normalised: dict[str, Any]
    """Plain data for `out.json`: today's layout, aliases resolved, defaults filled in."""
    notes: tuple[str, ...]
    """Each to be logged once as a warning."""


def load_input(source: str | os.PathLike[str] | Mapping[str, Any]) -> Input:
    """Read and check an input: a path (.json, .yaml) or the data itself, which is not changed.

    Relative paths inside (systems, files to write) are kept as they are: relative to the working directory.
    Raises InputError.
    """
    if isinstance(source, Input):
        raise InputError("expected a path or a dictionary, got an Input; use its `normalised`")
    data, old = legacy.convert(read(source))
    refuse_multi_task(data)
    if isinstance(nvnmd := data.get("nvnmd"), dict) and nvnmd.get("enable"):
        raise InputError("nvnmd.enable: training for the NVNMD hardware is out of scope; remove the section")
    _inherit_types(data)
    given = copy.deepcopy(data)
    data, ignored = schema.normalise(InputFile, data)
    config = schema.build(InputFile, data)
    checks.check_all(config)
    return Input(
        **{name: getattr(config, name) for name in InputFile.options() if name != "nvnmd"},
        normalised=config.to_dict(),
        notes=(*old, *ignored, *checks.notes(config, given)),
    )


def load_model(source: Mapping[str, Any]) -> ModelSection:
    """Check the `model` section of an input alone. Raises InputError with paths below `model`."""
    data = read({"model": source})
    _inherit_types(data)
    data, _ = schema.normalise(ModelFile, data)
    config = schema.build(ModelFile, data).model
    checks.check_model(config)
    return config


def _inherit_types(data: dict[str, Any]) -> None:
    """The parts of a linear model that name no types have those of the whole."""
    model = data.get("model")
    if isinstance(model, dict) and isinstance(parts := model.get("models"), list) and "type_map" in model:
        for part in parts:
            if isinstance(part, dict):
                part.setdefault("type_map", model["type_map"])
