"""`dpmodel plot`: learning curves and parity plots."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpmodel.errors import InputError
from dpmodel.plotting import plot_lcurve, plot_parity

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Draw, and print where the picture is."""
    if args.parity is not None:
        if args.lcurve is not None:
            raise InputError("plot: expected a learning curve or --parity PREFIX, got both; draw one at a time")
        print(plot_parity(args.parity, args.output or Path(args.parity).with_suffix(".parity.png"), title=args.title))
        return
    source = Path(args.lcurve or "lcurve.out")
    print(plot_lcurve(source, args.output or source.with_suffix(".png"), title=args.title))
