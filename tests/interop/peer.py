"""DeePMD-kit's side: runs where that is installed, through its commands and its public `DeepPotential`.

Reads jobs, one JSON line each, from its standard input, and answers each with one JSON line on its standard output;
whatever else is printed meanwhile goes to standard error. An answer is {"error": null, ...} or {"error": a message}.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""From the inputs of a system to its outputs, by our names."""
ENERGY = ("energy", "force", "virial", "atom_energy", "atom_virial")
"""What `DeepPot.eval` returns for atomic=True, and then ..."""
MORE = {5: (), 6: ("hessian",), 7: ("force_mag", "mask_mag")}
"""... by the number of arrays: of models trained with Hessians, of models with spin."""


def dp(*arguments: str) -> None:
    """Run the command `dp` in this process."""
    (command,) = entry_points(group="console_scripts", name="dp")
    sys.argv = ["dp", *arguments]
    command.load()()


def evaluate(job: dict[str, Any]) -> dict[str, Any]:
    """job["model"] (a file) on every system of job["frames"] into job["outputs"].

    job["names"]: the names of the reduced and the atomic output of a model that predicts no energy. job["eager"]: by
    the PyTorch model itself, for a `.dp` file that TorchScript does not compile.
    """
    results = {}
    call = eager(job["model"]) if job["eager"] else interface(job["model"], job["names"])
    with np.load(job["frames"]) as file:
        frames = dict(file)
    for system in sorted({key.split("/")[0] for key in frames}):
        given = {key.split("/")[2]: value for key, value in frames.items() if key.startswith(f"{system}/in/")}
        results.update({f"{system}/out/{key}": value for key, value in call(given).items()})
    np.savez(job["outputs"], **results)
    return {}


def interface(path: str, names: list[str]) -> Call:
    """A model file through `DeepPotential`."""
    from deepmd import DeepPotential

    potential = DeepPotential(path)
    return lambda given: outputs(potential, given, names)


def eager(path: str) -> Call:
    """The dictionary of a `.dp` file as a PyTorch model."""
    import torch
    from deepmd.dpmodel.utils.serialization import load_dp_model
    from deepmd.pt.model.model import BaseModel

    model = BaseModel.deserialize(load_dp_model(path)["model"])

    def call(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = model(**{key: torch.as_tensor(value) for key, value in given.items()}, do_atomic_virial=True)
        return {name: value.detach().numpy() for name, value in found.items() if name != "mask"}

    return call


def outputs(potential: Any, given: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Arrays by the names of our outputs."""
    import torch

    coord, atype, box = given.pop("coord"), given.pop("atype"), given.pop("box", None)

    def call(*, atomic: bool) -> Any:
        with torch.jit.optimized_execution(False):  # specialising code to shapes takes longer than running it
            return potential.eval(coord, box, atype, atomic=atomic, mixed_type=True, **given)

    found = call(atomic=True)
    kind = type(potential).__name__
    if kind == "DeepPot":
        return dict(zip((*ENERGY, *MORE[len(found)]), found, strict=True))
    if kind in {"DeepDipole", "DeepPolar"}:  # they return one of both
        found = (call(atomic=False), found)
    pair = {name: np.asarray(value) for name, value in zip(names, found, strict=True)}
    return {names[0]: pair[names[0]].reshape(len(coord), -1), names[1]: pair[names[1]].reshape(*atype.shape, -1)}


def convert(job: dict[str, Any]) -> dict[str, Any]:
    """`dp convert-backend`."""
    dp("convert-backend", job["source"], job["target"])
    return {}


def train(job: dict[str, Any]) -> dict[str, Any]:
    """`dp --pt train` in the folder of the input; the answer names the checkpoint."""
    path = Path(job["input"])
    os.chdir(path.parent)
    dp("--pt", "train", path.name)
    return {"checkpoint": str(path.parent / "model.ckpt.pt")}


def versions(_: dict[str, Any]) -> dict[str, Any]:
    """Of the libraries that take part."""
    found = {"Python": platform.python_version()}
    for package in ("deepmd-kit", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": found}


def main() -> None:
    """Serve until the input ends."""
    jobs = {"evaluate": evaluate, "convert": convert, "train": train, "versions": versions}
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"error": None, **jobs[job["do"]](job)}
        except (Exception, SystemExit) as problem:  # noqa: BLE001 - whatever the program says is the answer
            traceback.print_exc()
            lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [""]
            answer = {"error": f"{type(problem).__name__}: {lines[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
