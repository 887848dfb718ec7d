"""The example of several tasks: it starts, goes on exactly, is tested by head and fine-tuned; at night at full length, with
the numbers that docs/multi_task.md promises."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.cli import main
from dpmodel.metrics import evaluate_systems
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "multi_task"


def read(name: str, small: Path | None = None) -> dict[str, Any]:
    """An input with absolute paths; where a folder for small systems is given, on their first three frames."""
    data: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    training = data["training"]
    for task in training.get("data_dict", {"": training}).values():
        for section in {"training_data", "validation_data"} & task.keys():
            paths = [(FOLDER / path).resolve() for path in task[section]["systems"]]
            task[section]["systems"] = [str(path if small is None else shortened(path, small)) for path in paths]
    if small is not None:
        training |= {"numb_steps": 4, "disp_freq": 1, "save_freq": 1}
    return data


def shortened(system: Path, folder: Path) -> Path:
    target = folder / system.relative_to(EXAMPLES)
    if not target.exists():
        shutil.copytree(system, target)
        for file in target.rglob("set.*/*.npy"):
            np.save(file, np.load(file)[:3])
    return target


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


def test_data_are_those_of_the_dipole_example() -> None:
    """Every frame once, in `few` or in `others`."""
    source = EXAMPLES / "dipole" / "data" / "global_system"
    for name in ("coord", "box", "dipole"):
        few, others = (np.load(FOLDER / "data" / part / "set.000" / f"{name}.npy") for part in ("few", "others"))
        whole = np.load(source / "set.000" / f"{name}.npy")
        assert len(few) == 8 and np.array_equal(whole[::10], few)
        assert np.array_equal(np.delete(whole, np.arange(0, 80, 10), axis=0), others)


def test_starts_goes_on_and_is_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read("input.json", tmp_path / "small")
    for folder, stops in (("whole", (None,)), ("parts", (2, None))):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for stop in stops:
            train(data, stop_at=stop, restart=None if folder == "whole" or stop else "model.ckpt", backend="pt")
    one, two = (Checkpoint.load(tmp_path / folder / "model.ckpt-4.dp") for folder in ("whole", "parts"))
    for part in ("step", "state", "optimizer", "schedule", "sampler", "input"):
        assert_same(getattr(one, part), getattr(two, part), part)
    assert (tmp_path / "whole" / "lcurve.out").read_text() == Path("lcurve.out").read_text()
    curve = read_lcurve("lcurve.out")
    assert {"rmse_f_trn_energy", "rmse_f_val_energy", "rmse_local_dipole_trn_dipole"} <= curve.keys()
    # Both tasks have had steps, and one descriptor.
    steps = one.optimizer["step"]
    assert {float(steps["tasks.0.descriptor." + name]) for name in names(steps, "tasks.0.descriptor.")} == {4.0}
    assert not names(steps, "tasks.1.descriptor.")
    counts = [
        {float(steps[f"tasks.{k}.fitting." + name]) for name in names(steps, f"tasks.{k}.fitting.")} for k in (0, 1)
    ]
    assert sum(max(count) for count in counts) == 4.0 and all(counts)

    for head, system, quantity in (
        ("energy", EXAMPLES / "water/data/data_3", "force"),
        ("dipole", FOLDER / "data/others", "dipole"),
    ):
        small = str(shortened(system, tmp_path / "small"))
        assert main(["test", "-m", "model.ckpt.dp", "--head", head, "-s", small, "--json", f"{head}.json"]) == 0
        error = json.loads(Path(f"{head}.json").read_text())["total"][quantity]
        assert math.isfinite(error["rmse"]) and error["rmse"] > 0.0
    capsys.readouterr()

    train(read("input_finetune.json", tmp_path / "small"), finetune="model.ckpt", backend="pt")
    tuned = Checkpoint.load("finetuned.ckpt-4.dp")
    assert tuned.step == 4
    for path, value in tuned.state.items():
        assert value.shape == one.state[f"tasks.1.{path}"].shape
    # It began with the head's numbers: Adam moves a number by no more than about the learning rate per step.
    weights = [path for path, value in tuned.state.items() if path.startswith("fitting.") and value.ndim == 2]
    assert weights
    moved = [np.max(np.abs(tuned.state[path] - one.state[f"tasks.1.{path}"])) for path in weights]
    assert 0.0 < max(moved) < 4 * 2.0 * 2e-4


def names(state: dict[str, Any], start: str) -> list[str]:
    return [path.removeprefix(start) for path in state if path.startswith(start)]


@pytest.mark.nightly
def test_learns_and_fine_tuning_improves_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At full length: losses of both heads fall below half, errors below the spread; others in docs/multi_task.md."""
    monkeypatch.chdir(tmp_path)
    path = train(read("input.json"), backend="pt")
    curve = read_lcurve("lcurve.out")
    for task in ("energy", "dipole"):
        for part in ("trn", "val"):
            loss = curve[f"rmse_{part}_{task}"] ** 2
            assert np.mean(loss[-3:]) < 0.5 * loss[0], (task, part)

    def error(potential: Any, system: Path, quantity: str) -> float:
        return float(evaluate_systems(potential, [str(system)]).total[quantity].rmse)

    water = EXAMPLES / "water/data/data_3"
    energy = dpmodel.load(path, head="energy", backend="pt")
    for quantity, shape in (("energy", (-1, 1)), ("force", (-1, 192 * 3))):
        labels = np.load(water / "set.000" / f"{quantity}.npy").reshape(shape)
        spread = np.sqrt(np.mean((labels - labels.mean(axis=0)) ** 2))
        assert error(energy, water, quantity) < (0.4 if quantity == "force" else 1.0) * spread, quantity
    others = FOLDER / "data" / "others"
    labels = np.load(others / "set.000" / "dipole.npy")
    spread = np.sqrt(np.mean((labels - labels.mean(axis=0)) ** 2))
    before = error(dpmodel.load(path, head="dipole", backend="pt"), others, "dipole")
    assert before < 0.5 * spread

    tuned = train(read("input_finetune.json"), finetune="model.ckpt", backend="pt")
    after = error(dpmodel.load(tuned, backend="pt"), others, "dipole")
    assert after < 0.95 * before
    fresh = read("input_finetune.json")
    del fresh["model"]["finetune_head"]
    fresh["learning_rate"] |= {"start_lr": 0.005, "stop_lr": 5e-5}
    fresh["training"] |= {"save_ckpt": "fresh.ckpt"}
    scratch = error(dpmodel.load(train(fresh, backend="pt"), backend="pt"), others, "dipole")
    assert after < scratch
