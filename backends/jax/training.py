"""The training step on JAX: what the one loop of `dpmodel.training` asks of a backend.

Batches are padded to sizes that many of them share, so that few steps are compiled. On several devices each computes
some of a batch's frames (see `program`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dpmodel.errors import InputError
from dpmodel.geometry.padding import Buckets, rounded_up
from dpmodel.graph import Graph
from dpmodel.models import Model
from dpmodel.op import walk
from dpmodel.training.stepper import Loss, NonFiniteError, OptimizerState

from .bridge import double_precision, from_jax, graph_to_jax, to_jax
from .optimizer import Adam
from .overrides import OVERRIDES
from .program import AXIS, Inputs, Program, compiled
from .shards import join, pad_rows, split_frames, stack

__all__ = ["JaxStepper"]

logger = logging.getLogger(__name__)

Arrays = dict[str, Any]
"""Parameters, or whatever belongs to them, by path."""

_PADDING = "padding"
"""The slot of sizes that batches were padded to: sums are rounded in an order that depends on them."""


class JaxStepper:
    """A model, its loss and its optimizer (see `dpmodel.training.stepper.Stepper`)."""

    def __init__(
        self,
        model: Model,
        loss: Loss,
        optimizer: Any,
        *,
        devices: Sequence[Any],
        gradient_max_norm: float | None,
    ) -> None:
        self.loss = loss
        self.devices = tuple(devices)
        max_norm = gradient_max_norm if gradient_max_norm and gradient_max_norm > 0 else None
        self._adam = Adam.of(optimizer)
        self._program = Program(loss=loss, adam=self._adam, devices=self.devices, max_norm=max_norm)
        self._compiled = compiled(self._program)
        if len(self.devices) > 1:
            logger.info("Each batch is shared by %d devices", len(self.devices))
        self._buckets = Buckets()
        with double_precision():
            self._model = to_jax(model, device=self._placed(PartitionSpec()), overrides=OVERRIDES)
            self._trained: Arrays = {path: value for path, _, value, trained in walk(self._model) if trained}
            if not self._trained:
                raise InputError("nothing to train: every part of the model has trainable = false")
            self._slots = self._everywhere(self._adam.start(self._trained))

    def step(
        self, graph: Graph, labels: Mapping[str, np.ndarray], found: Mapping[str, float], lr: float
    ) -> Callable[[], dict[str, float]]:
        """One update with learning rate `lr`. The returned function reads the metrics of the batch before the update."""
        with double_precision():
            inputs = self._inputs(graph, labels, found, lr)
            trained, slots, report, metrics = self._compiled.update(self._trained, self._slots, self._model, inputs)
            loss, top, *bad = np.asarray(report).tolist()
        if not np.isfinite(top):
            names = [path for path, wrong in zip(sorted(self._trained), bad, strict=True) if wrong]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise NonFiniteError(f"the gradient is not finite (loss {loss:g}) in {', '.join(names[:3])}{more}")
        self._trained, self._slots = trained, slots
        return functools.partial(_numbers, metrics)

    def measure(
        self, graph: Graph, labels: Mapping[str, np.ndarray], found: Mapping[str, float], lr: float
    ) -> dict[str, float]:
        """The metrics of a batch, without an update."""
        with double_precision():
            return _numbers(self._compiled.metrics(self._trained, self._model, self._inputs(graph, labels, found, lr)))

    def compilations(self) -> int:
        """How many functions have been compiled so far, for this and all other steppers of the same program."""
        return self._compiled.traces

    def model(self) -> Model:
        """The model as it now is, with NumPy arrays."""
        plain: Any = from_jax(self._model.with_state(self._trained, strict=False))
        return plain

    # --- optimizer state --------------------------------------------------------------------------------

    def optimizer_state(self) -> OptimizerState:
        """Moments and step counts by parameter path, as every backend writes them, and the sizes of padded batches.

        Empty before the first step; parameters that never had a gradient have none.
        """
        state: OptimizerState = {**self._adam.export(self._slots, self._trained), _PADDING: {}}
        for sizes in self._buckets.known:
            axes = sorted(sizes)
            row = np.array([[sizes[axis] for axis in axes]], dtype=np.int64)
            key = " ".join(axes)
            state[_PADDING][key] = np.concatenate([state[_PADDING].get(key, row[:0]), row])
        return state

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """The inverse, for the state of any backend. Raises InputError where names or shapes do not fit."""
        with double_precision():
            self._slots = self._everywhere(self._adam.restored(state, self._trained))
        self._buckets = Buckets(
            dict(zip(key.split(), (int(size) for size in row), strict=True))
            for key, rows in state.get(_PADDING, {}).items()
            for row in np.asarray(rows)
        )

    # --- one batch --------------------------------------------------------------------------------------

    def _everywhere(self, tree: Any) -> Any:
        return jax.device_put(tree, self._placed(PartitionSpec()))

    def _placed(self, spec: PartitionSpec) -> Any:
        return NamedSharding(self._program.mesh, spec)

    def _inputs(self, graph: Graph, labels: Mapping[str, np.ndarray], found: Mapping[str, float], lr: float) -> Inputs:
        parts = split_frames(graph, len(self.devices))
        sizes = self._buckets.choose(*(part.graph for part in parts))
        stacked = stack(parts, sizes)
        atoms = sizes["atoms" if graph.virtual is None else "virtual.owned"]
        padded = {}
        for label in self.loss.labels:
            # A Hessian is worth a function of its own without it.
            if label.name in labels and (found.get(label.name, 0.0) or not label.square):
                value = _wider(labels[label.name]) if label.square else labels[label.name]
                rows = [
                    pad_rows(value, part.atoms, atoms)
                    if label.atomic
                    else pad_rows(value, part.frames, sizes["frames"])
                    for part in parts
                ]
                padded[label.name] = np.concatenate(rows)
        split, everywhere = self._placed(PartitionSpec(AXIS)), self._placed(PartitionSpec())
        return Inputs(
            graph=graph_to_jax(stacked, split),
            whole=graph_to_jax(join(stacked, sizes), everywhere),
            labels={name: jax.device_put(value, split) for name, value in padded.items()},
            found={name: jnp.asarray(float(found.get(name, 0.0))) for name in padded},
            lr=jnp.asarray(float(lr)),
        )


def _wider(hessian: np.ndarray) -> np.ndarray:
    """(n, 3, 3 k) with zeros behind the columns of a frame's atoms, for a size that systems share."""
    columns = 3 * rounded_up(hessian.shape[2] // 3, 4)
    return np.pad(hessian, ((0, 0), (0, 0), (0, columns - hessian.shape[2])))


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as Python numbers, in one transfer from the devices."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
