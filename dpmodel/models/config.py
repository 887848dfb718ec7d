"""The `model` section of an input."""

from __future__ import annotations

from typing import Any

from dpmodel import descriptors, fittings
from dpmodel.config import Config, FrozenDict, option, positive, section

__all__ = ["ModelConfig"]


def _names(value: tuple[str, ...]) -> str | None:
    fits = bool(value) and all(value) and len(set(value)) == len(value)
    return None if fits else "at least one name, none empty, none twice"


def _not_negative(value: tuple[Any, ...]) -> str | None:
    return None if all(item >= 0 for item in _flat(value)) else "type indices of at least 0"


def _flat(value: tuple[Any, ...]) -> list[Any]:
    return [x for item in value for x in (_flat(item) if isinstance(item, tuple) else [item])]


_ZBL = "Interpolation with a pair table (ZBL): leave the key out."


class ModelConfig(Config, key="standard"):
    """A descriptor and a fitting net."""

    type_map: tuple[str, ...] = option(doc="Names of the elements; their order defines the type index.", check=_names)
    descriptor: Config = section(lambda: descriptors.CONFIGS, "What an atom sees of its neighbourhood.")
    fitting_net: Config = section(
        lambda: fittings.CONFIGS, "From the descriptor to an atom's output.", default_kind="ener"
    )
    data_stat_nbatch: int = option(10, "Batches per system that statistics are taken from.", check=positive)
    data_stat_protect: float = option(0.01, "Smallest standard deviation of inputs.", check=positive)
    data_bias_nsample: int = option(10, "Statistics of biases use data_stat_nbatch.", effect="ignored")
    pair_exclude_types: tuple[tuple[int, int], ...] = option(
        (), "Pairs of types that are no neighbours of each other.", check=_not_negative
    )
    atom_exclude_types: tuple[int, ...] = option((), "Types whose atoms contribute nothing.", check=_not_negative)
    preset_out_bias: FrozenDict | None = option(
        None, "By output, a list with one number or null per type: biases that statistics keep."
    )
    model_branch_alias: tuple[str, ...] = option((), "Further names of this model, stored with it.")
    info: FrozenDict = option(FrozenDict(), "Free notes, stored with the model.")

    srtab_add_bias: bool = option(True, "Of pair tables in TensorFlow.", effect="ignored")
    use_srtab: str | None = option(None, _ZBL, effect="refused")
    smin_alpha: float | None = option(None, _ZBL, effect="refused")
    sw_rmin: float | None = option(None, _ZBL, effect="refused")
    sw_rmax: float | None = option(None, _ZBL, effect="refused")
    spin: FrozenDict | None = option(
        None,
        "Models with spin are not offered, native spin is out of scope: train without magnetic moments.",
        effect="refused",
    )
    modifier: FrozenDict | None = option(
        None, "The dipole_charge modifier is out of scope: train on the unmodified energies.", effect="refused"
    )
    type_embedding: FrozenDict | None = option(
        None,
        "It is TensorFlow's alone; descriptors that embed types have their own options (tebd_dim).",
        effect="refused",
    )
    compress: FrozenDict | None = option(
        None, "Compressed tables are out of scope: use the model as it is.", effect="refused"
    )
    finetune_head: str | None = option(
        None, "Start from another model's weights with `train --init-model` instead.", effect="refused"
    )
