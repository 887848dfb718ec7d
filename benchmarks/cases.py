"""What is measured, and the processes that measure it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

__all__ = ["BACKENDS", "Case", "Side", "WorkerError", "environment"]

FOLDER = Path(__file__).resolve().parent

BACKENDS: dict[str, tuple[str, bool]] = {
    "pt": ("pt", False),
    "pt_expt": ("pt_expt", False),
    "pt_expt+compile": ("pt_expt", True),
    "jax": ("jax", False),
    "numpy": ("numpy", False),
}
"""By the name in the table: the backend, and whether it compiles. The first is what the peer is compared with in turn."""


class WorkerError(RuntimeError):
    """A worker did not give an answer."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One cell of the table: a model, a quantity, a backend."""

    model: str
    quantity: Literal["training", "evaluation"]
    backend: str
    """A key of BACKENDS, or "peer"."""
    supercell: int
    """Evaluation: how often the frame is repeated along each axis. Training: 1."""

    def kind(self) -> tuple[str, str, str]:
        """What processes of one kind share: they import the same modules."""
        return self.model, self.quantity, self.backend


def environment(threads: int) -> dict[str, str]:
    """The environment of every worker: `threads` threads, CPU only, no settings left over from the shell."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DP_", "OMP_", "MKL_", "PYTHON"))}
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "DP_INTRA_OP_PARALLELISM_THREADS")
    own = dict.fromkeys(names, count)
    # NPROC and PJRT_NPROC set the size of JAX's pool of threads on the CPU.
    own |= {"DP_INTER_OP_PARALLELISM_THREADS": "1", "NPROC": count, "PJRT_NPROC": count}
    own |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    return {**kept, **own}


@dataclasses.dataclass
class Side:
    """One of the two programs: starts its workers."""

    python: str
    script: str
    scratch: Path
    env: dict[str, str]
    timeout: float
    modules: dict[Any, list[str]] = dataclasses.field(default_factory=dict)
    """By kind of job: what the last process of that kind had loaded at its end."""

    @classmethod
    def ours(cls, scratch: Path, env: dict[str, str], timeout: float) -> Side:
        """dpmodel, with this Python."""
        return cls(sys.executable, "worker_ours.py", scratch, env, timeout)

    @classmethod
    def peer(cls, python: str, scratch: Path, env: dict[str, str], timeout: float) -> Side:
        """DeePMD-kit, with another Python."""
        return cls(python, "worker_peer.py", scratch, env, timeout)

    def run(self, kind: Any, folder: str, **job: Any) -> dict[str, Any]:
        """The answer of a fresh process, started in `folder` of the scratch folder.

        Raises WorkerError with the end of what the process wrote where it fails, hangs or gives no answer.
        """
        place = self.scratch / folder
        place.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**job, "modules": self.modules.get(kind, [])})
        command = [self.python, str(FOLDER / self.script)]
        try:
            done = subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                check=False,
                cwd=place,
                env=self.env,
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired as problem:
            raise WorkerError(
                f"{self.script}, {kind}: no answer after {self.timeout:g} s (option --timeout)"
            ) from problem
        except OSError as problem:
            raise WorkerError(f"{self.script}: {self.python} cannot be started ({problem})") from problem
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            tail = "\n".join(done.stderr.splitlines()[-15:])
            raise WorkerError(f"{self.script}, {kind}: exit status {done.returncode}, {len(lines)} answers\n{tail}")
        answer: dict[str, Any] = json.loads(lines[-1])
        self.modules[kind] = answer.pop("modules")
        return answer
