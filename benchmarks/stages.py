"""Memory and time of training on two processes, by `training.zero_stage`: a table and a JSON file.

python benchmarks/stages.py                    # dpa3 of three widths, stages 0 to 3
python benchmarks/stages.py --widths 32 --steps 1 --output stages.json    # does it run?

What is measured and how is in README.md, next to this file.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed.fsdp  # here: the processes are forks of this one
import torch.profiler
from torch.distributed.tensor import DTensor

import dpmodel.backends.pt  # noqa: F401 - here, for the same reason
from dpmodel.backend import get_trainer
from dpmodel.backends.pt.store import local
from dpmodel.input import load_model
from dpmodel.input.optimizers import AdamConfig
from dpmodel.losses import EnerLossConfig, build_loss
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.op import Kind, walk
from dpmodel.training.batches import Prepared
from dpmodel.training.stepper import StepOptions

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out
from machine import machine_facts

RESULTS = Path(__file__).resolve().parent / "results"
WATER = Path(__file__).resolve().parents[1] / "examples" / "water" / "data" / "data_0"
STAGES = (0, 1, 2, 3)
MIB = 2**20
TRIES = 8
"""Steps that are recorded at most: now and then the recorder misses a release, as by a thread of gloo."""
LIMIT = 600.0
"""Seconds for one pair of processes."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Memory and time of training on two processes, by zero_stage.")
    option = parser.add_argument
    option("--widths", type=int, nargs="+", default=[128, 256, 512], help="n_dim of dpa3 (default: 128 256 512)")
    option("--stages", type=int, nargs="+", choices=STAGES, default=STAGES, help="stages beside 0 (default: all)")
    option("--atoms", type=int, default=24, help="atoms of the frame of each process (default: 24)")
    option("--steps", type=int, default=5, help="steps that are timed, after two others (default: 5)")
    option("--output", type=Path, help="the JSON file (default: benchmarks/results/<date>-stages.json)")
    args = parser.parse_args(arguments)
    if min(args.steps, args.atoms, *args.widths) < 1 or any(width % 4 for width in args.widths):
        parser.error("--steps and --atoms must be at least 1, --widths multiples of 4")
    return args


# --- one process -----------------------------------------------------------------------------------------


def model_of(width: int) -> Any:
    """dpa3 with three layers, fresh weights, float32; its edges and angles have a half and a quarter of the width."""
    repflow = {
        "n_dim": width, "e_dim": width // 2, "a_dim": width // 4, "nlayers": 3, "e_rcut": 4.0, "e_rcut_smth": 3.5, "e_sel": 30,
        "a_rcut": 3.0, "a_rcut_smth": 2.5, "a_sel": 12, "axis_neuron": 4, "update_angle": True,
    }  # fmt: skip
    return build_model(
        load_model(
            {
                "type_map": ["O", "H"],
                "descriptor": {"type": "dpa3", "repflow": repflow, "precision": "float32", "seed": 1},
                "fitting_net": {"neuron": [width] * 3, "precision": "float32", "seed": 1},
            }
        )
    )


def batch_of(model: Any, frame: int, atoms: int) -> Any:
    """The atoms of a frame of water that are nearest to one of them, with open boundaries, and their forces."""
    coord, force = (np.load(WATER / "set.000" / f"{name}.npy")[frame].reshape(-1, 3) for name in ("coord", "force"))
    atype = np.loadtxt(WATER / "type.raw", dtype=int)
    near = np.argsort(np.linalg.norm(coord - coord[0], axis=1))[:atoms]
    graph = builder_of(model).build(coord[near][None].astype(float), atype[near][None], None, pbc=False)
    labels = {"energy": np.zeros((1, 1)), "force": force[near].astype(float)}
    return Prepared(graph, labels, dict.fromkeys(labels, 1.0))


