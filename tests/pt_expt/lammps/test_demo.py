"""The demo: its inputs are read, and its LAMMPS part runs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpmodel.input import load_input

ROOT = Path(__file__).parents[3]
WATER = ROOT / "examples" / "water"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", WATER / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(demo, tmp_path, monkeypatch, lammps):
    """The demo runs LAMMPS with the plugin of the tests, whatever is in the cache."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "lmp").symlink_to(lammps.program)
    path = os.pathsep.join([str(programs), demo.ENVIRONMENT["PATH"]])
    monkeypatch.setattr(demo, "ENVIRONMENT", {**lammps.environment, "PATH": path})


@pytest.mark.parametrize("template", ["input.json", "input_dpa3.json"])
def test_inputs(demo, tmp_path, monkeypatch, template):
    data = demo.make_input(template, "name", 7)
    assert data["training"]["numb_steps"] == 7
    assert all(Path(system).is_dir() for system in data["training"]["training_data"]["systems"])
    (tmp_path / "input.json").write_text(json.dumps(data))
    assert load_input(tmp_path / "input.json").notes == ()
    monkeypatch.chdir(WATER)
    assert load_input(template).notes == ()  # as it is, for `dpmodel train`


def test_one_rank_and_two(demo, tmp_path, monkeypatch, capsys, environment, dpa3_pt2):
    shutil.copy(dpa3_pt2, tmp_path / "dpa3.pt2")
    script = (WATER / "in.lammps").read_text()
    for there, then in (
        ("replicate       2 2 1", "replicate       1 1 1"),
        ("run             100", "run             20"),
    ):
        assert there in script
        script = script.replace(there, then)
    (tmp_path / "shorter").mkdir()
    (tmp_path / "shorter" / "in.lammps").write_text(script)
    monkeypatch.setattr(demo, "HERE", tmp_path / "shorter")
    difference = demo.run_lammps(tmp_path)
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["0"], ["20"])]
    assert [row[0] for row in rows] == ["0", "20"]
    assert all(row[1] != rows[0][1] for row in rows[1:])  # something moves
    assert difference <= 1e-7
    assert "on 2 procs" in printed and "1 thread(s) per rank" in printed


def test_a_failing_run_shows_the_log(demo, tmp_path, capsys, environment):
    with pytest.raises(SystemExit) as left:
        demo.run_lammps(tmp_path)  # there is no dpa3.pt2
    assert left.value.code not in (None, 0)
    assert "dpa3.pt2" in capsys.readouterr().err


@pytest.mark.nightly
def test_all_of_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", str(WATER / "demo.py"), "--steps", "3", "--output", str(tmp_path / "out")],
        cwd=tmp_path, capture_output=True, text=True, timeout=1500, env={**os.environ, "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "one rank and two differ by at most" in done.stdout
    for name in ("water.dp", "dpa3.dp", "dpa3.pt2", "lcurve.png", "parity.png", "md.extxyz", "lammps-2.log"):
        assert (tmp_path / "out" / name).is_file(), name
