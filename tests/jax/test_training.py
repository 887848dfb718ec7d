"""Runs on JAX: the same as on PyTorch, exact restarts, and restarts of one backend's runs on the other."""

from __future__ import annotations

import builtins
import copy
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.backend import get_trainer
from dpmodel.backends.jax.training import JaxStepper
from dpmodel.cli import main
from dpmodel.errors import BackendError, InputError
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train
from dpmodel.training.stepper import NonFiniteError, StepOptions

STEPS = 8


def inside(folder: str, action: Callable[[], Any]) -> Any:
    Path(folder).mkdir(exist_ok=True)
    for name in ("small", "large"):
        if not Path(folder, name).exists():
            Path(folder, name).symlink_to(Path(name).absolute())
    before = Path.cwd()
    os.chdir(folder)
    try:
        return action()
    finally:
        os.chdir(before)


def assert_close(a: Checkpoint, b: Checkpoint, tolerance: float) -> None:
    for one, two in (
        (a.state, b.state),
        *((a.optimizer[k], b.optimizer[k]) for k in ("exp_avg", "exp_avg_sq", "step")),
    ):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert value.dtype == two[name].dtype and value.shape == two[name].shape, name
            np.testing.assert_allclose(value, two[name], rtol=0, atol=tolerance, err_msg=name)


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert_close(a, b, 0.0)
    assert a.sampler == b.sampler
    assert a.schedule == b.schedule
    padding, other = a.optimizer["padding"], b.optimizer["padding"]
    assert padding.keys() == other.keys() and all(np.array_equal(padding[key], other[key]) for key in padding)


def test_the_run_is_that_of_torch(data: dict[str, Any]) -> None:
    Path("input.json").write_text(json.dumps(data))
    assert inside("jax", lambda: main(["train", "../input.json", "--backend", "jax"])) == 0
    assert inside("pt", lambda: main(["train", "../input.json", "--backend", "pt"])) == 0
    one, two = (Checkpoint.load(f"{name}/model.ckpt-{STEPS}.dp") for name in ("jax", "pt"))
    assert_close(one, two, 1e-10)
    assert one.sampler == two.sampler and one.input == two.input
    assert {"jax", "optax"} <= one.versions.keys()
    ours, theirs = (read_lcurve(f"{name}/lcurve.out") for name in ("jax", "pt"))
    assert ours.keys() == theirs.keys() and "rmse_val" in ours
    for name, column in ours.items():
        np.testing.assert_allclose(column, theirs[name], rtol=1e-6, err_msg=name)


OPTIONS: dict[str, dict[str, Any]] = {
    "validation": {},
    "adamw-clip": {
        "optimizer": {"type": "AdamW", "weight_decay": 0.1},
        "training": {"gradient_max_norm": 0.01, "disp_avg": True},
    },
    "float32-frozen": {
        "model": {
            "descriptor": {"precision": "float32"},
            "fitting_net": {"trainable": [False, True]},
        },
        "optimizer": {"type": "Adam", "weight_decay": 0.1, "adam_beta1": 0.7},
    },
}


def merge(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        data[key] = merge(data.get(key, {}), value) if isinstance(value, dict) else value
    return data


@pytest.mark.parametrize("name", OPTIONS)
def test_an_exact_restart(data: dict[str, Any], name: str) -> None:
    data = merge(data, OPTIONS[name])
    whole = inside("whole", lambda: Checkpoint.load(train(data, backend="jax")))
    inside("parts", lambda: train(data, backend="jax", stop_at=3))
    parts = inside("parts", lambda: Checkpoint.load(train(data, backend="jax", restart="model.ckpt")))
    assert_same(whole, parts)
    assert Path("whole/lcurve.out").read_text() == Path("parts/lcurve.out").read_text()


@pytest.mark.parametrize(("first", "second"), [("jax", "pt"), ("pt", "jax")])
def test_a_restart_on_another_backend(data: dict[str, Any], first: str, second: str) -> None:
    whole = inside("whole", lambda: Checkpoint.load(train(data, backend="pt")))
    path = inside("parts", lambda: train(data, backend=first, stop_at=3).absolute())
    inside("parts", lambda: train(data, backend=second, restart=path, stop_at=3, output=None))
    # Nothing but what the other backend adds is lost or changed by loading and saving.
    stepper_of = get_trainer(second).stepper
    before = Checkpoint.load(path)
    model, loss, optimizer = made(data, path)
    stepper = stepper_of(model, loss, optimizer, device="cpu", options=StepOptions())
    stepper.load_optimizer_state(before.optimizer)
    after = stepper.optimizer_state()
    for slot in ("exp_avg", "exp_avg_sq", "step"):
        assert after[slot].keys() == before.optimizer[slot].keys()
        for key, value in after[slot].items():
            assert value.dtype == before.optimizer[slot][key].dtype
            assert np.array_equal(value, before.optimizer[slot][key])
    state = stepper.model().state()
    assert all(np.array_equal(value, before.state[key]) for key, value in state.items())
    ends = inside("parts", lambda: Checkpoint.load(train(data, backend=second, restart="model.ckpt")))
    assert_close(whole, ends, 1e-10)
    rows, expected = read_lcurve("parts/lcurve.out"), read_lcurve("whole/lcurve.out")
    for column in expected:
        np.testing.assert_allclose(rows[column], expected[column], rtol=1e-6, err_msg=column)


def made(data: dict[str, Any], path: Path) -> tuple[Any, Any, Any]:
    from dpmodel.input import load_input
    from dpmodel.losses import EnerLossConfig, build_loss

    model = dpmodel.load(path, backend="numpy").model
    return model, {"": build_loss(EnerLossConfig(), 0.01, model.output())}, load_input(data).optimizer


def test_systems_of_many_sizes_compile_few_times(data: dict[str, Any], write_more: Callable[..., str]) -> None:
    """Other numbers of atoms, neighbours, frames, and labels that are missing."""
    sizes = (5, 6, 9, 13, 18, 27, 40)
    systems = [write_more(f"s{n}", n, "energy", "force") for n in sizes] + [write_more("e", 20, "energy", "virial")]
    training = data["training"]
    training["training_data"] = {"systems": systems, "batch_size": "auto:24", "auto_prob": "prob_uniform"}
    del training["validation_data"]
    training |= {"numb_steps": 40, "save_freq": 100}
    data["loss"] = {"start_pref_v": 0.1, "limit_pref_v": 0.1}
    data["model"]["fitting_net"]["neuron"] = [5]  # a program of its own
    steppers = []
    plain = JaxStepper.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        steppers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaxStepper, "__init__", noted)
        train(data, backend="jax")
    (stepper,) = steppers
    shapes = {tuple(sizes.items()) for sizes in stepper._buckets.known}
    assert 1 < stepper.compilations() == len(shapes) <= 4


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_a_gradient_that_is_no_number(data: dict[str, Any]) -> None:
    training = data["training"]
    training["training_data"]["systems"] = ["large"]
    force = np.load("large/set.000/force.npy")
    force[3, 5] = 1e307  # the loss, and what is derived from it, overflows
    np.save("large/set.000/force.npy", force)
    training["validation_data"]["systems"] = ["small"]
    training |= {"save_freq": 1, "numb_steps": 3}
    with pytest.raises(
        NonFiniteError, match=r"step \d: the gradient is not finite \(loss inf\) in descriptor.* and \d+ more"
    ):
        train(data, backend="jax")
    for path in Path().glob("model.ckpt-*.dp"):
        assert all(np.isfinite(value).all() for value in Checkpoint.load(path).state.values())


