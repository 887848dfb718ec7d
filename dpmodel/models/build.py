"""From the `model` section of an input to a model with random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpmodel.config import Config, FrozenDict
from dpmodel.descriptors import HybridConfig
from dpmodel.errors import InputError
from dpmodel.fittings.base import Output
from dpmodel.models.base import Model
from dpmodel.models.config import LinearConfig, ModelConfig, ModelSection, PairTableConfig
from dpmodel.models.linear import LinearModel, ZBLModel
from dpmodel.models.spin import VIRTUAL, SpinModel
from dpmodel.models.standard import StandardModel
from dpmodel.models.tables import read_pair_table
from dpmodel.nn import child_seed
from dpmodel.nn.mlp import Seed
from dpmodel.precision import global_dtype

__all__ = ["build_model", "check_preset", "known_capacities"]

_NEAR = 0.01
"""`env_protection` of models with spin whose input gives none: a spin of 0 puts two atoms at one place."""


def build_model(config: ModelSection, *, seed: Seed = None) -> Model:
    """A model with fresh weights and neutral statistics.

    Args:
        config: with `sel` resolved to numbers.
        seed: used for the parts whose sections name none; None is random.

    Raises InputError for a preset_out_bias of another output than the fitting net's, and for pair tables that cannot be
    read.
    """
    check_preset(config.preset_out_bias or {}, config.output(), "preset_out_bias")
    if isinstance(config, LinearConfig):
        return _linear(config, seed)
    assert isinstance(config, ModelConfig)
    if config.spin is not None:
        return _with_spin(config, seed)
    return _standard(config, seed) if config.use_srtab is None else _with_table(config, seed)


def _standard(config: ModelConfig, seed: Seed) -> StandardModel:
    ntypes, type_map = len(config.type_map), config.type_map
    descriptor = config.environment.build(ntypes, type_map, seed=seed)
    fitting = config.fitting.build(
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


def _whole(config: ModelSection) -> dict[str, Any]:
    """What a model of models has itself."""
    ntypes = len(config.type_map)
    return {
        "type_map": config.type_map,
        "atom_exclude_types": config.atom_exclude_types,
        "pair_exclude_types": config.pair_exclude_types,
        "preset_out_bias": config.preset_out_bias,
        "out_bias": np.zeros((ntypes, 1), global_dtype()),
        "out_std": np.ones((ntypes, 1), global_dtype()),
    }


def _with_table(config: ModelConfig, seed: Seed) -> ZBLModel:
    plain = config.replace(preset_out_bias=None, atom_exclude_types=(), pair_exclude_types=())
    net = _standard(plain, seed)
    widest = max(net.requests(), key=lambda request: sum(request.sel))
    path, low, high = config.use_srtab, config.sw_rmin, config.sw_rmax
    if path is None or low is None or high is None:
        raise InputError("model.use_srtab: expected the file of a pair table, sw_rmin and sw_rmax")
    table = read_pair_table(path, config.type_map, rcut=net.rcut, sel=sum(widest.sel), name="model.use_srtab")
    if table.rmax < high:
        raise InputError(
            f"model.use_srtab: {path} ends at {table.rmax:g} Å, before sw_rmax ({high:g} Å) where the "
            "net takes over alone; extend the table, or lower sw_rmax"
        )
    alpha = 0.1 if config.smin_alpha is None else config.smin_alpha
    return ZBLModel(parts=(net, table), smin_alpha=alpha, sw_rmin=low, sw_rmax=high, **_whole(config))


def _linear(config: LinearConfig, seed: Seed) -> LinearModel:
    parts: list[Model] = []
    for k, part in enumerate(config.models):
        if isinstance(part, PairTableConfig):
            sel = sum(part.sel) if isinstance(part.sel, tuple) else int(part.sel)
            name = f"model.models.{k}.tab_file"
            parts.append(read_pair_table(part.tab_file, part.type_map, rcut=part.rcut, sel=sel, name=name, alone=True))
            continue
        assert isinstance(part, ModelConfig)
        built = _standard(part, child_seed(seed, k))
        if part.type_map != config.type_map and any(r.layout == "typed_slots" for r in built.requests()):
            raise InputError(
                f"model.models.{k}.type_map: {part.environment.key} counts neighbours by type and needs the types of the "
                f"whole model in its order, {list(config.type_map)}; use a descriptor that embeds types, or make them equal"
            )
        parts.append(built)
    return LinearModel(parts=tuple(parts), weights=config.weights, **_whole(config))


# --- spin --------------------------------------------------------------------------------------------------


def _with_spin(config: ModelConfig, seed: Seed) -> SpinModel:
    assert config.spin is not None
    flags, scales = config.spin.flags(config.type_map), config.spin.scales(config.type_map)
    backbone = _standard(_backbone(config, flags), seed)
    return SpinModel(
        type_map=config.type_map, backbone=backbone, use_spin=flags, virtual_scale=np.asarray(scales, np.float64)
    )


def _backbone(config: ModelConfig, flags: tuple[bool, ...]) -> ModelConfig:
    """The section of the model on real and virtual atoms: types 0..n-1 are real, n..2n-1 virtual.

    Virtual atoms of types without spin are nobody's neighbours.
    """
    n = len(config.type_map)
    hidden = tuple(n + t for t, flag in enumerate(flags) if not flag)
    pairs = dict.fromkeys((*config.pair_exclude_types, *((p, q) for p in hidden for q in range(2 * n))))
    preset = config.preset_out_bias and FrozenDict({k: (*v, *(None,) * n) for k, v in config.preset_out_bias.items()})
    fitting: Any = config.fitting
    if getattr(fitting, "atom_ener", ()):
        fitting = fitting.replace(atom_ener=(*fitting.atom_ener, *(None,) * n))
    return config.replace(
        type_map=(*config.type_map, *(f"{name}{VIRTUAL}" for name in config.type_map)),
        descriptor=_doubled(config.descriptor, n, tuple(dict.fromkeys(pairs))),
        fitting_net=fitting,
        atom_exclude_types=(*config.atom_exclude_types, *range(n, 2 * n)),
        pair_exclude_types=tuple(pairs),
        preset_out_bias=preset,
        spin=None,
    )


def _doubled(section: Any, n: int, pairs: tuple[tuple[int, int], ...]) -> Config:
    """A descriptor's section for twice as many types."""
    if isinstance(section, HybridConfig):
        return section.replace(list=tuple(_doubled(part, n, pairs) for part in section.parts))
    changes: dict[str, Any] = {"exclude_types": tuple(dict.fromkeys((*section.exclude_types, *pairs)))}
    changes["env_protection"] = section.env_protection or _NEAR
    if getattr(section, "typed", False):
        changes["sel"] = (*section.sel, *section.sel)
    doubled: Config = section.replace(**changes)
    return doubled


def known_capacities(model: Model) -> tuple[Any, ...]:
    """What the section of a model has, or would have, for `capacities()`."""
    if isinstance(model, SpinModel):
        n = model.ntypes
        halves = (
            each.value[:n] if each.typed else each.value for each in model.backbone.descriptor.config.capacities()
        )
        return tuple(halves)
    if isinstance(model, ZBLModel):
        return known_capacities(model.parts[0])
    if isinstance(model, LinearModel):
        return tuple(value for part in model.parts for value in known_capacities(part))
    if isinstance(model, StandardModel):
        return tuple(each.value for each in model.descriptor.config.capacities())
    return (model.requests()[0].sel[0],)


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
