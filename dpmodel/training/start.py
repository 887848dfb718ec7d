"""What a run begins with besides its input: a checkpoint to go on from, or the weights of another model."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.config import Config
from dpmodel.data import Dataset
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.model_file import ModelFile, TasksFile, read_models
from dpmodel.models import Model
from dpmodel.models.multi_task import MultiTask
from dpmodel.op import Kind, Op, children, given_of
from dpmodel.statistics.cache import by_atomic_number
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.rotation import Family, latest
from dpmodel.training.share import empty_types, with_empty_types

__all__ = [
    "adopt",
    "by_task",
    "check_same_run",
    "checksums",
    "find_checkpoint",
    "find_model",
    "observed_types",
    "seeds",
]

logger = logging.getLogger(__name__)

_FREE = frozenset(
    (
        "seed",
        "info",
        "model_branch_alias",
        "data_stat_nbatch",
        "data_stat_protect",
        "data_bias_nsample",
        "srtab_add_bias",
    )
)
"""Options of the model section that mean nothing once weights and statistics are there."""

_OF_THE_RUN = (
    "gradient_max_norm",
    "disp_avg",
    "training_data",
    "validation_data",
    "data_dict",
    "model_prob",
    "num_epoch_dict",
    "acc_freq",
    "freeze_parameters",
)
"""Options of the training section that change numbers of the run."""

_PLACES = frozenset(("systems", "rglob_patterns", "stat_file", "stat_file_mode"))
"""Where the data is (whether it is the same is checked by what it holds), and where its statistics were kept."""

_SECTIONS = ("model", "learning_rate", "optimizer", "loss", "loss_dict", "training", "validating")
"""Of an input: of one task or of several, so that all processes compare equally many."""

_ARRAYS = frozenset(("scale", "default_fparam"))
"""Options that models keep as arrays too (`given_of`), by which they are compared."""

_OF_STATISTICS = frozenset(("set_davg_zero", "fix_stat_std"))
"""Options that act on numbers through the statistics that are taken alone."""

_CHOSEN_ANEW = frozenset(("sel", "seed", "trainable", "precision"))
"""Options that may differ from those of the model whose weights are taken; `sel` is compared by itself."""

_BESIDES_SECTIONS = frozenset(
    (
        "pair_exclude_types",
        "atom_exclude_types",
        "weights",
        "use_spin",
        "smin_alpha",
        "sw_rmin",
        "sw_rmax",
    )
)
"""Options that models have as fields of their own."""


def find_checkpoint(restart: str | Path, save_ckpt: str, save_dir: str | None) -> Checkpoint | None:
    """The newest whole checkpoint of the name, or the named one; None, with a warning, where there is none yet.

    `save_dir` counts where `restart` is the run's own name, with or without the suffix.
    Raises ModelFileError for a file that is damaged or no checkpoint.
    """
    if not Path(restart).name:
        raise InputError(f"--restart: expected the name of a checkpoint such as {save_ckpt}, got {str(restart)!r}")
    own = Family(str(restart)).link == Family(save_ckpt).link
    path = latest(restart, save_dir if own else None)
    if path is None:
        logger.warning("--restart %s: there is no such checkpoint yet; the run starts from the beginning", restart)
        return None
    checkpoint = Checkpoint.load(path)
    if checkpoint.ema.get("averaged"):
        raise InputError(
            f"--restart: {path} holds averaged weights alone; go on from the checkpoint of the same step beside it, or begin "
            "a new run with --init-model"
        )
    logger.info("Restarting from %s after %d steps", path, checkpoint.step)
    return checkpoint


def find_model(path: str | Path, type_map: Sequence[str]) -> ModelFile | TasksFile:
    """The model, or those of several tasks, whose weights are the start, for the types of the input. Raises ModelFileError."""
    try:
        found = read_models(path)
    except FileNotFoundError as problem:
        raise ModelFileError(f"--init-model {path}: there is no such file") from problem
    logger.info("Weights and statistics from %s", path)
    former = next(iter(by_task(found.model).values())).type_map
    if former != tuple(type_map):
        logger.warning("--init-model %s: its types %s become %s", path, list(former), list(type_map))
    try:
        return found.with_type_map(type_map)
    except InputError as problem:
        raise ModelFileError(f"--init-model {path}: {problem}") from problem


def check_same_run(checkpoint: Checkpoint, normalised: Mapping[str, Any], num_steps: int) -> None:
    """Raise InputError where the checkpoint belongs to another model section or optimizer, or has more steps than the run.

    Other learning rates, losses, optimizers, ways to draw batches, and another length, are said in the log: the run
    goes on with them, but is not the one that was stopped. Of seeds, that of the checkpoint goes on.
    """
    differences = list(_differences(checkpoint.input.get("model", {}), normalised["model"], "model"))
    if differences:
        raise InputError(
            f"--restart: the model section is not that of the checkpoint: {'; '.join(differences[:4])}. Go on with the "
            "same input, or begin a new run from its weights with --init-model"
        )
    if checkpoint.step > num_steps:
        keys = [name for name in ("numb_epoch", "num_epoch_dict") if normalised["training"].get(name)]
        raise InputError(
            f"--restart: the checkpoint has {checkpoint.step} steps, but the input asks for {num_steps}; raise "
            f"training.{(keys or ['numb_steps'])[0]}, or begin a new run from its weights with --init-model"
        )
    was, now_is = (each.get("optimizer", {}).get("type", "Adam") for each in (checkpoint.input, normalised))
    if was != now_is and {was, now_is} != {"Adam", "AdamW"} and any(checkpoint.optimizer.values()):
        raise InputError(
            f"--restart: optimizer.type is {now_is!r}, and the checkpoint has the state of {was}; go on with that, or begin a "
            "new run from its weights with --init-model"
        )
    former = checkpoint.schedule.get("num_steps", num_steps)
    other = [] if former == num_steps else [f"the run has {num_steps} steps (was {former})"]
    for name in ("learning_rate", "loss", "loss_dict", "optimizer"):
        other += _differences(checkpoint.input.get(name, {}), normalised.get(name, {}), name)
    training, now = checkpoint.input.get("training", {}), normalised["training"]
    for name in _OF_THE_RUN:
        if name in training and name in now:
            other += _differences(training[name], now[name], f"training.{name}", free=_PLACES)
    if other:
        logger.warning(
            "--restart: the run goes on with other options than at the time of the checkpoint: %s", "; ".join(other)
        )
    if "seed" in training and training["seed"] != now["seed"]:
        logger.warning(
            "--restart: training.seed is %r (was %r); that of the checkpoint goes on", now["seed"], training["seed"]
        )


def checksums(normalised: Mapping[str, Any]) -> dict[str, int]:
    """A number for every section of an input, equal on processes that have the same; places of data may differ."""
    return {
        f"the_section_{name}": zlib.crc32(json.dumps(_placeless(normalised.get(name)), sort_keys=True).encode())
        for name in _SECTIONS
    }


def _placeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _placeless(item) for key, item in value.items() if key not in _PLACES}
    return [_placeless(item) for item in value] if isinstance(value, list | tuple) else value


def adopt(model: Model, other: Any, where: str, *, exact: bool) -> Model:
    """The model that the input describes, with the weights and statistics of another of the same shape.

    exact: the numbers must be of the same types; otherwise they are converted to those of `model`.
    Types and pairs of types that are left out are those of the input, and so are, unless `exact`, arrays that are options
    (`dpmodel.op.given_of`: displacements of virtual atoms, defaults of fparam, pair tables ...); biases are those of the
    other, whatever the input presets. Raises ModelFileError where the two do not fit.
    """
    its, ours = by_task(other), by_task(model)
    if list(its) != list(ours):
        raise ModelFileError(
            f"{where} has {_task_names(its)}, the input has {_task_names(ours)}; they must be equal. To begin with parts of "
            "it, use --finetune"
        )
    for name, own in ours.items():
        place = f"{where}, task {name}," if name else where
        if tuple(its[name].type_map) != tuple(own.type_map):
            raise ModelFileError(
                f"{place} has type_map {list(its[name].type_map)}, the input has {list(own.type_map)}; they must be equal"
            )
        if its[name].requests() != own.requests():
            raise ModelFileError(
                f"{place} has other cutoffs or sel ({_shown(its[name])}) than the input ({_shown(own)}); make them equal"
            )
    numbers = model.state()
    state = {name: np.asarray(value) for name, value in other.state().items()}
    kept, former = given_of(model), given_of(other)
    if exact:
        wrong = [name for name, value in state.items() if name in numbers and value.dtype != numbers[name].dtype]
        if wrong:
            raise ModelFileError(
                f"{where} holds {wrong[0]} in {state[wrong[0]].dtype}, the run would use {numbers[wrong[0]].dtype}: set "
                "DP_INTERFACE_PREC as it was, or begin a new run with --init-model"
            )
        if changed := [name for name in _other_arrays(former, kept) if name.endswith(_TABLE)]:
            raise ModelFileError(
                f"{where} has another pair table ({changed[0]}) than the file that the input names: put the file back as it "
                "was, or begin a new run with --init-model"
            )
    else:
        state = {name: value for name, value in state.items() if name not in former} | kept
    try:
        found = model.with_state(
            {name: value.astype(numbers[name].dtype) if name in numbers else value for name, value in state.items()}
        )
    except ValueError as problem:
        raise ModelFileError(f"{where} does not fit the model section of the input: {problem}") from problem
    found = with_empty_types(found, empty_types(other))
    free = _CHOSEN_ANEW | _OF_STATISTICS | _ARRAYS
    changes = list(_differences(_options(other), _options(model), "", free=free))
    arrays = list(_other_arrays(former, kept).values())
    if changes or (arrays and not exact):
        logger.warning(
            "%s was made with other options than the input has, which are used: %s",
            where, "; ".join([*changes, *([] if exact else arrays)]),
        )  # fmt: skip
    if arrays and exact:
        logger.warning("%s goes on with its own options where the input has others: %s", where, "; ".join(arrays))
    changes = list(_differences(_options(other), _options(model), "", only=_OF_STATISTICS))
    if changes:
        logger.warning(
            "%s has statistics, which stay as they are whatever the input says: %s", where, "; ".join(changes)
        )
    presets = [[getattr(each, "preset_out_bias", None) for each in both.values()] for both in (its, ours)]
    if not exact and presets[0] != presets[1]:
        logger.warning(
            "%s was made with another preset_out_bias than the input has; the output bias stays as it is there", where
        )
    return found


def by_task(model: Any) -> dict[str, Model]:
    """The models of several tasks, or the one of the task ""."""
    return model.models() if isinstance(model, MultiTask) else {"": model}


def _task_names(models: Mapping[str, Model]) -> str:
    return "a single task" if list(models) == [""] else f"the tasks {', '.join(models)}"


def observed_types(data: Dataset, type_map: Sequence[str]) -> list[str]:
    """Symbols of the types that occur in the data, by atomic number."""
    seen: set[int] = set()
    for system in data.systems:
        # One frame tells all, unless the types of a system are mixed.
        count = system.nframes if getattr(system, "mixed", True) else 1
        for first in range(0, count, 100):
            seen.update(np.unique(system.batch(np.arange(first, min(first + 100, count))).atype).tolist())
    return by_atomic_number(type_map[t] for t in seen if t >= 0)


def seeds(seed: int | tuple[int, ...] | None) -> tuple[Any, Any]:
    """The seed of weights and training batches, and another one for validation batches, of `training.seed`.

    Negative ones are taken modulo 2^64: NumPy's seeds are integers of at least 0.
    """
    if seed is None:
        return None, None
    parts = tuple(part % 2**64 for part in (seed if isinstance(seed, tuple) else (seed,)))
    return parts if isinstance(seed, tuple) else parts[0], (*parts, 1)


def _differences(
    old: Any, new: Any, path: str, free: frozenset[str] = _FREE, only: frozenset[str] | None = None
) -> Iterator[str]:
    """Where two sections differ. Options that one of them does not know are at their defaults: no difference.

    free: options that may differ. only: the names of those that are compared; None: all.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() & new.keys() - free):
            yield from _differences(old[key], new[key], f"{path}.{key}", free, only)
    elif _sections(old) and _sections(new) and len(old) == len(new):
        for k, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{path}.{k}", free, only)
    elif old != new and (only is None or path.rsplit(".", 1)[-1] in only) and not _same_pairs(path, old, new):
        yield f"{path.lstrip('.')} is {new!r} (was {old!r})"


