"""Runs with full validation and with observers: what they write, how they end, and that a restart changes nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.errors import InputError
from dpmodel.metrics import evaluate_systems
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


def given(workshop: Any, **changes: Any) -> dict[str, Any]:
    """An input of 14 steps that validates after 4, 7, 10 and 13."""
    data = workshop.input(workshop.system("train"), **changes)
    held_out = [workshop.system("valid", natoms=7, nframes=3, seed=4), workshop.system("more", nframes=2, seed=5)]
    data["training"]["validation_data"] = {"systems": held_out}
    own = {"full_validation": True, "validation_freq": 3, "full_val_start": 0.3, "validation_metric": "F:RMSE"}
    data["validating"] = {**own, **data.get("validating", {})}
    return data


def table(path: str) -> np.ndarray:
    return np.array(
        [[float(x) for x in line.split()] for line in Path(path).read_text().splitlines() if line[0] != "#"]
    )


def everything(folder: Path) -> dict[str, Any]:
    """What a run has left: texts, and the contents of checkpoints."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".dp" and not path.is_symlink():
            checkpoint = Checkpoint.load(path)
            found[path.name] = (
                checkpoint.step, checkpoint.validation, checkpoint.ema.get("validation"),
                {name: value.tolist() for name, value in checkpoint.state.items()},
            )  # fmt: skip
        elif path.suffix in (".log", ".jsonl", ".csv", ".out"):
            found[path.name] = path.read_text()
    return found


def test_what_a_run_writes(workshop: Any) -> None:
    data = given(workshop, validating__max_best_ckpt=2)
    train(data)
    rows = table("val.log")
    assert rows[:, 0].tolist() == [4, 7, 10, 13]
    best = sorted(Path().glob("best*"))
    order = rows[np.argsort(rows[:, 4], kind="stable"), 0][:2].astype(int)  # E MAE, E RMSE, F MAE, F RMSE
    assert {path.name for path in best} == {f"best.ckpt-{step}.t-{k + 1}.dp" for k, step in enumerate(order)}
    # The numbers are those of `dpmodel test` on that checkpoint.
    report = evaluate_systems(dpmodel.load(best[0], "pt"), data["training"]["validation_data"]["systems"]).total
    row = rows[rows[:, 0] == Checkpoint.load(best[0]).step][0]
    assert row[1:5] == pytest.approx(
        [1e3 * x for e in (report["energy_per_atom"], report["force"]) for x in (e.mae, e.rmse)], rel=1e-4
    )
    assert np.isnan(row[5:]).all()  # no virials


def test_restart_is_exact(workshop: Any) -> None:
    data = given(
        workshop, training__enable_ema=True, training__ema_decay=0.8, training__metrics_file="m.csv", training__max_ckpt_keep=0,
        validating__ema_full_validation=True, validating__max_best_ckpt=3,
    )  # fmt: skip
    train(data)
    whole = everything(Path())
    assert {"val.log", "val_ema.log", "m.csv", "lcurve.out", "best_ema.ckpt-13.t-1.dp"} <= whole.keys()
    for path in Path().iterdir():
        if path.is_file() or path.is_symlink():
            path.unlink()
    train(data, stop_at=8)
    train(data, restart="model.ckpt", stop_at=11)
    train(data, restart="model.ckpt-9.dp")
    again = everything(Path())
    # Those of the stops are more.
    assert {name: again[name] for name in whole} == whole


