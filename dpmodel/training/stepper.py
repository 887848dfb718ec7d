"""What the training loop asks of a backend and of a loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np

from dpmodel.errors import DPError
from dpmodel.graph import Graph
from dpmodel.losses.base import Label
from dpmodel.models import Model
from dpmodel.op import Array

__all__ = ["Loss", "NonFiniteError", "OptimizerState", "Stepper"]

OptimizerState: TypeAlias = dict[str, dict[str, np.ndarray]]
"""Slot name (exp_avg, exp_avg_sq, step) -> parameter path -> array."""


class NonFiniteError(DPError):
    """A gradient became NaN or infinite; nothing was saved after that."""


class Loss(Protocol):
    """A loss function over flat arrays (see `dpmodel.losses`)."""

    @property
    def outputs(self) -> Collection[str]:
        """Outputs of the model that enter."""
        ...

    @property
    def labels(self) -> Collection[Label]:
        """What it reads from the data."""
        ...

    def __call__(
        self,
        prediction: Mapping[str, Array],
        labels: Mapping[str, Array],
        found: Mapping[str, Any],
        graph: Graph,
        lr: Any,
    ) -> tuple[Array, dict[str, Array]]:
        """(loss, metrics by name)."""


class Stepper(Protocol):
    """A model being trained on a backend. Graphs and labels are NumPy."""

    def step(
        self, graph: Graph, labels: Mapping[str, np.ndarray], found: Mapping[str, float], lr: float
    ) -> Callable[[], dict[str, float]]:
        """One update; the result reads the metrics of the batch as they were before it."""

    def measure(
        self, graph: Graph, labels: Mapping[str, np.ndarray], found: Mapping[str, float], lr: float
    ) -> dict[str, float]:
        """Metrics of a batch without an update."""

    def model(self) -> Model:
        """The model as it now is, with NumPy arrays."""

    def optimizer_state(self) -> OptimizerState:
        """The optimizer's slots."""

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Put them back."""
