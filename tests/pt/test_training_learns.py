"""A small model learns the bundled water."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train

STEPS = 60


@pytest.mark.usefixtures("one_thread")
def test_forces_of_water(workshop: Any, water_data: Path) -> None:
    data = {
        "model": {
            "type_map": ["O", "H"],
            "descriptor": {
                "type": "se_e2_a", "rcut": 4.0, "rcut_smth": 0.5, "sel": "auto", "neuron": [16, 32], "axis_neuron": 8,
                "type_one_side": True, "precision": "float32", "seed": 1,
            },
            "fitting_net": {"neuron": [64, 64], "precision": "float32", "seed": 1},
        },
        "learning_rate": {"start_lr": 0.005, "stop_lr": 0.002, "decay_steps": 5},
        "loss": {},
        "training": {
            "training_data": {"systems": [str(water_data / f"data_{k}") for k in range(3)], "batch_size": 1},
            "validation_data": {"systems": [str(water_data / "data_3")], "batch_size": 1, "numb_btch": 4},
            "numb_steps": STEPS, "disp_freq": STEPS // 2, "save_freq": STEPS, "seed": 1,
        },
    }  # fmt: skip
    train(data)
    curve = read_lcurve("lcurve.out")
    spread = np.std(np.load(water_data / "data_3" / "set.000" / "force.npy"))
    assert curve["rmse_f_val"][0] > 0.9 * spread
    assert curve["rmse_f_val"][-1] < 0.85 * spread
    assert curve["rmse_f_val"][-1] < 0.8 * curve["rmse_f_val"][0]
    assert np.all(np.diff(curve["lr"]) < 0)
