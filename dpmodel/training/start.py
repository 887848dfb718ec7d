"""What a run begins with besides its input: a checkpoint to go on from, or the weights of another model."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.config import Config
from dpmodel.data import Dataset, Sampler
from dpmodel.errors import DPError, InputError, ModelFileError
from dpmodel.files.model_file import ModelFile, read_model
from dpmodel.input.sections import TrainingConfig
from dpmodel.models import Model
from dpmodel.op import Kind, Op, children
from dpmodel.statistics.cache import by_atomic_number
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.rotation import SUFFIX, Family, latest

__all__ = [
    "adopt",
    "check_places",
    "check_same_run",
    "find_checkpoint",
    "find_model",
    "observed_types",
    "restore_sampler",
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

_OF_THE_RUN = ("gradient_max_norm", "disp_avg", "training_data", "validation_data")
"""Options of the training section that change numbers of the run."""

_PLACES = frozenset(("systems", "rglob_patterns"))
"""Where the data is; whether it is the same is checked by what it holds."""

_CHOSEN_ANEW = frozenset(("sel", "seed", "trainable", "precision"))
"""Options that may differ from those of the model whose weights are taken; `sel` is compared by itself."""


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
    logger.info("Restarting from %s after %d steps", path, checkpoint.step)
    return checkpoint


def find_model(path: str | Path, type_map: Sequence[str]) -> ModelFile:
    """The model whose weights are the start, for the types of the input. Raises ModelFileError."""
    try:
        found = read_model(path)
    except FileNotFoundError as problem:
        raise ModelFileError(f"--init-model {path}: there is no such file") from problem
    logger.info("Weights and statistics from %s", path)
    if found.model.type_map != tuple(type_map):
        logger.warning("--init-model %s: its types %s become %s", path, list(found.model.type_map), list(type_map))
    try:
        return found.with_type_map(type_map)
    except InputError as problem:
        raise ModelFileError(f"--init-model {path}: {problem}") from problem


def check_same_run(checkpoint: Checkpoint, normalised: Mapping[str, Any], num_steps: int) -> None:
    """Raise InputError where the checkpoint belongs to another model section, or has more steps than the run.

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
        raise InputError(
            f"--restart: the checkpoint has {checkpoint.step} steps, but the input asks for {num_steps}; raise "
            "training.numb_steps, or begin a new run from its weights with --init-model"
        )
    former = checkpoint.schedule.get("num_steps", num_steps)
    other = [] if former == num_steps else [f"the run has {num_steps} steps (was {former})"]
    for name in ("learning_rate", "loss", "optimizer"):
        other += _differences(checkpoint.input.get(name, {}), normalised[name], name)
    training, now = checkpoint.input.get("training", {}), normalised["training"]
    for name in _OF_THE_RUN:
        if name in training:
            other += _differences(training[name], now[name], f"training.{name}", free=_PLACES)
    if other:
        logger.warning(
            "--restart: the run goes on with other options than at the time of the checkpoint: %s", "; ".join(other)
        )
    if "seed" in training and training["seed"] != now["seed"]:
        logger.warning(
            "--restart: training.seed is %r (was %r); that of the checkpoint goes on", now["seed"], training["seed"]
        )


def adopt(model: Model, other: Any, where: str, *, exact: bool) -> Model:
    """The model that the input describes, with the weights and statistics of another of the same shape.

    exact: the numbers must be of the same types; otherwise they are converted to those of `model`.
    Types and pairs of types that are left out are those of the input; biases are those of the other, whatever the
    input presets. Raises ModelFileError where the two do not fit.
    """
    if tuple(other.type_map) != tuple(model.type_map):
        raise ModelFileError(
            f"{where} has type_map {list(other.type_map)}, the input has {list(model.type_map)}; they must be equal"
        )
    if other.requests() != model.requests():
        raise ModelFileError(
            f"{where} has other cutoffs or sel ({_shown(other)}) than the input ({_shown(model)}); make them equal"
        )
    own = model.state()
    state = {name: np.asarray(value) for name, value in other.state().items()}
    if exact:
        wrong = [name for name, value in state.items() if name in own and value.dtype != own[name].dtype]
        if wrong:
            raise ModelFileError(
                f"{where} holds {wrong[0]} in {state[wrong[0]].dtype}, the run would use {own[wrong[0]].dtype}: set "
                "DP_INTERFACE_PREC as it was, or begin a new run with --init-model"
            )
    try:
        found = model.with_state(
            {name: value.astype(own[name].dtype) if name in own else value for name, value in state.items()}
        )
    except ValueError as problem:
        raise ModelFileError(f"{where} does not fit the model section of the input: {problem}") from problem
    found = _empty_types(found, other)
    changes = list(_differences(_options(other), _options(model), "", free=_CHOSEN_ANEW))
    if changes:
        logger.warning(
            "%s was made with other options than the input has, which are used: %s", where, "; ".join(changes)
        )
    if not exact and getattr(other, "preset_out_bias", None) != getattr(model, "preset_out_bias", None):
        logger.warning(
            "%s was made with another preset_out_bias than the input has; the output bias stays as it is there", where
        )
    return found


def _empty_types(model: Any, other: Any) -> Any:
    """A copy of `model` whose empty slots count as the types that those of `other`, of the same shape, count as."""
    changes: dict[str, Any] = {}
    for name, kind in model.fields():
        own, its = getattr(model, name), getattr(other, name)
        if name == "empty_type":
            changes[name] = its
        elif kind is Kind.CHILD and isinstance(own, tuple):
            changes[name] = tuple(_empty_types(a, b) for a, b in zip(own, its, strict=True))
        elif kind is Kind.CHILD and own is not None:
            changes[name] = _empty_types(own, its)
    return model.replace(**changes)