def test_early_stop(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = given(
        workshop, validating__early_stop_patience=1, learning_rate__start_lr=0.5, learning_rate__stop_lr=0.4,
        training__numb_steps=60, validating__full_val_start=0, training__metrics_file="m.jsonl",
    )  # fmt: skip
    final = train(data)
    rows, column = table("val.log"), 4
    worse = [k for k in range(1, len(rows)) if rows[k, column] >= rows[:k, column].min()]
    assert worse, "the run never became worse: the test shows nothing"
    last = int(rows[worse[0], 0])
    assert last < 60 and len(rows) == worse[0] + 1 and final.name == f"model.ckpt-{last}.dp"
    assert Checkpoint.load(final).validation["since"] == 1
    steps = [json.loads(line)["step"] for line in Path("m.jsonl").read_text().splitlines()]
    assert max(steps) == last
    # That was the end: a restart has nothing to do.
    before = final.stat().st_mtime_ns
    assert train(data, restart="model.ckpt") == final and final.stat().st_mtime_ns == before
    assert "Early stop: F:RMSE has not become better in 1 validations" in caplog.text


@pytest.mark.parametrize("when", [{"validation_freq": 9, "full_val_start": 0}, {"full_val_start": 500}])
def test_a_run_without_a_step_of_validation(
    when: dict[str, Any], workshop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = given(workshop, training__numb_steps=4)
    data["validating"] |= when
    train(data)
    assert "none of the 4 steps is one of full validation" in caplog.text and not Path("val.log").exists()
    data["validating"]["early_stop_patience"] = 1
    with pytest.raises(InputError, match="early_stop_patience: none of the 4 steps is one of full validation"):
        train(data)


def test_profile_and_tensorboard(workshop: Any) -> None:
    pytest.importorskip("tensorboard")
    data = given(
        workshop, training__numb_steps=20, training__profiling=True, training__tensorboard=True,
        training__tensorboard_log_dir="tb", training__enable_profiler=True,
    )  # fmt: skip
    train(data)
    events = json.loads(Path("timeline.json").read_text())["traceEvents"]
    assert any("Backward" in str(event.get("name")) for event in events)
    assert len(list(Path("tb").glob("*.pt.trace.json"))) == 1 and len(list(Path("tb").glob("events*"))) == 1


def test_properties_are_validated_too(workshop: Any) -> None:
    rng = np.random.default_rng(0)
    labels = {"gap": rng.normal(size=(6, 1))}
    system = workshop.system("gaps", labels=labels, leave_out=("energy", "force"))
    data = workshop.input(system, training__validation_data={"systems": [system]}, training__numb_steps=4)
    data["model"]["fitting_net"] = {"type": "property", "property_name": "gap", "task_dim": 1, "neuron": [4], "seed": 2}
    data["loss"] = {"type": "property"}
    data["validating"] = {
        "full_validation": True, "validation_metric": "G:MAE", "validation_freq": 2, "full_val_start": 0,
    }  # fmt: skip
    final = train(data)
    assert "G_MAE" in Path("val.log").read_text()
    report = evaluate_systems(dpmodel.load(final, "pt"), [system]).total
    assert table("val.log")[-1, 1] == pytest.approx(
        min(e.mae for n, e in report.items() if n.startswith("gap")), rel=1e-3
    )


def test_r_m_18_metrics_of_a_step_are_those_of_its_task(workshop: Any) -> None:
    """Of a step TensorBoard has the task that was trained alone, with the numbers of the row."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = workshop.input(
        "none", training__tensorboard=True, training__tensorboard_log_dir="tb", training__metrics_file="m.jsonl",
        training__disp_freq=1, training__numb_steps=8,
    )  # fmt: skip
    model, training = data["model"], data["training"]
    task = {"type_map": "types", "descriptor": "shared", "fitting_net": model["fitting_net"]}
    shared = {"types": model["type_map"], "shared": model["descriptor"]}
    data["model"] = {"shared_dict": shared, "model_dict": {"one": task, "two": dict(task)}}
    data["loss_dict"] = {"one": {}, "two": {}}
    del training["training_data"]
    training["data_dict"] = {
        name: {"training_data": {"systems": [workshop.system(name, seed=k)], "batch_size": 2}}
        for k, name in enumerate(("one", "two"))
    }
    training["model_prob"] = {"one": 1, "two": 1}
    train(data)
    events = accumulator.EventAccumulator("tb")
    events.Reload()
    seen = {name: {e.step: e.value for e in events.Scalars(f"{name}/rmse_f")} for name in ("one", "two")}
    rows = {row["step"]: row for row in map(json.loads, Path("m.jsonl").read_text().splitlines())}
    assert sorted([*seen["one"], *seen["two"]]) == list(range(1, 9)) and min(map(len, seen.values())) > 0
    for name, values in seen.items():
        for step, value in values.items():
            assert value == pytest.approx(rows[step][f"rmse_f_trn_{name}"], rel=1e-6)
