"""Every input of examples/ trains, goes on exactly after a restart, and is tested; at night at full length, with the
errors that examples/README.md promises."""

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
from dpmodel.details import detail_path
from dpmodel.input import load_input
from dpmodel.metrics import Comparison, evaluate_systems
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).parents[2] / "examples"
SEVERAL_TASKS = "multi_task"
"""The folder that has tests of its own, in test_example_tasks.py."""
INPUTS = sorted(
    str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*/input*.json") if path.parent.name != SEVERAL_TASKS
)
QUANTITIES = {
    "spin": {"energy", "energy_per_atom", "force", "force_mag"},
    "dipole": {"dipole", "dipole_per_atom", "atom_dipole"},
    "polar": {"polarizability", "polarizability_per_atom", "atom_polarizability"},
    "property": {"band_prop"},
    "dos": {"dos", "dos_per_atom", "atom_dos"},
    "hessian": {"energy", "energy_per_atom", "force", "hessian"},
    **{key: {"energy", "energy_per_atom", "force"} for key in ("zbl", "linear", "mixed", "lmdb", "water")},
}
"""What `dpmodel test` compares, by folder."""
FURTHER = {"polar": ["polar/data/global_system"]}
"""Systems that are for `dpmodel test` alone."""
TOO_SHORT = {"water/input.json": {"energy", "energy_per_atom"}}
"""What a run does not learn: examples/README.md says so."""
SEEN = {"dipole", "hessian", "polar"}
"""Tested on what they were trained on, polar on more besides: the table of examples/README.md says so."""
RUNS = [
    *((name, "pt") for name in INPUTS),
    *(
        pytest.param(name, "jax", marks=[pytest.mark.nightly] * (Path(name).parts[0] not in ("dipole", "spin")))
        for name in INPUTS
    ),
]
"""Inputs and backends."""


def read(name: str) -> dict[str, Any]:
    """An input with absolute paths."""
    folder = (EXAMPLES / name).parent
    data: dict[str, Any] = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    for section in ("training_data", "validation_data"):
        if section in data["training"]:
            systems = data["training"][section]["systems"]
            systems = [systems] if isinstance(systems, str) else systems
            data["training"][section]["systems"] = [str((folder / path).resolve()) for path in systems]
    for part in (data["model"], *data["model"].get("models", ())):
        for key in {"use_srtab", "tab_file"} & part.keys():
            part[key] = str((folder / part[key]).resolve())
    return data


def shrink(data: dict[str, Any], folder: Path, frames: int = 3) -> dict[str, Any]:
    """The input on the first frames of its systems, for three steps."""
    training = data["training"]
    for section in {"training_data", "validation_data"} & training.keys():
        small = []
        for path in map(Path, training[section]["systems"]):
            target = folder / path.parents[1].name / path.name
            small.append(str(target if path.suffix != ".lmdb" else path))
            if not target.exists() and path.suffix != ".lmdb":
                shutil.copytree(path, target)
                for file in target.rglob("set.*/*.npy"):
                    np.save(file, np.load(file)[:frames])
        training[section] |= {"systems": small, "batch_size": 1}
    training |= {"numb_steps": 3, "disp_freq": 1, "save_freq": 1}
    data["model"]["data_stat_nbatch"] = 2
    return data


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


def test_every_example_is_here() -> None:
    assert {Path(name).parts[0] for name in INPUTS} == set(QUANTITIES)
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in (*QUANTITIES, SEVERAL_TASKS):
        assert f"\n## {name}\n" in text, f"examples/README.md has no section {name}"


