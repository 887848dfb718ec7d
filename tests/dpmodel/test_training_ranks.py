"""The loop on several processes (threads here): they draw the same tasks, stop at the same step, and share rows."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dpmodel.training.run as run_module
from dpmodel.data.system import Batch
from dpmodel.geometry.build import GraphBuilder
from dpmodel.graph import NeighbourRequest
from dpmodel.training.agree import Agreed
from dpmodel.training.batches import Prepared
from dpmodel.training.feed import Feed
from dpmodel.training.lcurve import LearningCurve, read_lcurve
from dpmodel.training.loop import Loop
from dpmodel.training.means import RunningMean, over_ranks
from dpmodel.training.share import listening, shared
from dpmodel.training.signals import Request
from dpmodel.training.world import Alone, RankError

from .ranks import Threads, results, run_ranks
from .several import edited

SEA: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "input" / "sea.json").read_text())

BUILDER = GraphBuilder(requests=(NeighbourRequest(rcut=2.0, sel=(4,), layout="typed_slots"),), ntypes=1)


class Frames:
    """A sampler whose batches say where they come from in their energy."""

    def __init__(self, base: float) -> None:
        self.base, self.drawn = base, 0

    def next(self) -> Batch:
        self.drawn += 1
        return Batch(
            coord=np.zeros((1, 1, 3)), atype=np.zeros((1, 1), np.int64), cell=None, pbc=False, system=0,
            labels={"energy": np.full((1, 1), self.base + self.drawn)}, found={"energy": 1.0}, frames=np.zeros(1, np.int64),
        )  # fmt: skip

    def place(self, batch: Batch) -> str:
        return "water"

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def restore(self, state: Any) -> None:
        self.drawn = state["drawn"]


class Steps:
    """A stepper whose metric is the energy of the last batch."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[float]]] = []

    def step(self, batches: Sequence[Prepared], lr: float, task: str = "") -> Callable[[], Any]:
        values = [float(batch.labels["energy"][0, 0]) for batch in batches]
        self.calls.append(("step", task, values))
        return lambda: {"rmse": values[-1], "rare": math.nan}

    def measure(self, batch: Prepared, lr: float, task: str = "") -> dict[str, float]:
        value = float(batch.labels["energy"][0, 0])
        self.calls.append(("measure", task, [value]))
        return {"rmse": value, "rare": math.nan}


