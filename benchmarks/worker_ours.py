"""One measurement of dpmodel, in a process of its own (see measuring.py and run.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from measuring import serve, time_calls, time_once, time_training

import dpmodel
from dpmodel.backend import get_exporter
from dpmodel.cli.logs import logging_to
from dpmodel.errors import BackendError
from dpmodel.training.run import train


def training(job: dict[str, Any]) -> dict[str, Any]:
    """Train job["input"] in the current folder: seconds per step."""

    def run() -> None:
        with logging_to("INFO", "train.log"):
            train(job["input"], backend=job["backend"], skip_neighbor_stat=True)

    return time_training(run, Path("train.log"), steps=job["steps"], excluded=job["excluded"])


def evaluation(job: dict[str, Any]) -> dict[str, Any]:
    """Evaluate job["model"] on job["frames"], one frame per call: energy, forces and virial where there are derivatives."""
    if Path(job["model"]).suffix == ".pt2":
        potential = dpmodel.load(job["model"])
    else:
        potential = dpmodel.load(job["model"], backend=job["backend"], compile=job["compile"])
    frames = np.load(job["frames"])
    outputs: list[dict[str, np.ndarray]] = []

    def call(k: int) -> None:
        outputs.append(potential.evaluate(frames["coord"][k], frames["atype"], frames["box"][k]))

    answer = time_calls(call, range(len(frames["coord"]))[: job["calls"]], job["warmup"], job["limit"])
    keys = [key for key in ("energy", "force", "virial") if key in outputs[0]]
    np.savez(job["outputs"], **{key: np.concatenate([output[key] for output in outputs]) for key in keys})
    return {**answer, "energy_only": "force" not in keys}


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Freeze job["model"] as job["target"]."""
    return time_once(lambda: dpmodel.freeze(job["model"], job["target"]))


def libraries(job: dict[str, Any]) -> dict[str, Any]:
    """Build what is built once per installation: the operators of the exchange and, where job["plugin"], LAMMPS's plugin."""
    exporter = get_exporter()
    if job["plugin"]:
        return time_once(exporter.lammps_plugin)
    from dpmodel.backends.pt_expt.ghosts import load_ops  # noqa: PLC0415 - the other jobs do not need it

    return time_once(load_ops)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job; what a backend cannot do is an answer too."""
    jobs = {"training": training, "evaluation": evaluation, "export": export, "libraries": libraries}
    try:
        return jobs[job["quantity"]](job)
    except BackendError as problem:
        return {"skipped": str(problem)}


serve(work)
