"""How processes agree to end early: a signal reaches them at different steps, or only some of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from dpmodel.training.signals import SIGNALS, Request
from dpmodel.training.world import World

__all__ = ["Agreed"]

INTERVAL = 0.25
"""Seconds between two looks at the requests of all processes, about."""


class Agreed:
    """Whether the run should end, answered alike on all processes.

    One process looks at its own request at every step. Several exchange theirs at some steps, a sum of a few numbers;
    the chief says each time which is the next, so that it costs nothing in runs of fast steps.
    """

    def __init__(self, world: World, request: Request, clock: Callable[[], float] = time.perf_counter) -> None:
        self.world, self.request, self._clock = world, request, clock
        self._next = self._last = -1
        self._time = 0.0

    def ends(self, step: int) -> bool:
        """Call it before every step, with the number of finished steps; collective."""
        if self.world.size == 1:
            return bool(self.request.name)
        if self._next < 0:
            self._next = step
        if step < self._next:
            return False
        ballot = np.zeros(len(SIGNALS) + 1)
        names = [signal.name for signal in SIGNALS]
        if self.request.name:
            ballot[names.index(self.request.name)] = 1
        ballot[-1] = self._ahead(step) if self.world.chief else 0
        *asked, ahead = self.world.total(ballot).tolist()
        self._next = step + int(ahead)
        if any(asked):
            self.request.name = next(name for name, votes in zip(names, asked, strict=True) if votes)
            return True
        return False

    def _ahead(self, step: int) -> int:
        """Steps until the next look, from the time that those since the last one took; at first one."""
        now = self._clock()
        steps, seconds = step - self._last, now - self._time
        known = self._last >= 0 and steps > 0
        self._last, self._time = step, now
        return min(max(int(INTERVAL * steps / max(seconds, 1e-9)), 1), 1000) if known else 1