@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_trains_restarts_and_is_tested(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(backend.replace("pt", "torch"))
    data = shrink(read(name), tmp_path / "data")
    if backend == "jax":
        data.pop("optimizer", None)  # examples/README.md: of the optimizers named, JAX has Adam alone, the default
    for folder, stops in (("whole", (None,)), ("parts", (2, None))):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for stop in stops:
            restart = None if folder == "whole" or stop else "model.ckpt"
            train(data, stop_at=stop, restart=restart, backend=backend)
    one, two = (Checkpoint.load(tmp_path / folder / "model.ckpt-3.dp") for folder in ("whole", "parts"))
    for part in ("step", "state", "optimizer", "schedule", "sampler", "input"):
        assert_same(getattr(one, part), getattr(two, part), part)
    assert (tmp_path / "whole" / "lcurve.out").read_text() == Path("lcurve.out").read_text()
    curve = read_lcurve("lcurve.out")
    assert list(curve["step"]) == [1, 2, 3]
    assert all(np.any(np.isfinite(values)) for column, values in curve.items() if column.endswith("_trn"))
    load_input("out.json")  # as a run wrote it

    further = [str(EXAMPLES / path) for path in FURTHER.get(Path(name).parts[0], [])]
    systems = [*data["training"]["training_data"]["systems"], *further]
    options = ["-n", "2", "-d", "details", "--json", "errors.json", "--backend", backend]
    assert main(["test", "-m", "model.ckpt.dp", "-s", *systems, *options]) == 0
    table, errors = capsys.readouterr().out, json.loads(Path("errors.json").read_text())["total"]
    assert set(errors) == QUANTITIES[Path(name).parts[0]]
    assert f"# number of systems : {len(systems)}" in table
    for quantity, error in errors.items():
        assert math.isfinite(error["rmse"]) and error["rmse"] > 0.0 and error["number"] > 0
        assert f"{error['rmse']:e}" in table
        columns = np.loadtxt(detail_path("details", quantity), ndmin=2)
        half = columns.shape[1] // 2
        rmse = np.sqrt(np.mean((columns[:, half:] - columns[:, :half]) ** 2))
        np.testing.assert_allclose(rmse, error["rmse"], rtol=1e-9)


@pytest.mark.nightly
def test_a_run_of_spins_goes_on_on_jax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps on PyTorch and one on JAX are three on PyTorch."""
    pytest.importorskip("jax")
    data = shrink(read("spin/input.json"), tmp_path / "data")
    del data["optimizer"]  # JAX has no HybridMuon
    for folder, runs in (("whole", [("pt", None)]), ("parts", [("pt", 2), ("jax", None)])):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for backend, stop in runs:
            train(data, stop_at=stop, restart="model.ckpt" if backend == "jax" else None, backend=backend)
    one, two = (Checkpoint.load(tmp_path / folder / "model.ckpt-3.dp") for folder in ("whole", "parts"))
    assert_same(one.sampler, two.sampler)
    for a, b in (
        (one.state, two.state),
        *((one.optimizer[k], two.optimizer[k]) for k in ("exp_avg", "exp_avg_sq", "step")),
    ):
        assert a.keys() == b.keys()
        for key, value in a.items():
            np.testing.assert_allclose(b[key], value, rtol=0, atol=1e-10 * max(1.0, np.abs(value).max()), err_msg=key)
    ours, theirs = (read_lcurve(tmp_path / folder / "lcurve.out") for folder in ("parts", "whole"))
    for column, values in theirs.items():
        np.testing.assert_allclose(ours[column], values, rtol=1e-6, err_msg=column)


@pytest.mark.nightly
@pytest.mark.parametrize("name", INPUTS)
def test_learns(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the example's own length: the loss falls below half, errors below the spread of the labels."""
    folder, data = Path(name).parts[0], read(name)
    monkeypatch.chdir(tmp_path)
    potential = dpmodel.load(train(data))
    curve = read_lcurve("lcurve.out")
    loss = curve["rmse_trn"] ** 2
    assert np.mean(loss[-3:]) < 0.5 * loss[0]
    labels: dict[str, list[np.ndarray]] = {}

    def collect(part: Comparison) -> None:
        for quantity, values in part.label.items():
            labels.setdefault(quantity, []).append(values - np.mean(values, axis=0))

    monkeypatch.setenv("DP_TEST_CHUNK_ATOMS", "1000000000")  # a system at a time
    seen = data["training"]["training_data"]["systems"]
    held_out = data["training"].get("validation_data", {"systems": seen})["systems"]
    assert (not set(held_out) & set(seen)) == (folder not in SEEN)
    held_out = [*held_out, *(str(EXAMPLES / path) for path in FURTHER.get(folder, []))]
    report = evaluate_systems(potential, held_out, on_chunk=collect)
    if QUANTITIES[folder] - report.total.keys():  # the held-out systems have no labels of atoms
        labels.clear()
        report = evaluate_systems(potential, [*dict.fromkeys(seen + held_out)], on_chunk=collect)
    assert set(report.total) == QUANTITIES[folder]
    for quantity in report.total.keys() - TOO_SHORT.get(name, set()):
        error = report.total[quantity]
        spread = np.sqrt(np.mean(np.concatenate([part.ravel() for part in labels[quantity]]) ** 2))
        assert error.rmse < spread, (quantity, error.rmse, spread)
