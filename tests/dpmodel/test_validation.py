"""Full validation: which steps, which numbers, on one rank and two, what is kept as the best, and restarts."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.backend import get_backend
from dpmodel.data.write import write_system
from dpmodel.errors import DataError, InputError
from dpmodel.input.sections import ValidationDataConfig
from dpmodel.losses import EnerLossConfig, EnerSpinLossConfig, PropertyLossConfig
from dpmodel.metrics import evaluate_systems
from dpmodel.training.best import BestCheckpoints
from dpmodel.training.stepper import NonFiniteError
from dpmodel.training.validation import FullValidation, ValidationTask, first_step, validates
from dpmodel.training.world import Alone

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
pytestmark = pytest.mark.filterwarnings(
    "ignore::dpmodel.geometry.build.TruncationWarning"
)  # goldens cut off on purpose


class Options:
    """A `validating` section."""

    validation_metric = "f:mae"
    full_val_start = 0.0
    validation_freq = 2
    save_best = True
    save_best_dir = None
    max_best_ckpt = 2
    full_val_file = "val.log"
    early_stop_patience: int | None = None

    def __init__(self, **changes: Any) -> None:
        vars(self).update(changes)


class Steps:
    """A stepper whose models have a bias that tests change."""

    def __init__(self, *names: str) -> None:
        self.potentials = {str(k): dpmodel.load(GOLDEN / f"{name}.dp", "pt") for k, name in enumerate(names)}
        if len(names) == 1:
            self.potentials = {"": self.potentials["0"]}
        self.shift, self.entered = 0.0, []

    @contextmanager
    def evaluating(self, task: str = "", *, averaged: bool = False) -> Iterator[Any]:
        self.entered.append((task, averaged))
        yield lambda graph, **options: self._out(task, graph, options)

    def _out(self, task: str, graph: Any, options: dict[str, Any]) -> dict[str, np.ndarray]:
        out = self.potentials[task]._evaluator(graph, **options)
        return {key: value + self.shift if key == "force" else value for key, value in out.items()}

    def task(self, name: str, folder: Path, loss: Any = None, **options: Any) -> ValidationTask:
        return ValidationTask(
            model=self.potentials[name].model, data=ValidationDataConfig(systems=str(folder)),
            loss=loss or EnerLossConfig(), **options,
        )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Systems whose labels are random: periodic with virial, periodic without, open with a virial that means nothing."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, count, natoms in (("a", 3, 4), ("b", 2, 7), ("c", 1, 5)):
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[:natoms] * 3.0
        labels = {"energy": rng.normal(size=(count, 1)), "force": rng.normal(size=(count, natoms, 3))}
        if name != "b":
            labels["virial"] = rng.normal(size=(count, 9))
        write_system(
            tmp_path / "data" / name, grid + rng.uniform(-0.6, 0.6, (count, natoms, 3)), np.arange(natoms) % 2,
            None if name == "c" else np.tile(9.5 * np.eye(3), (count, 1, 1)), type_map=["O", "H"], labels=labels,
        )  # fmt: skip
    return tmp_path / "data"


def make(stepper: Steps, folder: Path, world: Any = None, num_steps: int = 10, **options: Any) -> FullValidation:
    own = {name: options.pop(name) for name in ("averaged", "state", "restored_step") if name in options}
    return FullValidation(
        Options(**options), {"": stepper.task("", folder)}, backend=get_backend("pt"), world=world or Alone(),
        num_steps=num_steps, **own,
    )  # fmt: skip


def rows(path: str = "val.log") -> list[list[float]]:
    return [[float(x) for x in line.split()] for line in Path(path).read_text().splitlines() if line[0] != "#"]


def test_first_step() -> None:
    given = {0: 0, 0.5: 5, 0.07: 7, 1: None, 2: 2, 2.9: 2, 101: None, 100.0: 100, 0.999: 99}
    assert {start: first_step(start, 10 if start == 0.5 else 100) for start in given} == given
    assert first_step(0.29, 100) == 29  # 28.999... in binary
    assert first_step(1, 1) is first_step(1.0, 9) is None


def test_whether_a_run_validates() -> None:
    """As its steps are asked one by one."""
    for start, freq, steps in itertools.product((0, 0.5, 1, 3, 8), (1, 4, 9), (0, 3, 8)):
        first = first_step(start, steps)
        due = [k for k in range(1, steps + 1) if first is not None and k >= first and (k - first) % freq == 0]
        assert validates(start, freq, steps) is bool(due), (start, freq, steps)


def test_due(folder: Path) -> None:
    def due(**options: Any) -> list[int]:
        return [step for step in range(13) if make(Steps("se_e2_a"), folder, num_steps=12, **options).due(step)]

    assert due(validation_freq=4) == [4, 8, 12]
    assert due(validation_freq=4, full_val_start=3) == [3, 7, 11]
    assert due(validation_freq=4, full_val_start=0.5) == [6, 10]
    assert due(validation_freq=4, full_val_start=1) == due(validation_freq=4, full_val_start=13) == []


def test_numbers_are_those_of_test(folder: Path) -> None:
    stepper = Steps("se_e2_a")
    validation = make(stepper, folder)
    outcome = validation.run(2, stepper, lambda path: path.touch())
    report = evaluate_systems(stepper.potentials[""], folder).total
    names = {"E": "energy_per_atom", "F": "force", "V": "virial_per_atom"}
    assert {key: outcome.errors[""][key].number for key in names} == {"E": 6, "F": 93, "V": 27}
    for key, name in names.items():
        assert outcome.errors[""][key].rmse == pytest.approx(report[name].rmse, rel=1e-12)
        assert outcome.errors[""][key].mae == pytest.approx(report[name].mae, rel=1e-12)
    assert outcome.value == outcome.errors[""]["F"].mae
    header, row, note = Path("val.log").read_text().splitlines()
    assert header.split()[1:] == ["step", *(f"{k}_{kind}(meV/{u})" for k, u in (("E", "atom"), ("F", "A"), ("V", "atom"))
                                  for kind in ("MAE", "RMSE"))]  # fmt: skip
    wanted = [1e3 * x for name in names.values() for x in (report[name].mae, report[name].rmse)]
    assert [float(x) for x in row.split()[1:]] == pytest.approx(wanted, rel=1e-4)
    assert note == "# best checkpoint: best.ckpt-2.t-1.dp (F:MAE, step 2)"


class Pair:
    """Two ranks in two threads."""

    size = 2

    def __init__(self, rank: int, shared: dict[str, Any]) -> None:
        self.rank, self.chief, self.shared = rank, rank == 0, shared

    def _gather(self, value: Any) -> list[Any]:
        self.shared["values"][self.rank] = value
        self.shared["barrier"].wait(20)
        out = list(self.shared["values"])
        self.shared["barrier"].wait(20)
        return out

    def integers(self, values: Any) -> list[int]:
        return [int(x) for x in self._gather(values)[0]]

    def total(self, values: np.ndarray) -> np.ndarray:
        return np.sum(self._gather(np.array(values)), axis=0)

    @contextmanager
    def agreement(self, what: str) -> Iterator[None]:
        problem = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- as the other rank will see it
            problem = error
        others = [x for x in self._gather(problem) if x is not None]
        if others:
            raise problem or RuntimeError(f"another rank: {others[0]}")


def two_ranks(work: Callable[[Pair], Any]) -> list[Any]:
    shared = {"values": [None, None], "barrier": threading.Barrier(2)}
    found: list[Any] = [None, None]

    def run(rank: int) -> None:
        try:
            found[rank] = work(Pair(rank, shared))
        except Exception as error:  # noqa: BLE001 -- as the other rank will see it
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_two_ranks_find_what_one_finds(folder: Path) -> None:
    alone = make(Steps("se_e2_a"), folder).run(2, Steps("se_e2_a"), lambda path: None)
    Path("val.log").unlink()
    saved: list[tuple[int, str]] = []
    seen: list[int] = []

    def work(world: Pair) -> Any:
        stepper = Steps("se_e2_a")
        validation = make(stepper, folder, world)
        own = validation.tasks[""].errors
        validation.tasks[""].errors = lambda *a: seen.append(own(*a)["force"].number) or own(*a)
        return validation.run(2, stepper, lambda path: saved.append((world.rank, path.name)))

    first, second = two_ranks(work)
    assert sorted(saved) == [(0, "best.ckpt-2.t-1.dp"), (1, "best.ckpt-2.t-1.dp")]
    assert len(rows()) == 1
    assert first == second
    assert sum(seen) == 93 and min(seen) > 0
    for key, error in alone.errors[""].items():
        assert first.errors[""][key].number == error.number
        assert first.errors[""][key].rmse == pytest.approx(error.rmse, rel=1e-12)


def test_an_error_on_one_rank_is_one_on_both(folder: Path) -> None:
    def work(world: Pair) -> Any:
        stepper = Steps("se_e2_a")
        validation = make(stepper, folder, world)
        if world.rank:
            stepper._out = lambda *a: (_ for _ in ()).throw(ValueError("disk on fire"))
        return validation.run(2, stepper, lambda path: None)

    first, second = two_ranks(work)
    assert "disk on fire" in str(first) and "disk on fire" in str(second)


def test_numbers_that_are_none_end_the_run(folder: Path) -> None:
    stepper = Steps("se_e2_a")
    validation, stepper.shift = make(stepper, folder), math.nan
    with pytest.raises(NonFiniteError, match=r"after step 4: F:MAE is nan"):
        validation.run(4, stepper, lambda path: None)
    assert not Path("val.log").exists()


def test_the_best_are_kept_and_renamed(folder: Path) -> None:
    stepper = Steps("se_e2_a")
    validation = make(stepper, folder)
    for step, shift in ((2, 3.0), (4, 1.0), (6, 2.0), (8, 9.0), (10, 1.0)):
        stepper.shift = shift
        validation.run(step, stepper, lambda path, step=step: path.write_text(str(step)))
    # Of equal values the earlier one is better.
    assert {p.name: p.read_text() for p in Path().glob("best*")} == {
        "best.ckpt-4.t-1.dp": "4", "best.ckpt-10.t-2.dp": "10",
    }  # fmt: skip
    notes = [line for line in Path("val.log").read_text().splitlines() if line.startswith("# best")]
    assert [note.split()[3] for note in notes] == [
        f"best.ckpt-{step}.t-{rank}.dp" for step, rank in ((2, 1), (4, 1), (6, 2), (10, 2))
    ]


def test_early_stop(folder: Path) -> None:
    stepper = Steps("se_e2_a")
    validation = make(stepper, folder, early_stop_patience=2, save_best=False)
    stops = []
    for step, shift in ((2, 3.0), (4, 4.0), (6, 2.0), (8, 2.0), (10, 3.0)):
        stepper.shift = shift
        stops.append(validation.run(step, stepper, pytest.fail).stop)
    assert stops == [False, False, False, False, True]
    assert not list(Path().glob("best*"))
    restarted = make(stepper, folder, early_stop_patience=2, save_best=False, state=validation.state())
    assert restarted.since == 2 and restarted.lowest == validation.lowest


def test_restart_goes_on_where_it_stopped(folder: Path) -> None:
    shifts = {2: 3.0, 4: 1.0, 6: 2.0, 8: 0.5}
    stepper = Steps("se_e2_a")

    def go(validation: FullValidation, *steps: int) -> dict[str, Any]:
        for step in steps:
            stepper.shift = shifts[step]
            validation.run(step, stepper, lambda path, step=step: path.write_text(str(step)))
        return validation.state()

    wanted = go(make(stepper, folder), 2, 4, 6, 8)
    files = {p.name: p.read_text() for p in Path().glob("best*")}
    log = Path("val.log").read_text()
    for path in [*Path().glob("best*"), Path("val.log")]:
        path.unlink()
    state = go(make(stepper, folder), 2, 4)
    go(make(stepper, folder, state=state, restored_step=4), 6)  # goes on, saves a best, and is killed
    with Path("val.log").open("a") as stream:
        stream.write("      8   1.2")
    again = make(stepper, folder, state=state, restored_step=4)
    again.begin()
    assert [row[0] for row in rows()] == [2, 4]
    assert go(again, 6, 8) == wanted
    assert {p.name: p.read_text() for p in Path().glob("best*")} == files
    assert Path("val.log").read_text() == log


def test_another_metric_begins_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    stepper = Steps("se_e2_a")
    first = make(stepper, folder)
    first.run(2, stepper, lambda path: path.touch())
    other = make(stepper, folder, validation_metric="E:RMSE", state=first.state(), restored_step=2)
    assert "ranked by F:MAE" in caplog.text
    assert other.best.records == [] and math.isinf(other.lowest)
    other.run(4, stepper, lambda path: path.touch())
    assert [p.name for p in Path().glob("best*")] == ["best.ckpt-4.t-1.dp"]


def test_r_s2_14_averaged_weights_have_files_of_their_own(folder: Path) -> None:
    stepper = Steps("se_e2_a")
    validation = make(stepper, folder, averaged=True, save_best_dir="kept")
    validation.run(2, stepper, lambda path: path.touch())
    assert stepper.entered == [("", True)]
    assert Path("kept/best_ema.ckpt-2.t-1.dp").exists() and len(rows("val_ema.log")) == 1
    assert not Path("val.log").exists()


def test_several_tasks(folder: Path) -> None:
    stepper = Steps("se_e2_a", "dpa1", "property_sea")
    tasks = {
        "0": stepper.task("0", folder, weight=0.6), "1": stepper.task("1", folder / "a", weight=0.2),
        "2": stepper.task("2", property_data(folder), PropertyLossConfig(), weight=0.2),
    }  # fmt: skip
    validation = FullValidation(Options(), tasks, backend=get_backend("pt"), world=Alone(), num_steps=10)
    outcome = validation.run(2, stepper, lambda path: path.touch())
    one, two = (outcome.errors[name]["F"].mae for name in "01")
    assert outcome.value == pytest.approx(0.75 * one + 0.25 * two, rel=1e-12)
    assert [name for name, _ in stepper.entered] == ["0", "1", "2"]
    assert outcome.errors["1"]["E"].number == 3
    columns = validation.columns()
    assert columns[0] == "F_MAE(meV/A)" and columns[1] == "E_MAE_0(meV/atom)" and columns[-1] == "G_RMSE_2"
    assert outcome.row["F_MAE(meV/A)"] == pytest.approx(1e3 * outcome.value)
    assert outcome.row["G_RMSE_2"] == pytest.approx(outcome.errors["2"]["G"].rmse)
    assert len(rows()[0]) == 1 + len(columns)


def property_data(folder: Path) -> Path:
    potential = dpmodel.load(GOLDEN / "property_sea.dp", "pt")
    rng = np.random.default_rng(1)
    output = potential.model.output()
    labels = {output.name: rng.normal(size=(2, *output.shape))}
    return write_system(
        folder.parent / "property", rng.uniform(0, 9, (2, 4, 3)), [0, 1, 1, 0], np.tile(9 * np.eye(3), (2, 1, 1)),
        type_map=list(potential.type_map), labels=labels,
    )  # fmt: skip


def test_spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stepper, rng = Steps("spin_sea"), np.random.default_rng(2)
    names = stepper.potentials[""].type_map
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3) * 3.0
    labels = {
        "energy": rng.normal(size=(3, 1)),
        **{n: rng.normal(size=(3, 8, 3)) for n in ("force", "force_mag", "spin")},
    }
    write_system(
        tmp_path / "data", grid + rng.uniform(0, 0.5, (3, 8, 3)), np.arange(8) % len(names), np.tile(9 * np.eye(3), (3, 1, 1)),
        type_map=list(names), labels=labels,
    )  # fmt: skip
    task = stepper.task("", tmp_path / "data", EnerSpinLossConfig())
    validation = FullValidation(
        Options(validation_metric="FM:RMSE"), {"": task}, backend=get_backend("pt"), world=Alone(), num_steps=9
    )
    outcome = validation.run(2, stepper, lambda path: path.touch())
    report = evaluate_systems(stepper.potentials[""], tmp_path / "data").total
    assert set(outcome.errors[""]) == {"E", "FR", "FM"}
    assert outcome.value == pytest.approx(report["force_mag"].rmse, rel=1e-12)
    assert outcome.errors[""]["FR"].mae == pytest.approx(report["force"].mae, rel=1e-12)
    assert "FM_RMSE(meV/spin)" in Path("val.log").read_text()


@pytest.mark.parametrize(("options", "message"), [
    ({"validation_metric": "FM:MAE"}, "does not belong to the loss 'ener'; legal are E:MAE"),
    ({"validation_metric": "V:MAE"}, "both not 0"),
])  # fmt: skip
def test_bad_metrics(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(Steps("se_e2_a"), folder, **options)


def test_a_label_must_be_there(folder: Path) -> None:
    stepper = Steps("se_e2_a")
    (folder / "a" / "set.000" / "virial.npy").unlink()  # that of c means nothing: it is open
    task = stepper.task("", folder, EnerLossConfig(start_pref_v=1.0, limit_pref_v=1.0))
    with pytest.raises(DataError, match="no periodic system of the validation data has virials"):
        FullValidation(
            Options(validation_metric="V:MAE"), {"": task}, backend=get_backend("pt"), world=Alone(), num_steps=9
        )
    with pytest.raises(InputError, match=r"needs training\.validation_data"):
        FullValidation(Options(), {}, backend=get_backend("pt"), world=Alone(), num_steps=9)


# --- files -------------------------------------------------------------------------------------------------


def test_files_of_best_checkpoints(tmp_path: Path) -> None:
    best = BestCheckpoints("best.ckpt", tmp_path, keep=2)
    for name in ("best.ckpt-7.t-2.dp", "best.ckpt-3.t-2.dp", "best.ckpt-9.dp", "best_ema.ckpt-9.t-1.dp", "mine.dp"):
        (tmp_path / name).write_text("old")  # of an earlier run, of others
    assert best.place(0.5, 3) == 1
    best.insert(0.5, 3)
    assert best.path(3).name == "best.ckpt-3.t-1.dp"
    best.path(3).write_text("new")  # the same step as an old file
    best.tidy()
    assert best.path(3).read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.ckpt-3.t-1.dp", "best.ckpt-9.dp", "best_ema.ckpt-9.t-1.dp", "mine.dp",
    ]  # fmt: skip
    best.insert(0.4, 5)
    assert [best.place(0.45, 6), best.place(0.5, 6), best.place(0.3, 6)] == [2, 0, 1]
    assert best.missing() == [5]
    other = BestCheckpoints("best.ckpt", tmp_path, keep=1)
    other.restore(best.state())
    assert other.state() == [[0.4, 5]]
