"""One measurement of dpmodel, in a process of its own (see measuring.py and run.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from measuring import average_step, serve, time_calls

import dpmodel
from dpmodel.cli.logs import logging_to
from dpmodel.errors import BackendError
from dpmodel.training.run import train


def training(job: dict[str, Any]) -> dict[str, Any]:
    """Train job["input"] in the current folder: seconds per step."""
    with logging_to("INFO", "train.log"):
        train(job["input"], backend=job["backend"], skip_neighbor_stat=True)
    return {"seconds": [average_step(Path("train.log"), job["excluded"])]}


def evaluation(job: dict[str, Any]) -> dict[str, Any]:
    """Evaluate job["model"] on job["frames"], one frame per call: energy, forces and virial where there are derivatives."""
    potential = dpmodel.load(job["model"], backend=job["backend"], compile=job["compile"])
    frames = np.load(job["frames"])
    outputs: list[dict[str, np.ndarray]] = []

    def call(k: int) -> None:
        outputs.append(potential.evaluate(frames["coord"][k], frames["atype"], frames["box"][k]))

    answer = time_calls(call, range(len(frames["coord"])), job["warmup"])
    answer["energy"] = [float(output["energy"][0, 0]) for output in outputs]
    answer["energy_only"] = "force" not in outputs[0]
    if not answer["energy_only"]:
        answer["force_norm"] = [float(np.linalg.norm(output["force"])) for output in outputs]
    return answer


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job; what a backend cannot do is an answer too."""
    try:
        return {"training": training, "evaluation": evaluation}[job["quantity"]](job)
    except BackendError as problem:
        return {"skipped": str(problem)}


serve(work)
