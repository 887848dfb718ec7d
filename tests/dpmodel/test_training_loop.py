"""The loop, without a framework: what it asks for, when it shows and saves, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpmodel.data.system import Batch
from dpmodel.geometry.build import GraphBuilder
from dpmodel.graph import NeighbourRequest
from dpmodel.training.batches import Prepared, prepare
from dpmodel.training.feed import Feed
from dpmodel.training.lcurve import LearningCurve, read_lcurve
from dpmodel.training.loop import Loop, RunningMean
from dpmodel.training.signals import Request
from dpmodel.training.stepper import NonFiniteError

BUILDER = GraphBuilder(requests=(NeighbourRequest(rcut=2.0, sel=(4,), layout="typed_slots"),), ntypes=1)


class Frames:
    """A sampler of frames with a growing number of atoms."""

    def __init__(self) -> None:
        self.drawn = 0

    def place(self, batch: Batch) -> str:
        return "water"

    def next(self) -> Batch:
        self.drawn += 1
        coord = np.zeros((1, self.drawn, 3))
        coord[0, :, 0] = np.arange(self.drawn)
        return Batch(
            coord=coord, atype=np.zeros((1, self.drawn), np.int64), cell=None, pbc=False, system=0,
            labels={"energy": np.full((1, 1), float(self.drawn))}, found={"energy": 1.0}, frames=np.zeros(1, np.int64),
        )  # fmt: skip


class Steps:
    """A stepper whose metric is the number of atoms; frames of three have no label."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.sizes: list[list[int]] = []
        self.tasks: list[str] = []

    def step(self, batches: Sequence[Prepared], lr: float, task: str = "") -> Callable[[], Any]:
        self.rates.append(lr)
        self.sizes.append([int(batch.graph.natoms[0]) for batch in batches])
        self.tasks.append(task)
        n = self.sizes[-1][-1]
        assert batches[-1].labels["energy"][0, 0] == n and batches[-1].found == {"energy": 1.0}
        if n == 13:
            raise NonFiniteError("the gradient is not finite in w")
        return lambda: {"rmse": math.nan if n == 3 else float(n)}

    def measure(self, batch: Prepared, lr: float, task: str = "") -> dict[str, float]:
        return {"rmse": float(batch.graph.natoms[0])}


class Shown:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[int] = []

    def advance(self, step: int) -> None:
        self.steps.append(step)

    def report(self, step: int, *values: Any) -> None:
        self.rows.append(step)


def feed(**more: Any) -> Feed:
    return Feed(builder=BUILDER, atomic_labels=frozenset(), training=Frames(), **more)  # type: ignore[arg-type]


def make(tmp_path: Path, **changes: Any) -> tuple[Loop, list[int]]:
    saved: list[int] = []
    checks = {name: changes.pop(name) for name in ("validation", "validation_batches") if name in changes}
    options: dict[str, Any] = {
        "stepper": Steps(), "tasks": {"": feed(**checks)}, "schedule": SimpleNamespace(lr=lambda step: 1.0 / (1 + step)), "num_steps": 10,
        "disp_freq": 4, "save_freq": 3, "disp_avg": False, "curve": LearningCurve(tmp_path / "lcurve.out"),
        "display": Shown(), "save": saved.append, **changes,
    }  # fmt: skip
    return Loop(**options), saved


def test_rows_and_checkpoints(tmp_path: Path) -> None:
    loop, saved = make(tmp_path)
    assert loop.go(0, None, Request()) == 10
    assert saved == [3, 6, 9, 10]
    table = read_lcurve(tmp_path / "lcurve.out")
    assert list(table["step"]) == [1, 4, 8] == loop.display.rows
    assert list(table["rmse_trn"]) == [1, 4, 8]
    assert loop.display.steps == list(range(1, 11))
    assert loop.stepper.rates == [1.0 / (1 + k) for k in range(10)]
    assert list(table["lr"]) == [1.0, 0.25, 0.12]  # two digits in the file


