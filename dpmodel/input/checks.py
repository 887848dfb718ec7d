"""What has to fit together across options and sections, and the forms that options of several owners share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dpmodel.config import Config, automatic, thaw
from dpmodel.descriptors import HybridConfig
from dpmodel.errors import InputError
from dpmodel.input.optimizers import AdamWConfig, check_optimizer, optimizer_notes
from dpmodel.input.sections import ModelConfig, TaskDataConfig, ValidatingConfig
from dpmodel.input.values import show
from dpmodel.losses import EnerLossConfig, EnerSpinLossConfig
from dpmodel.losses.base import LossConfig
from dpmodel.models.build import check_preset
from dpmodel.models.config import LinearConfig, ModelSection
from dpmodel.models.multi_task import Shared, levels_of, section_at, what_levels
from dpmodel.nn.activation import activation
from dpmodel.nn.type_embedding import electron_configurations
from dpmodel.precision import PRECISIONS
from dpmodel.training.length import check_length
from dpmodel.training.schedules import ScheduleConfig, build_schedule

if TYPE_CHECKING:
    from dpmodel.input.load import Input

__all__ = ["check_all", "check_model", "notes", "validated"]


def check_all(inp: Input) -> None:
    """Raise InputError for the first thing that does not fit."""
    for name, task in inp.tasks.items():
        check_model(task.model, f"model.model_dict.{name}" if inp.multi else "model")
        _check_loss(task.loss, task.model, f"loss_dict.{name}" if inp.multi else "loss")
        _check_precisions(task.model, f"model.model_dict.{name}" if inp.multi else "model")
        _check_data(task.data, f"training.data_dict.{name}" if inp.multi else "training")
    _check_cases(inp)
    if inp.multi:
        _check_tasks(inp)
    training = inp.training
    check_length(
        list(inp.tasks), numb_steps=training.numb_steps, numb_epoch=training.numb_epoch,
        num_epoch_dict=training.num_epoch_dict, model_prob=training.model_prob,
    )  # fmt: skip
    _check_validating(inp)
    check_optimizer(inp.optimizer, {name: task.loss for name, task in inp.tasks.items()}, inp.training)
    # With a run length in epochs the number of steps is not known yet; a long run leaves only what no run could mend.
    steps = training.numb_steps
    build_schedule(cast(ScheduleConfig, inp.learning_rate), 2**31 if steps is None else steps)


def _check_loss(loss: Config, model: ModelSection, path: str) -> None:
    """Raise InputError for a loss of other labels than the model's output."""
    output = model.output()
    wanted = "ener_spin" if model.has_spin() else output.loss
    if loss.key != wanted:
        what = "with spin" if model.has_spin() else f"that predict {output.name!r}"
        raise InputError(f'{path}.type: expected "{wanted}", which goes with models {what}; got "{loss.key}"')


def _check_precisions(model: ModelSection, path: str) -> None:
    """Raise InputError for parameters in float16, which can be evaluated and not trained."""
    for place, part in model.standard_parts().items():
        whole = f"{path}.{place}" if place else path
        sections = [*_descriptors(part.descriptor, f"{whole}.descriptor"), (f"{whole}.fitting_net", part.fitting_net)]
        for here, section in sections:
            if PRECISIONS.get(getattr(section, "precision", ""), "") == "float16":
                raise InputError(
                    f"{here}.precision: models of float16 are evaluated, not trained, as a step that changes a parameter "
                    "by less than a two-thousandth is lost and squares of gradients vanish: expected float32, float64 "
                    'or default, got float16; train with "float32"'
                )