class Noted:
    """A display and an observer."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.steps: list[Any] = []

    def advance(self, step: int) -> None:
        pass

    def report(self, *row: Any) -> None:
        pass

    def on_step(self, step: int, read: Any, lr: float, task: str) -> None:
        self.steps.append((step, task, read()["rmse"]))

    def on_row(self, step: int, training: Any, validation: Any, lr: float) -> None:
        self.rows.append((step, training, validation))

    def close(self) -> None:
        pass


TASKS = ("a", "b", "a", "b", "b", "a")


def loop_of(world: Any, folder: Path, **changes: Any) -> Loop:
    rank = 100.0 * world.rank
    feeds = {
        name: Feed(
            builder=BUILDER, atomic_labels=frozenset(), training=Frames(rank + base), validation=Frames(rank + base + 50),
            validation_batches=2,
        )
        for name, base in (("a", 0.0), ("b", 1000.0))
    }  # fmt: skip
    options: dict[str, Any] = {
        "stepper": Steps(), "tasks": feeds, "draw": lambda step: TASKS[step % 6], "schedule": SimpleNamespace(lr=lambda _: 0.5),
        "num_steps": 6, "disp_freq": 3, "save_freq": 4, "disp_avg": False, "display": Noted(), "save": lambda _: None,
        "curve": LearningCurve(folder / "lcurve.out") if world.chief else None, "world": world, **changes,
    }  # fmt: skip
    return Loop(**options)


def test_other_tasks_are_measured_on_the_batch_that_they_are_trained_on_next(tmp_path: Path) -> None:
    noted = Noted()
    loop = loop_of(Alone(), tmp_path, observers=[noted], accumulate=2)
    assert loop.go(0, None, Request()) == 6
    steps = [(task, values) for kind, task, values in loop.stepper.calls if kind == "step"]
    assert steps == [
        ("a", [1, 2]), ("b", [1001, 1002]), ("a", [3, 4]), ("b", [1003, 1004]), ("b", [1005, 1006]), ("a", [5, 6]),
    ]  # fmt: skip
    assert [(step, training["a"]["rmse"], training["b"]["rmse"]) for step, training, _ in noted.rows] == [
        (1, 2, 1001), (3, 4, 1003), (6, 6, 1007),
    ]  # fmt: skip
    assert noted.rows[0][2]["a"]["rmse"] == 51.5
    assert noted.steps[:2] == [(1, "a", 2.0), (2, "b", 1002.0)]
    # What was looked at is not trained yet.
    assert loop.state()["tasks"]["b"]["training"]["drawn"] == 6 and loop.tasks["b"].training.drawn == 7
    assert list(read_lcurve(tmp_path / "lcurve.out")["rmse_trn_b"]) == [1000, 1000, 1010]  # three digits


def test_means_of_tasks_since_the_last_row(tmp_path: Path) -> None:
    noted = Noted()
    loop = loop_of(Alone(), tmp_path, observers=[noted], disp_avg=True, num_steps=5)
    loop.go(0, None, Request())
    assert [(step, training["a"]["rmse"], training["b"]["rmse"]) for step, training, _ in noted.rows] == [
        (1, 1, 1001), (3, 2, 1001),
    ]  # fmt: skip
    assert loop.state()["average"] == {"b": {"rmse": [2005.0, 2.0], "rare": [0.0, 0.0]}}


def test_ranks_share_rows_and_go_through_the_same_calls(tmp_path: Path) -> None:
    def run(world: Threads) -> Any:
        noted = Noted()
        loop = loop_of(world, tmp_path, observers=[noted] if world.chief else [], disp_avg=True)
        loop.go(0, None, Request())
        return [(kind, task) for kind, task, _ in loop.stepper.calls], world.calls, noted.rows, loop.state()

    one, two = results(2, run)
    assert one[0] == two[0] and one[1] == two[1]
    assert one[3] == two[3]
    assert [(step, training["a"]["rmse"], training["b"]["rmse"]) for step, training, _ in one[2]] == [
        (1, 51, 1051), (3, 52, 1051), (6, 53, 1052.5),
    ]  # fmt: skip
    assert two[2] == []


def test_averages_of_ranks_go_on(tmp_path: Path) -> None:
    def run(world: Threads) -> Any:
        whole = loop_of(world, tmp_path / "whole", disp_avg=True, num_steps=5)
        part = loop_of(world, tmp_path / "part", disp_avg=True, num_steps=5)
        part.go(0, 4, Request())
        rest = loop_of(world, tmp_path / "rest", disp_avg=True, num_steps=5, disp_freq=5, observers=[Noted()])
        rest.restore(part.state())
        rest.go(4, None, Request(), saved=True)
        whole.disp_freq = 5
        whole.averages.clear()
        return rest.observers[0].rows, [call for call in rest.stepper.calls if call[0] == "step"]

    for name in ("whole", "part", "rest"):
        (tmp_path / name).mkdir()
    one, _ = results(2, run)
    # Of b since the row of step 3: batches 2 and 3 of both ranks.
    ((step, training, _),) = one[0]
    assert (step, training["b"]["rmse"]) == (5, 1052.5)
    assert one[1] == [("step", "b", [1003.0])]


@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_rank_ends_all_at_the_same_step(tmp_path: Path, who: int) -> None:
    def run(world: Threads) -> Any:
        request, saved = Request(), []
        loop = loop_of(world, tmp_path, num_steps=10_000, disp_freq=100_000, save_freq=100_000, save=saved.append)

        def advance(step: int) -> None:
            if world.rank == who and step == 7:
                request.name = "SIGUSR1"

        loop.display.advance = advance
        return loop.go(0, None, request), saved, request.name

    one, two = results(2, run)
    assert one == two and 7 <= one[0] < 10_000
    assert one[1] == [one[0]] and one[2] == "SIGUSR1"


def test_looks_at_requests_are_rare_where_steps_are_fast() -> None:
    now = [0.0]

    def run(world: Threads) -> Any:
        agreed = Agreed(world, Request(), clock=lambda: now[0] / 2)  # two ranks move it
        for step in range(3000):
            now[0] += 0.0005
            assert not agreed.ends(step)
        return len(world.calls)

    one, two = results(2, run)
    assert one == two and one < 30
    alone = Agreed(Alone(), Request())
    assert not alone.ends(0)
    alone.request.name = "SIGTERM"
    assert alone.ends(1)


def test_a_failed_row_ends_all(tmp_path: Path) -> None:
    def run(world: Threads) -> Any:
        loop = loop_of(world, tmp_path / "nowhere")
        return loop.go(0, None, Request())

    one, two = run_ranks(2, run)
    assert isinstance(one, OSError) and isinstance(two, RankError)


def test_early_stopping_ends_all(tmp_path: Path) -> None:
    class Validation:
        averaged = True

        def due(self, step: int) -> bool:
            return step in (2, 4)

        def run(self, step: int, stepper: Any, save: Callable[[Path], object]) -> Any:
            save(Path("best"))
            return SimpleNamespace(stop=step == 4)

    best, saved = [], []
    loop = loop_of(
        Alone(), tmp_path, validations=[Validation()], save_best=lambda *place: best.append(place), save=saved.append
    )
    assert loop.go(0, None, Request()) == 4 and loop.stopped_early
    assert best == [(2, True, Path("best")), (4, True, Path("best"))]
    assert saved == [4]  # the validation of a step is in its checkpoint
    again = loop_of(Alone(), tmp_path, stopped_early=True, save=saved.append)
    assert again.go(4, None, Request(), saved=True) == 4 and saved == [4]


def test_means_over_ranks() -> None:
    def run(world: Threads) -> Any:
        mean, none = RunningMean(), RunningMean()
        mean.add({"x": 1.0 + world.rank, "y": math.nan if world.rank else 4.0, "z": math.nan}, weight=1.0 + world.rank)
        return [each.means() for each in over_ranks(world, [mean, none])]

    for found in results(3, run):
        assert found[0]["x"] == pytest.approx(14 / 6) and found[0]["y"] == 4.0 and math.isnan(found[0]["z"])
        assert found[1] == {}


def test_data_of_the_chief() -> None:
    given = {"a": [1, (2.5, None)], "b": {"c": np.arange(6.0).reshape(2, 3), "d": np.array(3)}, "e": "text"}

    def run(world: Threads) -> Any:
        return shared(world, given if world.chief else None)

    for found in results(2, run):
        assert found["a"] == [1, [2.5, None]] and found["e"] == "text"
        assert np.array_equal(found["b"]["c"], given["b"]["c"]) and found["b"]["d"].shape == ()
    assert shared(Alone(), given) is given


def trainer_of(world: Threads) -> Any:
    @contextlib.contextmanager
    def join(device: str | None) -> Iterator[Threads]:
        yield world

    return SimpleNamespace(
        name="pt", join=join, compiles_training=True, several_tasks=True, optimizers=("Adam",), profiles=True,
    )  # fmt: skip


@pytest.mark.parametrize(("path", "value", "section"), [
    ("loss.start_pref_f", 7.0, "loss"), ("training.seed", None, "training"), ("model.descriptor.rcut_smth", 0.7, "model"),
    ("training.disp_freq", 3, "training"), ("validating.full_val_start", 0.3, "validating"),
])  # fmt: skip
def test_ranks_with_other_inputs_are_told_before_anything_else(
    path: str, value: Any, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed that one has and the other draws, say: the ranks would wait for each other in different places."""
    own = threading.local()
    monkeypatch.setattr(run_module, "get_trainer", lambda _: trainer_of(own.world))
    monkeypatch.setenv("WORLD_SIZE", "2")

    def work(world: Threads) -> Any:
        own.world = world
        data = edited(edited(SEA, "training.seed", 1), "training.training_data.systems", f"nowhere/{world.rank}")
        return run_module.train(edited(data, path, value) if world.rank else data, output=None)

    for found in run_ranks(2, work):
        assert isinstance(found, RankError) and f"the_section_{section} differs" in str(found), found
    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "find_start", lambda *given: None)
        patch.setattr(
            run_module._Run, "open_data", lambda *given: (_ for _ in ()).throw(RankError("places may differ"))
        )
        path, value = "training.seed", 1
        assert {str(found) for found in run_ranks(2, work)} == {"places may differ"}


