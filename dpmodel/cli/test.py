"""`dpmodel test`: a model's errors on labelled data."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np

from dpmodel.cli.systems import label_names_of, systems_of
from dpmodel.details import DetailWriter
from dpmodel.errors import InputError
from dpmodel.files.atomic import atomic_write
from dpmodel.files.heads import choose_head
from dpmodel.input import load_input
from dpmodel.metrics import evaluate_systems
from dpmodel.potential import load

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> None:
    """Print the table, and write what was asked for."""
    if args.numb_test < 0:
        raise InputError(f"--numb-test: expected a number of frames per system, or 0 for all; got {args.numb_test}")
    systems, patterns, names = _systems(args)
    potential = load(args.model, args.backend, head=args.head, device=args.device)
    log.info("%s: %r", args.model, potential)
    if not potential.backend.has_gradients:
        log.warning("backend %s has no forces and virials: only energies are tested", potential.backend.name)
    shuffle = np.random.default_rng(args.rand_seed) if args.shuffle_test else None
    writer = None if args.detail_file is None else DetailWriter(args.detail_file)
    with writer or nullcontext():
        report = evaluate_systems(
            potential, systems, rglob_patterns=patterns, label_names=names, max_frames=args.numb_test or None,
            shuffle=shuffle, atomic=args.atomic, on_chunk=writer,
        )  # fmt: skip
    print(report.table())
    if args.atomic and potential.model.output().loss == "ener" and "atom_energy" not in report.total:
        log.warning("--atomic: no system has the label atom_ener")
    if writer is not None:
        log.info("Details: %s", ", ".join(str(path) for path in writer.paths))
    if args.json is not None:
        content = {"model": args.model, "backend": potential.backend.name, **report.to_dict()}
        text = json.dumps(content, indent=2) + "\n"
        atomic_write(args.json, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _systems(args: argparse.Namespace) -> tuple[str | list[str], tuple[str, ...] | None, Mapping[str, str]]:
    """(systems, patterns, names of labels) as an input file has them. Raises InputError."""
    source, names = args.train_data or args.valid_data, label_names_of(args.label_names)
    if source is None:
        return systems_of(args.system, args.datafile), None, names
    tasks = load_input(source).tasks
    heads = {name: task.model.model_branch_alias for name, task in tasks.items()}
    data = tasks["" if "" in tasks else choose_head(heads, args.head, str(source))].data
    section = data.training_data if args.train_data else data.validation_data
    if section is None:
        raise InputError(f"{source}: there is no training.validation_data; use --train-data or --system")
    systems = section.systems if isinstance(section.systems, str) else list(section.systems)
    return systems, section.rglob_patterns, names or section.label_names