def notes(inp: Input, given: dict[str, Any]) -> list[str]:
    """What the log should say of defaults that people trip over. `given`: the file's own keys."""
    out = []
    if isinstance(inp.optimizer, AdamWConfig) and "weight_decay" not in (given.get("optimizer") or {}):
        out.append(f"optimizer.weight_decay: not given; AdamW's default {inp.optimizer.weight_decay} is used")
    out += optimizer_notes(inp.optimizer)
    training = inp.training
    if training.ckpt_keep_ratio is not None and training.max_ckpt_keep != 5:
        out.append("training.ckpt_keep_ratio: overrides training.max_ckpt_keep")
    if training.ckpt_keep_ratio is not None and training.ema_ckpt_keep is not None:
        out.append("training.ckpt_keep_ratio: overrides training.ema_ckpt_keep")
    out += _notes_without(inp)
    if not inp.multi:
        out += [
            f"{here}: tells tasks apart, and this input has one: its row is the one of the weights that the run begins with "
            "(--finetune with a head, --init-model, --restart), and zeros where they are fresh"
            for here, width in _case_widths(inp).items()
            if width
        ]
    for name, task in inp.tasks.items():
        prefix = f"training.data_dict.{name}" if inp.multi else "training"
        data = task.data.training_data
        if data.sys_probs is not None and data.auto_prob != "prob_sys_size":
            out.append(f"{prefix}.training_data.sys_probs: overrides auto_prob")
        if isinstance(task.loss, EnerLossConfig | EnerSpinLossConfig):
            out += _loss_notes(task.loss, f"loss_dict.{name}" if inp.multi else "loss")
        path = f"model.model_dict.{name}" if inp.multi else "model"
        for place, part in task.model.standard_parts().items():
            out += _charge_spin_notes(part, path)
            out += _part_notes(task.model, part, f"{path}.{place}" if place else path)
    return out


def _part_notes(model: ModelSection, part: ModelConfig, path: str) -> list[str]:
    """Options of a part that the whole model has, and biases that are added nowhere."""
    out = []
    if part is not model and isinstance(model, LinearConfig):
        for name in ("data_stat_nbatch", "data_stat_protect", "finetune_head", "model_branch_alias"):
            given = getattr(part, name)
            if given and given != part.options()[name].default and given != getattr(model, name):
                out.append(f"{path}.{name}: has no effect in a part; that of the whole model counts")
    why = part.fitting.why_no_bias()
    if why and any(value is not None for row in (model.preset_out_bias or {}).values() for value in row):
        out.append(f"{path}.preset_out_bias: has no effect, as {why}")
    return out


_NEEDS = {
    "training": {
        "ema_decay": ("enable_ema", "training.enable_ema"),
        "ema_ckpt_keep": ("enable_ema", "training.enable_ema"),
        "profiling_file": ("profiling", "training.profiling"),
        "tensorboard_freq": ("tensorboard", "training.tensorboard"),
    }
}
"""Options that mean nothing without another one."""


def _notes_without(inp: Input) -> list[str]:
    """Options that were given and need another one to act."""
    out = []
    for section, options in _NEEDS.items():
        config = getattr(inp, section)
        for name, (switch, shown) in options.items():
            if getattr(config, name) != config.options()[name].default and not getattr(config, switch):
                out.append(f"{section}.{name}: has no effect without {shown}: true")
    validating = inp.validating
    if not (validating.full_validation or validating.ema_full_validation):
        other = [
            name
            for name in ("validation_freq", "save_best", "save_best_dir", "max_best_ckpt", "full_val_file", "full_val_start",
                         "validation_metric")
            if getattr(validating, name) != validating.options()[name].default
        ]  # fmt: skip
        out += [f"validating.{name}: has no effect without validating.full_validation: true" for name in other]
    return out


def _charge_spin_notes(model: ModelConfig, path: str) -> list[str]:
    embeds = getattr(model.descriptor, "add_chg_spin_ebd", None)
    if embeds is False and model.descriptor.default_chg_spin is not None:  # type: ignore[attr-defined]  # goes with the other
        return [f"{path}.descriptor.default_chg_spin: has no effect without add_chg_spin_ebd: true"]
    if embeds and getattr(model.fitting_net, "numb_fparam", 0) == 2:
        former = "looks like charge and spin in fparam, as inputs had them before"
        return [
            f"{path}.fitting_net.numb_fparam: 2 {former}; add_chg_spin_ebd reads them from charge_spin.npy, and fparam are two more"
        ]
    return []


