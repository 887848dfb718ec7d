"""`dpmodel train`: the arguments; the work is in `dpmodel.training.run`."""

from __future__ import annotations

import argparse
import os

from dpmodel.training.run import train

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Train, and print where the final checkpoint is."""
    final = train(
        args.input,
        restart=args.restart,
        init_model=args.init_model,
        finetune=args.finetune,
        model_branch=args.model_branch,
        use_pretrain_script=args.use_pretrain_script,
        force_load=args.force_load,
        stop_at=args.stop_at,
        output=args.output,
        backend=args.backend,
        device=args.device,
        skip_neighbor_stat=args.skip_neighbor_stat,
        all_ranks_log=args.mpi_log != "master",
    )
    if os.environ.get("RANK", "0").strip() == "0":
        print(final)
