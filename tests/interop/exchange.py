"""Exchange of model files, checkpoints and inputs with DeePMD-kit, which runs in an environment of its own.

python tests/interop/exchange.py --peer PATH/TO/python                  # everything; a table on the screen
python tests/interop/exchange.py --peer PYTHON --parts golden --only dpa3 --output results.md

Parts: `golden`: the golden models, read here and saved here; `options`: models of every option of the family with random
weights; `training`: every kind of model trained here and there, and DeePMD-kit's normalised inputs run here. Each is
evaluated by both programs on the same frames. Exit status 1 where something differs and DeePMD-kit's own files do not.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out
import shared  # noqa: F401 - before those that import from it
from models import Exchange, golden_models, option_models
from report import exchange_table, option_table, training_table
from sides import Peer
from training import Training, trained_models

from dpmodel.geometry import TruncationWarning

PARTS = ("golden", "options", "training")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Exchange of files with DeePMD-kit, as a table.")
    option = parser.add_argument
    option("--peer", required=True, metavar="PYTHON", help="a Python with DeePMD-kit and its PyTorch backend")
    option("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is exchanged (default: everything)")
    option("--only", default="", metavar="NAME", help="only what has this in its name")
    option("--timeout", type=float, default=900.0, help="seconds after which DeePMD-kit is given up (default: 900)")
    option("--output", type=Path, help="a Markdown file for the tables")
    return parser.parse_args(arguments)


def say(text: str) -> None:
    """A line on the screen, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def shown(items: Iterable[Exchange | Training]) -> list[Exchange | Training]:
    """All of them, with a line for each as it comes."""
    found, start = [], time.monotonic()
    for item in items:
        found.append(item)
        say(f"{time.monotonic() - start:7.1f} s  {item.name}: {'holds' if item.holds() else 'DOES NOT HOLD'}")
    return found


def heading(peer: Peer) -> str:
    """Date and versions."""
    theirs = ", ".join(f"{name} {number}" for name, number in peer.ask("versions")["versions"].items())
    ours = ", ".join(f"{name} {version(name)}" for name in ("dpmodel", "torch", "numpy"))
    return (
        f"# Exchange with DeePMD-kit\n\n{datetime.now(UTC).date()}; here: Python {platform.python_version()}, {ours}; there: {theirs}.\n"
        "Written by `python tests/interop/exchange.py --peer PYTHON --output tests/interop/results.md`.\n"
    )


def run(args: argparse.Namespace, scratch: Path) -> bool:
    """Exchange, print and write the tables; whether everything holds."""
    makers = {
        "golden": (golden_models, exchange_table),
        "options": (option_models, option_table),
        "training": (trained_models, training_table),
    }
    holds = True
    with Peer(os.path.abspath(args.peer) if os.sep in args.peer else args.peer, scratch, args.timeout) as peer:
        texts = [heading(peer)]
        for part in args.parts:
            make, table = makers[part]
            (scratch / part).mkdir()
            items = shown(make(peer, scratch / part, args.only))
            holds = holds and all(item.holds() for item in items)
            texts.append(table(items))
            if args.output is not None:  # after every part: a run that is interrupted leaves something
                args.output.write_text("\n".join(texts), encoding="utf-8")
    say("\n".join(texts))
    return holds


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse(arguments)
    warnings.simplefilter("ignore", TruncationWarning)  # some systems cut neighbours off on purpose
    logging.getLogger("dpmodel").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="dpmodel-interop-") as scratch:
        return 0 if run(args, Path(scratch)) else 1


if __name__ == "__main__":
    sys.exit(main())
