"""Tiny data systems and inputs for runs that take fractions of a second."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.data.write import write_system

BASE: dict[str, Any] = {
    "model": {
        "type_map": ["A", "B"],
        "descriptor": {
            "type": "se_e2_a", "rcut": 3.0, "rcut_smth": 0.5, "sel": [12, 12], "neuron": [2, 4], "axis_neuron": 2,
            "seed": 1,
        },
        "fitting_net": {"neuron": [4, 4], "seed": 2},
    },
    "learning_rate": {"start_lr": 0.01, "stop_lr": 1e-4, "decay_steps": 2},
    "training": {
        "training_data": {"systems": [], "batch_size": 2}, "numb_steps": 14, "disp_freq": 4, "save_freq": 3, "seed": 5,
    },
}  # fmt: skip


class Workshop:
    """A working directory with data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def system(
        self, name: str = "data", *, natoms: int = 5, nframes: int = 6, seed: int = 0,
        labels: Mapping[str, np.ndarray] | None = None, leave_out: tuple[str, ...] = (), names: tuple[str, ...] = ("A", "B"),
    ) -> str:  # fmt: skip
        """A periodic system with energies and forces (and `labels`); returns its absolute path."""
        rng = np.random.default_rng(seed)
        # A jittered lattice: no two atoms are close.
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:natoms] * 2.0
        coord = grid + rng.uniform(0.0, 0.8, (nframes, natoms, 3))
        given: dict[str, Any] = {
            "energy": rng.normal(-3.0 * natoms, 1.0, (nframes, 1)), "force": rng.normal(size=(nframes, natoms, 3)),
            **(labels or {}),
        }  # fmt: skip
        for key in leave_out:
            del given[key]
        atype = np.arange(natoms) % 2
        return str(
            write_system(self.folder / name, coord, atype, np.eye(3) * 6.0, type_map=names, labels=given).absolute()
        )

    def input(self, *systems: str, **changes: Any) -> dict[str, Any]:
        """An input; changes by path with __ for dots: model__descriptor__sel="auto"."""
        data = copy.deepcopy(BASE)
        data["training"]["training_data"]["systems"] = list(systems) or [self.system()]
        return changed(data, changes)

    def tasks(self, **changes: Any) -> dict[str, Any]:
        """An input of two tasks, "water" (two systems) and "ice", that share types and descriptor; both have validation data."""
        data = self.input(self.system("unused"))
        section, training = data.pop("model"), data["training"]
        del training["training_data"]
        data["model"] = {
            "shared_dict": {"types": section["type_map"], "seen": section["descriptor"]},
            "model_dict": {
                name: {"type_map": "types", "descriptor": "seen", "fitting_net": {"neuron": [4, 4], "seed": k}}
                for k, name in enumerate(("water", "ice"))
            },
        }
        data["loss_dict"] = {"water": {}, "ice": {"start_pref_f": 100, "limit_pref_f": 2}}
        training["data_dict"] = {
            name: {
                "training_data": {"systems": systems, "batch_size": 2},
                "validation_data": {"systems": systems[-1:], "batch_size": 1, "numb_btch": 2},
            }
            for name, systems in {
                "water": [self.system("w0"), self.system("w1", natoms=6, seed=1)],
                "ice": [self.system("i0", nframes=4, natoms=4, seed=2)],
            }.items()
        }
        return changed(data, changes)


def changed(data: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The data itself, with changes by path with __ for dots."""
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return data


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A fresh working directory, entered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DP_BACKEND", raising=False)
    return Workshop(tmp_path)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
