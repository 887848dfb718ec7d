"""What a run begins with besides its input: a checkpoint to go on from, or the weights of another model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.data import Sampler
from dpmodel.errors import DPError, InputError, ModelFileError
from dpmodel.files.model_file import ModelFile, read_model
from dpmodel.input.sections import TrainingConfig
from dpmodel.models import StandardModel
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.rotation import Family, latest

__all__ = ["adopt", "check_places", "check_same_run", "find_checkpoint", "find_model", "restore_sampler", "seeds"]

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


def find_model(path: str | Path) -> ModelFile:
    """The model whose weights are the start. Raises ModelFileError."""
    try:
        found = read_model(path)
    except FileNotFoundError as problem:
        raise ModelFileError(f"--init-model {path}: there is no such file") from problem
    logger.info("Weights and statistics from %s", path)
    return found


def check_same_run(checkpoint: Checkpoint, normalised: Mapping[str, Any], num_steps: int) -> None:
    """Raise InputError where the checkpoint belongs to another model section, or has more steps than the run.

    Other learning rates, losses or optimizers, and another length, are said in the log: the run goes on, but is not
    the one that was stopped.
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
    if other:
        logger.warning("--restart: other than at the time of the checkpoint: %s", "; ".join(other))


def adopt(model: StandardModel, other: Any, where: str, *, exact: bool) -> StandardModel:
    """The model that the input describes, with the weights and statistics of another of the same shape.

    exact: the numbers must be of the same types; otherwise they are converted to those of `model`.
    Raises ModelFileError where the two do not fit.
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
    changes = [
        change
        for part in ("descriptor", "fitting")
        for change in _differences(_options(other, part), _options(model, part), part, free=_CHOSEN_ANEW)
    ]
    if changes:
        logger.warning("%s was made with other options than the input has: %s", where, "; ".join(changes))
    return found


def check_places(training: TrainingConfig) -> None:
    """Raise InputError where the run could not write its files; folders need not exist yet."""
    for name in ("save_ckpt", "disp_file"):
        if not Path(getattr(training, name)).name:
            raise InputError(f"training.{name}: expected the name of a file, got {getattr(training, name)!r}")
    if Path(training.disp_file).is_dir():
        raise InputError(f"training.disp_file: {training.disp_file} is a folder; give the name of a file")
    family = Family(training.save_ckpt, training.save_dir)
    places = {"save_ckpt": family.link.parent, "save_dir": family.folder, "disp_file": Path(training.disp_file).parent}
    for name, folder in places.items():
        existing = next((path for path in (folder, *folder.parents) if path.exists()), Path())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            what = "is no folder" if not existing.is_dir() else "may not be written to"
            raise InputError(f"training.{name}: {existing} {what}; choose another place for the files of the run")


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
        yield f"{path} is {new!r} (was {old!r})"


def _options(model: Any, part: str) -> dict[str, Any]:
    options: dict[str, Any] = getattr(model, part).config.to_dict()
    return options


def _shown(model: Any) -> str:
    return ", ".join(f"{request.rcut} Å, sel {list(request.sel)}" for request in model.requests())
