"""The benchmarks run, and what they write is complete. No figure is checked: other things run meanwhile."""

from __future__ import annotations

import importlib.util
import json
import re
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
    assert re.fullmatch(r"([0-9a-f]{7,40}\+?)?", found["machine"]["commit"])
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


def test_stages(tmp_path):
    """Two processes hold at stage 3 half of what they hold at stage 0, and nothing else; a step leaves its gradients."""
    pytest.importorskip("torch")
    output = tmp_path / "stages.json"
    options = ["--widths", "32", "--steps", "1", "--atoms", "6", "--stages", "3", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-P", str(FOLDER / "stages.py"), *options], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    whole, shared = json.loads(output.read_text())["results"]
    assert (whole["stage"], shared["stage"]) == (0, 3)
    assert whole["parameters_mib"] == pytest.approx(4 * whole["numbers"] / 2**20, rel=0.01)
    assert shared["held_of_stage_0"] <= 0.55
    for row in (whole, shared):
        for rank in row["ranks"]:
            assert rank["rest"] < 0.05 * rank["held"]
            assert rank["left_by_step"] == pytest.approx(rank["gradients"], rel=0.05)
            assert rank["in_step"] > rank["gradients"] and rank["seconds"] > 0
        assert f"| {row['held_of_stage_0']:.3f} |" in done.stdout


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


def test_compiled_training_is_an_option_of_the_input(workload):
    content = workload.read_input("dpa3")
    timed = workload.timed_input(content, steps=8, excluded=2, compile=True)["training"]
    assert timed["enable_compile"] is True
    assert "enable_compile" not in workload.timed_input(content, steps=8, excluded=2)["training"]


@pytest.mark.parametrize("name", ["sea", "dpa1", "dpa2", "dpa3", "dpa3dyn"])
def test_systems_of_the_inputs_exist(workload, name):
    training = workload.read_input(name)["training"]
    systems = [Path(each) for data in ("training_data", "validation_data") for each in training[data]["systems"]]
    assert len(systems) == 4
    assert all((each / "type.raw").is_file() for each in systems)


def test_calls_stop_after_the_limit(module):
    time_calls = module("measuring").time_calls
    calls = []
    answer = time_calls(calls.append, range(10), warmup=2, limit=-1.0)
    assert calls == [0, 1, 2]
    assert len(answer["seconds"]) == 1
    answer = time_calls(calls.append, range(10), warmup=2, limit=60.0)
    assert len(answer["seconds"]) == 8
    with pytest.raises(ValueError, match="too few"):
        time_calls(calls.append, range(2), warmup=2, limit=60.0)


def test_start_of_a_training_is_what_steps_do_not_explain(tmp_path, module):
    log = tmp_path / "train.log"
    log.write_text("average training time: 0.0000 s/batch (1 batches excluded)\n")
    answer = module("measuring").time_training(lambda: None, log, steps=4, excluded=1)
    assert answer["seconds"] == [0.0]
    assert 0 <= answer["first"] < 1


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


@pytest.fixture
def report(module):
    """The module, after those that it imports."""
    module("cases")
    return module("report")


def row(report, name, seconds, peak, *, quantity="training", **place):
    """A row whose rounds took so many seconds."""
    made = report.Row(report.Case("sea", quantity, name, **place), 192)
    for value in seconds:
        made.take({"seconds": [value], "floor": 10 * report.MIB, "peak": peak * report.MIB})
    return made


def test_ratios_by_round(report):
    rows = [row(report, "pt", [1.0, 6.0, 2.0], 30), row(report, "DeePMD-kit pt", [2.0, 3.0, 8.0], 50)]
    report.compare(rows)
    assert rows[0].ratios["time"] == [0.5, 2.0, 0.25]
    assert rows[0].content()["time_ratio"] == 0.5  # the median of the ratios, not the ratio of the medians
    assert rows[0].content()["memory_ratio"] == 0.5
    assert rows[0].content()["against"] == "DeePMD-kit pt"
    assert rows[1].ratios == {}
    assert "| DeePMD-kit pt " in report.table(rows)


def test_ratios_are_to_the_fastest_way_of_the_peer(report):
    ours = row(report, "pt", [1.0, 1.0], 30)
    eager = row(report, "DeePMD-kit pt", [2.0, 2.0], 50)
    best = row(report, "DeePMD-kit pt-expt+compile", [1.5, 1.0], 20)
    once = row(report, "DeePMD-kit pt-expt", [4.0], 90)  # too slow for a second round
    elsewhere = row(report, "DeePMD-kit .pth", [0.1, 0.1], 90, quantity="evaluation")
    report.compare([ours, eager, best, once, elsewhere])
    assert ours.against == "DeePMD-kit pt-expt+compile"
    assert ours.ratios["time"] == [1 / 1.5, 1.0]
    assert ours.ratios["pt_time"] == [0.5, 0.5]
    assert ours.ratios["memory"] == [2.0, 2.0]
    assert ours.ratios["pt_memory"] == [0.5, 0.5]


def test_scaling_over_ranks(report):
    rows = [
        row(report, ".pt2", seconds, 30, quantity="lammps", ranks=ranks, setting=setting)
        for ranks, setting, seconds in (
            (1, "as installed", [2.0]),
            (1, "1 thread", [3.0]),
            (2, "as installed", [9.0]),
            (2, "1 thread", [1.5]),
        )
    ]
    (line,) = report.scaling(rows)
    assert line.endswith("a step on 2 ranks takes 0.75 of one on 1 rank")


def test_what_failed_is_told(report):
    failed = row(report, "DeePMD-kit pt-expt+compile", [], 0)
    failed.take({"skipped": "does not compile"})
    assert report.notes([failed]) == ["sea, training, DeePMD-kit pt-expt+compile: does not compile"]
    assert "pt-expt" not in report.table([failed])
    assert failed.content()["skipped"] == "does not compile"


# --- the order of things ----------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """Makes a Benchmark of two programs that are never started."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = {path.stem for path in FOLDER.glob("*.py")}
    run, sides, measure = (importlib.import_module(name) for name in ("run", "sides", "measure"))

    def make(*options):
        args = run.parse(["--quick", *options])
        ours, peer = (sides.Side(name, "python", tmp_path, {}, 1.0) for name in ("ours", "peer"))
        return measure.Benchmark(args.models[0], args, ours, peer)

    yield make
    for name in names:
        sys.modules.pop(name, None)


def test_both_programs_take_turns(benchmark):
    made = benchmark("--models", "dpa3", "--quantities", "training", "--backends", "pt", "pt_expt+compile")
    names = [each.case.name for each in made.rows]
    assert names == ["pt", "DeePMD-kit pt", "pt_expt+compile", "DeePMD-kit pt-expt", "DeePMD-kit pt-expt+compile"]


def test_what_we_do_not_measure_is_not_measured_of_the_peer(benchmark):
    made = benchmark("--models", "dpa3", "--backends", "pt")
    assert {each.case.quantity for each in made.rows} == {"training", "evaluation"}
    assert any(each.case.way.side == "peer" for each in made.rows)


def test_lammps_on_several_ranks_needs_an_export_of_its_own(benchmark):
    chosen = ["--backends", ".pt2", "--peer-backends", ".pt2", "--quantities", "export", "evaluation", "lammps"]
    made = benchmark("--models", "dpa3", *chosen)
    cases = [each.case for each in made.rows]
    needs = {(each.quantity, each.way.side, each.ranks): made._file(each) for each in cases}
    assert (
        needs["lammps", "ours", 1]
        == needs["lammps", "ours", 2]
        == needs["evaluation", "ours", 0]
        == ("ours", "", ".pt2")
    )
    assert needs["lammps", "peer", 1] == needs["evaluation", "peer", 0] == ("peer", "", ".pt2")
    assert needs["lammps", "peer", 2] == ("peer", "for several ranks", ".pt2")
    exports = [each.case.what() for each in made.rows if each.case.quantity == "export"]
    assert exports == ["export", "export", "export, for several ranks"]


def test_local_models_have_one_export(benchmark):
    made = benchmark("--models", "sea", "--quantities", "export", "lammps")
    assert {made._file(each.case) for each in made.rows if each.case.way.side == "peer"} == {("peer", "", ".pt2")}


def test_slow_ways_of_the_peer_are_measured_once(benchmark):
    made = benchmark("--models", "dpa3", "--quantities", "training", "--backends", "pt")
    seconds = {"pt": 9.0, "DeePMD-kit pt": 2.0, "DeePMD-kit pt-expt": 2.0, "DeePMD-kit pt-expt+compile": 1.0}
    for each in made.rows:
        each.take({"seconds": [seconds[each.case.name]], "floor": 0, "peak": 1})
    settled = {each.case.name for each in made.rows if made._settled(each)}
    assert settled == {"DeePMD-kit pt-expt"}, "`pt` is the counterpart of ours, and the other one is the best"


def test_a_failure_of_the_peer_is_a_note_and_ours_is_the_end(benchmark):
    made = benchmark("--models", "dpa3", "--quantities", "training", "--backends", "pt")
    worker_error = importlib.import_module("sides").WorkerError

    def fail(*args, **job):
        raise worker_error(
            "worker: exit status 1\n  return work()\nRuntimeError: out of memory\n\nFor more, see elsewhere"
        )

    for side in made.sides.values():
        side.run = fail
    ours, peer, *_ = made.rows
    made._try(peer)
    assert peer.skipped == "RuntimeError: out of memory"
    with pytest.raises(worker_error, match="out of memory"):
        made._try(ours)


def test_energies_of_lammps_are_compared(benchmark):
    made = benchmark("--models", "sea", "--quantities", "lammps", "--backends", ".pt2")
    one, other, *_ = (each.case for each in made.rows)
    made._check_energies(one, [-1.0, -2.0])
    made._check_energies(other, [-1.0, -2.0 + 1e-6])
    with pytest.raises(ValueError, match=r"LAMMPS, .pt2 .*as installed.* DeePMD-kit .pt2"):
        made._check_energies(other, [-1.0, -2.1])


def test_differences(module):
    for name in ("cases", "dynamics", "report", "sides", "workload"):
        module(name)
    differences = module("measure").differences
    rng = np.random.default_rng(0)
    one = {"energy": np.ones((2, 1)), "force": rng.normal(size=(2, 192, 3))}
    assert list(differences(one, {**one, "force": one["force"] * (1 + 1e-6)}, 192)) == []
    swapped = {**one, "force": one["force"][:, ::-1]}  # the same norm
    assert ["forces" in problem for problem in differences(one, swapped, 192)] == [True]
    shifted = {**one, "energy": one["energy"] + 0.1}
    assert ["energies" in problem for problem in differences(one, shifted, 192)] == [True]
    assert list(differences(one, {"energy": one["energy"]}, 192)) == []
    assert list(differences(one, {**one, "energy": one["energy"] * np.nan}, 192))


# --- LAMMPS -----------------------------------------------------------------------------------------------------------

LOG = """LAMMPS (22 Jul 2025 - Update 2)
   Step         PotEng         Press
         0  -29864.2  17849.75
         1  -29864.1  17850.75
Loop time of 0.5 on 2 procs for 1 steps with 192 atoms
   Step         PotEng         Press
         1  -29864.1  17850.75
         5  -29863.5  17853.5
Loop time of 2.0 on 2 procs for 4 steps with 192 atoms

Performance: 0.199 ns/day, 120.601 hours/ns, 4.607 timesteps/s, 884.457 atom-step/s
"""


def test_log_of_lammps(module):
    dynamics = module("dynamics")
    found = dynamics.read_log(LOG, ranks=2, steps=4)
    assert found == {"seconds": [0.5], "energy": [-29864.2, -29863.5], "pressure": [17849.75, 17853.5]}
    with pytest.raises(ValueError, match="on 1 ranks"):
        dynamics.read_log(LOG, ranks=1, steps=4)
    with pytest.raises(ValueError, match="expected two runs"):
        dynamics.read_log(LOG.split("Loop", maxsplit=1)[0], ranks=2, steps=4)


def test_environment_of_lammps(module):
    dynamics = module("dynamics")
    given = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "DP_INTRA_OP_PARALLELISM_THREADS": "2", "NPROC": "2"}
    assert dynamics.settings_environment(given, "as installed") == {"PATH": "/bin"}
    one = dynamics.settings_environment(given, "1 thread")
    assert (one["OMP_NUM_THREADS"], one["OMP_WAIT_POLICY"], one["PATH"]) == ("1", "passive", "/bin")


