"""`dpmodel train --backend pt_expt`: eager, compiled, restarted, and what is refused."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._functorch.aot_autograd import aot_compile_joint_with_descriptors

from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.cli import main
from dpmodel.data.write import write_system
from dpmodel.errors import BackendError, InputError
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train

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
        "seed": 5, "enable_compile": True,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    """Run the traced graphs as they are."""
    patch = pytest.MonkeyPatch()
    patch.setattr(compilation, "compile_joint", aot_compile_joint_with_descriptors)
    yield
    patch.undo()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two systems in a fresh working directory, entered; returns an input for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DP_BACKEND", raising=False)
    rng = np.random.default_rng(0)
    for name, natoms in (("small", 3), ("large", 6)):
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:natoms] * 2.0
        labels = {"energy": rng.normal(-3.0 * natoms, 1.0, (6, 1)), "force": rng.normal(size=(6, natoms, 3))}
        coord = grid + rng.uniform(0.0, 0.8, (6, natoms, 3))
        write_system(name, coord, np.arange(natoms) % 2, np.eye(3) * 6.0, type_map=("A", "B"), labels=labels)
    return copy.deepcopy(BASE)


def changed(data: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {**data, "training": {**data["training"], **training}}


def in_folder(name: str, data: dict[str, Any], **options: Any) -> Checkpoint:
    """Train with files of its own."""
    Path(name).mkdir(exist_ok=True)
    places = {"save_ckpt": f"{name}/model.ckpt", "disp_file": f"{name}/lcurve.out"}
    return Checkpoint.load(train(changed(data, **places), output=None, **options))


def test_compiled_training(data: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Equal to the eager run, restarted exactly, with one compilation for batches of two sizes and for validation."""
    caplog.set_level(logging.INFO, logger="dpmodel")
    whole = in_folder("whole", data, backend="pt_expt")
    assert caplog.text.count("Compiled graph") == 1
    plain = in_folder("plain", changed(data, enable_compile=False), backend="pt_expt")
    assert caplog.text.count("Compiled graph") == 1
    first = in_folder("parts", data, backend="pt_expt", stop_at=4)
    assert first.step == 4
    parts = in_folder("parts", data, backend="pt_expt", restart="parts/model.ckpt")
    assert parts.step == whole.step == plain.step == 8
    moved = 0
    for name, value in whole.state.items():
        assert value.tobytes() == parts.state[name].tobytes(), name
        np.testing.assert_allclose(value, plain.state[name], rtol=0, atol=1e-8, err_msg=name)
        moved += not np.array_equal(value, first.state[name])
    assert moved >= 10
    for slot, values in whole.optimizer.items():
        for name, value in values.items():
            assert np.asarray(value).tobytes() == np.asarray(parts.optimizer[slot][name]).tobytes(), (slot, name)
    assert Path("whole/lcurve.out").read_text() == Path("parts/lcurve.out").read_text()
    curves = [read_lcurve(Path(name) / "lcurve.out") for name in ("whole", "plain")]
    for key, column in curves[1].items():
        np.testing.assert_allclose(curves[0][key], column, rtol=1e-2, err_msg=key)  # printed with few digits
    # Checkpoints belong to no backend: an eager run goes on from a compiled one.
    other = in_folder("parts", changed(data, enable_compile=False), backend="pt", restart="parts/model.ckpt-4")
    for name, value in other.state.items():
        np.testing.assert_allclose(value, whole.state[name], rtol=0, atol=1e-8, err_msg=name)


def test_the_command(data: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compiler(joint: Any) -> Any:
        compiled.append(joint)
        return aot_compile_joint_with_descriptors(joint)

    monkeypatch.setattr(compilation, "compile_joint", compiler)
    Path("input.json").write_text(json.dumps(changed(data, numb_steps=2)))
    assert main(["train", "input.json", "--backend", "pt_expt", "--skip-neighbor-stat"]) == 0
    assert capsys.readouterr().out.strip() == "model.ckpt-2.dp"
    assert len(compiled) == 1


@pytest.mark.parametrize("backend", [None, "pt"])
def test_other_backends_are_refused(data: dict[str, Any], backend: str | None) -> None:
    with pytest.raises(InputError, match=r"training.enable_compile needs the backend pt_expt.*is on pt: add --backend"):
        train(data, backend=backend)
    assert not list(Path().glob("model.ckpt*")) and not Path("lcurve.out").exists()


def test_what_cannot_be_compiled_ends_the_run(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs eagerly where compiled code was asked for."""

    def broken(*_: Any) -> Any:
        raise BackendError("the model cannot be traced")

    monkeypatch.setattr(compilation, "_compile_step", broken)
    monkeypatch.setattr(compilation, "_SHARED", {})  # another test may have compiled a model like this one
    with pytest.raises(BackendError, match="the model cannot be traced"):
        train(data, backend="pt_expt")
    assert not list(Path().glob("model.ckpt*"))
