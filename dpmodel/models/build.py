"""From the `model` section of an input to a model with random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dpmodel.descriptors.base import DescriptorConfig
from dpmodel.errors import InputError
from dpmodel.fittings.base import Output
from dpmodel.models.config import ModelConfig
from dpmodel.models.standard import StandardModel
from dpmodel.nn.mlp import Seed

__all__ = ["build_model", "check_preset"]


def build_model(config: ModelConfig, *, seed: Seed = None) -> StandardModel:
    """A model with fresh weights and neutral statistics.

    Args:
        config: with `sel` resolved to numbers.
        seed: used for the parts whose sections name none; None is random.

    Raises InputError for a preset_out_bias of another output than the fitting net's.
    """
    ntypes, type_map = len(config.type_map), config.type_map
    section: DescriptorConfig = config.descriptor  # type: ignore[assignment]  # every registered descriptor is one
    descriptor = section.build(ntypes, type_map, seed=seed)
    fitting = config.fitting_net.build(  # type: ignore[attr-defined]  # every registered fitting has it
        ntypes, descriptor.dim_out, descriptor.mixed_types, dim_emb=descriptor.dim_emb, seed=seed
    )
    check_preset(config.preset_out_bias or {}, fitting.output(), "preset_out_bias")
    return StandardModel.assemble(
        descriptor,
        fitting,
        type_map,
        atom_exclude_types=config.atom_exclude_types,
        pair_exclude_types=config.pair_exclude_types,
        preset_out_bias=config.preset_out_bias,
    )


def check_preset(preset: Mapping[str, Any], output: Output, path: str) -> None:
    """Raise InputError where presets are not of the model's output, or have another number of components."""
    size = math.prod(output.shape)
    for name, values in preset.items():
        if name != output.name:
            raise InputError(f"{path}.{name}: unknown output; expected {output.name!r}, which this model predicts")
        for value in values:
            numbers = list(value) if isinstance(value, tuple | list) else [value]
            nested = any(isinstance(item, tuple | list) for item in numbers)
            if value is not None and (nested or len(numbers) != size):
                raise InputError(f"{path}.{name}: expected {size} number(s) or null per type, got {numbers}")
