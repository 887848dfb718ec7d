"""What is compiled for training: outputs, loss, gradient, clipping and optimizer in one function.

On several devices each computes outputs and derivatives for some of the frames; the loss then sees the outputs of all,
so that its numbers, whatever it averages over, are those of one device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jax.sharding import Mesh, PartitionSpec

from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, predict
from dpmodel.training.stepper import Loss

from .bridge import jax_curvature, jax_gradient
from .optimizer import Adam, State

__all__ = ["AXIS", "Compiled", "Inputs", "Program", "clipped", "compiled"]

AXIS = "devices"
"""The axis of parts of a batch."""

Arrays = dict[str, Any]
"""Parameters, or whatever belongs to them, by path."""


class Inputs(NamedTuple):
    """One padded batch on the devices."""

    graph: Graph
    """Parts along the first axis, one per device."""
    whole: Graph
    """What the loss reads."""
    labels: Arrays
    found: Arrays
    lr: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A training step as a function of arrays. Programs that are equal compute the same."""

    loss: Loss
    adam: Adam
    devices: tuple[Any, ...]
    max_norm: float | None

    @property
    def mesh(self) -> Mesh:
        """The devices as JAX wants them."""
        return Mesh(np.array(self.devices), (AXIS,))

    def update(
        self, trained: Arrays, slots: State, model: Any, inputs: Inputs
    ) -> tuple[Arrays, State, Any, dict[str, Any]]:
        """New parameters and slots, (loss, largest gradient, by parameter whether it is not finite), and the metrics."""
        slopes, loss, metrics = self.gradient(trained, model, inputs)
        return *self.apply(trained, slots, slopes, loss, inputs.lr), metrics

    def gradient(self, trained: Arrays, model: Any, inputs: Inputs) -> tuple[Arrays, Any, dict[str, Any]]:
        """The gradient by parameter that has one, the loss and the metrics."""
        moving = {path: trained[path] for path in _reaching(lambda p: self.evaluate(p, model, inputs)[0], trained)}
        (loss, metrics), slopes = jax.value_and_grad(
            lambda p: self.evaluate({**trained, **p}, model, inputs), has_aux=True
        )(moving)
        return slopes, loss, metrics

    def apply(self, trained: Arrays, slots: State, slopes: Arrays, loss: Any, lr: Any) -> tuple[Arrays, State, Any]:
        """New parameters and slots from a gradient, and the report."""
        bad = [path in slopes and ~jnp.all(jnp.isfinite(slopes[path])) for path in sorted(trained)]
        slopes, top = clipped(slopes, self.max_norm)
        report = jnp.stack([jnp.asarray(x, jnp.float64) for x in (loss, top, *bad)])
        trained, slots = self.adam.step(trained, slopes, slots, lr)
        return trained, slots, report

    def evaluate(self, trained: Arrays, model: Any, inputs: Inputs) -> tuple[Any, dict[str, Any]]:
        """The loss and the metrics."""
        label = inputs.labels.get("hessian")
        request = None if label is None else HessianRequest.all_columns(label)
        outputs = self._outputs(model.with_state(trained, strict=False), inputs.graph, request)
        return self.loss(outputs, inputs.labels, inputs.found, inputs.whole, inputs.lr)

    def _outputs(self, model: Any, graph: Graph, hessian: HessianRequest | None) -> dict[str, Any]:
        """What the loss reads, for the stacked parts of a batch."""
        derivatives = not {"force", "virial", "force_mag", "hessian"}.isdisjoint(self.loss.outputs)

        def local(model: Any, graph: Graph) -> dict[str, Any]:
            own = jax.tree.map(lambda x: x[0], graph)
            gradient = jax_gradient if derivatives else None
            return predict(model, own, gradient, curvature=jax_curvature, request=hessian)

        if len(self.devices) == 1:
            return local(model, graph)
        spread = PartitionSpec(AXIS)
        run = jax.shard_map(local, mesh=self.mesh, in_specs=(PartitionSpec(), spread), out_specs=spread)
        outputs: dict[str, Any] = run(model, graph)
        return outputs


class Compiled:
    """The functions of a program, compiled for every structure and size of their arguments."""

    def __init__(self, program: Program) -> None:
        self.traces = 0
        """How often JAX compiled."""

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def traced(*args: Any) -> Any:
                self.traces += 1  # runs when JAX traces, once per structure and size
                return function(*args)

            return jax.jit(traced)

        self.update = counted(program.update)
        self.gradient = counted(program.gradient)
        self.apply = counted(program.apply)
        self.metrics = counted(lambda *args: program.evaluate(*args)[1])


@functools.lru_cache(maxsize=8)
def compiled(program: Program) -> Compiled:
    """One per program: runs in one process that go on from each other compile once."""
    return Compiled(program)


def _reaching(function: Callable[[Arrays], Any], parameters: Arrays) -> list[str]:
    """The parameters that a scalar depends on. All others have no gradient, so that nothing may change them."""
    jaxpr = jax.make_jaxpr(function)(parameters).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True])
    return [path for path, flag in zip(sorted(parameters), used, strict=True) if flag]


def clipped(slopes: Arrays, max_norm: float | None) -> tuple[Arrays, Any]:
    """The gradients scaled down to the largest allowed norm, and the size of their largest number.

    The norm is c ||g / c|| with c = max |g|, in float64, so that it neither overflows nor vanishes.
    """
    numbers = [jnp.ravel(g).astype(jnp.float64) for g in slopes.values() if g.size]
    if not numbers:
        return slopes, jnp.asarray(0.0)
    flat = jnp.concatenate(numbers)
    top = jnp.max(jnp.abs(flat))
    if max_norm is None:
        return slopes, top
    scale = jnp.where(top > 0, top, 1.0)
    length = jnp.sqrt(jnp.sum((flat / scale) ** 2))
    # In two steps: the factor itself may be too small for the type of the gradient.
    rest = max_norm / (length + 1e-6 / scale)
    keep = top * length + 1e-6 <= max_norm
    return {path: jnp.where(keep, g, (g / scale * rest).astype(g.dtype)) for path, g in slopes.items()}, top
