"""Tiny data systems and inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.data.write import write_system

BASE: dict[str, Any] = {
    "model": {
        "type_map": ["A", "B"],
        "descriptor": {
            "type": "se_e2_a", "rcut": 3.0, "rcut_smth": 0.5, "sel": [12, 12], "neuron": [3], "axis_neuron": 2, "seed": 1,
        },
        "fitting_net": {"neuron": [4], "seed": 2},
    },
    "learning_rate": {"start_lr": 0.01, "stop_lr": 1e-4, "decay_steps": 2},
    "training": {
        "training_data": {"systems": ["small", "large"], "batch_size": 2},
        "validation_data": {"systems": ["large"], "batch_size": 1}, "numb_steps": 8, "disp_freq": 4, "save_freq": 4,
        "seed": 5,
    },
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An input and its systems of 5 and 7 atoms, in a fresh folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DP_BACKEND", raising=False)
    for name, natoms in (("small", 5), ("large", 7)):
        rng = np.random.default_rng(natoms)
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:natoms] * 2.0
        coord = grid + rng.uniform(0.0, 0.8, (6, natoms, 3))
        labels = {"energy": rng.normal(-3.0 * natoms, 1.0, (6, 1)), "force": rng.normal(size=(6, natoms, 3))}
        write_system(tmp_path / name, coord, np.arange(natoms) % 2, np.eye(3) * 6.0, type_map=("A", "B"), labels=labels)
    return copy.deepcopy(BASE)


@pytest.fixture
def write_more() -> Callable[..., str]:
    """write_more(name, natoms, labels): another system below the current folder."""

    def write(name: str, natoms: int, *labels: str) -> str:
        rng = np.random.default_rng(natoms)
        grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)[:natoms] * 2.0
        given = {"energy": rng.normal(size=(4, 1)), "force": rng.normal(size=(4, natoms, 3)), "virial": np.ones((4, 9))}
        write_system(
            Path(name), grid + rng.uniform(0.0, 0.8, (4, natoms, 3)), np.arange(natoms) % 2, np.eye(3) * 8.0,
            type_map=("A", "B"), labels={key: given[key] for key in labels},
        )  # fmt: skip
        return name

    return write