def _loss_notes(loss: EnerLossConfig | EnerSpinLossConfig, path: str) -> list[str]:
    """Options that need another one to act."""
    squares = loss.loss_func == "mse"
    without = {"intensive_ener_virial": (squares, "loss_func: mse")}
    if isinstance(loss, EnerLossConfig):
        without = {
            "use_huber": (squares, "loss_func: mse"),
            "huber_delta": (squares and loss.use_huber, "use_huber: true and loss_func: mse"),
            "intensive_ener_virial": (squares and not loss.use_huber, "loss_func: mse and use_huber: false"),
            "numb_generalized_coord": (loss.active("gf"), "start_pref_gf or limit_pref_gf"),
            "use_default_pf": (loss.active("pf"), "start_pref_pf or limit_pref_pf"),
        }
    return [
        f"{path}.{name}: has no effect without {needed}"
        for name, (acts, needed) in without.items()
        if not acts and getattr(loss, name) != loss.options()[name].default
    ]


# --- training -----------------------------------------------------------------------------------------


def _check_data(data: TaskDataConfig, path: str) -> None:
    if data.stat_file_mode == "read" and data.stat_file is None:
        raise InputError(f'{path}.stat_file_mode: "read" needs {path}.stat_file, the file to read')
    for name in ("training_data", "validation_data"):
        section = getattr(data, name)
        if section is None or isinstance(section.systems, str) or section.rglob_patterns is not None:
            continue
        for key in ("batch_size", "sys_probs"):
            value = getattr(section, key)
            # A listed folder may hold several systems: more values than entries can be right, fewer cannot.
            if isinstance(value, tuple) and len(value) < len(section.systems):
                count = f"{len(section.systems)} or more"
                raise InputError(f"{path}.{name}.{key}: expected one value per system, {count}, got {len(value)}")


# --- several tasks ------------------------------------------------------------------------------------


def _check_cases(inp: Input) -> None:
    """Raise InputError where widths of the case embedding are not all 0 or all the number of tasks."""
    if not inp.multi:
        return  # any width: a head of a model of several tasks has that of its net
    widths = _case_widths(inp)
    count = len(inp.tasks)
    for here, width in widths.items():
        if any(widths.values()) and width != count:
            raise InputError(f"{here}: expected 0 in all tasks, or {count} (the number of tasks) in all, got {width}")


def _case_widths(inp: Input) -> dict[str, int]:
    """`dim_case_embd` of all fitting nets, by place."""
    widths: dict[str, int] = {}
    for name, task in inp.tasks.items():
        path = f"model.model_dict.{name}" if inp.multi else "model"
        for place, part in task.model.standard_parts().items():
            here = ".".join(key for key in (path, place, "fitting_net.dim_case_embd") if key)
            widths[here] = part.fitting.dim_case_embd
    return widths


def _check_tasks(inp: Input) -> None:
    """Raise InputError where tasks do not fit together."""
    names = list(inp.tasks)
    first = inp.tasks[names[0]].model
    for name in names[1:]:
        model = inp.tasks[name].model
        for option, why in (
            ("type_map", "all tasks have the same types, as by a name of model.shared_dict"),
            ("data_stat_protect", "statistics of shared parts are made with one"),
        ):
            if getattr(model, option) != getattr(first, option):
                here, there = (show(thaw(getattr(each, option))) for each in (model, first))
                raise InputError(
                    f"model.model_dict.{name}.{option}: expected {there}, as {names[0]} has it, got {here}; {why}"
                )
    _check_caches(inp)
    for shared in inp.shared:
        _check_shared(inp, shared)


def _check_caches(inp: Input) -> None:
    """Raise InputError where two tasks keep their statistics in one place."""
    taken: dict[Path, str] = {}
    for name, task in inp.tasks.items():
        if task.data.stat_file is None:
            continue
        other = taken.setdefault(Path(task.data.stat_file).resolve(), name)
        if other != name:
            raise InputError(
                f"training.data_dict.{name}.stat_file: {task.data.stat_file} is that of {other} as well; every task keeps "
                "its statistics in a place of its own"
            )


