"""What both workers share: memory, times, and how a worker talks. Standard library only: it runs in either environment.

A worker is a fresh process. It reads one job (JSON) from its standard input, does it, and writes one JSON line to its
standard output; whatever else is printed meanwhile goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["average_step", "serve", "time_calls", "time_once", "time_training"]

Job = dict[str, Any]
Answer = dict[str, Any]

_AVERAGE = re.compile(r"average training time: *([0-9.]+) *s/batch \((\d+) batches excluded\)", re.IGNORECASE)


def serve(work: Callable[[Job], Answer]) -> None:
    """Do the job that comes on standard input.

    job["modules"] are imported first; the resident memory after that is the floor (`floor`, bytes). The answer of
    `work` is completed by that where it does not say it itself, by the largest resident memory of the whole process (`peak`, bytes) and by the modules
    that were loaded at the end (`modules`), so that the next worker of the same kind can import all of them first.
    """
    job: Job = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name in job["modules"]:
        # Some names are no importable modules (namespaces that a library makes up): they have no share in the floor.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    floor = _memory("VmRSS")
    answer = work(job)
    answer = {"floor": floor, "peak": _memory("VmHWM"), **answer}
    answer["modules"] = [name for name in sys.modules if name not in {"__main__", "__mp_main__"}]
    with answers:
        answers.write(json.dumps(answer) + "\n")


def _memory(field: str) -> int:
    """VmRSS (resident now) or VmHWM (the most so far) of this process, bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s*(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return 1024 * int(found.group(1))


def time_calls(call: Callable[[Any], object], items: Sequence[Any], warmup: int, limit: float) -> Answer:
    """Seconds of every call, the first `warmup` ones excluded; `first` is the very first, compilation included.

    After `limit` seconds in all, one call after the warm-up is enough.
    """
    seconds: list[float] = []
    for item in items:
        if sum(seconds) > limit and len(seconds) > warmup:
            break
        begin = time.perf_counter()
        call(item)
        seconds.append(time.perf_counter() - begin)
    if len(seconds) <= warmup:
        raise ValueError(f"{len(seconds)} calls are too few for {warmup} of warm-up")
    return {"first": seconds[0], "seconds": seconds[warmup:]}


def time_once(call: Callable[[], object]) -> Answer:
    """Seconds of a single call. What it imports belongs to it, so nothing is subtracted from the peak either."""
    begin = time.perf_counter()
    call()
    return {"seconds": [time.perf_counter() - begin], "floor": 0}


def time_training(run: Callable[[], object], log: Path, *, steps: int, excluded: int) -> Answer:
    """Seconds per step of a training run that writes `log`; `first` is what the run took besides its steps.

    That is: reading the data, their statistics, building the model, the checkpoint, and compilation.
    """
    begin = time.perf_counter()
    run()
    whole = time.perf_counter() - begin
    step = average_step(log, excluded)
    return {"first": whole - steps * step, "seconds": [step]}


def average_step(log: Path, excluded: int) -> float:
    """Seconds per step as a training log reports them at its end; both programs write the same line.

    Raises ValueError where the line is missing or leaves out another number of steps than `excluded`.
    """
    found = _AVERAGE.findall(log.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{log.name} has no line 'average training time': did the training come to its end?")
    seconds, left_out = found[-1]
    if int(left_out) != excluded:
        raise ValueError(f"{log.name}: {left_out} steps were excluded from the average, expected {excluded}")
    return float(seconds)
