"""Exchange between real processes (mpiexec -n 2), and how failures end them; ghosts_program.py is what they run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mpi4py  # noqa: F401 - the programs need it; without it all of this file would be lost
import pytest

PROGRAM = Path(__file__).with_name("ghosts_program.py")
ROOT = Path(__file__).parents[2]
SECONDS_TO_END = 10.0


def mpiexec() -> str:
    """That of the mpich wheel, beside the interpreter, before any other."""
    beside = Path(sys.executable).parent
    found = shutil.which("mpiexec", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    assert found, "mpi4py is installed, mpiexec is not: pip install mpich"
    return found


def run(*arguments, ranks=2, program=PROGRAM, folder=None):
    """(exit status, output, time of the end) of a program on some ranks; nothing of it outlives the test."""
    command = [mpiexec(), "-n", str(ranks), sys.executable, "-W", "ignore", str(program), *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, said, time.time()


def test_exchange_is_exact_and_its_adjoint_fits():
    status, said, _ = run("exchange")
    assert status == 0, said
    assert said.count("holds") == 5 * 4 * 2
    assert "ends the job" not in said


def test_example_of_the_docs(tmp_path):
    text = (ROOT / "docs" / "exchange.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- a test runs this block on two ranks -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    same = "assert [x.tobytes() for x in world.allgather(outputs['force'])] == [outputs['force'].tobytes()] * 2\n"
    some = "assert all(world.allgather(len(parts[world.rank].atoms) > 0))\n"
    (tmp_path / "example.py").write_text(block + same + some, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "data" / "golden" / "dpa3.dp", tmp_path / "model.dp")
    status, said, _ = run(program=tmp_path / "example.py", folder=tmp_path)
    assert status == 0, said
    assert said.count("(27, 3)") == 1, said


def test_models_on_two_ranks_equal_one_process():
    status, said, _ = run("model")
    assert status == 0, said
    assert said.count("holds") == 6 * 5


def test_the_family_on_two_ranks_equals_one_process():
    status, said, _ = run("family")
    assert status == 0, said
    assert said.count("holds") == 6 * 2 * 3


@pytest.mark.nightly
@pytest.mark.parametrize("what", ["exchange", "model", "family"])
def test_three_ranks(what):
    status, said, _ = run(what, ranks=3)
    assert status == 0, said
    assert "holds" in said


SCHEDULE = [("forward", 1), ("forward", 2), ("forward", 3), ("reverse", 1), ("reverse", 2)]
"""Of a dpa3 of three layers."""


@pytest.mark.parametrize(
    ("kind", "at"), [pytest.param(*x, marks=[] if x[1] == 2 else pytest.mark.nightly) for x in SCHEDULE]
)
def test_a_failed_exchange_ends_every_rank(kind, at, tmp_path):
    status, said, end = run(kind, tmp_path / "mark", at)
    assert status != 0
    assert end - (tmp_path / "mark").stat().st_mtime < SECONDS_TO_END
    assert f"dpmodel ghosts: {kind} exchange {at} (float64, width 8, " in said
    assert f"rank 1 of 2 ends the job: RuntimeError: dpmodel ghosts: {kind} exchange {at}" in said
    assert "injected fault" in said
    assert "came to the end" not in said


def test_a_rank_that_raises_ends_every_rank(tmp_path):
    status, said, end = run("raising", tmp_path / "mark")
    assert status != 0
    assert end - (tmp_path / "mark").stat().st_mtime < SECONDS_TO_END
    assert "rank 1 of 2 ends the job: ValueError: the input of the last rank is wrong" in said
    assert "came to the end" not in said


@pytest.mark.parametrize("how", ["different", "otherwise"])
def test_models_that_differ_end_every_rank(tmp_path, how):
    status, said, end = run(how, tmp_path / "mark")
    assert status != 0
    assert end - (tmp_path / "mark").stat().st_mtime < SECONDS_TO_END
    assert "ValueError: the models of ranks [1] are not that of rank 0" in said
    assert "came to the end" not in said


ABORTING = """
import sys, time
from types import SimpleNamespace
from dpmodel.backends.pt_expt.ghosts import mpi

said = []
def write(text):
    said.append((time.monotonic(), text))
def abort(status):
    print("waited", time.monotonic() - said[-1][0] > 0.2, "said", "rank 2 of 4 ends the job" in said[-1][1], status)
mpi.MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(rank=2, size=4, Abort=abort))
sys.stderr = SimpleNamespace(write=write, flush=lambda: None)
try:
    with mpi.aborting():
        raise ValueError("wrong")
except ValueError as problem:
    print("goes on to nothing:", problem)
"""


def test_the_reason_is_out_before_the_job_ends(tmp_path):
    """An abort takes what mpiexec has not yet read with it."""
    (tmp_path / "aborting.py").write_text(ABORTING, encoding="utf-8")
    status, said, _ = run(ranks=1, program=tmp_path / "aborting.py")
    assert status == 0, said
    assert "waited True said True 1" in said
    assert "goes on to nothing: wrong" in said
