"""The two programs, and the processes in which each of them works."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["Side", "WorkerError", "environment"]

FOLDER = Path(__file__).resolve().parent


class WorkerError(RuntimeError):
    """A worker did not give an answer."""


def environment(threads: int) -> dict[str, str]:
    """The environment of every worker: `threads` threads, CPU only, no settings left over from the shell."""
    dropped = ("DP_", "OMP_", "MKL_", "KMP_", "PYTHON", "LAMMPS_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
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

    name: str
    python: str
    scratch: Path
    env: dict[str, str]
    timeout: float
    modules: dict[Any, list[str]] = dataclasses.field(default_factory=dict)
    """By kind of job: what the last process of that kind had loaded at its end."""

    @classmethod
    def ours(cls, scratch: Path, env: dict[str, str], timeout: float) -> Side:
        """dpmodel, with this Python."""
        return cls("ours", sys.executable, scratch, env, timeout)

    @classmethod
    def peer(cls, python: str, scratch: Path, env: dict[str, str], timeout: float) -> Side:
        """DeePMD-kit, with another Python."""
        return cls("peer", python, scratch, env, timeout)

    def run(self, kind: Any, folder: str, *, cold: bool = False, **job: Any) -> dict[str, Any]:
        """The answer of a fresh process, started in `folder` of the scratch folder; cold: with a fresh cache of Inductor.

        Raises WorkerError with the end of what the process wrote where it fails, hangs or gives no answer.
        """
        script = "worker_lammps.py" if job["quantity"] == "lammps" else f"worker_{self.name}.py"
        place = self.scratch / folder
        place.mkdir(parents=True, exist_ok=True)
        # One cache per model and program, empty at the start: the first figure of a case holds the whole compilation.
        cache = (place if cold else self.scratch / folder.split("/", maxsplit=1)[0]) / f"inductor-{self.name}"
        text = json.dumps({**job, "modules": self.modules.get(kind, [])})
        try:
            done = subprocess.run(
                [self.python, str(FOLDER / script)],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                cwd=place,
                env={**self.env, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired as problem:
            raise WorkerError(f"{script}, {kind}: no answer after {self.timeout:g} s (option --timeout)") from problem
        except OSError as problem:
            raise WorkerError(f"{script}: {self.python} cannot be started ({problem})") from problem
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            tail = "\n".join(done.stderr.splitlines()[-15:])
            raise WorkerError(f"{script}, {kind}: exit status {done.returncode}, {len(lines)} answers\n{tail}")
        answer: dict[str, Any] = json.loads(lines[-1])
        self.modules[kind] = answer.pop("modules")
        return answer
