"""Whole runs on two processes: one set of files, restarts, other numbers of processes, what one process cannot do."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

N, STEPS = 5, 9

SMALL = {"training__numb_steps": STEPS, "training__save_freq": 4}
EMA = {"training__enable_ema": True, "training__ema_decay": 0.9}


def close(a: Any, b: Any, where: str = "") -> None:
    """Nested data; numbers to 1e-12."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            close(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, np.ndarray | float | list):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=where)
    else:
        assert a == b, where


def folder(workshop: Any, name: str) -> str:
    found: Path = workshop.folder / name
    found.mkdir()
    return str(found)


def alone(place: str, action: Callable[[], Any]) -> Any:
    before = Path.cwd()
    os.chdir(place)
    try:
        return action()
    finally:
        os.chdir(before)


def ends(answers: list[Any]) -> list[Any]:
    return [each["end"] for each in answers]


def load(place: str, name: str) -> Checkpoint:
    return Checkpoint.load(Path(place) / name)


def input_of(workshop: Any, several: bool, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = (workshop.tasks if several else workshop.input)(**{**SMALL, **changes})
    return data


VALIDATED = {
    "validating__full_validation": True, "validating__validation_freq": 2, "validating__full_val_start": 0.0,
    "validating__validation_metric": "F:RMSE", "validating__max_best_ckpt": 2, "validating__ema_full_validation": True,
}  # fmt: skip

CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (False, {}),
    "tasks": (True, {"training__disp_avg": True, "training__disp_freq": 3}),
    "stage_1": (False, {"training__zero_stage": 1, **EMA, "training__acc_freq": 2}),
    "stage_2": (True, {"training__zero_stage": 2, **EMA}),
    "stage_3": (False, {"training__zero_stage": 3, **EMA, "training__gradient_max_norm": 0.5}),
    "validated": (True, {"training__zero_stage": 2, **EMA, **VALIDATED}),
    "HybridMuon": (False, {"training__zero_stage": 2, **EMA, "optimizer__type": "HybridMuon"}),
    "AdaMuon": (False, {"training__zero_stage": 3, "optimizer__type": "AdaMuon"}),
    "LKF": (False, {"optimizer__type": "LKF"}),
    "compiled": (False, {"training__enable_compile": True}),
}
NIGHTLY = ("AdaMuon", "LKF", "compiled")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] if name in NIGHTLY else []) for name in CASES]
)
def test_a_restart_on_two_processes_is_the_run_that_was_not_stopped(workshop: Any, pair: Any, name: str) -> None:
    several, changes = CASES[name]
    data = input_of(workshop, several, **changes)
    whole, parts = folder(workshop, "whole"), folder(workshop, "parts")
    options = {"backend": "pt_expt", "limit": 300.0} if name == "compiled" else {}
    found = pair("runs:run", whole, data, **options)
    assert ends(found) == [("", f"model.ckpt-{STEPS}.dp")] * 2
    assert found[0]["tasks"] == found[1]["tasks"] and len(found[0]["tasks"]) == STEPS
    assert ends(pair("runs:run", parts, data, stop_at=N, **options)) == [("", f"model.ckpt-{N}.dp")] * 2
    again = pair("runs:run", parts, data, restart="model.ckpt", **options)
    assert again[0]["tasks"] == found[0]["tasks"][N:]
    for file in (
        f"model.ckpt-{STEPS}.dp",
        *([f"model_ema.ckpt-{STEPS}.dp"] if "training__enable_ema" in changes else []),
    ):
        one, two = load(whole, file), load(parts, file)
        for part in ("step", "state", "optimizer", "schedule", "sampler", "random", "ema", "validation"):
            close(getattr(one, part), getattr(two, part), f"{file} {part}")
    logs, best = (
        [sorted(path.name for path in Path(place).iterdir() if path.name.startswith(begin)) for place in (whole, parts)]
        for begin in (("lcurve", "val"), "best")
    )
    validated = name == "validated"
    assert logs == [["lcurve.out", "val.log", "val_ema.log"] if validated else ["lcurve.out"]] * 2
    for file in logs[0]:
        assert (Path(whole) / file).read_text() == (Path(parts) / file).read_text(), file
    assert best[0] == best[1] and len(best[0]) == (4 if validated else 0)


