"""`dpmodel train` on two processes from the command line: signals, kills, errors, `torchrun`."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.data.write import write_system
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve

from .conftest import environment, free_port

LIMIT = 120.0
"""Seconds for one run: mostly imports on a busy machine."""

SERVER = """
import json, os, sys, time
import torch, torch.distributed
import dpmodel.backends.pt, dpmodel.cli.train
import dpmodel.training.loop as loop
import dpmodel.training.run
from dpmodel.cli import main
train = loop.Loop._train
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{name}.{os.environ['RANK']}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        def slow(self, step, task, lr):
            time.sleep(job["pause"])
            return train(self, step, task, lr)
        loop.Loop._train = slow
        exec(job["more"])
        os._exit(main(job["args"]))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Imports once, then forks for every command line. Its steps may take a known time, so that something happens in them."""


class Rank:
    """Command lines of one rank, one after the other, in processes of their own."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.pid = 0

    def start(self, **job: Any) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        self.pid = int(self._read())

    def wait(self) -> int:
        """The exit status; negative for signals. It is killed where it does not end."""
        timer = threading.Timer(LIMIT, self.kill)
        timer.start()
        try:
            return int(self._read())
        finally:
            timer.cancel()
            self.pid = 0

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.pid:
            self.signal(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._server.kill()
        self._server.communicate()

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


@pytest.fixture(scope="module")
def both() -> Iterator[list[Rank]]:
    found = [Rank(), Rank()]
    yield found
    for rank in found:
        rank.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with data and an input of 60 steps."""
    return furnish(tmp_path)


def furnish(folder: Path, stage: int = 0) -> Path:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:5] * 2.0
    labels = {"energy": rng.normal(-15.0, 1.0, (12, 1)), "force": rng.normal(size=(12, 5, 3))}
    coord = grid + rng.uniform(0.0, 0.8, (12, 5, 3))
    write_system(folder / "data", coord, np.arange(5) % 2, np.eye(3) * 6.0, type_map=("A", "B"), labels=labels)
    data = {
        "model": {
            "type_map": ["A", "B"],
            "descriptor": {"type": "se_e2_a", "rcut": 3.0, "sel": [12, 12], "neuron": [2, 4], "axis_neuron": 2, "seed": 1},
            "fitting_net": {"neuron": [4], "seed": 2},
        },
        "learning_rate": {"start_lr": 0.01, "stop_lr": 1e-4, "decay_steps": 10},
        "training": {
            "training_data": {"systems": ["data"], "batch_size": 2}, "numb_steps": 60, "disp_freq": 20, "save_freq": 10,
            "seed": 5, "enable_ema": True, "zero_stage": stage,
        },
    }  # fmt: skip
    (folder / "input.json").write_text(json.dumps(data))
    return folder


def start(both: list[Rank], place: Path, *args: str, pause: float = 0.0, more: str = "") -> None:
    """`dpmodel train` on both, as torchrun starts them, each with its standard error in a file."""
    port = free_port()
    for number, rank in enumerate(both):
        line = ["train", "input.json", "--backend", "pt", "--device", "cpu", *args]
        own = {name: value for name, value in environment(number, port).items() if os.environ.get(name) != value}
        rank.start(folder=str(place), environment=own, args=line, pause=pause, more=more)


def said(place: Path, rank: int) -> str:
    return (place / f"stderr.{rank}").read_text()


def wait_for(place: Path, name: str) -> None:
    """Until that file is there."""
    end = time.monotonic() + LIMIT
    while not (place / name).exists():
        assert time.monotonic() < end, said(place, 0) + said(place, 1)
        time.sleep(0.02)


def finish(both: list[Rank], place: Path, *args: str, **options: Any) -> list[int]:
    start(both, place, *args, **options)
    return [rank.wait() for rank in both]


@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_saves_and_ends_both(both: list[Rank], place: Path, who: int) -> None:
    start(both, place, pause=0.05)
    wait_for(place, "model.ckpt-10.dp")
    both[who].signal(signal.SIGTERM)
    assert [rank.wait() for rank in both] == [0, 0], said(place, 0) + said(place, 1)
    assert "(SIGTERM came)" in said(place, 0) and "(SIGTERM came)" not in said(place, 1)
    assert 10 <= Checkpoint.load(place / "model.ckpt.dp").step < 60


@pytest.fixture(scope="module")
def undisturbed(both: list[Rank], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """By stage, the folder of a run that nothing happened to."""

    @functools.cache
    def run(stage: int) -> Path:
        folder = furnish(tmp_path_factory.mktemp("whole"), stage)
        assert finish(both, folder) == [0, 0]
        return folder

    return run


KILLS = 24


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.nightly) for k in range(1, KILLS))])
def test_killed_at_random_and_gone_on_with(
    both: list[Rank], tmp_path: Path, undisturbed: Callable[[int], Path], seed: int
) -> None:
    """One of two is killed at some time, the other ends within 10 seconds; the restart is the run that nothing happened to."""
    stage = seed % 4
    whole, place = undisturbed(stage), furnish(tmp_path, stage)
    rng = np.random.default_rng(seed)
    start(both, place, pause=0.02)
    # From the statistics to the last steps; a save comes after every ten steps, 0.2 seconds and more.
    names = ("out.json", *(f"model.ckpt-{step}.dp" for step in (10, 20, 30, 40)))
    wait_for(place, str(rng.choice(names)))
    time.sleep(rng.uniform(0.0, 0.25))
    who = int(rng.integers(2))
    begin = time.monotonic()
    both[who].signal(signal.SIGKILL)
    assert both[1 - who].wait() == 1, said(place, 1 - who)
    assert time.monotonic() - begin < 10
    assert both[who].wait() == -signal.SIGKILL
    assert "another process of this run has ended" in said(place, 1 - who)
    assert "Traceback" not in said(place, 1 - who)
    assert not (place / "model.ckpt-60.dp").exists()
    assert finish(both, place, "--restart", "model.ckpt") == [0, 0], said(place, 0) + said(place, 1)
    for name in ("model.ckpt-60.dp", "model_ema.ckpt-60.dp"):
        one, two = (Checkpoint.load(folder / name) for folder in (place, whole))
        assert one.state.keys() == two.state.keys()
        for key, value in one.state.items():
            np.testing.assert_allclose(value, two.state[key], rtol=1e-12, atol=1e-12, err_msg=key)
    curves = [read_lcurve(folder / "lcurve.out") for folder in (place, whole)]
    assert list(curves[0]["step"]) == [1, 20, 40, 60]
    for name, values in curves[0].items():
        np.testing.assert_allclose(values, curves[1][name], rtol=1e-9, err_msg=name)


BROKEN = {
    "data of one": "import dpmodel.training.tasks as t, os\n"
    "if os.environ['RANK'] == '1': t.Task.open_data = lambda self: open('gone/type.raw')",
    "a step of one": "import dpmodel.training.feed as f, os\n"
    "if os.environ['RANK'] == '1': f.Feed.next = lambda self: open('gone/type.raw')",
    "the input": "import dpmodel.training.run as r\nfrom dpmodel.errors import InputError\n"
    "def bad(*_):\n    raise InputError('gone/type.raw: no')\nr.load_input = bad",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_one_cannot_do_is_said_once_and_ends_both(both: list[Rank], place: Path, what: str) -> None:
    begin = time.monotonic()
    assert finish(both, place, more=BROKEN[what]) == [1, 1]
    assert time.monotonic() - begin < 20
    text = said(place, 0) + said(place, 1)
    assert text.count("gone/type.raw") == 1, text
    assert "Traceback" not in text
    assert not (place / "out.json").exists() or what == "a step of one"


def test_torchrun(place: Path) -> None:
    """The command of the documentation; one process logs, and one writes."""
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
         "-m", "dpmodel", "train", "input.json", "--pt", "--device", "cpu"],
        cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == "model.ckpt-60.dp\n"
    assert run.stderr.count("Saved model to model.ckpt-60.dp") == 1
    assert Checkpoint.load(place / "model.ckpt-60.dp").sampler["tasks"][""]["training"]["world"] == 2
