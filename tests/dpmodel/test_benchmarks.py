"""The benchmarks run, and what they write is complete. No figure is checked: other things run meanwhile."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Loads a file of benchmarks/ under its own name, for one test."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)
        spec.loader.exec_module(loaded)
        return loaded

    return load


@pytest.fixture
def workload(module):
    return module("workload")


def test_quick(tmp_path):
    pytest.importorskip("torch")
    output = tmp_path / "figures.json"
    options = ["--quick", "--threads", "1", "--backends", "pt", "numpy", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-P", str(FOLDER / "run.py"), *options], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["machine"]["threads"] == 1
    assert {"python", "numpy", "torch"} <= set(found["machine"]["versions"])
    results = {(row["quantity"], row["backend"]): row for row in found["results"]}
    assert results["training", "numpy"]["skipped"]
    assert results["evaluation", "numpy"]["energy_only"]
    assert not results["evaluation", "pt"]["energy_only"]
    for key in (("training", "pt"), ("evaluation", "pt"), ("evaluation", "numpy")):
        row = results[key]
        assert row["seconds"] > 0
        assert row["atoms"] == 192
        assert row["peak_mib"] > row["floor_mib"] > 20  # an interpreter with NumPy
        assert f"| {key[1]} " in done.stdout
    # The floor contains the framework, so training needs far less above it than torch takes by itself.
    assert results["training", "pt"]["floor_mib"] > 100
    assert str(tmp_path) not in output.read_text()


def test_a_failing_worker_is_told(tmp_path):
    options = ["--quick", "--peer", str(tmp_path / "python"), "--output", str(tmp_path / "figures.json")]
    done = subprocess.run([sys.executable, str(FOLDER / "run.py"), *options], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be started" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "figures.json").exists()


def test_supercell(tmp_path, workload):
    content = workload.read_input("sea")
    atoms = [workload.write_frames(tmp_path / f"{k}.npz", content, supercell=k, count=2) for k in (1, 2)]
    assert atoms == [192, 1536]
    small, large = np.load(tmp_path / "1.npz"), np.load(tmp_path / "2.npz")
    np.testing.assert_allclose(large["box"], 2 * small["box"])
    assert np.bincount(large["atype"]).tolist() == [512, 1024]
    # Every image lies on an atom of the small cell.
    shift = (large["coord"].reshape(2, 8, 192, 3) - small["coord"][:, None]) @ np.linalg.inv(small["box"])[:, None]
    np.testing.assert_allclose(shift, np.round(shift), atol=1e-9)
    assert len(np.unique(np.round(shift[0, :, 0]), axis=0)) == 8


def test_timed_input(workload):
    content = workload.read_input("sea")
    timed = workload.timed_input(content, steps=40, excluded=10)["training"]
    assert (timed["numb_steps"], timed["disp_freq"]) == (40, 10)
    assert timed["save_freq"] > 40, "a checkpoint within the run would be timed"
    with pytest.raises(ValueError, match="too few"):
        workload.timed_input(content, steps=10, excluded=6)


def test_average_step(tmp_path, module):
    measuring = module("measuring")
    log = tmp_path / "train.log"
    log.write_text("[date] INFO average training time: 0.1260 s/batch (25 batches excluded)\n")
    assert measuring.average_step(log, 25) == 0.126
    with pytest.raises(ValueError, match="expected 10"):
        measuring.average_step(log, 10)
    log.write_text("Batch 1\n")
    with pytest.raises(ValueError, match="come to its end"):
        measuring.average_step(log, 25)


def test_ratios_by_round(module):
    cases = module("cases")
    report = module("report")  # imports the one above
    rows = []
    for backend, seconds, peak in (("pt", [1.0, 6.0, 2.0], 30), ("peer", [2.0, 3.0, 8.0], 50)):
        row = report.Row(cases.Case("sea", "training", backend, 1), 192)
        for value in seconds:
            row.add({"seconds": [value], "floor": 10 * report.MIB, "peak": peak * report.MIB})
        rows.append(row)
    report.compare(rows)
    assert rows[0].time_ratios == [0.5, 2.0, 0.25]
    assert rows[0].content()["time_ratio"] == 0.5  # the median of the ratios, not the ratio of the medians
    assert rows[0].content()["memory_ratio"] == 0.5
    assert rows[1].time_ratios == []
    assert "| DeePMD-kit pt " in report.table(rows)
