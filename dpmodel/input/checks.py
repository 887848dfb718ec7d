"""What has to fit together across options and sections, and the forms that options of several owners share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

from dpmodel.config import Config, automatic
from dpmodel.descriptors import HybridConfig
from dpmodel.errors import InputError
from dpmodel.input.sections import AdamWConfig, InputFile, ModelConfig, TrainingConfig
from dpmodel.input.values import show
from dpmodel.losses import EnerLossConfig
from dpmodel.models.build import check_preset
from dpmodel.models.config import ModelSection
from dpmodel.nn.activation import activation
from dpmodel.nn.type_embedding import electron_configurations
from dpmodel.precision import PRECISIONS
from dpmodel.training.schedules import ScheduleConfig, build_schedule

__all__ = ["check_all", "check_model", "notes"]


def check_all(config: InputFile) -> None:
    """Raise InputError for the first thing that does not fit."""
    check_model(config.model)
    for place, part in config.model.standard_parts().items():
        if width := part.fitting.dim_case_embd:
            here = ".".join(name for name in ("model", place, "fitting_net.dim_case_embd") if name)
            raise InputError(
                f"{here}: expected 0, got {width}; it belongs to multi-task training, which is not available in this version"
            )
    _check_loss(config)
    _check_precisions(config)
    _check_training(config.training)
    # With a run length in epochs the number of steps is not known yet; a long run leaves only what no run could mend.
    steps = config.training.numb_steps
    build_schedule(cast(ScheduleConfig, config.learning_rate), 2**31 if steps is None else steps)


def _check_loss(config: InputFile) -> None:
    """Raise InputError for a loss of other labels than the model's output."""
    output = config.model.output()
    wanted = "ener_spin" if config.model.has_spin() else output.loss
    if config.loss.key != wanted:
        what = "with spin" if config.model.has_spin() else f"that predict {output.name!r}"
        raise InputError(f'loss.type: expected "{wanted}", which goes with models {what}; got "{config.loss.key}"')


def _check_precisions(config: InputFile) -> None:
    """Raise InputError for parameters in float16, which can be evaluated and not trained."""
    for place, part in config.model.standard_parts().items():
        path = f"model.{place}" if place else "model"
        sections = [*_descriptors(part.descriptor, f"{path}.descriptor"), (f"{path}.fitting_net", part.fitting_net)]
        for here, section in sections:
            if PRECISIONS.get(getattr(section, "precision", ""), "") == "float16":
                raise InputError(
                    f"{here}.precision: models of float16 are evaluated, not trained, as a step that changes a parameter "
                    "by less than a two-thousandth is lost and squares of gradients vanish: expected float32, float64 "
                    'or default, got float16; train with "float32"'
                )


def notes(config: InputFile, given: dict[str, Any]) -> list[str]:
    """What the log should say of defaults that people trip over. `given`: the file's own keys."""
    out = []
    if isinstance(config.optimizer, AdamWConfig) and "weight_decay" not in (given.get("optimizer") or {}):
        out.append(f"optimizer.weight_decay: not given; AdamW's default {config.optimizer.weight_decay} is used")
    training = config.training
    if training.ckpt_keep_ratio is not None and training.max_ckpt_keep != 5:
        out.append("training.ckpt_keep_ratio: overrides training.max_ckpt_keep")
    data = training.training_data
    if data.sys_probs is not None and data.auto_prob != "prob_sys_size":
        out.append("training.training_data.sys_probs: overrides auto_prob")
    if isinstance(config.loss, EnerLossConfig):
        out += _loss_notes(config.loss)
    return out + [note for part in config.model.standard_parts().values() for note in _charge_spin_notes(part)]


def _charge_spin_notes(model: ModelConfig) -> list[str]:
    embeds = getattr(model.descriptor, "add_chg_spin_ebd", None)
    if embeds is False and model.descriptor.default_chg_spin is not None:  # type: ignore[attr-defined]  # goes with the other
        return ["model.descriptor.default_chg_spin: has no effect without add_chg_spin_ebd: true"]
    if embeds and getattr(model.fitting_net, "numb_fparam", 0) == 2:
        former = "looks like charge and spin in fparam, as inputs had them before"
        return [
            f"model.fitting_net.numb_fparam: 2 {former}; add_chg_spin_ebd reads them from charge_spin.npy, and fparam are two more"
        ]
    return []


