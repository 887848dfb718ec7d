"""One run of LAMMPS, started from the environment of either program (see measuring.py and run.py)."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from dynamics import read_log, script, settings_environment
from measuring import serve


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Run job["ranks"] processes of `lmp` in the current folder: seconds per step; `peak` is that of the largest process."""
    for package in ("lammps", "mpich"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return {"skipped": f"the package {package} is not installed"}
    lengths = {"warmup": job["warmup"], "steps": job["steps"]}
    text = script(style=job["style"], model=job["model"], data=job["data"], names=job["names"], **lengths)
    Path("in.lammps").write_text(text, encoding="utf-8")
    programs = Path(sys.prefix) / "bin"
    command = [str(programs / "mpiexec"), "-n", str(job["ranks"]), str(programs / "lmp"), "-in", "in.lammps"]
    env = settings_environment(dict(os.environ), job["setting"])
    with (
        Path("screen").open("w", encoding="utf-8") as screen,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=screen, stderr=subprocess.STDOUT, env=env
        ) as process,
    ):
        try:
            status = process.wait(job["limit"])
        except subprocess.TimeoutExpired:
            process.terminate()  # mpiexec ends its ranks
            raise TimeoutError(f"LAMMPS did not end within {job['limit']:g} s") from None
    if status:
        lines = Path("screen").read_text(encoding="utf-8", errors="replace").splitlines()
        raise RuntimeError(f"LAMMPS: exit status {status}\n" + "\n".join([line for line in lines if line.strip()][-8:]))
    answer = read_log(Path("log.lammps").read_text(encoding="utf-8"), ranks=job["ranks"], steps=job["steps"])
    return {**answer, "floor": 0, "peak": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}


serve(work)
