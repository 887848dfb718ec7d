"""The `model` section of an input: standard models (with spin or a pair table), and sums of models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from dpmodel import descriptors, fittings
from dpmodel.config import Config, FrozenDict, capacity, option, positive, section, sections
from dpmodel.descriptors.base import Capacity, DescriptorConfig
from dpmodel.errors import InputError
from dpmodel.fittings.base import FittingConfig, Output

__all__ = ["LinearConfig", "ModelConfig", "ModelSection", "PairTableConfig", "SpinConfig"]


def _names(value: tuple[str, ...]) -> str | None:
    fits = bool(value) and all(value) and len(set(value)) == len(value)
    return None if fits else "at least one name, none empty, none twice"


def _not_negative(value: tuple[Any, ...]) -> str | None:
    return None if all(item >= 0 for item in _flat(value)) else "type indices of at least 0"


def _flat(value: tuple[Any, ...]) -> list[Any]:
    return [x for item in value for x in (_flat(item) if isinstance(item, tuple) else [item])]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- spin --------------------------------------------------------------------------------------------------


def _use_spin(value: Any) -> str | None:
    kinds = {type(item) for item in value} if isinstance(value, tuple) else set()
    fits = len(kinds) == 1 and kinds <= {bool, int, str}
    return None if fits else "a list: true or false for every type, or the indices, or the names of the types with spin"


def _virtual_scale(value: Any) -> str | None:
    values = value if isinstance(value, tuple) else (value,)
    return None if values and all(_number(item) for item in values) else "a number, or a list of them"


class SpinConfig(Config):
    """Magnetic moments, by virtual atoms."""

    use_spin: Any = option(doc="Which types have spin: a list of flags, of indices, or of names.", check=_use_spin)
    virtual_scale: Any = option(
        doc="Displacement of an atom's virtual atom per unit of spin: one number, one per type, or one per type with "
        "spin.",
        unit="Å per unit of spin",
        check=_virtual_scale,
    )
    scheme: str = option("deepspin", "Virtual atoms; native spin is out of scope.", choices=("deepspin",))
    allow_missing_label: bool = option(False, "Give all systems spin and force_mag.", effect="refused")
    spin_norm: tuple[float, ...] = option((), "Of TensorFlow.", effect="ignored")
    virtual_len: tuple[float, ...] = option((), "Of TensorFlow.", effect="ignored")

    def flags(self, type_map: tuple[str, ...]) -> tuple[bool, ...]:
        """By type, whether it has spin. Raises InputError."""
        given = tuple(self.use_spin)
        if isinstance(given[0], bool):
            if len(given) != len(type_map):
                raise InputError(
                    f"spin.use_spin: expected {len(type_map)} flags, one per type of type_map, got {len(given)}"
                )
            return given
        numbers = [type_map.index(item) if item in type_map else item for item in given]
        for item in numbers:
            if isinstance(item, str) or not 0 <= item < len(type_map):
                raise InputError(
                    f"spin.use_spin: expected names of type_map {list(type_map)} or their indices, got {item!r}"
                )
        return tuple(t in numbers for t in range(len(type_map)))

    def scales(self, type_map: tuple[str, ...]) -> tuple[float, ...]:
        """By type, `virtual_scale`. Raises InputError."""
        flags = self.flags(type_map)
        given = self.virtual_scale if isinstance(self.virtual_scale, tuple) else (self.virtual_scale,) * len(flags)
        if len(given) not in (len(flags), sum(flags)):
            raise InputError(
                f"spin.virtual_scale: expected one number, {len(flags)} (one per type) or {sum(flags)} (one per type with "
                f"spin), got {len(given)}"
            )
        rest = iter(given)
        per_type = len(given) == len(flags)
        scales = tuple(float(next(rest)) if flag or per_type else 0.0 for flag in flags)
        wrong = [name for name, flag, scale in zip(type_map, flags, scales, strict=True) if flag and not scale > 0.0]
        if wrong:
            raise InputError(
                f"spin.virtual_scale: expected numbers above 0 for types with spin, got others for {wrong}"
            )
        return scales


# --- models ------------------------------------------------------------------------------------------------


class ModelSection(Config):
    """What all models share."""

    type_map: tuple[str, ...] = option(doc="Names of the elements; their order defines the type index.", check=_names)
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
    bridging_method: str = option("None", "Of DPA4 models, which are out of scope.", effect="refused")
    bridging_r_inner: float = option(0.5, "It belongs to bridging_method.", effect="ignored")
    bridging_r_outer: float = option(0.8, "It belongs to bridging_method.", effect="ignored")
    finetune_head: str | None = option(
        None,
        'With --finetune: the task of the pre-trained model that weights come from, or "RANDOM" for a fresh fitting net.',
    )

    def standard_parts(self) -> dict[str, ModelConfig]:
        """The sections with a descriptor and a fitting net, by their place below this one ("": itself)."""
        raise NotImplementedError(f"{type(self).__name__} does not define standard_parts()")

    def capacities(self) -> tuple[Capacity, ...]:
        """The options that statistics of the data resolve, or are compared with."""
        raise NotImplementedError(f"{type(self).__name__} does not define capacities()")

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> ModelSection:
        """A copy with numbers for `capacities()`, in that order."""
        raise NotImplementedError(f"{type(self).__name__} does not define with_capacities()")

    def output(self) -> Output:
        """What the model predicts."""
        return next(iter(self.standard_parts().values())).fitting.output()

    def has_spin(self) -> bool:
        """Whether magnetic moments are inputs."""
        return False

    def spin_scales(self) -> tuple[float, ...] | None:
        """By type, displacement of the virtual atom per unit of spin, Å; None: no magnetic moments."""
        return None

    def fparam(self) -> tuple[int, tuple[float, ...] | None]:
        """Number of frame parameters, and their defaults."""
        nets = [part.fitting for part in self.standard_parts().values() if part.fitting.numb_fparam]
        defaults = {net.default_fparam for net in nets}
        return max((net.numb_fparam for net in nets), default=0), defaults.pop() if len(defaults) == 1 else None

    def numb_aparam(self) -> int:
        """Number of atomic parameters."""
        return max(part.fitting.numb_aparam for part in self.standard_parts().values())

    def charge_spin(self) -> tuple[bool, tuple[float, float] | None]:
        """Whether total charge and spin are inputs, and their defaults."""
        takers = [p.environment for p in self.standard_parts().values() if p.environment.takes_charge_spin()]
        defaults = {taker.default_charge_spin() for taker in takers}
        return bool(takers), defaults.pop() if len(defaults) == 1 else None

    def tolerates_overlap(self) -> bool:
        """Whether atoms may be at one place."""
        return all(part.environment.tolerates_overlap() for part in self.standard_parts().values())


class ModelConfig(ModelSection, key="standard"):
    """A descriptor and a fitting net."""

    descriptor: Config = section(lambda: descriptors.CONFIGS, "What an atom sees of its neighbourhood.")
    fitting_net: Config = section(
        lambda: fittings.CONFIGS, "From the descriptor to an atom's output.", default_kind="ener"
    )
    spin: SpinConfig | None = section(
        lambda: (SpinConfig,), "Magnetic moments as inputs: leave it out for models without.", default=None
    )
    use_srtab: str | None = option(
        None, "File with a pair table that takes over where atoms are near each other (ZBL). Needs sw_rmin and sw_rmax."
    )
    smin_alpha: float | None = option(
        None, "Width of the soft minimum of distances that decides between table and net (ZBL); 0.1 if not given.",
        unit="Å", check=positive,
    )  # fmt: skip
    sw_rmin: float | None = option(None, "Soft minimum below which the table alone counts (ZBL).", unit="Å")
    sw_rmax: float | None = option(None, "Soft minimum from which the net alone counts (ZBL).", unit="Å")

    @property
    def fitting(self) -> FittingConfig:
        """`fitting_net`, as what every registered one is."""
        return self.fitting_net  # type: ignore[return-value]  # every registered fitting net's section is one

    @property
    def environment(self) -> DescriptorConfig:
        """`descriptor`, as what every registered one is."""
        return self.descriptor  # type: ignore[return-value]  # every registered descriptor's section is one

    def standard_parts(self) -> dict[str, ModelConfig]:
        return {"": self}

    def capacities(self) -> tuple[Capacity, ...]:
        return self.environment.capacities()

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> ModelConfig:
        return self.replace(descriptor=self.environment.with_capacities(values))

    def has_spin(self) -> bool:
        return self.spin is not None

    def spin_scales(self) -> tuple[float, ...] | None:
        if self.spin is None:
            return None
        flags, scales = self.spin.flags(self.type_map), self.spin.scales(self.type_map)
        return tuple(scale if flag else 0.0 for flag, scale in zip(flags, scales, strict=True))

    def check(self) -> None:
        """Raise InputError where options contradict each other."""
        if self.spin is not None:
            self.spin.scales(self.type_map)
            if self.use_srtab is not None:
                raise InputError("use_srtab: does not go with spin; remove one or the other")
            if self.fitting.output().loss != "ener":
                raise InputError(
                    f"spin: goes with fitting_net.type ener, got {self.fitting.key}; remove one or the other"
                )
        if self.use_srtab is None:
            given = [name for name in ("smin_alpha", "sw_rmin", "sw_rmax") if getattr(self, name) is not None]
            if given:
                raise InputError(f"{given[0]}: belongs to models with a pair table; give use_srtab, or remove it")
            return
        low, high = self.sw_rmin, self.sw_rmax
        if low is None or high is None or not 0.0 <= low < high:
            raise InputError(f"sw_rmax: expected 0 <= sw_rmin < sw_rmax with use_srtab, got {low} and {high}")
        if self.fitting.output().loss != "ener":
            raise InputError(f"use_srtab: goes with fitting_net.type ener, got {self.fitting.key}")


class PairTableConfig(Config, key="pairtab"):
    """A pair potential from a table, as a part of a linear model."""

    type_map: tuple[str, ...] = option((), "As that of the whole model; given for the sake of existing inputs.")
    tab_file: str = option(doc="Text file: distances in Å, then energies in eV for the pairs 0-0, 0-1, ..., 1-1, ...")
    rcut: float = option(doc="Cutoff radius.", unit="Å", check=positive)
    sel: Any = option(doc='Neighbours that are kept: a number, "auto" or "auto:f", or one number per type.')
    data_stat_nbatch: int = option(10, "A table has no statistics.", effect="ignored", check=positive)
    data_stat_protect: float = option(0.01, "A table has no statistics.", effect="ignored", check=positive)
    data_bias_nsample: int = option(10, "A table has no statistics.", effect="ignored")
    srtab_add_bias: bool = option(True, "Of pair tables in TensorFlow.", effect="ignored")
    pair_exclude_types: tuple[tuple[int, int], ...] = option((), "Give them for the whole model.", effect="refused")
    atom_exclude_types: tuple[int, ...] = option((), "Give them for the whole model.", effect="refused")
    preset_out_bias: FrozenDict | None = option(None, "Give it for the whole model.", effect="refused")

    def check(self) -> None:
        """Raise InputError where `sel` is none."""
        total = sum(self.sel) if isinstance(self.sel, tuple) and all(map(_number, self.sel)) else self.sel
        if isinstance(self.sel, bool) or not isinstance(total, int | str) or capacity(total) is not None:
            raise InputError(f"sel: expected a number above 0, or one per type, got {self.sel!r}")


def _weights(value: Any) -> str | None:
    fits = value in ("mean", "sum") or (isinstance(value, tuple) and bool(value) and all(map(_number, value)))
    return None if fits else '"mean", "sum" or a list with a number for every model'


class LinearConfig(ModelSection, key="linear_ener"):
    """A weighted sum of models."""

    models: tuple[Config, ...] = sections(
        lambda: (ModelConfig, PairTableConfig), "The models. Those without type_map have that of the whole.",
        default_kind="standard",
    )  # fmt: skip
    weights: Any = option("mean", '"mean", "sum" or a list with a number for every model.', check=_weights)
    shared_dict: FrozenDict = option(FrozenDict(), "Write out the parts; nothing is shared.", effect="refused")

    def standard_parts(self) -> dict[str, ModelConfig]:
        return {f"models.{k}": part for k, part in enumerate(self.models) if isinstance(part, ModelConfig)}

    def capacities(self) -> tuple[Capacity, ...]:
        found = []
        for k, part in enumerate(self.models):
            if isinstance(part, ModelConfig):
                found += [
                    dataclasses.replace(each, option=f"models.{k}.descriptor.{each.option}")
                    for each in part.capacities()
                ]
            elif isinstance(part, PairTableConfig):
                sel = sum(part.sel) if isinstance(part.sel, tuple) else part.sel
                found.append(Capacity(option=f"models.{k}.sel", value=sel, rcut=part.rcut, typed=False))
        return tuple(found)

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> LinearConfig:
        rest, parts = iter(values), list[Config]()
        for part in self.models:
            if isinstance(part, ModelConfig):
                parts.append(part.with_capacities([next(rest) for _ in part.capacities()]))
            else:
                parts.append(part.replace(sel=next(rest)[0]))
        return self.replace(models=tuple(parts))

    def check(self) -> None:
        """Raise InputError where the parts do not fit together."""
        if not self.standard_parts():
            raise InputError("models: expected at least one model with a descriptor, got none")
        if isinstance(self.weights, tuple) and len(self.weights) != len(self.models):
            raise InputError(f"weights: expected {len(self.models)} numbers, one per model, got {len(self.weights)}")
        outputs = {part.fitting.output() for part in self.standard_parts().values()}
        if len(outputs) != 1 or next(iter(outputs)).loss != "ener":
            raise InputError("models: expected fitting nets of type ener; sums of other models are not available")
        for place, part in self.standard_parts().items():
            for name in ("spin", "use_srtab", "preset_out_bias", "pair_exclude_types"):
                if getattr(part, name):
                    raise InputError(f"{place}.{name}: belongs to the whole model, not to a part; move or remove it")
            if getattr(part.fitting, "atom_ener", ()):
                raise InputError(
                    f"{place}.fitting_net.atom_ener: a part has no energies of atoms; give preset_out_bias of the whole model"
                )
        for k, each in enumerate(self.models):
            own: tuple[str, ...] = getattr(each, "type_map", ())
            if own and (missing := sorted(set(self.type_map) - set(own))):
                raise InputError(f"models.{k}.type_map: lacks {missing}, which are types of the whole model")
        dims = {part.fitting.numb_fparam for part in self.standard_parts().values()} - {0}
        dims_of_atoms = {part.fitting.numb_aparam for part in self.standard_parts().values()} - {0}
        if len(dims) > 1 or len(dims_of_atoms) > 1:
            raise InputError("models: numb_fparam and numb_aparam must be the same, or 0, in all parts")