def test_ranks_with_other_options_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    own = threading.local()
    monkeypatch.setattr(run_module, "get_trainer", lambda _: trainer_of(own.world))
    monkeypatch.setenv("WORLD_SIZE", "2")

    def work(world: Threads) -> Any:
        own.world = world
        return run_module.train(SEA, output=None, restart="model.ckpt" if world.rank else None)

    for found in run_ranks(2, work):
        assert isinstance(found, RankError) and "restart differs" in str(found), found


def test_other_ranks_warn_with_their_rank(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    logger = logging.getLogger("dpmodel.training.loop")
    with caplog.at_level(logging.INFO, "dpmodel"):
        with listening(SimpleNamespace(rank=3, size=4, chief=False)):  # type: ignore[arg-type]
            logger.info("not said")
            logger.warning("said %d", 1)
            logging.getLogger("other").warning("as it is")
        with listening(SimpleNamespace(rank=2, size=4, chief=False), everyone=True):  # type: ignore[arg-type]
            logger.info("said")
        with listening(SimpleNamespace(rank=0, size=4, chief=True)):  # type: ignore[arg-type]
            logger.info("the run")
        logger.info("after")
    assert [record.getMessage() for record in caplog.records] == [
        "rank 3: said 1", "as it is", "rank 2: said", "the run", "after",
    ]  # fmt: skip
