"""What processes hold while a checkpoint is made."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from dpmodel.training.saving import Saver


class Whole(dict[str, Any]):
    """A state that can be watched."""


@pytest.mark.parametrize("chief", [True, False])
def test_the_chief_alone_keeps_whole_states(chief: bool) -> None:
    made: list[weakref.ref[Whole]] = []
    alive: list[int] = []

    def make(**_: Any) -> Whole:
        alive.append(sum(each() is not None for each in made))
        found = Whole()
        made.append(weakref.ref(found))
        return found

    stepper: Any = SimpleNamespace(model=make, averaged_state=make, optimizer_state=make)
    given: dict[str, Any] = {"tasks": {}, "normalised": {}, "num_steps": 3, "versions": {}, "family": None}
    saver = Saver(world=SimpleNamespace(chief=chief), stepper=stepper, ema_decay=0.9, **given)  # type: ignore[arg-type]
    held = saver._regular(1), saver._average(1)
    assert len(held) == 2 and alive == ([0, 1, 2, 3] if chief else [0, 0, 0, 0])
