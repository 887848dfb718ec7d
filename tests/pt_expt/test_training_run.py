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


def test_c19_tasks_that_share_a_type_embedding(data: dict[str, Any]) -> None:
    """Compiled, level 1: as eager."""
    own = {
        "type": "dpa1", "rcut": 3.0, "rcut_smth": 0.5, "sel": 12, "neuron": [2, 4], "axis_neuron": 2, "tebd_dim": 2,
        "attn_layer": 0, "seed": 1,
    }  # fmt: skip
    data["model"] = {
        "shared_dict": {"types": ["A", "B"], "own": own},
        "model_dict": {
            name: {"type_map": "types", "descriptor": f"own:{level}", "fitting_net": {"neuron": [4], "seed": level}}
            for level, name in enumerate(("water", "ice"))
        },
    }
    training = data["training"]
    del training["training_data"], training["validation_data"]
    training["data_dict"] = {
        name: {"training_data": {"systems": [system]}} for name, system in (("water", "small"), ("ice", "large"))
    }
    training["numb_steps"] = 6
    start = in_folder("start", changed(data, enable_compile=False), backend="pt_expt", stop_at=0).state
    plain = in_folder("plain", changed(data, enable_compile=False), backend="pt_expt").state
    found = in_folder("compiled", data, backend="pt_expt").state
    for name, value in plain.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-8, err_msg=name)
    embeddings = [name for name in found if name.startswith("tasks.0.descriptor.type_embedding.")]
    assert embeddings and any(not np.array_equal(start[name], found[name]) for name in embeddings)
    for name in embeddings:
        assert np.array_equal(found[name], found[name.replace("tasks.0.", "tasks.1.")]), name
    nets = [
        name
        for name in found
        if name.startswith("tasks.0.descriptor.") and name.endswith(".w") and name not in embeddings
    ]
    assert nets and not any(np.array_equal(found[name], found[name.replace("tasks.0.", "tasks.1.")]) for name in nets)


def test_c8_full_validation_of_spins(data: dict[str, Any]) -> None:
    rng = np.random.default_rng(4)
    coord = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:4] * 2.0
    labels = {
        "energy": rng.normal(-12.0, 1.0, (3, 1)), "force": rng.normal(size=(3, 4, 3)), "spin": rng.normal(size=(3, 4, 3)),
        "force_mag": rng.normal(size=(3, 4, 3)),
    }  # fmt: skip
    write_system(
        "spins", coord + rng.uniform(0.0, 0.5, (3, 4, 3)), np.arange(4) % 2, np.eye(3) * 6.0, type_map=("A", "B"),
        labels=labels,
    )  # fmt: skip
    data["model"]["spin"] = {"use_spin": ["A"], "virtual_scale": 0.3}
    data["loss"] = {
        "type": "ener_spin",
        "start_pref_fr": 100,
        "limit_pref_fr": 1,
        "start_pref_fm": 10,
        "limit_pref_fm": 1,
    }
    data["validating"] = {
        "full_validation": True, "validation_freq": 2, "full_val_start": 0, "validation_metric": "FM:RMSE", "max_best_ckpt": 2,
    }  # fmt: skip
    own = {"systems": ["spins"], "batch_size": 1}
    rows = []
    for compiled in (False, True):
        given = changed(data, enable_compile=compiled, training_data=own, validation_data=own, numb_steps=4)
        train(given, backend="pt_expt", output=None, skip_neighbor_stat=True)
        lines = [line for line in Path("val.log").read_text().splitlines() if not line.startswith("#")]
        rows.append(np.array([[float(value) for value in line.split()] for line in lines]))
        assert len(list(Path().glob("best.ckpt-*.dp"))) == 2
    assert rows[0][:, 0].tolist() == [2, 4] and np.isfinite(rows[0][:, :5]).all()
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-2)  # printed with few digits


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
