"""Times and memory of every backend, and of DeePMD-kit beside them: a table and a JSON file.

python benchmarks/run.py                      # our backends
python benchmarks/run.py --peer PYTHON        # in turn with the DeePMD-kit of another environment
python benchmarks/run.py --quick              # does everything run? The figures mean nothing

What is measured and how is in README.md, next to this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out
from cases import BACKENDS, Case, Side, WorkerError, environment
from machine import machine_facts
from report import Row, compare, notes, table, write_json
from workload import available, read_input, timed_input, write_frames

RESULTS = Path(__file__).resolve().parent / "results"
WARMUP = 3
"""Evaluations before the clock counts: TorchScript optimises during the second and third."""
ENERGY_PER_ATOM = 1e-5
"""eV: how far energies may differ where all run the same weights in float32."""
FORCE = 1e-4
"""The same for the norm of all forces of a frame, relative."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. --quick changes defaults, not what is given."""
    parser = argparse.ArgumentParser(description="Times and memory per backend, as a table and a JSON file.")
    parser.add_argument(
        "--models", nargs="+", choices=available(), default=["sea"], metavar="NAME", help="of inputs/ (default: sea)"
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=list(BACKENDS),
        default=list(BACKENDS),
        metavar="NAME",
        help=", ".join(BACKENDS),
    )
    parser.add_argument(
        "--peer", metavar="PYTHON", help="a Python with DeePMD-kit and its PyTorch backend, to run in turn"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of every worker (default: 2)")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (default: 3)")
    parser.add_argument("--steps", type=int, help="training steps (default: 100; a quarter is warm-up)")
    parser.add_argument(
        "--weight-steps", type=int, default=4, help="training steps behind the evaluated weights (default: 4)"
    )
    parser.add_argument("--repeats", type=int, help="evaluations per process after the warm-up (default: 7)")
    parser.add_argument(
        "--supercells", type=int, nargs="+", help="repetitions of the 192 atoms along each axis (default: 1 2)"
    )
    parser.add_argument(
        "--timeout", type=float, default=1800.0, help="seconds after which a worker is given up (default: 1800)"
    )
    parser.add_argument("--output", type=Path, help="the JSON file (default: benchmarks/results/<date>.json)")
    parser.add_argument("--quick", action="store_true", help="one round of a few steps, 192 atoms")
    args = parser.parse_args(arguments)
    full: dict[str, Any] = {"rounds": 3, "steps": 100, "repeats": 7, "supercells": [1, 2]}
    quick: dict[str, Any] = {"rounds": 1, "steps": 4, "repeats": 2, "supercells": [1]}
    for name, value in (quick if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.steps, args.weight_steps) < 4:
        parser.error("--steps and --weight-steps must be at least 4")
    if min(args.rounds, args.repeats, args.threads, *args.supercells) < 1:
        parser.error("--rounds, --repeats, --threads and --supercells must be at least 1")
    return args


