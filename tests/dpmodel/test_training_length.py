"""The length of a run and the task of each step: exact, so that no two processes can differ."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from dpmodel.errors import InputError
from dpmodel.training.length import Stopped, TaskDraw, run_length

ONE = {"": 30}
TWO = {"water": 30, "ice": 7}


@pytest.mark.parametrize(("options", "steps"), [
    ({"numb_steps": 5}, 5), ({"numb_steps": 0}, 0), ({"numb_epoch": 0.1}, 3), ({"numb_epoch": 2}, 60),
    ({"numb_epoch": 0.11}, 4), ({"numb_epoch": 1e-9}, 1),
])  # fmt: skip
def test_one_task(options: dict[str, Any], steps: int) -> None:
    found = run_length(ONE, {"": 3}, **options)
    assert found.num_steps == steps
    assert found.probabilities == {"": 1.0}


def test_steps_of_several_batches() -> None:
    assert run_length(ONE, {"": 3}, accumulate=4, numb_epoch=2).num_steps == 15
    assert run_length(ONE, {"": 3}, accumulate=7, numb_epoch=1).num_steps == 5
    assert run_length(ONE, {"": 3}, accumulate=7, numb_steps=9).num_steps == 9
    found = run_length(TWO, {"water": 3, "ice": 1}, accumulate=2, num_epoch_dict={"water": 1, "ice": 1})
    assert (found.num_steps, found.shares["ice"]) == (19, Fraction(7, 37))


def test_several_tasks() -> None:
    found = run_length(TWO, {"water": 3, "ice": 1}, num_epoch_dict={"ice": 0.7, "water": 0.1})
    assert found.num_steps == 8  # 3 + 4.9
    assert found.shares == {"water": Fraction(30, 79), "ice": Fraction(49, 79)}
    assert list(found.shares) == ["water", "ice"]
    found = run_length(TWO, {"water": 3, "ice": 1}, numb_steps=9)
    assert found.probabilities == {"water": 0.75, "ice": 0.25}
    found = run_length(TWO, {"water": 3, "ice": 1}, numb_steps=9, model_prob={"water": 0, "ice": 3})
    assert found.probabilities == {"water": 0.0, "ice": 1.0}


def test_r_s4_03_an_integer_quotient_stays_an_integer() -> None:
    """In binary arithmetic 0.1 * 3 * 10 and the like land on either side of the integer."""
    for batches in range(1, 200):
        for tenths in (1, 3, 7, 11, 29):
            steps = run_length({"": batches * 10}, {"": 1}, numb_epoch=tenths / 10).num_steps
            assert steps == tenths * batches


@pytest.mark.parametrize(("batches", "options", "message"), [
    (ONE, {}, "expected numb_steps"),
    (ONE, {"numb_steps": 1, "numb_epoch": 1}, "got both; keep one"),
    (TWO, {"numb_epoch": 1}, "num_epoch_dict, one number per task"),
    (TWO, {"num_epoch_dict": {"water": 1, "ice": 1}, "numb_steps": 1}, "numb_steps: num_epoch_dict says it already"),
    (TWO, {"num_epoch_dict": {"water": 1, "ice": 1}, "model_prob": {"water": 1, "ice": 1}}, "model_prob: num_epoch_dict says it already"),
    (TWO, {"num_epoch_dict": {"water": 1}}, "missing ice, unknown none"),
    (TWO, {"num_epoch_dict": {"water": 1, "ice": 0}}, "num_epoch_dict.ice: expected a finite number above 0, got 0"),
    (TWO, {"num_epoch_dict": {"water": 1, "ice": float("inf")}}, "finite number above 0"),
    (TWO, {"numb_steps": 1, "model_prob": {"water": 1, "ice": 1, "steam": 1}}, "unknown steam"),
    (TWO, {"numb_steps": 1, "model_prob": {"water": -1, "ice": 2}}, "at least 0, got -1"),
    (TWO, {"numb_steps": 1, "model_prob": {"water": 0, "ice": 0}}, "expected at least one number above 0, got none"),
    ({"": 0}, {"numb_epoch": 1}, "an epoch has 0 batches"),
    (ONE, {"numb_epoch": 1e15}, "lower it"),
])  # fmt: skip
def test_what_does_not_fit(batches: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_length(batches, dict.fromkeys(batches, 1), **options)


@pytest.mark.parametrize(("passes", "step", "before", "now", "options", "steps"), [
    (2, 12, 30, 30, {}, 60),  # nothing changed
    (2, 24, 30, 15, {}, 24 + 18),  # twice the processes: 36 steps of two passes are left
    (2, 24, 15, 30, {}, 24 + 12),  # of the 30 steps, 6 were left
    (2, 24, 30, 15, {"accumulate": 3}, 24 + 6),  # 36 batches of 30 are 18 of 15, three of them in a step
    (2, 24, 30, 15, {"numb_epoch": 3}, 24 + 18 + 15),  # and another pass
    (2, 24, 30, 15, {"numb_epoch": 1.5}, 24 + 18 - 7),
    (2, 60, 30, 15, {}, 60),
    # With more passes and the same processes as a run that has them from the beginning.
    (0.5, 2, 7, 7, {"numb_epoch": 1}, 7),
    (1.5, 2, 7, 7, {"numb_epoch": 2}, 14),
    (2.5, 9, 101, 101, {"numb_epoch": 3}, 303),
    (0.5, 4, 7, 14, {}, 4),  # of 3.5 batches, rounded up: nothing is left
    (0.5, 4, 7, 7, {"numb_epoch": 1}, 7),
])  # fmt: skip
def test_passes_that_are_left_with_other_processes(
    passes: float, step: int, before: int, now: int, options: dict[str, Any], steps: int
) -> None:
    fresh = run_length({"": before}, {"": 3}, numb_epoch=passes).num_steps
    stopped = Stopped(step=step, num_steps=fresh, batches={"": before}, numb_epoch=passes)
    options = {"numb_epoch": passes, **options}
    found = run_length({"": now}, {"": 3}, stopped=stopped, **options)
    assert found.num_steps == steps
    # Stopped another time, with the same processes.
    length = {"batches": {"": now}, **options}
    again = Stopped(step=max(steps - 3, 0), num_steps=steps, **length)
    assert run_length({"": now}, {"": 3}, stopped=again, **options).num_steps == steps


def test_passes_of_several_tasks_that_are_left() -> None:
    passes = {"water": 1.0, "ice": 1.0}
    stopped = Stopped(step=10, num_steps=37, batches=TWO, num_epoch_dict=passes)
    found = run_length({"water": 15, "ice": 4}, {"water": 3, "ice": 1}, num_epoch_dict=passes, stopped=stopped)
    assert found.num_steps == 10 + 14  # 27 steps of 37 are 13.9 of 19
    assert found.shares == {"water": Fraction(15, 19), "ice": Fraction(4, 19)}


def test_the_tasks_of_the_steps() -> None:
    shares = {"a": Fraction(1, 2), "none": Fraction(0), "b": Fraction(1, 3), "c": Fraction(1, 6)}
    draw = TaskDraw(shares, (1, 2))
    names = [draw(step) for step in range(6000)]
    counts = {name: names.count(name) for name in shares}
    assert counts["none"] == 0
    for name, share in shares.items():
        assert abs(counts[name] - 6000 * share) < 4 * np.sqrt(float(6000 * share) + 1)
    # A function of the seed and the step, not of what was drawn before.
    again = TaskDraw(shares, (1, 2))
    assert [again(step) for step in (5, 3, 5999)] == [names[5], names[3], names[5999]]
    assert [TaskDraw(shares, (1, 3))(step) for step in range(100)] != names[:100]
    assert draw.edges[-1] == 2**53 and len({*names}) == 3
    assert TaskDraw({"": Fraction(1)}, 4)(7) == ""
