"""`dpmodel change-bias`: fit a model's output bias to other data, or set it."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

import numpy as np

from dpmodel.cli.convert import WRITABLE
from dpmodel.cli.systems import label_names_of, systems_of
from dpmodel.errors import InputError
from dpmodel.files.model_file import READERS, ModelFile, TasksFile, read_models, write_model
from dpmodel.models import Model, StandardModel
from dpmodel.potential import load
from dpmodel.statistics.change import bias_of, changed_bias, with_bias

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> None:
    """Write the model with the new bias, whole or not at all; the old file stays."""
    source = Path(args.model)
    suffix = ".dp" if source.suffix.lower() in READERS else source.suffix
    target = source.with_name(f"{source.stem}_updated{suffix}") if args.output is None else Path(args.output)
    if target.suffix.lower() not in WRITABLE:
        raise InputError(f"--output: give a name that ends in {', '.join(WRITABLE)}; {target} does not")
    if target.resolve() == source.resolve():
        raise InputError(f"--output: {target} is the model itself; choose another name")
    potential = load(args.model, args.backend, head=args.head, device=args.device)
    log.info("%s: %r", args.model, potential)
    output, why = potential.model.output(), _why_no_bias(potential.model)
    if why and output.by_type:
        raise InputError(f"{args.model}: its output bias has no effect, as {why}; there is nothing to change")
    if args.bias_value is not None:
        if args.system is not None or args.datafile is not None:
            raise InputError("--bias-value: excludes --system and --datafile; give values or data")
        size = int(np.prod(output.shape))
        values = np.asarray(args.bias_value)
        if values.size != potential.model.ntypes * size:
            raise InputError(
                f"--bias-value: expected {potential.model.ntypes * size} numbers, for the types {potential.type_map} in "
                f"order, got {values.size}"
            )
        values = values.reshape(-1, size)
        if not output.by_type and np.any(values != values[0]):
            raise InputError(
                f"--bias-value: all types of this model have one bias; give {potential.model.ntypes} times the same"
            )
        model = with_bias(potential.model, values)
    else:
        systems = systems_of(args.system, args.datafile)
        model = changed_bias(
            potential, systems, mode=args.mode, nbatch=args.numb_batch, label_names=label_names_of(args.label_names)
        )
    old, new = map(bias_of, (potential.model, model))
    for name, before, after in zip(potential.type_map, old, new, strict=False):
        log.info("bias of %s: %s (was %s)", name, _shown(after), _shown(before))
    write_model(target, _whole(source, potential.file, model))
    log.info("%s", target)


def _why_no_bias(model: Model) -> str:
    return str(model.fitting.config.why_no_bias()) if isinstance(model, StandardModel) else ""


def _whole(source: Path, file: ModelFile, model: Model) -> ModelFile | TasksFile:
    """What to write: the model, or all tasks of a model file with the new model of one."""
    several = read_models(source) if source.suffix.lower() not in READERS else None
    if isinstance(several, TasksFile):
        return dataclasses.replace(several, model=several.model.with_task(file.provenance["head"], model))
    return dataclasses.replace(file, model=model)


def _shown(values: np.ndarray) -> str:
    return " ".join(f"{value:.8g}" for value in values)
