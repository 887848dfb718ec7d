"""Runs of several tasks, averaged weights, accumulated gradients: their files, and restarts that are exact."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import dpmodel
from dpmodel.errors import DataError, InputError
from dpmodel.files.model_file import read_model, read_models
from dpmodel.training import run
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

N, STEPS = 7, 14

EMA = {"training__enable_ema": True, "training__ema_decay": 0.9}


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Nested data, arrays bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), where
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path, *names: str) -> None:
    for name in names or (f"model.ckpt-{STEPS}.dp",):
        one, two = Checkpoint.load(a / name), Checkpoint.load(b / name)
        for part in ("step", "state", "optimizer", "schedule", "sampler", "random", "ema", "validation", "input"):
            assert_same(getattr(one, part), getattr(two, part), f"{name} {part}")
    assert (a / "lcurve.out").read_text() == (b / "lcurve.out").read_text()


def in_folder(folder: Path, action: Callable[[], Any]) -> Any:
    folder.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return action()
    finally:
        os.chdir(before)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "disp_avg": {"training__disp_avg": True, "training__disp_freq": 5},
    "ema": {**EMA, "training__acc_freq": 2},
    "epochs": {"training__numb_steps": None, "training__num_epoch_dict": {"water": 1.0, "ice": 4.0}},
    "seeds": {"training__seed": [3, 4], "training__model_prob": {"water": 1, "ice": 3}},
    "cases": {
        "model__shared_dict__net": {"neuron": [4, 4], "seed": 2, "dim_case_embd": 2},
        "model__model_dict__water__fitting_net": "net", "model__model_dict__ice__fitting_net": "net",
    },
    "full_validation": {
        **EMA, "validating": {
            "full_validation": True, "ema_full_validation": True, "validation_freq": 3, "full_val_start": 0,
            "max_best_ckpt": 2,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_restarts_of_several_tasks_are_exact(workshop: Any, name: str) -> None:
    data = workshop.tasks(**CASES[name])
    final = in_folder(workshop.folder / "whole", lambda: train(data))
    assert in_folder(workshop.folder / "parts", lambda: train(data, stop_at=N)) == Path(f"model.ckpt-{N}.dp")
    assert in_folder(workshop.folder / "parts", lambda: train(data, restart="model.ckpt")) == final
    names = [final.name, *(["model_ema.ckpt-14.dp"] if "ema" in str(CASES[name]) else [])]
    assert_same_run(workshop.folder / "whole", workshop.folder / "parts", *names)
    for log in ("val.log", "val_ema.log"):
        if (workshop.folder / "whole" / log).exists():
            assert (workshop.folder / "whole" / log).read_text() == (workshop.folder / "parts" / log).read_text()


def test_weights_of_several_tasks_for_other_types(workshop: Any) -> None:
    """Types in another order: the models are the same, and so are the shared parts of both."""
    data = workshop.tasks()
    old = train(data, stop_at=2, output=None).resolve().rename("old.dp")
    data["model"]["shared_dict"]["types"] = ["B", "A"]
    begun = train(data, init_model=old, stop_at=0, skip_neighbor_stat=True, output=None)
    tasks = read_models(begun).model.tasks  # type: ignore[union-attr]  # several
    assert tasks[0].type_map == ("B", "A")
    one, other = (task.descriptor.state() for task in tasks)  # files hold what is shared once per task
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
    coord, cell = np.array([[[0.1, 0.2, 0.3], [1.9, 0.1, 0.4], [0.2, 2.1, 0.3]]]), np.eye(3)[None] * 6.0
    atype = np.array([0, 1, 1])
    for name in ("water", "ice"):
        one, other = (
            dpmodel.load(path, "pt", head=name).evaluate(coord, types, cell)
            for path, types in ((old, atype), (begun, 1 - atype))
        )
        np.testing.assert_allclose(other["energy"], one["energy"], rtol=1e-12)
        np.testing.assert_allclose(other["force"], one["force"], rtol=1e-10, atol=1e-12)


def test_what_a_run_of_several_tasks_writes(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = workshop.tasks(training__model_prob={"water": 1, "ice": 3}, **EMA)
    with caplog.at_level(logging.INFO):
        final = train(data)
    curve = read_lcurve("lcurve.out")
    names = [
        f"{metric}_{kind}_{task}"
        for task in ("water", "ice")
        for metric in ("rmse", "rmse_e", "rmse_f")
        for kind in ("val", "trn")
    ]
    assert list(curve) == ["step", *names, "lr"]
    assert all(np.isfinite(curve[name]).all() for name in names)
    assert "water_trn: rmse" in caplog.text and "ice_val: rmse" in caplog.text
    assert "probability 0.75, 10.5 steps" in caplog.text
    checkpoint = Checkpoint.load(final)
    drawn = {name: each["training"]["drawn"] for name, each in checkpoint.sampler["tasks"].items()}
    assert list(drawn) == ["water", "ice"] and sum(drawn.values()) == STEPS  # batches that were looked at count not
    assert drawn["ice"] > drawn["water"]
    assert (
        checkpoint.sampler["tasks"]["ice"]["training"]["seed"]
        != checkpoint.sampler["tasks"]["water"]["training"]["seed"]
    )
    whole = read_models(final)
    assert whole.model.names == ("water", "ice")
    one = read_model(final, "ice")
    assert one.definition["info"]["observed_type"] == ["B", "A"]
    # The shared descriptor was trained by both, and is one.
    state = checkpoint.state
    assert np.array_equal(
        state["tasks.0.descriptor.networks.0.layers.0.w"], state["tasks.1.descriptor.networks.0.layers.0.w"]
    )


def test_rows_change_nothing(workshop: Any) -> None:
    """What is measured for a row is not taken from what is trained."""
    data = workshop.tasks()
    for name, freq in (("often", 1), ("seldom", 100)):
        data["training"]["disp_freq"] = freq
        in_folder(workshop.folder / name, lambda: train(data))
    often, seldom = (Checkpoint.load(workshop.folder / name / "model.ckpt-14.dp") for name in ("often", "seldom"))
    assert_same(often.state, seldom.state)
    for task in ("water", "ice"):
        assert_same(often.sampler["tasks"][task]["training"], seldom.sampler["tasks"][task]["training"])


def test_accumulated_batches_are_one_larger_batch(workshop: Any) -> None:
    path = workshop.system(nframes=8)
    ends = []
    for size, count in ((2, 1), (1, 2)):
        changes = {"training__acc_freq": count, "training__numb_steps": 4, "training__training_data__batch_size": size}
        folder = workshop.folder / f"{size}"
        ends.append(Checkpoint.load(folder / in_folder(folder, lambda c=changes: train(workshop.input(path, **c)))))
    for name, value in ends[0].state.items():
        np.testing.assert_allclose(ends[1].state[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
    assert [each.sampler["tasks"][""]["training"]["drawn"] for each in ends] == [4, 8]


def test_averaged_weights_have_files_of_their_own(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    """R-S2-12, -14, -15."""
    data = workshop.input(training__max_ckpt_keep=3, training__ema_ckpt_keep=2, **EMA)
    with caplog.at_level(logging.INFO):
        final = train(data)
    assert caplog.text.count("Saved model to model_ema.ckpt-14.dp") == 1
    assert sorted(path.name for path in Path().glob("model*")) == [
        "model.ckpt-12.dp", "model.ckpt-14.dp", "model.ckpt-9.dp", "model.ckpt.dp", "model_ema.ckpt-12.dp",
        "model_ema.ckpt-14.dp", "model_ema.ckpt.dp",
    ]  # fmt: skip
    assert Path("checkpoint").read_text() == f"{final}\n"
    regular, average = Checkpoint.load(final), Checkpoint.load("model_ema.ckpt.dp")
    assert average.optimizer == {} and average.ema == {"averaged": True, "decay": 0.9}
    for name, value in regular.ema["state"].items():
        assert np.array_equal(average.state[name], value) and not np.array_equal(regular.state[name], value), name
    with pytest.raises(InputError, match="averaged weights alone"):
        train(data, restart="model_ema.ckpt")
    train(data, init_model="model_ema.ckpt.dp", stop_at=0)
    assert_same(Checkpoint.load("model.ckpt-0.dp").state, average.state)


def test_r_s2_05_the_configured_decay_goes_on(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = workshop.input(**EMA)
    train(data, stop_at=N)
    shadow = Checkpoint.load(f"model.ckpt-{N}.dp").ema["state"]
    data["training"]["ema_decay"] = 0.5
    train(data, restart="model.ckpt", stop_at=N)
    assert "training.ema_decay is 0.5 (was 0.9)" in caplog.text
    train(data, restart="model.ckpt", stop_at=N + 1)
    later = Checkpoint.load(f"model.ckpt-{N + 1}.dp")
    assert later.ema["decay"] == 0.5
    for name, value in shadow.items():
        np.testing.assert_allclose(later.ema["state"][name], (value + later.state[name]) / 2, rtol=1e-12)
    data["training"]["enable_ema"] = False
    train(data, restart="model.ckpt", stop_at=N + 2)
    assert "averaged weights of the checkpoint end here" in caplog.text
    assert Checkpoint.load("model.ckpt.dp").ema == {}
    data["training"]["enable_ema"] = True
    train(data, restart="model.ckpt", stop_at=N + 2)
    assert "the average begins with its weights" in caplog.text


@pytest.mark.parametrize("several", [False, True])
def test_r_s2_10_bias_changed_after_training(workshop: Any, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (workshop.tasks if several else workshop.input)(**EMA)
    plain = in_folder(workshop.folder / "plain", lambda: Checkpoint.load(train(data)))
    data["training"]["change_bias_after_training"] = True
    stopped = train(data, stop_at=STEPS - 1)
    assert Checkpoint.load(stopped).schedule["bias_changed"] is False  # it goes on
    final = Checkpoint.load(train(data, restart="model.ckpt"))
    average = Checkpoint.load("model_ema.ckpt.dp")
    assert final.schedule["bias_changed"] is True
    for name, value in plain.state.items():
        same = np.array_equal(final.state[name], value)
        assert same == (not name.endswith("out_bias")), name
        if name.endswith("out_bias"):
            assert np.array_equal(average.state[name], final.state[name])
    assert_same(final.ema["state"], plain.ema["state"])
    # Once: a restart of the finished run leaves it.
    train(data, restart="model.ckpt")
    assert_same(Checkpoint.load("model.ckpt.dp").state, final.state)
    # A longer run wants it again at its own end, also where that was interrupted.
    data["training"]["numb_steps"] = STEPS + 2
    with monkeypatch.context() as patch:
        patch.setattr(run, "change_biases", mock.Mock(side_effect=DataError("a broken file")))
        with pytest.raises(DataError, match="a broken file"):
            train(data, restart="model.ckpt")
    before = Checkpoint.load("model.ckpt.dp")
    assert (before.step, before.schedule["bias_changed"]) == (STEPS + 2, False)
    train(data, restart="model.ckpt")
    after = Checkpoint.load("model.ckpt.dp")
    assert (after.step, after.schedule["bias_changed"]) == (STEPS + 2, True)
    assert any(not np.array_equal(after.state[name], value) for name, value in before.state.items())


def test_early_stopping_ends_a_run_for_good(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = workshop.input(training__validation_data={"systems": [workshop.system("checks", seed=3)]})
    data["validating"] = {"full_validation": True, "validation_freq": 1, "full_val_start": 0, "early_stop_patience": 2}
    data["learning_rate"] = {"start_lr": 0.3, "stop_lr": 0.2, "decay_steps": 20}  # it jumps about
    data["validating"]["validation_metric"] = "F:RMSE"
    data["training"]["numb_steps"] = 40
    with caplog.at_level(logging.INFO):
        final = train(data)
        step = Checkpoint.load(final).step
        assert 3 <= step < 40 and "validation has not become better" in caplog.text
        assert train(data, restart="model.ckpt") == final


def test_observers_see_rows_and_steps(workshop: Any) -> None:
    train(workshop.tasks(training__metrics_file="metrics.jsonl", training__tensorboard=False))
    assert len(Path("metrics.jsonl").read_text().splitlines()) >= len(read_lcurve("lcurve.out")["step"])


def test_frozen_parameters_stay(workshop: Any) -> None:
    data = workshop.tasks(training__freeze_parameters=["ice.descriptor.*", "water.fitting.networks.0.layers.0.w"])
    start = Checkpoint.load(train(data, stop_at=0)).state
    end = Checkpoint.load(train(data)).state
    for name, value in start.items():
        if ".descriptor." in name or name == "tasks.0.fitting.networks.0.layers.0.w":
            assert np.array_equal(end[name], value), name
    assert not np.array_equal(
        end["tasks.1.fitting.networks.0.layers.0.w"], start["tasks.1.fitting.networks.0.layers.0.w"]
    )
    data["training"]["freeze_parameters"] = ["ice.nothing.*"]
    with pytest.raises(
        InputError, match=r"freeze_parameters: 'ice.nothing.\*' matches no parameter; did you mean one of tasks"
    ):
        train(data)
