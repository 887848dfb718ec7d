"""The training step on JAX: what the one loop of `dpmodel.training` asks of a backend.

Batches are padded to sizes that many of them share, so that few steps are compiled. On several devices each computes
some of a batch's frames (see `program`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dpmodel.errors import BackendError, InputError
from dpmodel.geometry.padding import Buckets, rounded_up
from dpmodel.graph import Graph
from dpmodel.models.multi_task import MultiTask
from dpmodel.op import Kind, Op, walk
from dpmodel.training.batches import Prepared
from dpmodel.training.stepper import Loss, NonFiniteError, OptimizerState, StepOptions

from .bridge import double_precision, from_jax, graph_to_jax, to_jax
from .evaluator import JaxEvaluator
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
        model: Op,
        losses: Mapping[str, Loss],
        optimizer: Any,
        *,
        devices: Sequence[Any],
        options: StepOptions,
    ) -> None:
        _check(model, options)
        self.loss = losses[""]
        self.devices = tuple(devices)
        norm = options.gradient_max_norm
        self._adam = Adam.of(optimizer)
        self._program = Program(
            loss=self.loss, adam=self._adam, devices=self.devices, max_norm=norm if norm and norm > 0 else None
        )
        self._compiled = compiled(self._program)
        if len(self.devices) > 1:
            logger.info("Each batch is shared by %d devices", len(self.devices))
        self._buckets = Buckets()
        with double_precision():
            # Hessians by the reference methods, as in evaluation.
            overrides = {} if "hessian" in self.loss.outputs else OVERRIDES
            self._model: Any = to_jax(model, device=self._placed(PartitionSpec()), overrides=overrides)
            kinds = {path: (kind, value, trained) for path, kind, value, trained in walk(self._model)}
            parameters = {path: value for path, (kind, value, _) in kinds.items() if kind is Kind.PARAM}
            frozen = {path: parameters[path] for path in options.frozen}
            self._trained: Arrays = {p: v for p, v in parameters.items() if kinds[p][2] and p not in frozen}
            if not self._trained:
                raise InputError(
                    "nothing to train: every part of the model has trainable = false, or is frozen by "
                    "training.freeze_parameters"
                )
            self._slots = self._everywhere(self._adam.start(self._trained))
        self._decay = options.ema_decay
        self._shadow: Arrays = {} if self._decay is None else parameters

    def step(self, batches: Sequence[Prepared], lr: float, task: str = "") -> Callable[[], dict[str, float]]:
        """See `Stepper.step`."""
        with double_precision():
            if len(batches) == 1:
                inputs = self._inputs(*batches[0], lr)
                trained, slots, report, found = self._compiled.update(self._trained, self._slots, self._model, inputs)
                metrics = [found]
            else:
                slopes, loss, metrics = self._accumulated(batches, lr)
                trained, slots, report = self._compiled.apply(
                    self._trained, self._slots, slopes, loss, jnp.asarray(float(lr))
                )
            shown, top, *bad = np.asarray(report).tolist()
        if not np.isfinite(top):
            names = [path for path, wrong in zip(sorted(self._trained), bad, strict=True) if wrong]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise NonFiniteError(f"the gradient is not finite (loss {shown:g}) in {', '.join(names[:3])}{more}")
        self._trained, self._slots = trained, slots
        if self._decay is not None:
            with double_precision():
                self._shadow = _followed(self._shadow, trained, self._decay)
        return functools.partial(_numbers, metrics)

    def _accumulated(self, batches: Sequence[Prepared], lr: float) -> tuple[Arrays, Any, list[Any]]:
        """Means of gradient and loss, and the metrics of each."""
        slopes: Arrays = {}
        losses, metrics = [], []
        for batch in batches:
            own, loss, found = self._compiled.gradient(self._trained, self._model, self._inputs(*batch, lr))
            slopes |= {path: slopes[path] + value if path in slopes else value for path, value in own.items()}
            losses.append(loss)
            metrics.append(found)
        count = len(batches)
        return {path: value / count for path, value in slopes.items()}, sum(losses) / count, metrics

    def measure(self, batch: Prepared, lr: float, task: str = "") -> dict[str, float]:
        """See `Stepper.measure`."""
        with double_precision():
            return _numbers([self._compiled.metrics(self._trained, self._model, self._inputs(*batch, lr))])

    @contextmanager
    def evaluating(self, task: str = "", *, averaged: bool = False) -> Iterator[JaxEvaluator]:
        """See `Stepper.evaluating`."""
        yield JaxEvaluator(self.model(averaged=averaged), self.devices[0])

    def compilations(self) -> int:
        """How many functions have been compiled so far, for this and all other steppers of the same program."""
        return self._compiled.traces

    def model(self, *, averaged: bool = False) -> Any:
        """See `Stepper.model`."""
        if averaged and self._decay is None:
            raise InputError(_NO_AVERAGE)
        return from_jax(self._model.with_state(self._shadow if averaged else self._trained, strict=False))

    def load_buffers(self, model: Op) -> None:
        """See `Stepper.load_buffers`. Raises InputError where names or shapes do not fit."""
        given = {path: np.asarray(value) for path, kind, value, _ in walk(model) if kind is Kind.BUFFER}
        own = {path: value for path, kind, value, _ in walk(self._model) if kind is Kind.BUFFER}
        for path, value in own.items():
            if path not in given or given[path].shape != value.shape:
                shape = given[path].shape if path in given else "nothing"
                raise InputError(f"buffer {path}: expected shape {value.shape}, got {shape}")
        with double_precision():
            new = {path: self._everywhere(jnp.asarray(given[path], value.dtype)) for path, value in own.items()}
            self._model = self._model.with_state(new, strict=False)

    def averaged_state(self) -> dict[str, np.ndarray]:
        """See `Stepper.averaged_state`."""
        return {path: np.array(value) for path, value in self._shadow.items()}

    def load_averaged_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Stepper.load_averaged_state`."""
        if self._decay is None:
            raise InputError(_NO_AVERAGE)
        shapes = {path: tuple(value.shape) for path, value in self._shadow.items()}
        given = {path: np.shape(value) for path, value in state.items()}
        if wrong := sorted(path for path in shapes.keys() | given.keys() if shapes.get(path) != given.get(path)):
            path = wrong[0]
            raise InputError(
                f"the averaged parameters do not fit this model: {path}: expected shape {shapes.get(path, 'nothing')}, "
                f"got {given.get(path, 'nothing')}. Go on with the same input, or begin anew with --init-model"
            )
        with double_precision():
            self._shadow = {
                path: self._everywhere(jnp.asarray(np.asarray(state[path]), value.dtype))
                for path, value in self._shadow.items()
            }

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


