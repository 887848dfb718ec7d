"""Several tasks on torch: one module for what they share, and heads of a checkpoint with the numbers of the run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.backends.pt.bridge import from_torch, to_torch
from dpmodel.files.model_file import read_heads, read_model, read_models, write_model
from dpmodel.input import load_input
from dpmodel.models.multi_task import build_tasks
from dpmodel.op import paths_of
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.run import train

from .conftest import Workshop

DPA1: dict[str, Any] = {
    "type": "dpa1", "rcut": 3.0, "rcut_smth": 0.5, "sel": 16, "neuron": [2, 4], "axis_neuron": 2, "attn_layer": 0, "seed": 1,
}  # fmt: skip


def tasks(descriptor: dict[str, Any], **data: dict[str, Any]) -> dict[str, Any]:
    """Tasks "one" and "two" that share everything but their biases."""
    data = data or {name: {"training_data": {"systems": "nowhere"}} for name in ("one", "two")}
    parts = {"type_map": ["A", "B"], "descriptor": "own", "fitting_net": "net"}
    net = {"neuron": [4], "dim_case_embd": 2, "seed": 2}
    return {
        "model": {
            "shared_dict": {"own": descriptor, "net": net},
            "model_dict": {name: copy.deepcopy(parts) for name in data},
        },
        "learning_rate": {"start_lr": 0.01, "stop_lr": 1e-4},
        "training": {"data_dict": data, "numb_steps": 4, "disp_freq": 2, "save_freq": 2, "seed": 5},
    }


def test_one_module_for_what_is_shared() -> None:
    inp = load_input(tasks(DPA1))
    model: Any = build_tasks(inp, inp.models, 1)
    module = to_torch(model)
    assert module.tasks[0].descriptor is module.tasks[1].descriptor
    assert module.tasks[0].fitting.networks[0] is module.tasks[1].fitting.networks[0]
    first = {paths[0] for _, paths in paths_of(model).values()}
    assert {name for name, _ in module.named_parameters()} <= first
    assert all(name.startswith("tasks.0.") for name, _ in module.named_parameters())
    assert set(module.state_dict()) == set(model.state())
    back: Any = from_torch(module)
    assert back.tasks[0].descriptor is back.tasks[1].descriptor
    assert {key: len(paths) for key, (_, paths) in named(back).items()} == {
        k: len(p) for k, (_, p) in named(model).items()
    }


def test_all_heads_of_a_checkpoint_of_deepmd_kit(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "data" / "checkpoints" / "multi.pt"
    heads = read_heads(source)
    assert list(heads) == ["water_a", "water_b"]
    whole: Any = read_models(source)
    write_model(tmp_path / "all.dp", whole)
    for name, file in heads.items():
        one, other = read_model(source, name).model.state(), read_model(tmp_path / "all.dp", name).model.state()
        assert all(np.array_equal(file.model.state()[key], value) for key, value in one.items())
        assert all(np.array_equal(other[key], value) for key, value in one.items())
    assert list(read_heads(source.with_name("sea.pt"))) == [""]


def named(op: Any) -> dict[str, tuple[Any, tuple[str, ...]]]:
    return {paths[0]: (array, paths) for array, paths in paths_of(op).values()}


@pytest.mark.parametrize("kind", ["dpa1", "se_e2_a"])
def test_heads_of_a_checkpoint_are_the_tasks_of_the_run(workshop: Workshop, kind: str) -> None:
    data = {
        name: {
            "training_data": {"systems": workshop.system(name, seed=k), "batch_size": 2},
            "stat_file": f"stat_{name}",
        }
        for k, name in enumerate(("one", "two"))
    }
    descriptor = DPA1 if kind == "dpa1" else {
        "type": "se_e2_a", "rcut": 3.0, "rcut_smth": 0.5, "sel": "auto", "neuron": [2, 4], "axis_neuron": 2, "seed": 1,
    }  # fmt: skip
    path = train(tasks(descriptor, **data), backend="pt", device="cpu")
    state = Checkpoint.load(path).state
    heads = read_heads(path)
    rng = np.random.default_rng(3)
    coord, types = rng.uniform(0, 6, (2, 5, 3)), ["A", "B", "A", "B", "A"]
    found = {}
    for k, (name, file) in enumerate(heads.items()):
        potential = dpmodel.load(path, "pt", head=name, device="cpu")
        found[name] = potential.evaluate(coord, types, np.eye(3) * 6.0)
        own = {key.removeprefix(f"tasks.{k}."): value for key, value in state.items() if key.startswith(f"tasks.{k}.")}
        assert own.keys() == file.model.state().keys()
        assert all(np.array_equal(own[key], value) for key, value in file.model.state().items())
        numpy = dpmodel.load(path, "numpy", head=name).evaluate(coord, types, np.eye(3) * 6.0, forces=False)
        np.testing.assert_allclose(found[name]["energy"], numpy["energy"], rtol=1e-10)
        assert file.definition["info"]["observed_type"] == ["B", "A"]  # by atomic number
    assert not np.allclose(found["one"]["energy"], found["two"]["energy"])
    for key in heads["one"].model.state():
        if key.startswith(("descriptor.", "fitting.networks.")):
            assert np.array_equal(state[f"tasks.0.{key}"], state[f"tasks.1.{key}"]), key
    assert Path("stat_one").exists() and Path("stat_two").exists()


@pytest.mark.parametrize("switch", ["enable_bf16", "enable_tf32"])
def test_switches_of_precision(workshop: Workshop, switch: str) -> None:
    """bfloat16 acts wherever it is switched on; TF32 on GPUs alone."""
    system = workshop.system()
    changes = {"model__descriptor__precision": "float32", "model__fitting_net__precision": "float32"}
    plain = workshop.input(system, training__numb_steps=3, **changes)
    exact = Checkpoint.load(train(copy.deepcopy(plain), backend="pt", device="cpu")).state
    plain["training"][switch] = True
    other = Checkpoint.load(train(plain, backend="pt", device="cpu")).state
    differs = [key for key, value in exact.items() if not np.array_equal(value, other[key])]
    assert bool(differs) == (switch == "enable_bf16")
    assert all(np.allclose(value, other[key], atol=0.1) for key, value in exact.items())
    assert all(value.dtype == other[key].dtype for key, value in exact.items())
