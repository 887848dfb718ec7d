"""Means of metrics, over batches and over processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpmodel.training.world import World

__all__ = ["RunningMean", "over_ranks"]


class RunningMean:
    """Weighted means of metrics; a metric that is NaN (no label) counts only where it is a number."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._sums: dict[str, list[float]] = {k: list(v) for k, v in (state or {}).items()}

    def __bool__(self) -> bool:
        """Whether anything was taken in."""
        return bool(self._sums)

    def add(self, metrics: Mapping[str, float], weight: float = 1.0) -> None:
        """Take in the metrics of one batch."""
        for name, value in metrics.items():
            total = self._sums.setdefault(name, [0.0, 0.0])
            if not math.isnan(value):
                total[0] += weight * value
                total[1] += weight

    def means(self) -> dict[str, float]:
        """The means so far; NaN for what never was a number."""
        return {name: total / weight if weight else math.nan for name, (total, weight) in self._sums.items()}

    def state(self) -> dict[str, list[float]]:
        """Plain data to go on from."""
        return {name: list(pair) for name, pair in self._sums.items()}


def over_ranks(world: World, means: Sequence[RunningMean]) -> list[RunningMean]:
    """The same means over the batches of all processes; collective, all give equally many.

    A metric that rank 0 does not have is left out.
    """
    if world.size == 1:
        return list(means)
    sums = [each.state() for each in means]
    names = world.plain([sorted(each) for each in sums])
    pairs = [each.get(name, [0.0, 0.0]) for each, own in zip(sums, names, strict=True) for name in own]
    totals = world.total(np.array(pairs, np.float64).reshape(-1, 2)).tolist()
    return [RunningMean({name: totals.pop(0) for name in own}) for own in names]
