"""Layer normalisation (Ba, Kiros, Hinton, arXiv:1607.06450)."""

from __future__ import annotations

import numpy as np

from dpmodel.op import Array, Op, param
from dpmodel.ops import array_namespace

__all__ = ["LayerNorm", "make_layer_norm"]


class LayerNorm(Op):
    """(x - mean) / sqrt(variance + eps) * w + b over the last axis; the variance is divided by its width."""

    w: Array = param()
    b: Array = param()
    eps: float = 1e-5
    trainable: bool = True  # type: ignore[misc]  # a field of this class, a constant of the others

    def call(self, x: Array) -> Array:
        """(..., n) -> (..., n)."""
        xp = array_namespace(x)
        x = x - xp.mean(x, axis=-1, keepdims=True)
        variance = xp.mean(x * x, axis=-1, keepdims=True)
        return x / xp.sqrt(variance + self.eps) * self.w[...] + self.b[...]


def make_layer_norm(width: int, *, dtype: str, eps: float = 1e-5, trainable: bool = True) -> LayerNorm:
    """Weights 1, shift 0."""
    return LayerNorm(w=np.ones(width, dtype), b=np.zeros(width, dtype), eps=eps, trainable=trainable)
