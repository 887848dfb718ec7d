"""`dpmodel doc`: the reference of the input file, generated from its declaration."""

from __future__ import annotations

import argparse

from dpmodel.input.doc import document

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Print the reference."""
    print(document(args.out_type, args.section, multi_task=args.multi_task))
