"""The two sides of an exchange: the process of DeePMD-kit, and our evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
from consistent.tolerance import distance

import dpmodel

__all__ = ["Frames", "Outputs", "Peer", "PeerError", "differences", "evaluate", "inputs_of"]

WORKER = Path(__file__).resolve().parent / "peer.py"
Frames = dict[str, np.ndarray]
"""Inputs, SYSTEM/in/KEY."""
Outputs = dict[str, np.ndarray]
"""Outputs, SYSTEM/out/KEY."""


class PeerError(RuntimeError):
    """What DeePMD-kit said instead of an answer."""


class Peer:
    """One long-lived process with DeePMD-kit; started anew where it died."""

    def __init__(self, python: str, scratch: Path, timeout: float) -> None:
        """python: of its environment. timeout: seconds for one job."""
        self.python, self.scratch, self.timeout = python, scratch, timeout
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; the next job starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        # Settings of our tests are none of its; CPU alone, as the golden numbers.
        env = {key: value for key, value in os.environ.items() if not key.startswith(("DP_", "PYTHON"))}
        with (self.scratch / "peer.log").open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                [self.python, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                cwd=self.scratch, env={**env, "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip

    def ask(self, do: str, **job: Any) -> dict[str, Any]:
        """The answer to a job. Raises PeerError with the program's message, or where it dies or takes too long."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(self.timeout, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps({"do": do, **job}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise PeerError(f"{do}: the process ended with status {process.wait()} ({self.scratch / 'peer.log'})")
        answer: dict[str, Any] = json.loads(line)
        if answer["error"] is not None:
            raise PeerError(answer["error"])
        return answer

    def evaluate(self, model: Path, frames: Frames, names: tuple[str, str], *, eager: bool = False) -> Outputs:
        """Outputs of a model file. Raises PeerError.

        names: of our reduced and atomic output. eager: without TorchScript.
        """
        given, results = self.scratch / "frames.npz", self.scratch / "outputs.npz"
        np.savez(given, **frames)
        places = {"model": str(model), "frames": str(given), "outputs": str(results)}
        self.ask("evaluate", **places, names=list(names), eager=eager)
        with np.load(results) as file:
            return dict(file)


def inputs_of(data: dict[str, np.ndarray]) -> Frames:
    """The inputs among the arrays of a golden file."""
    return {key: value for key, value in data.items() if key.split("/")[1] == "in"}


def evaluate(potential: dpmodel.Potential, frames: Frames, *, hessian: bool = False) -> Outputs:
    """Our outputs of all systems."""
    results = {}
    for system in sorted({key.split("/")[0] for key in frames}):
        given = {key.split("/")[2]: value for key, value in frames.items() if key.startswith(f"{system}/in/")}
        coord, atype, box = given.pop("coord"), given.pop("atype"), given.pop("box", None)
        out = potential.evaluate(coord, atype, box, **given, atomic=True, hessian=hessian)
        results.update({f"{system}/out/{key}": value for key, value in out.items()})
    return results


def differences(ours: Outputs, theirs: Outputs, *, summed: bool) -> dict[str, float]:
    """By output the largest difference over all systems, relative to max(1, max abs).

    summed: per-atom virials of models that pass messages follow another definition: their sums are compared. Values that
    DeePMD-kit's NumPy gives as NaN for want of derivatives are left out.
    """
    found: dict[str, float] = {}
    for key, value in theirs.items():
        system, _, name = key.split("/")
        if name == "mask_mag" or (value.size and np.all(np.isnan(value))):
            continue
        same_size = value.size == ours[key].size  # polarizabilities come as nine numbers
        expected = value.reshape(ours[key].shape) if same_size else value
        if summed and name == "atom_virial":
            expected, key = value.sum(axis=1), f"{system}/out/virial"  # noqa: PLW2901
        found[name] = max(found.get(name, 0.0), distance(ours[key], expected))
    return found
