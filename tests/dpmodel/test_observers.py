"""Those that follow a run: the stream of metrics, TensorBoard, the profiler."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpmodel.backend import get_backend
from dpmodel.errors import InputError
from dpmodel.training.metrics_stream import MetricsStream
from dpmodel.training.observers import check_observers, make_observers
from dpmodel.training.profiling import Profiling

METRICS = {"rmse": 1.0 / 3.0, "rmse_e": math.nan}
VALIDATED = ("full_E_MAE(meV/atom)", "full_ema_E_MAE(meV/atom)")


def follow(stream: MetricsStream, *steps: int) -> None:
    for step in steps:
        stream.on_step(step, lambda: METRICS, 0.1, "")
        if step % 2 == 1:
            stream.on_row(step, {"": METRICS}, {"": {"rmse": step + 0.5}}, 0.1 / step)
        else:
            stream.on_validation(step, {"E_MAE(meV/atom)": step / 7}, averaged=step % 4 == 0)
    stream.close()


def test_lines_of_json(tmp_path: Path) -> None:
    follow(MetricsStream(tmp_path / "m.jsonl"), 1, 2, 3, 4)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "lr": 0.1, "rmse_val": 1.5, "rmse_trn": 1.0 / 3.0, "rmse_e_trn": None},
        {"step": 2, "full_E_MAE(meV/atom)": 2 / 7},
        {"step": 3, "lr": 0.1 / 3, "rmse_val": 3.5, "rmse_trn": 1.0 / 3.0, "rmse_e_trn": None},
        {"step": 4, "full_ema_E_MAE(meV/atom)": 4 / 7},
    ]


def test_a_table(tmp_path: Path) -> None:
    follow(MetricsStream(tmp_path / "m.csv", validated=VALIDATED), 1, 2)
    with (tmp_path / "m.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["step", "lr", "rmse_val", "rmse_trn", "rmse_e_trn", *VALIDATED]
    assert float(rows[0]["rmse_trn"]) == 1.0 / 3.0 and rows[0]["rmse_e_trn"] == "nan" and rows[0][VALIDATED[0]] == ""
    assert rows[1] == {**dict.fromkeys(rows[0], ""), "step": "2", VALIDATED[0]: repr(2 / 7)}
    with pytest.raises(ValueError, match="rmse_f_trn"):
        MetricsStream(tmp_path / "m.csv").on_row(1, {"": METRICS}, None, 0.1) or follow_with_more(tmp_path)


def follow_with_more(tmp_path: Path) -> None:
    stream = MetricsStream(tmp_path / "m.csv")
    stream.on_row(1, {"": METRICS}, None, 0.1)
    stream.on_row(2, {"": {**METRICS, "rmse_f": 1.0}}, None, 0.1)


def test_tasks_are_in_the_names(tmp_path: Path) -> None:
    stream = MetricsStream(tmp_path / "m.jsonl")
    stream.on_row(5, {"water": {"rmse": 1.0}, "ice": {"rmse": 2.0}}, {"ice": {"rmse": 3.0}}, 0.1)
    line = json.loads((tmp_path / "m.jsonl").read_text())
    assert line == {"step": 5, "lr": 0.1, "rmse_trn_water": 1.0, "rmse_val_ice": 3.0, "rmse_trn_ice": 2.0}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_restart_leaves_the_file_of_an_undisturbed_run(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    follow(MetricsStream(path, validated=VALIDATED), 1, 2, 3, 4, 5)
    whole = path.read_text()
    follow(MetricsStream(path, validated=VALIDATED), 1, 2, 3)  # a new run replaces the file
    with path.open("a") as stream:
        stream.write(whole.splitlines()[-1][:5])  # cut short by a kill
    follow(MetricsStream(path, restored_step=1, validated=VALIDATED), 2, 3, 4, 5)
    assert path.read_text() == whole
    follow(MetricsStream(path, restored_step=3, validated=VALIDATED), 4, 5)
    assert path.read_text() == whole


def test_another_table_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    follow(MetricsStream(path), 1, 3)
    old = path.read_text()
    follow(MetricsStream(path, restored_step=3, validated=VALIDATED), 4, 5)  # the validation comes before any row
    assert (tmp_path / "m.csv.old").read_text() == old
    with path.open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["4", "5"]
    follow(MetricsStream(tmp_path / "n.csv", validated=VALIDATED), 2)  # a run without rows
    assert (tmp_path / "n.csv").read_text().splitlines()[0] == ",".join(["step", *VALIDATED])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.csv or \.jsonl, got 'm\.txt'"):
        MetricsStream("m.txt")
    for name in ("m.csv", "m.jsonl"):
        (tmp_path / name).write_text("my thesis\nsecond line\n")
        with pytest.raises(InputError, match="holds no metrics of a run"):
            MetricsStream(tmp_path / name, restored_step=1)
        assert (tmp_path / name).read_text().startswith("my thesis")


def section(**changes: Any) -> SimpleNamespace:
    defaults = {
        "metrics_file": None, "tensorboard": False, "tensorboard_log_dir": "log", "tensorboard_freq": 1, "profiling": False,
        "profiling_file": "timeline.json", "enable_profiler": False,
    }  # fmt: skip
    return SimpleNamespace(**{**defaults, **changes})


def test_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    training = section(tensorboard=True, tensorboard_log_dir=str(tmp_path / "log"), tensorboard_freq=2)
    validation = SimpleNamespace(averaged=False, columns=lambda: ["E_MAE(meV/atom)"], observers=())

    def go(restored: int | None, *steps: int) -> None:
        (board,) = make_observers(
            training,
            None,
            restored_step=restored,
            validations=[validation],
            norms=lambda: (5.0, {f"w{k}": k / 2 for k in range(12)}) if restored else (math.nan, {}),
        )
        for step in steps:
            board.on_step(
                step, lambda step=step: {"rmse": step / 2, "rmse_e": math.nan}, 0.5, "" if step < 6 else "ice"
            )
            board.on_row(step, {"": {"rmse": 1.0}}, {"": {"rmse": step / 4}}, 0.5)
            for observer in validation.observers:
                observer.on_validation(step, {"E_MAE(meV/atom)": 8.0}, averaged=step == 2)
        board.close()
        board.close()

    go(None, 1, 2, 3, 4)
    go(2, 3, 4, 5, 6)
    events = accumulator.EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    found = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    assert found["Default/rmse"] == {2: 1.0, 4: 2.0}
    assert found["Default/loss"] == {2: 1.0, 4: 4.0}
    assert found["Default/lr"] == {2: 0.5, 4: 0.5}
    assert found["Default/grad/total_norm"] == {4: 5.0}
    top = {tag: values for tag, values in found.items() if tag.startswith("Default/grad_top10/")}
    assert top == {f"Default/grad_top10/w{k}": {4: k / 2} for k in range(2, 12)}
    (norms,) = events.Histograms("Default/grad/param_norms")
    values = [k / 2 for k in range(12)]
    assert (norms.step, norms.histogram_value.num, norms.histogram_value.sum) == (4, 12, sum(values))
    assert sum(norms.histogram_value.bucket) == 12 and norms.histogram_value.max == values[-1]
    assert found["ice/rmse"] == {6: 3.0}
    assert found["Default/rmse_val"][3] == 0.75
    assert found["full_validation/E_MAE(meV/atom)"].keys() == {1, 3, 4, 5, 6}
    assert found["full_validation_ema/E_MAE(meV/atom)"] == {2: 8.0}
    assert "Default/rmse_e" not in found


@pytest.mark.parametrize("values", [[1.0, 1.0000000000000002], [0.0, 5e-324], [3.0], [0.1, math.inf, 0.1]])
def test_a_histogram_of_norms_that_are_nearly_equal(tmp_path: Path, values: list[float]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    names = dict(zip("abc", values, strict=False))
    (board,) = make_observers(
        section(tensorboard=True, tensorboard_log_dir=str(tmp_path)), None, norms=lambda: (1.0, names)
    )
    board.on_step(1, dict, 0.5, "")
    board.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    (norms,) = events.Histograms("Default/grad/param_norms")
    assert sum(norms.histogram_value.bucket) == norms.histogram_value.num == sum(map(math.isfinite, values))


def test_what_is_missing_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check_observers(section(), get_backend("numpy"))
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(InputError, match=r'pip install "dpmodel\[tensorboard\]"'):
        check_observers(section(tensorboard=True), get_backend("pt"))
    for option in ("profiling", "enable_profiler"):
        with pytest.raises(InputError, match="need the backend pt or pt_expt, and this run is on numpy"):
            check_observers(section(**{option: True}), get_backend("numpy"))
    with pytest.raises(InputError, match="metrics_file"):
        check_observers(section(metrics_file="a.txt"), get_backend("pt"))


def profiled(tmp_path: Path, steps: int) -> list[dict[str, Any]] | None:
    import torch

    training = section(
        profiling=True, enable_profiler=True, profiling_file=str(tmp_path / "deep" / "t.json"),
        tensorboard_log_dir=str(tmp_path / "log"),
    )  # fmt: skip
    (profiling,) = make_observers(training, get_backend("pt"))
    assert isinstance(profiling, Profiling)
    x = torch.ones(3)
    for step in range(1, steps + 1):
        torch.add(x, x) if step != 18 else torch.mul(x, x)
        profiling.on_step(step, dict, 0.1, "")
    profiling.close()
    profiling.close()
    path = tmp_path / "deep" / "t.json"
    return json.loads(path.read_text())["traceEvents"] if path.exists() else None


def test_profile(tmp_path: Path) -> None:
    events = profiled(tmp_path, 23)
    assert events is not None
    names = [event.get("name") for event in events]
    assert names.count("aten::add") == 2 and names.count("aten::mul") == 1  # of the three steps that are recorded
    assert len(list((tmp_path / "log").glob("*.pt.trace.json"))) == 1


def test_a_short_run_has_no_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert profiled(tmp_path, 18) is None
    assert "ended before step 19" in caplog.text
    assert not (tmp_path / "log").exists()