def _loss_notes(loss: EnerLossConfig) -> list[str]:
    """Options that need another one to act."""
    without = {
        "huber_delta": (loss.use_huber, "use_huber: true"),
        "numb_generalized_coord": (loss.active("gf"), "start_pref_gf or limit_pref_gf"),
        "use_default_pf": (loss.active("pf"), "start_pref_pf or limit_pref_pf"),
    }
    return [
        f"loss.{name}: has no effect without {needed}"
        for name, (acts, needed) in without.items()
        if not acts and getattr(loss, name) != loss.options()[name].default
    ]


# --- training -----------------------------------------------------------------------------------------


def _check_training(training: TrainingConfig) -> None:
    if training.numb_steps is None and training.numb_epoch is None:
        raise InputError("training: expected numb_steps or numb_epoch, got neither; say how long to train")
    if training.numb_steps is not None and training.numb_epoch is not None:
        raise InputError("training: expected numb_steps or numb_epoch, got both; keep one")
    if training.stat_file_mode == "read" and training.stat_file is None:
        raise InputError('training.stat_file_mode: "read" needs training.stat_file, the file to read')
    for name in ("training_data", "validation_data"):
        data = getattr(training, name)
        if data is None or isinstance(data.systems, str) or data.rglob_patterns is not None:
            continue
        for key in ("batch_size", "sys_probs"):
            value = getattr(data, key)
            # A listed folder may hold several systems: more values than entries can be right, fewer cannot.
            if isinstance(value, tuple) and len(value) < len(data.systems):
                count = f"{len(data.systems)} or more"
                raise InputError(f"training.{name}.{key}: expected one value per system, {count}, got {len(value)}")


# --- model --------------------------------------------------------------------------------------------


def check_model(model: ModelSection, path: str = "model") -> None:
    """Raise InputError where options contradict the number of types or each other."""
    ntypes = len(model.type_map)
    _check_exclusions(model, path)
    for place, part in model.standard_parts().items():
        _check_standard(part, f"{path}.{place}" if place else path)
    for output, values in (model.preset_out_bias or {}).items():
        here = f"{path}.preset_out_bias.{output}"
        if not isinstance(values, tuple) or len(values) != ntypes:
            raise InputError(
                f"{here}: expected a list of {ntypes} values, one per type of type_map, got {show(values)}"
            )
        if not all(value is None or _numbers(value) for value in values):
            raise InputError(f"{here}: expected a number, a list of numbers or null per type, got {show(values)}")
    check_preset(model.preset_out_bias or {}, model.output(), f"{path}.preset_out_bias")


def _check_exclusions(model: ModelSection, path: str) -> None:
    _check_types(model.atom_exclude_types, len(model.type_map), f"{path}.atom_exclude_types")
    _check_types(model.pair_exclude_types, len(model.type_map), f"{path}.pair_exclude_types")


def _check_standard(model: ModelConfig, path: str) -> None:
    ntypes = len(model.type_map)
    _check_exclusions(model, path)
    _check_forms(model.fitting_net, f"{path}.fitting_net")
    for place, part in _descriptors(model.descriptor, f"{path}.descriptor"):
        _check_forms(part, place)
        _check_descriptor(part, ntypes, place)
        _check_elements(part, model, path, place)
    _check_fitting(model.fitting_net, ntypes, f"{path}.fitting_net")


def _descriptors(config: Config, path: str) -> list[tuple[str, Config]]:
    """The descriptor, and the parts of a hybrid, with their places."""
    parts = config.parts if isinstance(config, HybridConfig) else ()
    inside = (_descriptors(part, f"{path}.list.{k}") for k, part in enumerate(parts))
    return [(path, config), *itertools.chain.from_iterable(inside)]


def _check_forms(config: Config, path: str) -> None:
    for key, check in _FORMS.items():
        if hasattr(config, key) and (expected := check(getattr(config, key))) is not None:
            raise InputError(f"{path}.{key}: expected {expected}, got {show(getattr(config, key))}")


def _check_elements(config: Config, model: ModelConfig, path: str, place: str) -> None:
    """Electron configurations are those of elements."""
    if not getattr(config, "use_econf_tebd", False):
        return
    if model.has_spin():
        raise InputError(
            f"{place}.use_econf_tebd: does not go with spin, whose virtual types are no elements; remove it"
        )
    try:
        electron_configurations(model.type_map)
    except InputError as problem:
        raise InputError(f"{path}.type_map: {problem}") from None