def test_data_for_lammps(tmp_path, workload):
    frames, data = tmp_path / "frames.npz", tmp_path / "frames.data"
    workload.write_frames(frames, workload.read_input("sea"), supercell=1, count=1)
    workload.write_data(data, frames, 2)
    head, body = data.read_text().split("Atoms # atomic")
    assert "192 atoms" in head
    assert "2 atom types" in head
    read = np.array([line.split() for line in body.split("\n") if line.strip()], dtype=float)
    found = np.load(frames)
    assert np.array_equal(read[:, 0], np.arange(1, 193))
    assert np.array_equal(read[:, 1], found["atype"] + 1)
    length = found["box"][0, 0, 0]
    assert (read[:, 2:] >= 0).all()
    assert (read[:, 2:] <= length).all()
    moved = (read[:, 2:] - found["coord"][0]) / length
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-12)
    np.savez(frames, coord=found["coord"], atype=found["atype"], box=found["box"] + 1.0)
    with pytest.raises(ValueError, match="rectangular"):
        workload.write_data(data, frames, 2)


@pytest.mark.nightly
def test_export_and_lammps(tmp_path):
    output = tmp_path / "figures.json"
    options = ["--quick", "--threads", "1", "--backends", "pt", ".pt2", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-P", str(FOLDER / "run.py"), *options], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())["results"]
    assert not any("skipped" in each for each in results), done.stdout
    runs = {(each["ranks"], each["setting"]): each for each in results if each["quantity"] == "lammps"}
    assert runs.keys() == {(ranks, setting) for ranks in (1, 2) for setting in ("as installed", "1 thread")}
    assert all(each["seconds"] > 0 for each in results)
    assert {"export", "evaluation", "training"} <= {each["quantity"] for each in results}
    assert "a step on 2 ranks takes" in done.stdout