def _check_shared(inp: Input, shared: Shared) -> None:
    """Raise InputError for levels that a definition does not have, and for tasks that cannot share it."""
    for link in shared.links:
        config = section_at(inp.tasks[link.task].model, link.place)
        here = ".".join(("model.model_dict", link.task, *map(str, link.place)))
        if link.level not in levels_of(config):
            raise InputError(f'{here}: "{shared.name}:{link.level}": {what_levels(config)}')
        one, other = (_virtual(inp.tasks[each.task].model, link.level) for each in (shared.links[0], link))
        if shared.kind == "descriptor" and one != other:
            raise InputError(
                f"{here}: {link.task} and {shared.links[0].task} share {shared.name!r}, but have other spins: virtual atoms "
                "are types of their own, so the descriptors differ; give both the same spin.use_spin and "
                "pair_exclude_types, or do not share it"
            )


def _virtual(model: ModelSection, level: int) -> Any:
    """What descriptors of models with spin are made with besides their own section, as far as the level shares it."""
    scales = model.spin_scales()
    if scales is None or level:
        return scales is not None
    return tuple(scale > 0 for scale in scales), frozenset(model.pair_exclude_types)


# --- validation ---------------------------------------------------------------------------------------


def validated(validating: ValidatingConfig, tasks: Mapping[str, tuple[Config, TaskDataConfig]]) -> list[str]:
    """Tasks with validation data whose loss has the quantity of the metric. tasks: by name, loss and data."""
    family = validating.validation_metric.partition(":")[0].upper()
    return [
        name
        for name, (loss, data) in tasks.items()
        if data.validation_data is not None and family in cast(LossConfig, loss).metric_terms()
    ]


def _check_validating(inp: Input) -> None:
    """Raise InputError where full validation could not run."""
    validating, training = inp.validating, inp.training
    # Before anything that says that no validation takes place: a contradiction is one in any case.
    if validating.ema_full_validation and not training.enable_ema:
        raise InputError(
            "validating.ema_full_validation: needs training.enable_ema: true, for there is no average without"
        )
    if not (validating.full_validation or validating.ema_full_validation):
        if validating.early_stop_patience is not None:
            raise InputError("validating.early_stop_patience: needs validating.full_validation: true, which it counts")
        return
    if validating.full_val_start == 1:
        if validating.early_stop_patience is not None:
            raise InputError("validating.early_stop_patience: full_val_start is 1, so no validation takes place")
        return
    family = validating.validation_metric.partition(":")[0].upper()
    for name, task in inp.tasks.items():
        if inp.multi and name not in inp.validated_tasks():
            continue
        path = f"loss_dict.{name}" if inp.multi else "loss"
        loss = cast(LossConfig, task.loss)
        known = loss.metric_terms()
        if family not in known:
            raise InputError(
                f"validating.validation_metric: expected one of {', '.join(known)} with {path}.type {loss.key}, got "
                f"{show(validating.validation_metric)}"
            )
        if task.data.validation_data is None:
            raise InputError("validating.full_validation: needs training.validation_data, the data to validate on")
        for side, value in zip(("start", "limit"), loss.prefactors(known[family]), strict=True):
            option = f"{side}_pref_{known[family]}"
            option = option if option in loss.options() else "pref_atomic" if family == "L" else "pref"
            if value == 0:
                raise InputError(
                    f"validating.validation_metric: {show(validating.validation_metric)} is not trained from start to end, as "
                    f"{path}.{option} is 0; choose another metric, or another prefactor"
                )
    if not inp.validated_tasks():
        raise InputError(
            f"validating.full_validation: no task has both validation_data and a loss with {family} "
            f"({show(validating.validation_metric)})"
        )


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
    if isinstance(sel, tuple) and len(sel) not in ((ntypes,) if getattr(config, "typed", True) else (1, ntypes)):
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
    scale = getattr(config, "scale", None)
    if isinstance(scale, tuple) and len(scale) not in (1, ntypes):
        raise InputError(f"{path}.scale: expected one number or {ntypes}, one per type of type_map, got {len(scale)}")
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
