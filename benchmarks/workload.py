"""What is run: inputs with absolute paths and the length of a measurement, and frames of the validation data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["available", "read_input", "timed_input", "write_data", "write_frames"]

FOLDER = Path(__file__).resolve().parent / "inputs"


def available() -> list[str]:
    """Names of the models: files in inputs/."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_input(name: str) -> dict[str, Any]:
    """An input of inputs/, with absolute paths of its systems."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    for section in ("training_data", "validation_data"):
        data = content["training"][section]
        data["systems"] = [str((FOLDER / system).resolve()) for system in data["systems"]]
    return content


def timed_input(content: dict[str, Any], *, steps: int, excluded: int, compile: bool = False) -> dict[str, Any]:
    """The input for a run of `steps` steps whose average leaves out the first `excluded` ones.

    There is a display row every `excluded` steps, which both programs count, and one checkpoint, after the last step,
    which neither counts.
    """
    if steps < 2 * excluded:
        raise ValueError(f"{steps} steps are too few: at least {2 * excluded}, twice the excluded ones")
    changes: dict[str, Any] = {"numb_steps": steps, "disp_freq": excluded, "save_freq": 10 * steps}
    if compile:
        changes["enable_compile"] = True
    return {**content, "training": {**content["training"], **changes}}


def write_frames(path: Path, content: dict[str, Any], *, supercell: int, count: int) -> int:
    """Write the first frames of the first validation system, repeated along each axis; returns the number of atoms.

    The file holds coord (count, atoms, 3) and box (count, 3, 3) in Å, and atype (atoms,).
    """
    system = Path(content["training"]["validation_data"]["systems"][0])
    names = (system / "type_map.raw").read_text(encoding="utf-8").split()
    kinds = np.array([content["model"]["type_map"].index(name) for name in names])
    atype = kinds[np.loadtxt(system / "type.raw", dtype=np.int64, ndmin=1)]
    box = np.load(system / "set.000" / "box.npy").astype(np.float64).reshape(-1, 3, 3)
    coord = np.load(system / "set.000" / "coord.npy").astype(np.float64).reshape(len(box), -1, 3)
    if len(box) < count:
        raise ValueError(f"{count} frames were asked for, but the validation system has {len(box)}")
    box, coord = box[:count], coord[:count]
    shifts = np.indices((supercell, supercell, supercell)).reshape(3, -1).T
    images = coord[:, None] + (shifts @ box)[:, :, None]
    coord = images.reshape(count, -1, 3)
    np.savez(path, coord=coord, box=supercell * box, atype=np.tile(atype, len(shifts)))
    return int(coord.shape[1])


def write_data(path: Path, frames: Path, kinds: int) -> None:
    """Write the first frame of a file of `write_frames` as a data file of LAMMPS with `kinds` types of atoms."""
    with np.load(frames) as found:
        coord, box, atype = found["coord"][0], found["box"][0], found["atype"]
    lengths = np.diag(box)
    if not np.array_equal(box, np.diag(lengths)):
        raise ValueError(
            f"{frames.name}: LAMMPS is run in rectangular cells along the axes, this one is {box.tolist()}"
        )
    lines = ["water", "", f"{len(atype)} atoms", f"{kinds} atom types", ""]
    lines += [f"0.0 {length:.16g} {axis}lo {axis}hi" for axis, length in zip("xyz", lengths, strict=True)]
    lines += ["", "Atoms # atomic", ""]
    wrapped = coord - lengths * np.floor(coord / lengths)
    for k, (kind, (x, y, z)) in enumerate(zip(atype, wrapped, strict=True), 1):
        lines.append(f"{k} {kind + 1} {x:.16g} {y:.16g} {z:.16g}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