def test_means_leave_out_what_has_no_label(tmp_path: Path) -> None:
    loop, _ = make(tmp_path, disp_avg=True, num_steps=9)
    loop.go(0, None, Request())
    assert list(read_lcurve(tmp_path / "lcurve.out")["rmse_trn"]) == [1, 3, 6.5]  # (2 + 4) / 2, (5 + 6 + 7 + 8) / 4
    assert loop.averages[""].state() == {"rmse": [9.0, 1.0]}
    assert RunningMean({"rmse": [0.0, 0.0]}).means()["rmse"] != 0


def test_validation_is_weighted_by_atoms(tmp_path: Path) -> None:
    loop, _ = make(tmp_path, validation=Frames(), validation_batches=2, num_steps=4)
    loop.go(0, None, Request())
    # Frames of 1 and 2 atoms, then of 3 and 4, weighted by these numbers.
    assert list(read_lcurve(tmp_path / "lcurve.out")["rmse_val"]) == pytest.approx([5 / 3, 25 / 7], rel=0.01)


@pytest.mark.parametrize(("start", "stop", "saved", "end", "files"), [
    (0, 0, False, 0, [0]), (0, 5, False, 5, [3, 5]), (0, 6, False, 6, [3, 6]), (4, 99, True, 10, [6, 9, 10]),
    (10, None, True, 10, []), (10, None, False, 10, [10]), (7, 3, True, 7, []),
])  # fmt: skip
def test_ends(tmp_path: Path, start: int, stop: int | None, saved: bool, end: int, files: list[int]) -> None:
    loop, written = make(tmp_path)
    assert loop.go(start, stop, Request(), saved=saved) == end
    assert written == files


def test_a_request_ends_after_the_step(tmp_path: Path) -> None:
    request = Request()
    loop, saved = make(tmp_path, save_freq=100)
    loop.display.advance = lambda step: setattr(request, "name", "SIGTERM" if step == 5 else "")
    assert loop.go(0, None, request) == 5
    assert saved == [5]
    assert loop.tasks[""].training.drawn == 5
    request.name = "SIGINT"  # before the first step
    loop, saved = make(tmp_path)
    assert loop.go(0, None, request) == 0
    assert saved == [0]


def test_a_bad_gradient_ends_it_unsaved(tmp_path: Path) -> None:
    loop, saved = make(tmp_path, num_steps=20, save_freq=6)
    with pytest.raises(NonFiniteError, match=r"step 13: the gradient is not finite in w.*nothing was saved since"):
        loop.go(0, None, Request())
    assert saved == [6, 12]


def test_a_failed_save_passes_through(tmp_path: Path) -> None:
    def full(step: int) -> None:
        raise OSError(28, "No space left on device")

    loop, _ = make(tmp_path, save=full)
    with pytest.raises(OSError, match="No space left"):
        loop.go(0, None, Request())


def test_what_goes_into_the_graph_and_what_into_the_loss() -> None:
    shape = (2, 3)
    labels = {
        "force": np.arange(18.0).reshape(*shape, 3), "energy": np.ones((2, 1)), "fparam": np.ones((2, 4)),
        "aparam": np.arange(6.0).reshape(*shape, 1), "atom_ener": np.zeros((*shape, 1)),
    }  # fmt: skip
    found = dict.fromkeys(labels, 1.0) | {"fparam": 0.0, "atom_ener": 0.0}
    batch = Batch(
        coord=np.random.default_rng(0).uniform(0, 3, (*shape, 3)), atype=np.zeros(shape, np.int64), cell=None, pbc=False,
        system=0, labels=labels, found=found, frames=np.arange(2),
    )  # fmt: skip
    ready = prepare(batch, BUILDER, frozenset({"force", "atom_ener", "aparam"}))
    assert ready.found == {"energy": 1.0, "force": 1.0, "atom_ener": 0.0}
    assert {name: value.shape for name, value in ready.labels.items()} == {
        "force": (6, 3), "energy": (2, 1), "atom_ener": (6, 1),
    }  # fmt: skip
    assert np.array_equal(ready.labels["force"][3], labels["force"][1, 0])
    assert ready.graph.fparam is None  # the model's default
    assert np.array_equal(ready.graph.aparam[:, 0], np.arange(6.0))
