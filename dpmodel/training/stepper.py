"""What the training loop asks of a backend and of a loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from dpmodel.backend import Evaluator
from dpmodel.errors import DPError, InputError
from dpmodel.graph import Graph
from dpmodel.losses.base import Label
from dpmodel.op import Array, Op
from dpmodel.training.batches import Prepared

__all__ = ["Loss", "NonFiniteError", "OptimizerState", "StepOptions", "Stepper"]

OptimizerState: TypeAlias = dict[str, dict[str, np.ndarray]]
"""Slot name (exp_avg, exp_avg_sq, step) -> parameter path -> array."""


class NonFiniteError(DPError):
    """A gradient became NaN or infinite; nothing was saved after that. Raised on all ranks."""


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


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How a model is trained, besides its losses and the section of its optimizer.

    Raises InputError for numbers out of range. A backend raises BackendError for what it does not have.
    """

    gradient_max_norm: float | None = None
    """Gradients (of all parameters and ranks) are scaled down to this 2-norm; None, 0 or less: never."""
    compile: bool = False
    ema_decay: float | None = None
    """shadow += (1 - decay) (parameter - shadow) after every update; None: no average is kept."""
    zero_stage: int = 0
    """What the ranks share: 0 nothing, 1 the optimizer's state, 2 and 3 gradients and parameters too."""
    num_steps: int = 0
    """Length of the run, for optimizers whose options change with it."""
    start_lr: float = 1.0
    """The first learning rate, for optimizers whose options are relative to it."""
    seed: tuple[int, ...] = (0,)
    """Of what an optimizer draws; the same on all ranks."""
    frozen: tuple[str, ...] = ()
    """Paths of parameters that are not trained, each the first of its parameter (`dpmodel.training.freezing`)."""
    norms: bool = False
    """Whether 2-norms of the gradients of single parameters are wanted after each step."""
    tf32: bool = False
    """Products of float32 matrices in TF32, on CUDA."""
    amp: bool = False
    """Products of float32 matrices in bfloat16 (autocast). Parameters, derivatives and the update keep their types."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise InputError(f"training.zero_stage: expected 0, 1, 2 or 3, got {self.zero_stage!r}")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"training.ema_decay: expected a number in [0, 1), got {self.ema_decay!r}")


class Stepper(Protocol):
    """A model being trained on a backend, for one task ("") or several. Graphs, labels and states are NumPy.

    On several ranks all methods are collective: every rank calls them in the same order, for the same task.
    """

    def step(self, batches: Sequence[Prepared], lr: float, task: str = "") -> Callable[[], dict[str, float]]:
        """One update by the mean of the gradients of the batches, over all ranks, each of which has as many.

        The result reads the metrics of this rank's batches as they were before the update (means over the batches that
        have the metric); it is not collective. Parameters that no rank has a gradient for stay as they are: no decay,
        no step. Raises NonFiniteError on all ranks.
        """

    def measure(self, batch: Prepared, lr: float, task: str = "") -> dict[str, float]:
        """Metrics of this rank's batch without an update."""

    def evaluating(self, task: str = "", *, averaged: bool = False) -> AbstractContextManager[Evaluator]:
        """The model of the task, whole on every rank, until the context is left. Calling the evaluator is not collective.

        averaged: with the averaged parameters, in place of the others meanwhile.
        Raises InputError where no average is kept. No `step` inside.
        """

    def model(self, *, averaged: bool = False) -> Op:
        """The model (or `MultiTask`) as it now is, whole on every rank, with NumPy arrays of its own."""

    def load_buffers(self, model: Op) -> None:
        """Take the buffers (`out_bias`, statistics) of a model of the same structure, which all ranks give alike."""

    def optimizer_state(self) -> OptimizerState:
        """The optimizer's slots, whole on every rank; the same whatever stage and number of ranks."""

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Put them back; all ranks give them whole. Raises InputError where names or shapes do not fit."""

    def averaged_state(self) -> dict[str, np.ndarray]:
        """The averaged parameters, whole on every rank, by (first) path; empty where no average is kept."""

    def load_averaged_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Put them back; all ranks give them whole. Raises InputError where names or shapes do not fit."""