def _numbers(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_numbers(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_types(value: Any, ntypes: int, path: str) -> None:
    for item in value:
        if isinstance(item, tuple):
            _check_types(item, ntypes, path)
        elif not 0 <= item < ntypes:
            raise InputError(
                f"{path}: expected type indices from 0 to {ntypes - 1} (type_map has {ntypes}), got {item}"
            )


def _check_descriptor(config: Config, ntypes: int, path: str) -> None:
    sel = getattr(config, "sel", None)
    if isinstance(sel, tuple) and len(sel) != ntypes:
        raise InputError(f"{path}.sel: expected {ntypes} numbers, one per type of type_map, got {len(sel)}")
    _check_types(getattr(config, "exclude_types", ()), ntypes, f"{path}.exclude_types")
    rcut, rcut_smth = getattr(config, "rcut", None), getattr(config, "rcut_smth", None)
    if rcut is not None and rcut_smth is not None and rcut_smth >= rcut:
        raise InputError(f"{path}.rcut_smth: expected a number below rcut ({rcut}), got {rcut_smth}")
    neuron, axis = getattr(config, "neuron", None), getattr(config, "axis_neuron", None)
    if neuron == ():
        raise InputError(f"{path}.neuron: expected at least one width, got []")
    if neuron and axis is not None and axis > neuron[-1]:
        raise InputError(f"{path}.axis_neuron: expected at most {neuron[-1]}, the last width of neuron, got {axis}")


def _check_fitting(config: Config, ntypes: int, path: str) -> None:
    atom_ener = getattr(config, "atom_ener", ())
    if atom_ener and len(atom_ener) != ntypes:
        raise InputError(f"{path}.atom_ener: expected {ntypes} values, one per type of type_map, got {len(atom_ener)}")
    default, count = getattr(config, "default_fparam", None), getattr(config, "numb_fparam", 0)
    if default is not None and len(default) != count:
        raise InputError(f"{path}.default_fparam: expected {count} numbers (numb_fparam), got {len(default)}")
    trainable, neuron = getattr(config, "trainable", True), getattr(config, "neuron", ())
    if isinstance(trainable, tuple) and len(trainable) != len(neuron) + 1:
        raise InputError(
            f"{path}.trainable: expected true, false, or {len(neuron) + 1} of them (hidden layers, then the last), "
            f"got {show(trainable)}"
        )


# --- forms that descriptors and fitting nets share ----------------------------------------------------


def _integer(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def sel_form(value: Any) -> str | None:
    """A capacity: integers, or "auto" and "auto:f", which the data resolve later."""
    if isinstance(value, str):
        return automatic(value)
    fits = all(_integer(item, 0) for item in value) and any(value) if isinstance(value, tuple) else _integer(value, 1)
    return None if fits else 'integers (neighbours per type), "auto" or "auto:f"'


def _seed(value: Any) -> str | None:
    items = value if isinstance(value, tuple) else () if value is None else (value,)
    return None if all(_integer(item, 0) for item in items) else "an integer of at least 0, a list of them, or null"


def _precision(value: Any) -> str | None:
    known = ("default", *PRECISIONS)
    if value == "bfloat16":
        return f"one of {', '.join(known)} (NumPy, the reference, has no bfloat16: use float32)"
    return None if value in known else f"one of {', '.join(known)}"


def _activation(value: Any) -> str | None:
    try:
        activation(value)
    except (ValueError, AttributeError) as error:
        return f"a known activation ({error})"
    return None


def _trainable(value: Any) -> str | None:
    items = value if isinstance(value, tuple) else () if value is None else (value,)
    return None if all(isinstance(item, bool) for item in items) else "true or false, a list of them, or null"


def _widths(value: Any) -> str | None:
    return None if all(_integer(item, 1) for item in value) else "integers above 0"


def _per_type(value: Any) -> str | None:
    fits = isinstance(value, tuple) and all(item is None or _numbers(item) for item in value)
    return None if fits else "a list with a number or null per type"


_FORMS: dict[str, Callable[[Any], str | None]] = {
    "sel": sel_form,
    "seed": _seed,
    "precision": _precision,
    "activation_function": _activation,
    "trainable": _trainable,
    "neuron": _widths,
    "atom_ener": _per_type,
}
"""Options of the same name mean the same in every descriptor and fitting net."""
