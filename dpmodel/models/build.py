"""From the `model` section of an input to a model with random weights."""

from __future__ import annotations

from dpmodel.descriptors.base import DescriptorConfig
from dpmodel.models.config import ModelConfig
from dpmodel.models.standard import StandardModel
from dpmodel.nn.mlp import Seed

__all__ = ["build_model"]


def build_model(config: ModelConfig, *, seed: Seed = None) -> StandardModel:
    """A model with fresh weights and neutral statistics.

    Args:
        config: with `sel` resolved to numbers.
        seed: used for the parts whose sections name none; None is random.
    """
    ntypes, type_map = len(config.type_map), config.type_map
    section: DescriptorConfig = config.descriptor  # type: ignore[assignment]  # every registered descriptor is one
    descriptor = section.build(ntypes, type_map, seed=seed)
    fitting = config.fitting_net.build(  # type: ignore[attr-defined]  # every registered fitting has it
        ntypes, descriptor.dim_out, descriptor.mixed_types, dim_emb=descriptor.dim_emb, seed=seed
    )
    return StandardModel.assemble(
        descriptor,
        fitting,
        type_map,
        atom_exclude_types=config.atom_exclude_types,
        pair_exclude_types=config.pair_exclude_types,
        preset_out_bias=config.preset_out_bias,
    )
