"""Whole runs (`dpmodel.training.run.train`) on a rank; what tests ask of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from dpmodel.data import Dataset, Sampler
from dpmodel.training.loop import Loop
from dpmodel.training.run import train


def run(
    world: Any, folder: str, data: Mapping[str, Any], *, slow: bool = False, drift: float = 0.0, **options: Any
) -> Any:
    """Train in a folder. The path, or the kind of what was raised with its text; and the tasks and frames of the steps.

    drift: the epoch of rank r is longer by r * drift batches, as rounding on another machine would make it.
    """
    os.chdir(folder)
    seen: list[Any] = []
    feed = Sampler.next

    def noted(sampler: Sampler) -> Any:
        batch = feed(sampler)
        seen.append((sampler.dataset.systems[0].path, batch.system, batch.frames.tolist()))
        return batch

    length = Dataset.total_batches

    def longer(data: Dataset, size: int = 1) -> int:
        return length(data, size) + int(np.ceil(world.rank * drift))

    draws: list[str] = []
    step = Loop._train

    def drawn(loop: Loop, number: int, task: str, lr: float) -> Any:
        draws.append(task)
        return step(loop, number, task, lr)

    with (
        mock.patch.object(Sampler, "next", noted),
        mock.patch.object(Dataset, "total_batches", longer),
        mock.patch.object(Loop, "_train", drawn),
    ):
        try:
            found = ("", str(train(data, backend="pt", device="cpu", **options)))
        except Exception as problem:  # noqa: BLE001 - it is what the test asks about
            found = (type(problem).__name__, str(problem))
    return {"end": found, "frames": seen, "tasks": draws}


def fail(world: Any, folder: str, data: Mapping[str, Any], rank: int, where: str) -> Any:
    """The same, where a rank cannot do something."""

    def broken(*_given: Any, **_more: Any) -> Any:
        raise OSError(28, "No space left on device")

    patch = mock.patch(where, broken) if world.rank == rank else mock.patch("os.getlogin")
    with patch:
        return run(world, folder, data)["end"]


def files(world: Any, folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def biases(world: Any, folder: str, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The output biases that the stepper of this rank has at the end."""
    from dpmodel.training.run import _Run

    found: dict[str, np.ndarray] = {}
    change = _Run._change_bias

    def noted(own: _Run, step: int) -> None:
        change(own, step)
        state = own.stepper.model().state()
        found.update({name: np.asarray(value) for name, value in state.items() if name.endswith("out_bias")})

    with mock.patch.object(_Run, "_change_bias", noted):
        assert not run(world, folder, data)["end"][0]
    return found


def differ(world: Any, folder: str, data: Mapping[str, Any], other: str | None = None) -> Any:
    """A run of which each rank is told something else: where to stop, or which data there are."""
    if other is None:
        return run(world, folder, data, stop_at=3 + world.rank)["end"]
    training = {**data["training"], "training_data": {**data["training"]["training_data"], "systems": [other]}}
    return run(world, folder, {**data, "training": training} if world.rank else data)["end"]
