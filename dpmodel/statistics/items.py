"""Running sums: what a mean and a deviation need, and what can be added over systems."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from dpmodel.op import Array

__all__ = ["StatItem"]


@dataclasses.dataclass(frozen=True)
class StatItem:
    """(n, s, q): how many numbers, their sum, and the sum of their squares. Items add."""

    number: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Array) -> StatItem:
        """The item of an array's numbers, whatever its shape."""
        x = np.asarray(values, dtype=np.float64)
        return cls(float(x.size), float(np.sum(x)), float(np.sum(x * x)))

    def __add__(self, other: StatItem) -> StatItem:
        return StatItem(self.number + other.number, self.total + other.total, self.squares + other.squares)

    def scaled(self, factor: float) -> StatItem:
        """As if every number had been there `factor` times."""
        return StatItem(factor * self.number, factor * self.total, factor * self.squares)

    def avg(self) -> float:
        """s/n; 0 for no numbers."""
        return self.total / self.number if self.number else 0.0

    def std(self, *, default: float = 0.1, protection: float = 1e-2) -> float:
        """sqrt(q/n - (s/n)^2), at least `protection`; `default` for no numbers."""
        if not self.number:
            return default
        return max(math.sqrt(max(self.squares / self.number - self.avg() ** 2, 0.0)), protection)

    def as_array(self) -> np.ndarray:
        """[n, s, q] in float64, as caches store it."""
        return np.array([self.number, self.total, self.squares], dtype=np.float64)