def check_places(
    training: TrainingConfig, *, input_path: str | os.PathLike[str] | None = None, output: str | Path | None = None
) -> None:
    """Raise InputError where the run could not write its files, or would write two to one place.

    Folders need not exist yet, except that of `output`. input_path: the input file, which nothing may overwrite.
    """
    names = {"training.save_ckpt": training.save_ckpt, "training.disp_file": training.disp_file}
    names |= {} if output is None else {"--output": str(output)}
    for name, value in names.items():
        if not Path(value).name:
            raise InputError(f"{name}: expected the name of a file, got {value!r}")
        if name != "training.save_ckpt" and Path(value).is_dir():
            raise InputError(f"{name}: {value} is a folder; give the name of a file")
    family = Family(training.save_ckpt, training.save_dir)
    files = {"training.save_ckpt": family.link, "training.disp_file": Path(training.disp_file)}
    if training.stat_file is not None:
        files["training.stat_file"] = Path(training.stat_file)
    places = {name: path.parent for name, path in files.items()} | {"training.save_dir": family.folder}
    if training.stat_file_mode == "read":
        places.pop("training.stat_file", None)
    if output is not None:
        files["--output"] = Path(output)
        places["--output"] = Path(output).parent
        if not Path(output).parent.exists():
            raise InputError(f"--output: there is no folder {Path(output).parent}; make it, or choose another place")
    for name, folder in places.items():
        existing = next((path for path in (folder, *folder.parents) if path.exists()), Path())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            what = "is no folder" if not existing.is_dir() else "may not be written to"
            raise InputError(f"{name}: {existing} {what}; choose another place for the files of the run")
    if family.pointer is not None:
        files["the file that names the newest checkpoint"] = Path(family.pointer)
    if input_path is not None:
        files["the input file"] = Path(input_path)
    _check_apart(files, family)


def _check_apart(files: Mapping[str, Path], family: Family) -> None:
    """Raise InputError where two of the files are one, or one of them is a numbered checkpoint."""
    taken: dict[Path, str] = {}
    for name, path in files.items():
        # As it is written, and where it leads: the name of the checkpoints is a link to the newest.
        for place in dict.fromkeys((path.parent.resolve() / path.name, path.resolve())):
            if (other := taken.setdefault(place, name)) != name:
                raise InputError(f"{name}: {path} is also {other}; choose another place for one of them")
        numbered = re.fullmatch(rf"{re.escape(family.link.stem)}-\d+{re.escape(SUFFIX)}", path.resolve().name)
        if name != "training.save_ckpt" and numbered and path.resolve().parent == family.folder.resolve():
            raise InputError(f"{name}: {path} is the name of a checkpoint of training.save_ckpt; choose another")


def observed_types(data: Dataset, type_map: Sequence[str]) -> list[str]:
    """Symbols of the types that occur in the data, by atomic number."""
    seen: set[int] = set()
    for system in data.systems:
        # One frame tells all, unless the types of a system are mixed.
        count = system.nframes if getattr(system, "mixed", True) else 1
        for first in range(0, count, 100):
            seen.update(np.unique(system.batch(np.arange(first, min(first + 100, count))).atype).tolist())
    return by_atomic_number(type_map[t] for t in seen if t >= 0)


def restore_sampler(sampler: Sampler, state: Any, name: str) -> None:
    """Go on with the batches of a checkpoint. Raises InputError or ModelFileError naming the section."""
    try:
        sampler.restore({} if state is None else state)
    except DPError as problem:
        raise type(problem)(f"--restart: training.{name}: {problem}") from problem


def seeds(seed: int | tuple[int, ...] | None) -> tuple[Any, Any]:
    """The seed of weights and training batches, and another one for validation batches, of `training.seed`.

    Negative ones are taken modulo 2^64: NumPy's seeds are integers of at least 0.
    """
    if seed is None:
        return None, None
    parts = tuple(part % 2**64 for part in (seed if isinstance(seed, tuple) else (seed,)))
    return parts if isinstance(seed, tuple) else parts[0], (*parts, 1)


def _differences(old: Any, new: Any, path: str, free: frozenset[str] = _FREE) -> Iterator[str]:
    """Where two sections differ. Options that one of them does not know are at their defaults: no difference."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in old.keys() & new.keys() - free:
            yield from _differences(old[key], new[key], f"{path}.{key}", free)
    elif old != new:
        yield f"{path.lstrip('.')} is {new!r} (was {old!r})"


def _options(model: Op) -> dict[str, Any]:
    """By place, the options of every part that has a section, and what models leave out."""
    found: dict[str, Any] = {}
    section = getattr(model, "config", None)
    if isinstance(section, Config):
        return section.to_dict()
    for name, kind in model.fields():
        value = getattr(model, name)
        if name in ("pair_exclude_types", "atom_exclude_types", "weights", "use_spin"):
            found[name] = value
        if kind is Kind.CHILD:
            found |= {f"{name}{suffix}": _options(part) for suffix, part in children(value)}
    return {name: value for name, value in found.items() if value != {}}


def _shown(model: Any) -> str:
    return ", ".join(f"{request.rcut} Å, sel {list(request.sel)}" for request in model.requests())
