"""Fine-tuning and what goes with a run on two ranks: the chief reads, both begin with the same and write what one writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.data.write import write_system
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An input of two tasks in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DP_BACKEND", raising=False)
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:5] * 2.2
    for name in ("a", "b"):
        write_system(
            tmp_path / name, grid + rng.uniform(0, 0.8, (6, 5, 3)), np.arange(5) % 2, np.eye(3) * 6.6, type_map=["A", "B"],
            labels={"energy": rng.normal(size=(6, 1)), "force": rng.normal(size=(6, 5, 3))},
        )  # fmt: skip
    section = {
        "type": "dpa1", "rcut": 3.0, "rcut_smth": 0.5, "sel": 20, "neuron": [2, 4], "axis_neuron": 2, "tebd_dim": 2,
        "attn_layer": 0, "seed": 1,
    }  # fmt: skip
    task = {"type_map": "types", "descriptor": "shared", "fitting_net": {"neuron": [4, 4], "seed": 2}}
    where = {name: {"systems": [str(tmp_path / name)], "batch_size": 1} for name in ("a", "b")}
    return {
        "model": {"shared_dict": {"types": ["A", "B"], "shared": section}, "model_dict": {"a": task, "b": dict(task)}},
        "loss_dict": {"a": {}, "b": {}},
        "learning_rate": {"start_lr": 0.01, "stop_lr": 0.001},
        "training": {
            "data_dict": {n: {"training_data": own, "validation_data": own} for n, own in where.items()},
            "model_prob": {"a": 1.0, "b": 1.0}, "numb_steps": 4, "disp_freq": 2, "save_freq": 2, "seed": 5,
            "metrics_file": "m.jsonl",
        },
        "validating": {"full_validation": True, "validation_freq": 2, "full_val_start": 0},
    }  # fmt: skip


def test_two_ranks_begin_with_what_one_begins_with(pair: Any, data: dict[str, Any], tmp_path: Path) -> None:
    train(data, output=None).rename("pre.dp")
    tuned = json.loads(json.dumps(data))
    tuned["model"]["model_dict"] |= {"c": {**tuned["model"]["model_dict"].pop("b"), "finetune_head": "b"}}
    for section in (tuned["loss_dict"], tuned["training"]["data_dict"], tuned["training"]["model_prob"]):
        section["c"] = section.pop("b")
    tuned["model"]["shared_dict"]["shared"]["neuron"] = [3, 3]  # that of the pre-trained model is taken
    options = {"finetune": str(tmp_path / "pre.dp"), "use_pretrain_script": True}
    one = Checkpoint.load(train(tuned, **options, stop_at=0))
    (tmp_path / "two").mkdir()
    for found in pair("runs:run", str(tmp_path / "two"), {**tuned, "training": {**tuned["training"], "zero_stage": 3}},
                      stop_at=0, **options):  # fmt: skip
        assert found["end"] == ("", "model.ckpt-0.dp")
    two = Checkpoint.load(tmp_path / "two" / "model.ckpt-0.dp")
    assert one.state.keys() == two.state.keys()
    for name, value in one.state.items():
        np.testing.assert_array_equal(two.state[name], value, err_msg=name)
    first, _ = pair("runs:run", str(tmp_path / "two"), tuned, restart="model.ckpt-0.dp")
    assert first["end"][0] == "InputError"  # of another model section: that of the run is in out.json
    used = json.loads((tmp_path / "two" / "out.json").read_text())
    for found in pair("runs:run", str(tmp_path / "two"), used, restart="model.ckpt-0.dp"):
        assert found["end"] == ("", "model.ckpt-4.dp")
    lines = [json.loads(line) for line in (tmp_path / "two" / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 4, 4]  # the chief alone writes
    assert len((tmp_path / "two" / "val.log").read_text().splitlines()) >= 3


def test_what_is_wrong_is_said_by_all(pair: Any, data: dict[str, Any], tmp_path: Path) -> None:
    first, second = pair("runs:run", str(tmp_path), data, finetune="none.dp")
    assert first["end"][0] == "ModelFileError" and "there is no such file" in first["end"][1]
    assert second["end"][0] == "RankError" and "there is no such file" in second["end"][1]


def test_r_m_13_the_chief_alone_has_observers(pair: Any, data: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    own = {
        "tensorboard": True,
        "enable_profiler": True,
        "tensorboard_log_dir": "tb",
        "profiling": True,
        "numb_steps": 20,
    }
    for found in pair("runs:run", str(tmp_path), {**data, "training": {**data["training"], **own}}):
        assert found["end"] == ("", "model.ckpt-20.dp")
    assert len(list((tmp_path / "tb").glob("events*"))) == 1
    assert len(list((tmp_path / "tb").glob("*.pt.trace.json"))) == 1
    assert json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