def test_every_frame_is_dealt_to_one_of_the_processes(workshop: Any, pair: Any) -> None:
    data = workshop.input(workshop.system(nframes=12), training__numb_epoch=2, training__numb_steps=None)
    found = pair("runs:run", folder(workshop, "run"), data)
    counts = [Counter(frame for _, _, frames in each["frames"] for frame in frames) for each in found]
    # Two frames a batch and two processes: an epoch has three steps.
    assert ends(found) == [("", "model.ckpt-6.dp")] * 2
    assert counts[0] + counts[1] == Counter(dict.fromkeys(range(12), 2))


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(workshop: Any, pair: Any, first: int, then: int) -> None:
    """The frames that were not dealt come first; optimizer, averages and rows go on."""
    changes = {
        **EMA,
        "training__numb_steps": 6,
        "training__zero_stage": 2 if first == 2 else 0,
        "training__disp_avg": True,
    }
    data = workshop.input(workshop.system(nframes=12), **changes)
    place = folder(workshop, "run")
    seen: Counter[int] = Counter()

    def go(ranks: int, **options: Any) -> None:
        if ranks == 2:
            found = pair("runs:run", place, data, **options)
            assert not found[0]["end"][0], found
            frames = [frame for each in found for _, _, own in each["frames"] for frame in own]
        else:
            frames = alone(place, lambda: _frames(data, **options))
        seen.update(frames)

    go(first, stop_at=2 if first == 2 else 4)  # eight frames
    data["training"]["zero_stage"] = 3 if then == 2 else 0
    go(then, restart="model.ckpt", stop_at=5 if then == 2 else 4)
    assert seen == Counter(dict.fromkeys(range(12), 1))
    go(then, restart="model.ckpt")
    final = load(place, "model.ckpt-6.dp")
    assert final.ema["state"] and final.optimizer["step"]
    assert set(map(float, final.optimizer["step"].values())) == {6.0}


@pytest.mark.parametrize(("first", "then", "stop", "steps"), [(1, 2, 4, 8), (2, 1, 2, 10)])
def test_passes_go_on_with_another_number_of_processes(
    workshop: Any, pair: Any, first: int, then: int, stop: int, steps: int
) -> None:
    """Two passes over the data are two in all: 12 steps of one process, 6 of two, of which a third was done."""
    data = workshop.input(workshop.system(nframes=12))
    del data["training"]["numb_steps"]
    data["training"]["numb_epoch"] = 2
    place = folder(workshop, "run")
    seen: Counter[int] = Counter()
    for ranks, options in ((first, {"stop_at": stop}), (then, {"restart": "model.ckpt"})):
        if ranks == 1:
            seen.update(alone(place, lambda options=options: _frames(data, **options)))
            continue
        found = pair("runs:run", place, data, **options)
        assert not found[0]["end"][0], found
        seen.update(frame for each in found for _, _, own in each["frames"] for frame in own)
    assert load(place, f"model.ckpt-{steps}.dp").schedule["num_steps"] == steps
    assert seen == Counter(dict.fromkeys(range(12), 2))


def _frames(data: Any, **options: Any) -> list[int]:
    from unittest import mock

    from dpmodel.data import Sampler

    seen: list[int] = []
    feed = Sampler.next

    def noted(sampler: Sampler) -> Any:
        batch = feed(sampler)
        seen.extend(batch.frames.tolist())
        return batch

    with mock.patch.object(Sampler, "next", noted):
        train(data, backend="pt", **options)
    return seen


@pytest.mark.parametrize("several", [False, True])
def test_r_s4_06_processes_that_count_other_epochs_agree(workshop: Any, pair: Any, several: bool) -> None:
    """R-S4-01, -06: rank 1 counts a batch more; both take rank 0's."""
    length = {"num_epoch_dict": {"water": 1.0, "ice": 1.5}} if several else {"numb_epoch": 3}
    data = input_of(workshop, several, training__numb_steps=None)
    data["training"] |= length
    plain, drifting = (pair("runs:run", folder(workshop, name), data, drift=d) for name, d in (("a", 0.0), ("b", 0.7)))
    assert ends(plain) == ends(drifting) and ends(drifting)[0] == ends(drifting)[1] and not ends(drifting)[0][0]
    assert drifting[0]["tasks"] == drifting[1]["tasks"] == plain[0]["tasks"]


