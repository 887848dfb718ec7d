"""One measurement of DeePMD-kit, in a process of the environment where it is installed (see measuring.py and run.py)."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from measuring import average_step, serve, time_calls


def dp(*arguments: str) -> None:
    """Run the command `dp` in this process."""
    (command,) = entry_points(group="console_scripts", name="dp")
    sys.argv = ["dp", *arguments]
    command.load()()


def training(job: dict[str, Any]) -> dict[str, Any]:
    """Train job["input"] in the current folder with the `pt` backend: seconds per step."""
    dp("--pt", "train", job["input"], "--skip-neighbor-stat", "--log-path", "train.log")
    return {"seconds": [average_step(Path("train.log"), job["excluded"])]}


def freeze() -> dict[str, Any]:
    """The newest checkpoint of the current folder as frozen.pth."""
    dp("--pt", "freeze", "-c", ".", "-o", "frozen.pth")
    return {}


def convert() -> dict[str, Any]:
    """frozen.pth as frozen.dp."""
    dp("convert-backend", "frozen.pth", "frozen.dp")
    return {}


def evaluation(job: dict[str, Any]) -> dict[str, Any]:
    """Evaluate job["model"], a `.pth`, on job["frames"], one frame per call: energy, forces, virial."""
    from deepmd.infer import DeepPot  # noqa: PLC0415 - the other jobs do not need it

    potential = DeepPot(job["model"])
    frames = np.load(job["frames"])
    nframes = len(frames["coord"])
    outputs: list[tuple[np.ndarray, ...]] = []

    def call(k: int) -> None:
        outputs.append(
            potential.eval(frames["coord"][k].reshape(1, -1), frames["box"][k].reshape(1, 9), frames["atype"])
        )

    answer = time_calls(call, range(nframes), job["warmup"])
    answer["energy"] = [float(output[0][0, 0]) for output in outputs]
    answer["force_norm"] = [float(np.linalg.norm(output[1])) for output in outputs]
    return answer


def versions() -> dict[str, Any]:
    """Versions of the libraries that take part."""
    found = {"python": platform.python_version()}
    for package in ("deepmd-kit", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": found}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job."""
    preparations = {"freeze": freeze, "convert": convert, "versions": versions}
    if job["quantity"] in preparations:
        return preparations[job["quantity"]]()
    return {"training": training, "evaluation": evaluation}[job["quantity"]](job)


serve(work)
