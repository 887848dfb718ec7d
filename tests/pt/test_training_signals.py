"""Runs that end before their time: kill -9, signals, a full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.cli import main
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

STEPS = 40

# Imports once, then forks for every command line, so that a run costs as much time as its steps.
SERVER = """
import json, os, sys
import dpmodel.backends.pt, dpmodel.cli.train
from dpmodel.cli import main
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(job["folder"])
        sys.stderr = open("stderr", "w", buffering=1)
        sys.stdout = open(os.devnull, "w")
        os._exit(main(job["args"]))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Runs:
    """`dpmodel` command lines in processes of their own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, folder: Path, *args: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "args": args}) + "\n")
        self.process.stdin.flush()
        self.pid = int(self.read())
        return self.pid

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def wait(self) -> int:
        """The status of the run, which is killed where it does not end."""
        timer = threading.Timer(120.0, os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        try:
            return int(self.read())
        finally:
            timer.cancel()


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.process.communicate(timeout=60)


def write_input(workshop: Any, folder: Path, **changes: Any) -> Path:
    data = workshop.input(workshop.system(f"for_{folder.name}"), training__numb_steps=STEPS, **changes)
    folder.mkdir(exist_ok=True)
    (folder / "input.json").write_text(json.dumps(data))
    return folder


def assert_same_end(a: Path, b: Path, step: int = STEPS) -> None:
    one, two = (Checkpoint.load(folder / f"model.ckpt-{step}.dp") for folder in (a, b))
    assert one.state.keys() == two.state.keys()
    for name, value in one.state.items():
        assert np.array_equal(value, two.state[name]), name
    for slot, values in one.optimizer.items():
        for name, value in values.items():
            assert np.array_equal(value, two.optimizer[slot][name]), (slot, name)
    assert one.sampler == two.sampler
    assert (a / "lcurve.out").read_text() == (b / "lcurve.out").read_text()


def kill_repeatedly(workshop: Any, runs: Runs, kills: int, seed: int) -> None:
    options = {"training__save_freq": 2, "training__disp_freq": 3, "training__max_ckpt_keep": 2}
    system = workshop.system()
    folders = [workshop.folder / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
        data = workshop.input(system, training__numb_steps=STEPS, **options)
        (folder / "input.json").write_text(json.dumps(data))
    whole, killed = folders
    begin = time.monotonic()
    runs.start(whole, "train", "input.json")
    assert runs.wait() == 0, (whole / "stderr").read_text()
    duration = time.monotonic() - begin
    rng, done = random.Random(seed), 0
    for _ in range(10 * kills):
        pid = runs.start(killed, "train", "input.json", "--restart", "model.ckpt")
        # About half of the run's length over all kills: they meet steps, saves and starts.
        time.sleep(rng.uniform(0.0, min(duration / 2, 2 * duration / kills + 0.1)))
        os.kill(pid, signal.SIGKILL)
        status = runs.wait()
        assert status in (0, -signal.SIGKILL), (killed / "stderr").read_text()
        done += status != 0
        for path in killed.glob("model.ckpt-*.dp"):
            Checkpoint.load(path)
        if done == kills:
            break
        if status == 0:  # it had ended: compare, and begin again
            assert_same_end(whole, killed)
            for path in killed.iterdir():
                if path.name != "input.json":
                    path.unlink()
    assert done == kills
    runs.start(killed, "train", "input.json", "--restart", "model.ckpt")
    assert runs.wait() == 0, (killed / "stderr").read_text()
    assert_same_end(whole, killed)
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_kill_9(workshop: Any, runs: Runs) -> None:
    kill_repeatedly(workshop, runs, 5, seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [2, 3])
def test_kill_9_many_times(workshop: Any, runs: Runs, seed: int) -> None:
    kill_repeatedly(workshop, runs, 20, seed)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signals_save_and_leave(workshop: Any, runs: Runs, name: str) -> None:
    folder = write_input(workshop, workshop.folder / "run", training__disp_freq=1, training__save_freq=10**6)
    data = json.loads((folder / "input.json").read_text())
    (folder / "input.json").write_text(json.dumps(data | {"training": {**data["training"], "numb_steps": 100_000}}))
    pid = runs.start(folder, "train", "input.json")
    deadline = time.monotonic() + 60
    while not (folder / "lcurve.out").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(pid, getattr(signal, name))
    text = f"{name} came" if runs.wait() == 0 else "it failed"
    assert text in (folder / "stderr").read_text()
    (path,) = folder.glob("model.ckpt-*.dp")
    step = Checkpoint.load(path).step
    assert path.name == f"model.ckpt-{step}.dp" and 1 <= step < 100_000
    assert read_lcurve(folder / "lcurve.out")["step"][-1] == step
    assert f"Stopped after {step} of 100000 steps ({name} came); go on with --restart model.ckpt.dp" in " ".join(
        (folder / "stderr").read_text().split()
    )
    runs.start(folder, "train", "input.json", "--restart", "model.ckpt.dp", "--stop-at", str(step + 3))
    assert runs.wait() == 0
    assert Checkpoint.load(folder / f"model.ckpt-{step + 3}.dp").step == step + 3


def test_full_disk(workshop: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"training__save_freq": 4, "training__numb_steps": 10}
    data = workshop.input(**changes)
    for name in ("whole", "full"):
        (workshop.folder / name).mkdir()
        (workshop.folder / name / "input.json").write_text(json.dumps(data))
    monkeypatch.chdir(workshop.folder / "whole")
    assert main(["train", "input.json"]) == 0
    monkeypatch.chdir(workshop.folder / "full")
    sync = os.fsync

    def full(handle: int) -> None:
        if list(Path().glob("model.ckpt-4.dp")):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["train", "input.json"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert Checkpoint.load("model.ckpt-4.dp").step == 4
    assert [p.name for p in Path().glob("model.ckpt-*")] == ["model.ckpt-4.dp"]
    assert main(["train", "input.json", "--restart", "model.ckpt"]) == 0
    assert_same_end(workshop.folder / "whole", workshop.folder / "full", 10)
