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
TOO_SHORT = {"spin": {"energy", "energy_per_atom"}}
"""What a run does not learn: magnetic exchange acts over 4.2 Å in NiO, beyond the cutoff that keeps the example short."""
FURTHER = {"polar": ["polar/data/global_system"]}
"""Systems that are for `dpmodel test` alone."""
LEARNING = sorted(set(QUANTITIES) - {"water", "hessian"})
"""Those whose numbers are in examples/README.md; the others have tests of their own."""


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


@pytest.mark.parametrize("name", INPUTS)
def test_trains_restarts_and_is_tested(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shrink(read(name), tmp_path / "data")
    for folder, stops in (("whole", (None,)), ("parts", (2, None))):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for stop in stops:
            train(data, stop_at=stop, restart=None if folder == "whole" or stop else "model.ckpt")
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
    assert (
        main(["test", "-m", "model.ckpt.dp", "-s", *systems, "-n", "2", "-d", "details", "--json", "errors.json"]) == 0
    )
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
@pytest.mark.parametrize("name", LEARNING)
def test_learns(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the example's own length: the loss falls below half, errors below the spread of the labels."""
    data = read(f"{name}/input.json")
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
    held_out, seen = (data["training"][key]["systems"] for key in ("validation_data", "training_data"))
    held_out = [*held_out, *(str(EXAMPLES / path) for path in FURTHER.get(name, []))]
    report = evaluate_systems(potential, held_out, on_chunk=collect)
    if QUANTITIES[name] - report.total.keys():  # the held-out systems have no labels of atoms
        labels.clear()
        report = evaluate_systems(potential, [*dict.fromkeys(seen + held_out)], on_chunk=collect)
    assert set(report.total) == QUANTITIES[name]
    for quantity in report.total.keys() - TOO_SHORT.get(name, set()):
        error = report.total[quantity]
        spread = np.sqrt(np.mean(np.concatenate([part.ravel() for part in labels[quantity]]) ** 2))
        assert error.rmse < spread, (quantity, error.rmse, spread)