def held(tensors: Iterable[Any]) -> dict[int, int]:
    """Address -> bytes of the storages behind tensors, as this process has them; none twice."""
    storages = [local(tensor).untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def census(stepper: Any) -> dict[str, int]:
    """Bytes of what is held between steps. `rest`: of all other tensors that are alive, whoever holds them."""
    parameters = stepper.store.parameters.values()
    states = [] if stepper.optimizer is None else stepper.optimizer.state.values()
    parts = {
        "parameters": held(parameters),
        "gradients": held(p.grad for p in parameters if p.grad is not None),
        "optimizer": held(value for state in states for value in state.values() if isinstance(value, torch.Tensor)),
        "buffers": held(stepper.module.buffers()),
    }
    gc.collect()
    alive = [
        item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and not isinstance(item, DTensor)
    ]
    known = {address for part in parts.values() for address in part}
    rest = {
        address: size
        for address, size in held(t for t in alive if t.device.type == "cpu").items()
        if address not in known
    }
    return {**{name: sum(part.values()) for name, part in parts.items()}, "rest": sum(rest.values())}


def allocated(call: Any) -> tuple[int, int]:
    """(most, at the end): bytes of tensors allocated while a function runs and not freed yet, as torch.profiler records them.

    Every allocation and release of torch's allocator counts, temporary tensors inside operators too. What was allocated
    before counts nowhere, not even when it is released.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    with tempfile.TemporaryDirectory() as folder:
        found.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    live = np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])
    return int(live.max()), int(live[-1])


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process, bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s*(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))


def measure(world: Any, model: Any, stage: int, args: argparse.Namespace) -> dict[str, Any]:
    """Steps on this rank, and what they take."""
    floor = _resident("VmRSS")
    stepper: Any = get_trainer("pt").stepper(
        model, {"": build_loss(EnerLossConfig(), 0.001)}, AdamConfig(), device="cpu", world=world,
        options=StepOptions(zero_stage=stage),
    )  # fmt: skip
    batch = batch_of(model, world.rank, args.atoms)

    def step() -> None:
        stepper.step([batch], 1e-4)()

    seconds = []
    for _ in range(args.steps + 2):
        world.wait("the next step")
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    parts = census(stepper)
    resident = _resident("VmHWM") - floor
    profiles = []
    for _ in range(TRIES):
        for p in stepper.store.parameters.values():
            p.grad = None  # they come again in the step, and count there
        profiles.append(allocated(step))
        # Both ranks take as many steps, until both have one without a release that was missed.
        if not any(world.each(all(end != parts["gradients"] for _, end in profiles))):
            break
    most, end = min(profiles, key=lambda found: abs(found[1] - parts["gradients"]))
    return {
        **parts,
        "held": parts["parameters"] + parts["gradients"] + parts["optimizer"],
        "in_step": most,
        "left_by_step": end,
        "peak": most + parts["parameters"] + parts["optimizer"] + parts["buffers"] + parts["rest"],
        "resident": resident,
        "seconds": median(seconds[2:]),
        "each": [round(value, 4) for value in seconds[2:]],
    }


def _rank(number: int, port: int, width: int, stage: int, args: argparse.Namespace, answers: Any) -> None:
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )

    with get_trainer("pt").join("cpu") as world:
        answers.send(measure(world, model_of(width), stage, args))


# --- all of them -----------------------------------------------------------------------------------------


def pair(width: int, stage: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What both ranks measured, in processes of their own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    context = multiprocessing.get_context("fork")  # the imports are shared
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    ranks = [
        context.Process(target=_rank, args=(k, port, width, stage, args, pipes[k][1]), daemon=True) for k in range(2)
    ]
    for rank in ranks:
        rank.start()
    for _, sender in pipes:
        sender.close()
    answers: list[dict[str, Any]] = []
    for receiver, _ in pipes:
        with contextlib.suppress(EOFError):
            if receiver.poll(LIMIT):
                answers.append(receiver.recv())
    for rank in ranks:
        rank.join(10.0 if len(answers) == 2 else 0.0)
        rank.kill()
    if len(answers) < 2:
        raise RuntimeError(f"width {width}, stage {stage}: a process gave no answer; its message is above")
    return answers


def row_of(width: int, stage: int, numbers: int, answers: list[dict[str, Any]], whole: float | None) -> dict[str, Any]:
    """The larger of both ranks, in MiB. whole: what stage 0 holds."""
    largest = {name: max(answer[name] for answer in answers) for name in answers[0] if name not in ("seconds", "each")}
    row: dict[str, Any] = {"width": width, "stage": stage, "numbers": numbers}
    row |= {f"{name}_mib": round(value / MIB, 3) for name, value in largest.items()}
    row["held_of_stage_0"] = 1.0 if whole is None else round(row["held_mib"] / whole, 4)
    row["seconds"] = round(max(answer["seconds"] for answer in answers), 4)
    return row | {"ranks": answers}


COLUMNS = (
    ("n_dim", "width", "d"), ("numbers", "numbers", ",d"), ("stage", "stage", "d"), ("parameters", "parameters_mib", ".1f"),
    ("gradients", "gradients_mib", ".1f"), ("optimizer", "optimizer_mib", ".1f"), ("held", "held_mib", ".1f"),
    ("of stage 0", "held_of_stage_0", ".3f"), ("peak", "peak_mib", ".1f"), ("resident", "resident_mib", ".1f"),
    ("seconds", "seconds", ".3f"),
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [f"| {' | '.join(title for title, _, _ in COLUMNS)} |", f"|{'---:|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(format(row[key], form) for _, key, form in COLUMNS)} |" for row in rows]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> Path:
    """Measure everything, print the table, write the JSON file and return its path."""
    torch.set_num_threads(1)
    facts = machine_facts(1)
    stamp = datetime.now(UTC).strftime("%Y-%m-%d")
    output: Path = args.output if args.output is not None else RESULTS / f"{stamp}-stages.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"widths": args.widths, "atoms": args.atoms, "steps": args.steps, "processes": 2, "optimizer": "Adam"}
    rows: list[dict[str, Any]] = []
    for width in args.widths:
        numbers = numbers_of(model_of(width))
        whole: float | None = None
        for stage in sorted({0, *args.stages}):
            rows.append(row_of(width, stage, numbers, pair(width, stage, args), whole))
            whole = rows[-1]["held_mib"] if stage == 0 else whole
            content = {"machine": facts, "settings": settings, "results": rows}
            output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(
        f"{facts['cpu']}, {facts['cores']} cores, 2 processes, 1 thread each, {facts['date']}, load {facts['load_at_start']}"
    )
    print(table(rows))
    print(f"MiB, the larger of both processes. Written: {output}")
    return output


def numbers_of(model: Any) -> int:
    """How many numbers are trained."""
    return sum(np.asarray(value).size for _, kind, value, _ in walk(model) if kind is Kind.PARAM)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse(arguments)
    try:
        run(args)
    except RuntimeError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
