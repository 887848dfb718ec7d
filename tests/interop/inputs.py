"""Input files of DeePMD-kit v3 for every kind of model: the examples and one of each descriptor, made short."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from consistent.cases import CASES

__all__ = ["STEPS", "input_files", "write_input"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS, FRAMES = 3, 8


def input_files(scratch: Path) -> dict[str, dict[str, Any]]:
    """By name the inputs: the examples, then every descriptor on the water of the examples.

    Paths are absolute; of every folder of data the inputs name a copy of a few frames.
    """
    found = {}
    for path in sorted(EXAMPLES.glob("*/input*.json")):
        section = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.name + path.stem.removeprefix("input")] = _absolute(section, path.parent, scratch)
    water = found["water"]
    for name, case in CASES.items():
        model = json.loads(json.dumps(case.section))  # mappings become dictionaries
        found[f"{name}_tiny"] = {**copy.deepcopy(water), "model": model}
    found |= _mixed_parts(water)
    for section in found.values():
        section["learning_rate"]["decay_steps"] = 1
        section["training"].update(numb_steps=STEPS, disp_freq=STEPS, save_freq=STEPS)
        section["model"]["data_stat_nbatch"] = 1
    return found


def _mixed_parts(water: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Linear and ZBL models of parts that DeePMD-kit can combine: descriptors of mixed types alone, `sel` in numbers."""
    dpa1, table = json.loads(json.dumps(CASES["dpa1"].section)), str(EXAMPLES / "zbl" / "OH.txt")
    parts = [dpa1, {"type": "pairtab", "tab_file": table, "rcut": 1.0, "sel": 12}]
    linear = {"type": "linear_ener", "type_map": dpa1["type_map"], "models": parts, "weights": "sum"}
    zbl = {**dpa1, "use_srtab": table, "smin_alpha": 0.1, "sw_rmin": 0.5, "sw_rmax": 0.8}
    models = {"linear_tiny": linear, "zbl_tiny": zbl}
    return {name: {**copy.deepcopy(water), "model": copy.deepcopy(model)} for name, model in models.items()}


def _absolute(value: Any, folder: Path, scratch: Path) -> Any:
    """The same with the paths of data and tables made absolute."""
    if isinstance(value, dict):
        return {key: _absolute(item, folder, scratch) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder, scratch) for item in value]
    if not isinstance(value, str) or not {".", "/"} & set(value) or not (folder / value).exists():
        return value
    path = (folder / value).resolve()
    return str(_short(path, scratch) if (path / "type.raw").exists() else path)


def _short(system: Path, scratch: Path) -> Path:
    """A copy of the first frames of a system."""
    target = scratch / "data" / system.relative_to(EXAMPLES)
    for source in sorted(system.rglob("*")):
        copied = target / source.relative_to(system)
        if source.is_dir() or copied.exists():
            continue
        copied.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".npy":
            np.save(copied, np.load(source)[:FRAMES])
        else:
            copied.write_bytes(source.read_bytes())
    return target


def write_input(section: dict[str, Any], folder: Path) -> Path:
    """The file in a new folder."""
    folder.mkdir()
    path = folder / "input.json"
    path.write_text(json.dumps(section, indent=2) + "\n", encoding="utf-8")
    return path
