"""Runs that an older version began go on here, to the numbers where it ended (see tests/data/old)."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train

OLD = Path(__file__).parents[1] / "data" / "old"


@pytest.mark.usefixtures("one_thread")
def test_version_1_before_there_were_tasks(workshop: Any) -> None:
    workshop.system("data")
    workshop.system("checks", natoms=6, seed=1)
    changes = {"training__disp_avg": True, "training__numb_steps": 8}
    changes["training__validation_data"] = {"systems": ["checks"], "batch_size": 1, "numb_btch": 2}
    data = workshop.input("data", **changes)
    Path("model.ckpt-5.dp").write_bytes(gzip.decompress((OLD / "checkpoint_1.dp.gz").read_bytes()))
    rows = [
        "# step rmse_val rmse_trn rmse_e_val rmse_e_trn rmse_f_val rmse_f_trn lr",
        "4 39 35.8 0.195 0.25 2.19 1.67 0.0032",
    ]
    Path("lcurve.out").write_text("\n".join([*rows, ""]))
    old = Checkpoint.load("model.ckpt-5.dp")
    assert old.sampler["tasks"][""]["training"]["drawn"] == 5
    assert old.schedule["average"][""]["rmse_e"][1] == 1.0
    final = Checkpoint.load(train(data, restart="model.ckpt", backend="pt"))
    assert final.step == 8
    with np.load(OLD / "checkpoint_1_end.npz") as end:
        for name, value in end.items():
            own = final.optimizer["exp_avg"][name[10:]] if name.startswith("optimizer/") else final.state[name]
            np.testing.assert_allclose(own, value, rtol=1e-11, atol=1e-12, err_msg=name)
    curve = read_lcurve("lcurve.out")
    assert list(curve["step"]) == [4, 8]
    assert (curve["rmse_trn"][1], curve["rmse_e_val"][1]) == (12.2, 0.253)
