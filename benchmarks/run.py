"""Times and memory of every backend, and of DeePMD-kit beside them: a table and a JSON file.

python benchmarks/run.py                      # our backends
python benchmarks/run.py --peer PYTHON        # in turn with the DeePMD-kit of another environment
python benchmarks/run.py --quick              # does everything run? The figures mean nothing

What is measured and how is in README.md, next to this file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out
from cases import PEER, QUANTITIES, WAYS
from machine import machine_facts
from measure import Benchmark
from report import Row, compare, notes, scaling, table, write_json
from sides import Side, WorkerError, environment
from workload import available

RESULTS = Path(__file__).resolve().parent / "results"
OURS = [name for name, way in WAYS.items() if way.side == "ours"]
THEIRS = [name.removeprefix(f"{PEER} ") for name, way in WAYS.items() if way.side == "peer"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. --quick changes defaults, not what is given."""
    parser = argparse.ArgumentParser(description="Times and memory per backend, as a table and a JSON file.")
    _add_choice(parser, "--models", available(), ["sea"], "of inputs/")
    _add_choice(parser, "--quantities", list(QUANTITIES), list(QUANTITIES), "what is measured")
    _add_choice(parser, "--backends", OURS, OURS, "ours")
    _add_choice(parser, "--peer-backends", THEIRS, THEIRS, "those of DeePMD-kit")
    option = parser.add_argument
    option("--peer", metavar="PYTHON", help="a Python with DeePMD-kit and its PyTorch backend, to run in turn")
    option("--threads", type=int, default=2, help="threads of every worker but LAMMPS (default: 2)")
    option("--rounds", type=int, help="how often everything but exports is measured (default: 3)")
    option("--steps", type=int, help="training steps, a quarter of them warm-up (default: numb_steps of the input)")
    option("--weight-steps", type=int, default=4, help="training steps behind the evaluated weights (default: 4)")
    option("--repeats", type=int, help="evaluations per process after the warm-up (default: 7)")
    option("--supercells", type=int, nargs="+", help="repetitions of the 192 atoms along each axis (default: 1 2)")
    option("--ranks", type=int, nargs="+", default=[1, 2], help="processes of LAMMPS (default: 1 2)")
    option("--lammps-steps", type=int, help="steps of LAMMPS after the warm-up, a quarter as many (default: 40)")
    option("--lammps-supercells", type=int, nargs="+", default=[1], help="as --supercells, for LAMMPS (default: 1)")
    option("--timeout", type=float, default=1800.0, help="seconds after which a worker is given up (default: 1800)")
    option("--output", type=Path, help="the JSON file (default: benchmarks/results/<date>.json)")
    option("--quick", action="store_true", help="one round of a few steps, 192 atoms")
    args = parser.parse_args(arguments)
    full: dict[str, Any] = {"rounds": 3, "steps": None, "repeats": 7, "supercells": [1, 2], "lammps_steps": 40}
    quick: dict[str, Any] = {"rounds": 1, "steps": 4, "repeats": 2, "supercells": [1], "lammps_steps": 2}
    for name, value in (quick if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.names = [*args.backends, *(f"{PEER} {name}" for name in args.peer_backends)]
    if min(args.steps or 4, args.weight_steps) < 4:
        parser.error("--steps and --weight-steps must be at least 4")
    counts = (args.rounds, args.repeats, args.threads, args.lammps_steps)
    if min(*counts, *args.supercells, *args.ranks, *args.lammps_supercells) < 1:
        parser.error("rounds, steps, repeats, threads, ranks and supercells must be at least 1")
    return args


def _add_choice(
    parser: argparse.ArgumentParser, option: str, choices: list[str], default: list[str], text: str
) -> None:
    text = f"{text}: {', '.join(choices)}" + ("" if default == choices else f" (default: {', '.join(default)})")
    parser.add_argument(option, nargs="+", choices=choices, default=default, metavar="NAME", help=text)


def _program(name: str) -> str:
    """Workers run in folders of their own: a path becomes absolute (links stay: they make a virtual environment)."""
    return os.path.abspath(name) if os.sep in name else name  # noqa: PTH100 - Path.resolve follows links


SETTINGS = (
    "models",
    "quantities",
    "backends",
    "rounds",
    "steps",
    "weight_steps",
    "repeats",
    "supercells",
    "ranks",
    "lammps_steps",
    "lammps_supercells",
    "threads",
    "quick",
)
"""Options that belong to the results."""


def run(args: argparse.Namespace, scratch: Path) -> Path:
    """Measure all models, print the table, write the JSON file and return its path."""
    env = environment(args.threads)
    ours = Side.ours(scratch, env, args.timeout)
    peer = None if args.peer is None else Side.peer(_program(args.peer), scratch, env, args.timeout)
    facts = machine_facts(args.threads)
    if peer is not None:
        facts["peer_versions"] = peer.run("versions", ".", quantity="versions")["versions"]
    settings = {name: getattr(args, name) for name in SETTINGS}
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    output: Path = args.output if args.output is not None else RESULTS / f"{stamp}.json"
    rows: list[Row] = []
    for name in args.models:
        benchmark = Benchmark(name, args, ours, peer)
        benchmark.prepare()
        rows += benchmark.rows
        for number in range(1, args.rounds + 1):
            benchmark.measure_round(number)
            compare(rows)
            write_json(output, facts, settings, rows)  # after every round: a run that is interrupted leaves something
    print(
        f"{facts['cpu']}, {facts['cores']} cores, {args.threads} threads, {facts['date']}, load {facts['load_at_start']}"
    )
    print(table(rows))
    for line in scaling(rows):
        print(line)
    for note in notes(rows):
        print(f"not measured: {note}")
    print(f"written: {output}")
    return output


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="dpmodel-bench-") as scratch:
        try:
            run(args, Path(scratch))
        except (WorkerError, ValueError) as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
