"""`dpmodel model-devi`: how far several models differ on data systems."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from dpmodel.cli.systems import label_names_of, systems_of
from dpmodel.deviation import deviations_of_systems, write_deviations
from dpmodel.errors import InputError
from dpmodel.files.atomic import atomic_write
from dpmodel.potential import load

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> None:
    """Write the table, whole or not at all."""
    if args.frequency < 1:
        raise InputError(f"--frequency: expected a number of steps above 0, got {args.frequency}")
    heads = args.head or [None]
    if len(heads) not in (1, len(args.models)):
        raise InputError(
            f"--head: expected one name for all {len(args.models)} models, or one for each, got {len(heads)}"
        )
    heads = heads * len(args.models) if len(heads) == 1 else heads
    potentials = [
        load(path, args.backend, head=head, device=args.device) for path, head in zip(args.models, heads, strict=True)
    ]
    results = deviations_of_systems(
        potentials,
        systems_of(args.system),
        relative=args.relative,
        relative_v=args.relative_v,
        real_error=args.real_error,
        label_names=label_names_of(args.label_names),
    )
    counts: list[int] = []

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as stream:
            counts.append(write_deviations(stream, results, frequency=args.frequency, atomic=args.atomic))

    atomic_write(args.output, write)
    log.info("%s: %d frames, %d models", args.output, counts[-1], len(potentials))