def test_the_learning_rate_grows_with_the_processes(workshop: Any, pair: Any) -> None:
    """`scale_by_worker` acts where it is given, and prefactors are measured against the larger rate."""
    rates = {}
    data = input_of(workshop, False)
    for scale in (None, "linear", "sqrt"):
        data["learning_rate"]["scale_by_worker"] = scale
        place = folder(workshop, str(scale))
        pair("runs:run", place, data, stop_at=1)
        curve = read_lcurve(Path(place) / "lcurve.out")
        rates[scale] = (curve["lr"][0], curve["rmse_trn"][0])
    assert [rate for rate, _ in rates.values()] == [0.01, 0.02, 0.014]
    assert len({rmse for _, rmse in rates.values()}) == 1


def test_one_process_writes(workshop: Any, pair: Any) -> None:
    data = input_of(workshop, True, **EMA, training__metrics_file="metrics.csv")
    place = folder(workshop, "run")
    pair("runs:run", place, data)
    names = [
        "checkpoint",
        "lcurve.out",
        "metrics.csv",
        "model.ckpt-4.dp",
        "model.ckpt-8.dp",
        "model.ckpt-9.dp",
        "model.ckpt.dp",
    ]
    names += ["model_ema.ckpt-4.dp", "model_ema.ckpt-8.dp", "model_ema.ckpt-9.dp", "model_ema.ckpt.dp", "out.json"]
    assert sorted(path.name for path in Path(place).iterdir()) == names
    assert list(read_lcurve(Path(place) / "lcurve.out")["step"]) == [1, 4, 8]


@pytest.mark.parametrize("stage", [0, 3])
def test_r_m_06_a_changed_bias_reaches_all_processes_and_both_checkpoints(workshop: Any, pair: Any, stage: int) -> None:
    data = input_of(workshop, True, **EMA, training__change_bias_after_training=True, training__zero_stage=stage)
    place, plain = folder(workshop, "run"), folder(workshop, "plain")
    found = pair("runs:biases", place, data)
    without = copy.deepcopy(data)
    without["training"]["change_bias_after_training"] = False
    pair("runs:run", plain, without)
    regular, average = (load(place, f"model{kind}.ckpt-{STEPS}.dp") for kind in ("", "_ema"))
    for task in (0, 1):
        name = f"tasks.{task}.out_bias"
        assert np.array_equal(regular.state[name], average.state[name])
        assert all(np.array_equal(each[name], regular.state[name]) for each in found)
        assert not np.array_equal(regular.state[name], load(plain, f"model.ckpt-{STEPS}.dp").state[name])


@pytest.mark.parametrize(("rank", "where"), [
    (0, "dpmodel.training.checkpoint.Checkpoint.save"), (1, "dpmodel.training.tasks.Task.open_data"),
    (0, "dpmodel.training.weights.observed_types"), (0, "dpmodel.training.lcurve.LearningCurve.write"),
])  # fmt: skip
def test_what_one_process_cannot_do_ends_both(workshop: Any, pair: Any, rank: int, where: str) -> None:
    found = pair("runs:fail", folder(workshop, "run"), input_of(workshop, False), rank, where)
    kinds = [kind for kind, _ in found]
    assert kinds[rank] == "OSError" and kinds[1 - rank] == "RankError"
    assert all("No space left on device" in text for _, text in found)
    assert f"rank {rank}: " in found[1 - rank][1]


def test_r_s4_07_what_must_be_the_same_is_compared_at_the_start(workshop: Any, pair: Any) -> None:
    found = pair("runs:differ", folder(workshop, "run"), input_of(workshop, False))
    assert [kind for kind, _ in found] == ["RankError"] * 2
    assert all("stop_at is not the same on all ranks: 3 on rank 0, 4 on rank 1" in text for _, text in found)
    more = workshop.input(workshop.system("more", nframes=7), **SMALL)
    found = pair("runs:differ", folder(workshop, "other"), more, str(Path(workshop.folder) / "data"))
    assert all("the_data is not the same on all ranks" in text for _, text in found)
