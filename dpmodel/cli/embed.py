"""`dpmodel embed`: descriptors and features of the fitting net of every atom, in one HDF5 file."""

from __future__ import annotations

import argparse
import logging

from dpmodel.cli.systems import label_names_of, systems_of
from dpmodel.embedding import write_embedding
from dpmodel.potential import load

__all__ = ["run"]

log = logging.getLogger(__name__)

_DTYPES = {"fp32": "float32", "fp64": "float64", "native": None}


def run(args: argparse.Namespace) -> None:
    """Write the file, whole or not at all."""
    systems = systems_of(args.system, args.datafile)
    potential = load(args.model, args.backend, head=args.head, device=args.device)
    log.info("%s: %r", args.model, potential)
    count = write_embedding(
        potential, systems, args.output, dtype=_DTYPES[args.dtype], source=args.model,
        label_names=label_names_of(args.label_names),
    )  # fmt: skip
    log.info("%s: %d systems", args.output, count)