class Benchmark:
    """One model: prepares weights and frames, then measures round by round."""

    def __init__(self, name: str, args: argparse.Namespace, ours: Side, peer: Side | None) -> None:
        self.name, self.args, self.ours, self.peer = name, args, ours, peer
        self.content = read_input(name)
        self.scratch = ours.scratch / name
        self.scratch.mkdir()
        self.frames: dict[int, str] = {}
        self.atoms: dict[int, int] = {}
        self.models: dict[str, str] = {}
        """The file to evaluate: "ours" and "peer"; the weights are the same."""
        self.values: dict[tuple[str, int], dict[str, list[float]]] = {}
        """Energies and norms of forces by backend and supercell."""
        self.rows = [self._row(case) for case in self._cases()]

    def _row(self, case: Case) -> Row:
        if case.supercell not in self.frames:
            path = self.scratch / f"frames-{case.supercell}.npz"
            count = WARMUP + self.args.repeats
            self.atoms[case.supercell] = write_frames(path, self.content, supercell=case.supercell, count=count)
            self.frames[case.supercell] = str(path)
        return Row(case, self.atoms[case.supercell])

    def _cases(self) -> list[Case]:
        """In the order of measurement: the peer right after our first backend."""
        first, *others = self.args.backends
        names = [first, *(["peer"] if self.peer else []), *others]
        trained = [name for name in names if name == "peer" or not BACKENDS[name][1]]
        cases = [Case(self.name, "training", name, 1) for name in trained]
        return cases + [Case(self.name, "evaluation", name, size) for size in self.args.supercells for name in names]

    # --- before the first round -------------------------------------------------------------------------

    def prepare(self) -> None:
        """Weights after a few steps, then one short process of every kind: it warms caches and lists its modules."""
        say(f"{self.name}: a few steps of training for the weights")
        self._weights()
        for row in self.rows:
            if row.case.quantity == "evaluation" or row.case.kind() not in self._side(row.case).modules:
                say(f"{self.name}: rehearsal, {row.case.quantity}, {row.atoms} atoms, {row.case.backend}")
                answer = self._measure(row.case, rehearsal=True)
                row.skipped, row.first = answer.get("skipped"), answer.get("first")
        self._check_values()

    def _weights(self) -> None:
        if self.peer is None:
            answer = self._measure(Case(self.name, "training", "pt", 1), rehearsal=True)
            if "skipped" in answer:
                raise WorkerError(f"the weights come from a short training with backend pt: {answer['skipped']}")
            self.models["ours"] = str(self.scratch / "training-pt" / "model.ckpt.dp")
            return
        self._measure(Case(self.name, "training", "peer", 1), rehearsal=True)
        for job, file, side in (("freeze", "frozen.pth", "peer"), ("convert", "frozen.dp", "ours")):
            self.peer.run(job, f"{self.name}/training-peer", quantity=job)
            self.models[side] = str(self.scratch / "training-peer" / file)

    def _check_values(self) -> None:
        """Whether all backends computed the same thing. Raises WorkerError where they did not."""
        for size, atoms in self.atoms.items():
            found = {backend: values for (backend, of), values in self.values.items() if of == size}
            for key, scale, bound, unit in (
                ("energy", atoms, ENERGY_PER_ATOM, "eV per atom"),
                ("force_norm", None, FORCE, "relative"),
            ):
                some = {backend: values[key] for backend, values in found.items() if key in values}
                for name in list(some)[1:]:
                    first = next(iter(some))
                    worst = max(abs(a - b) / (scale or b) for a, b in zip(some[first], some[name], strict=True))
                    if not worst <= bound:
                        where = f"{self.name}, {atoms} atoms, {key} of {first} and {name}"
                        raise WorkerError(
                            f"{where}: {worst:.1e} {unit} apart, at most {bound:g} is rounding: not the same model"
                        )

    # --- measuring --------------------------------------------------------------------------------------

    def measure_round(self, number: int) -> None:
        """Every case once."""
        for row in self.rows:
            if row.skipped is None:
                say(f"{self.name}: round {number}, {row.case.quantity}, {row.atoms} atoms, {row.case.backend}")
                row.add(self._measure(row.case))

    def _side(self, case: Case) -> Side:
        if case.backend != "peer":
            return self.ours
        assert self.peer is not None
        return self.peer

    def _measure(self, case: Case, *, rehearsal: bool = False) -> dict[str, Any]:
        backend, compiled = BACKENDS.get(case.backend, ("pt", False))
        job: dict[str, Any] = {"quantity": case.quantity, "backend": backend, "compile": compiled}
        # The weights stay in the folder of the rehearsal; rounds train somewhere else.
        folder = f"{self.name}/{case.quantity}-{case.backend}" + ("" if rehearsal else "-rounds")
        if case.quantity == "training":
            steps = self.args.weight_steps if rehearsal else self.args.steps
            length = {"steps": steps, "excluded": max(1, steps // 4)}
            path = self.ours.scratch / f"{folder.replace('/', '-')}.json"
            path.write_text(json.dumps(timed_input(self.content, **length)), encoding="utf-8")
            job |= {"input": str(path), "excluded": length["excluded"]}
        else:
            file = self.models["peer" if case.backend == "peer" else "ours"]
            job |= {"model": file, "frames": self.frames[case.supercell], "warmup": WARMUP}
        answer = self._side(case).run(case.kind(), folder, **job)
        if "energy" in answer:
            values = {key: answer[key] for key in ("energy", "force_norm") if key in answer}
            self.values[case.backend, case.supercell] = values
        return answer


def _program(name: str) -> str:
    """Workers run in folders of their own: a path becomes absolute (links stay: they make a virtual environment)."""
    return os.path.abspath(name) if os.sep in name else name  # noqa: PTH100 - Path.resolve follows links


def say(message: str) -> None:
    """Progress, for people."""
    print(message, file=sys.stderr, flush=True)


def run(args: argparse.Namespace, scratch: Path) -> Path:
    """Measure all models, print the table, write the JSON file and return its path."""
    # A cache of compiled code that is empty at the start: `first` then contains the whole compilation.
    env = {**environment(args.threads), "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor")}
    ours = Side.ours(scratch, env, args.timeout)
    peer = None if args.peer is None else Side.peer(_program(args.peer), scratch, env, args.timeout)
    facts = machine_facts(args.threads)
    if peer is not None:
        facts["peer_versions"] = peer.run("versions", ".", quantity="versions")["versions"]
    rows: list[Row] = []
    for name in args.models:
        benchmark = Benchmark(name, args, ours, peer)
        benchmark.prepare()
        for number in range(1, args.rounds + 1):
            benchmark.measure_round(number)
        compare(benchmark.rows)
        rows += benchmark.rows
    settings = {
        name: getattr(args, name)
        for name in (
            "models",
            "backends",
            "rounds",
            "steps",
            "weight_steps",
            "repeats",
            "supercells",
            "threads",
            "quick",
        )
    }
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    output: Path = args.output if args.output is not None else RESULTS / f"{stamp}.json"
    write_json(output, facts, settings, rows)
    print(
        f"{facts['cpu']}, {facts['cores']} cores, {args.threads} threads, {facts['date']}, load {facts['load_at_start']}"
    )
    print(table(rows))
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