def _numbers(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics as Python numbers, in one transfer from the devices: means over the batches that have them."""
    rows = jax.device_get(list(metrics))
    found = {}
    for name in rows[0]:
        values = [float(row[name]) for row in rows if len(rows) == 1 or not np.isnan(row[name])]
        found[name] = sum(values) / len(values) if values else float("nan")
    return found


@functools.partial(jax.jit, static_argnums=2)
def _followed(shadow: Arrays, trained: Arrays, decay: float) -> Arrays:
    """shadow + (1 - decay) (parameter - shadow); what is not trained stays."""
    return {path: s + (1.0 - decay) * (trained[path] - s) if path in trained else s for path, s in shadow.items()}


def _check(model: Op, options: StepOptions) -> None:
    """Raise BackendError for what there is on torch alone."""
    if isinstance(model, MultiTask):
        raise BackendError(
            f"the jax backend trains one task at a time, got {', '.join(model.names)}; use --backend pt for several"
        )
    wanted = {"training.enable_tf32": options.tf32, "training.enable_bf16": options.amp}
    for name, value in wanted.items():
        if value:
            raise BackendError(f"{name}: the jax backend does not have it; leave it out or use --backend pt")
    if options.zero_stage:
        logger.warning(
            "training.zero_stage = %d has nothing to share in one process: it runs as stage 0", options.zero_stage
        )


_NO_AVERAGE = "this run keeps no averaged parameters: set training.enable_ema"
