"""Molecular dynamics: the input of LAMMPS, its settings, and what its log says. Standard library only, as measuring.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["SETTINGS", "STYLES", "read_log", "script", "settings_environment"]

STYLES = {"ours": "dpmodel", "peer": "deepmd"}
"""The pair style of either program."""

SETTINGS: dict[str, dict[str, str]] = {
    "as installed": {},
    "1 thread": {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "MKL_NUM_THREADS": "1",
        "DP_INTRA_OP_PARALLELISM_THREADS": "1",
        "DP_INTER_OP_PARALLELISM_THREADS": "1",
    },
}
"""What is set in the environment; otherwise nothing that concerns threads is."""

MASSES = {"H": 1.008, "O": 15.999}

_LOOP = re.compile(r"^Loop time of ([0-9.e+-]+) on (\d+) procs for (\d+) steps with (\d+) atoms", re.MULTILINE)
_THERMO = re.compile(r"^ *(\d+) +(\S+) +(\S+) *$", re.MULTILINE)


def script(*, style: str, model: str, data: str, names: Sequence[str], warmup: int, steps: int) -> str:
    """Constant energy and volume from 300 K: `warmup` steps, then `steps` that are timed. The same for both programs."""
    masses = "".join(f"mass {k} {MASSES.get(name, 20.0)}\n" for k, name in enumerate(names, 1))
    return f"""units metal
atom_style atomic
atom_modify map yes
boundary p p p
read_data {data}
{masses}pair_style {style} {model}
pair_coeff * * {" ".join(names)}
neighbor 2.0 bin
neigh_modify every 10 delay 0 check yes
velocity all create 300 4711 loop all
fix 1 all nve
timestep 0.0005
thermo 1000000
thermo_style custom step pe press
thermo_modify format float %.14g
run {warmup}
run {steps}
"""


def settings_environment(environment: dict[str, str], setting: str) -> dict[str, str]:
    """The environment of LAMMPS for a setting."""
    dropped = ("OMP_", "MKL_", "KMP_", "OPENBLAS_", "DP_", "NPROC", "PJRT_")
    kept = {key: value for key, value in environment.items() if not key.startswith(dropped)}
    return {**kept, **SETTINGS[setting]}


def read_log(text: str, *, ranks: int, steps: int) -> dict[str, Any]:
    """Seconds per step of the last run, and energy (eV) and pressure (bar) of the first and last step.

    Raises ValueError where the log is not that of such a run.
    """
    loops = _LOOP.findall(text)
    if len(loops) != 2 or loops[-1][1:3] != (str(ranks), str(steps)):
        raise ValueError(f"log.lammps: expected two runs, the second of {steps} steps on {ranks} ranks, found {loops}")
    thermo = [(int(step), float(energy), float(pressure)) for step, energy, pressure in _thermo_lines(text)]
    return {
        "seconds": [float(loops[-1][0]) / steps],
        "energy": [thermo[0][1], thermo[-1][1]],
        "pressure": [thermo[0][2], thermo[-1][2]],
    }


def _thermo_lines(text: str) -> list[tuple[str, str, str]]:
    lines: list[tuple[str, str, str]] = []
    for block in text.split("Step")[1:]:
        lines += _THERMO.findall(block.split("Loop time")[0])
    return lines
