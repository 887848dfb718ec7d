"""Input files of DeePMD-kit v3 for every kind of model: the examples and one of each descriptor, made short."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from consistent.cases import CASES

__all__ = ["STEPS", "input_files", "write_input"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 3


def input_files() -> dict[str, dict[str, Any]]:
    """By name the inputs, with absolute paths: the examples, then every descriptor on the water of the examples."""
    found = {}
    for path in sorted(EXAMPLES.glob("*/input*.json")):
        section = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.name + path.stem.removeprefix("input")] = _absolute(section, path.parent)
    water = found["water"]
    for name, case in CASES.items():
        model = json.loads(json.dumps(case.section))  # mappings become dictionaries
        found[f"{name}_tiny"] = {**copy.deepcopy(water), "model": model}
    for section in found.values():
        section["learning_rate"]["decay_steps"] = 1
        section["training"].update(numb_steps=STEPS, disp_freq=STEPS, save_freq=STEPS)
        section["model"]["data_stat_nbatch"] = 1
    return found


def _absolute(value: Any, folder: Path) -> Any:
    """The same with the paths of data and tables made absolute."""
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    exists = isinstance(value, str) and ("/" in value or "." in value) and (folder / value).exists()
    return str((folder / value).resolve()) if exists else value


def write_input(section: dict[str, Any], folder: Path) -> Path:
    """The file in a new folder."""
    folder.mkdir()
    path = folder / "input.json"
    path.write_text(json.dumps(section, indent=2) + "\n", encoding="utf-8")
    return path
