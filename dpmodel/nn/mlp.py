"""Dense layers with optional time step and skip connection, and chains of them.

The residual form is that of He et al. 2016; the skip where a layer doubles the width copies its input twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from dpmodel.nn.activation import activation
from dpmodel.op import Array, Op, child, param
from dpmodel.ops import array_namespace

__all__ = ["MLP", "Linear", "Seed", "child_seed", "make_embedding_net", "make_fitting_net", "make_linear"]

Seed: TypeAlias = int | tuple[int, ...] | None


class Linear(Op):
    """y = phi(x w + b) * idt, plus x (or [x, x]) where `resnet` and the width is kept (or doubled).

    Weights are stored (in, out), row-vector convention.
    """

    w: Array = param()
    b: Array | None = param(default=None)
    idt: Array | None = param(default=None)
    activation: str = "linear"
    resnet: bool = False
    trainable: bool = True  # type: ignore[misc]  # a field of this class, a constant of the others

    def call(self, x: Array) -> Array:
        """(..., in) -> (..., out), in the dtype of the weights."""
        return self.finish(self._affine(x), x)

    @property
    def skips(self) -> bool:
        """Whether the input is added to the output."""
        n_in, n_out = self.w.shape
        return self.resnet and n_out in (n_in, 2 * n_in)

    def finish(self, y: Array, x: Array | None) -> Array:
        """The output from y = x w + b. x may be None where the layer does not skip."""
        y = activation(self.activation)(y)
        if self.idt is not None:
            y = y * self.idt
        if self.skips:
            y = y + (x if self.w.shape[0] == self.w.shape[1] else array_namespace(y).concat([x, x], axis=-1))
        return y

    def _affine(self, x: Array) -> Array:
        y = array_namespace(x).matmul(x, self.w[...])
        return y if self.b is None else y + self.b


class MLP(Op):
    """A chain of layers."""

    layers: tuple[Linear, ...] = child()

    def call(self, x: Array) -> Array:
        """(..., in) -> (..., out)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def hidden(self, x: Array) -> Array:
        """(..., in) -> (..., width): what the last layer gets."""
        for layer in self.layers[:-1]:
            x = layer(x)
        return x


def child_seed(seed: Seed, k: int) -> Seed:
    """The seed of the k-th part of something seeded with `seed`; None stays None (random)."""
    if seed is None:
        return None
    return (k, *seed) if isinstance(seed, tuple | list) else (k, seed)


def make_linear(
    n_in: int, n_out: int, *, seed: Seed, dtype: str, activation: str = "linear", resnet: bool = False,
    timestep: bool = False, bias: bool = True, trainable: bool = True,
) -> Linear:  # fmt: skip
    """A layer with random weights: drawn in float64 and then cast, so that precisions start from the same numbers."""
    rng = np.random.default_rng(seed)
    w = rng.normal(scale=1.0 / np.sqrt(n_in + n_out), size=(n_in, n_out)).astype(dtype)
    b = rng.normal(size=(n_out,)).astype(dtype) if bias else None
    has_idt = timestep and n_out in (n_in, 2 * n_in)
    idt = rng.normal(loc=0.1, scale=0.001, size=(n_out,)).astype(dtype) if has_idt else None
    return Linear(w=w, b=b, idt=idt, activation=activation, resnet=resnet, trainable=trainable)


def make_embedding_net(
    n_in: int,
    neuron: Sequence[int],
    *,
    seed: Seed,
    dtype: str,
    activation: str,
    resnet_dt: bool,
    trainable: bool = True,
) -> MLP:
    """A chain of residual layers of widths n_in -> neuron[0] -> neuron[1] ..."""
    widths = (n_in, *neuron)
    return MLP(
        layers=tuple(
            make_linear(
                widths[k], widths[k + 1], seed=child_seed(seed, k), dtype=dtype, activation=activation, resnet=True,
                timestep=resnet_dt, trainable=trainable,
            )
            for k in range(len(neuron))
        )
    )  # fmt: skip


def make_fitting_net(
    n_in: int, n_out: int, neuron: Sequence[int], *, seed: Seed, dtype: str, activation: str, resnet_dt: bool,
    trainable: Sequence[bool],
) -> MLP:  # fmt: skip
    """Residual hidden layers, then one linear layer to `n_out`. `trainable` has one entry per layer."""
    widths = (n_in, *neuron)
    hidden = [
        make_linear(
            widths[k], widths[k + 1], seed=child_seed(seed, k), dtype=dtype, activation=activation, resnet=True,
            timestep=resnet_dt, trainable=trainable[k],
        )
        for k in range(len(neuron))
    ]  # fmt: skip
    last = make_linear(widths[-1], n_out, seed=child_seed(seed, len(neuron)), dtype=dtype, trainable=trainable[-1])
    return MLP(layers=(*hidden, last))