def test_metrics_of_labels_that_are_missing(data: dict[str, Any]) -> None:
    data["training"] |= {"training_data": {"systems": "small"}, "numb_steps": 1}
    data["loss"] = {"start_pref_v": 1.0, "limit_pref_v": 1.0}
    with pytest.raises(dpmodel.errors.DataError, match="virial"):
        train(data, backend="jax")


def test_devices(data: dict[str, Any]) -> None:
    for device in ("nonsense", "cpu:7", "cpu:x"):
        with pytest.raises(BackendError, match=f"device '{device}' is not available to JAX"):
            train(data, backend="jax", device=device)


def test_without_optax(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__
    for name in [name for name in sys.modules if name.startswith(("optax", "dpmodel.backends.jax."))]:
        monkeypatch.delitem(sys.modules, name)

    def refuse(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "optax":
            raise ModuleNotFoundError("No module named 'optax'", name="optax")
        return plain(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BackendError, match=r'optax, which is not installed: pip install "dpmodel\[jax\]"'):
        train(data, backend="jax")


def test_optimizer_state_that_does_not_fit(data: dict[str, Any]) -> None:
    path = train(data, backend="pt", stop_at=1)
    state, trainer = Checkpoint.load(path).optimizer, get_trainer("jax")
    stepper = trainer.stepper(*made(data, path), device="cpu", options=StepOptions())
    assert not any(stepper.optimizer_state().values())
    with pytest.raises(InputError, match=r"missing .*exp_avg_sq"):
        stepper.load_optimizer_state({k: v for k, v in state.items() if k != "exp_avg_sq"})
    with pytest.raises(InputError, match=r"not trained here .*nowhere"):
        stepper.load_optimizer_state({**state, "step": {**state["step"], "nowhere": np.asarray(1.0)}})
    name = next(iter(state["exp_avg"]))
    with pytest.raises(InputError, match="expected shape"):
        stepper.load_optimizer_state({**state, "exp_avg": {**state["exp_avg"], name: np.zeros((1, 9))}})


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_save_and_leave(data: dict[str, Any], name: str) -> None:
    data["training"] |= {"numb_steps": 10**6, "disp_freq": 1, "save_freq": 10**6}
    Path("input.json").write_text(json.dumps(data))
    command = [sys.executable, "-m", "dpmodel", "train", "input.json", "--backend", "jax"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        end = time.monotonic() + 240
        while not Path("lcurve.out").exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(getattr(signal, name))
        text = process.communicate(timeout=240)[1]
    assert process.returncode == 0, text
    assert f"{name} came" in text
    step = Checkpoint.load("model.ckpt.dp").step
    data["training"]["numb_steps"] = step
    assert train(data, backend="jax", restart="model.ckpt") == Path(f"model.ckpt-{step}.dp")


def test_compiled_training_is_what_jax_does(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    plain = copy.deepcopy(data)
    data["training"]["enable_compile"] = True
    with caplog.at_level(logging.WARNING):
        one = inside("a", lambda: Checkpoint.load(train(data, backend="jax", stop_at=2)))
    two = inside("b", lambda: Checkpoint.load(train(plain, backend="jax", stop_at=2)))
    assert_same(one, two)