def _same_pairs(path: str, old: Any, new: Any) -> bool:
    """Whether two lists of pairs of types leave out the same, in whatever order."""
    if not path.endswith(("pair_exclude_types", ".exclude_types")) or not old or not new:
        return False
    one, other = ({tuple(sorted(pair)) for pair in pairs} for pairs in (old, new))
    return one == other


def _sections(value: Any) -> bool:
    """Whether it is a list of sections."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


_TABLE = "rows"
"""A pair table as it was read, by the last part of its path; its splines follow from it."""


def _other_arrays(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """By path, what is said of options that are arrays, where they differ by more than rounding."""
    found = {}
    for name in sorted(old.keys() | new.keys()):
        one, other = (np.asarray(each[name]) if name in each else None for each in (old, new))
        if name.endswith("coefficients") or (
            one is not None
            and other is not None
            and one.shape == other.shape
            and np.allclose(one, other, rtol=1e-6 if np.float32 in (one.dtype, other.dtype) else 1e-12, atol=0.0)
        ):
            continue
        if name.endswith(_TABLE):
            found[name] = f"{name} is another table"
        else:
            was, now = (None if each is None else np.ravel(each).tolist() for each in (one, other))
            found[name] = f"{name} is {now} (was {was})"
    return found


def _options(model: Op) -> dict[str, Any]:
    """By place, the options of every part that has a section, and those that models have as fields."""
    found: dict[str, Any] = {}
    section = getattr(model, "config", None)
    if isinstance(section, Config):
        return section.to_dict()
    for name, kind in model.fields():
        value = getattr(model, name)
        if name in _BESIDES_SECTIONS:
            found[name] = value
        if kind is Kind.CHILD:
            found |= {f"{name}{suffix}": _options(part) for suffix, part in children(value)}
    return {name: value for name, value in found.items() if value != {}}


def _shown(model: Any) -> str:
    return ", ".join(f"{request.rcut} Å, sel {list(request.sel)}" for request in model.requests())
