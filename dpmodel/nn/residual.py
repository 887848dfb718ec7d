"""How updates of features are added: `res_avg`, `res_incr`, `res_residual`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dpmodel.nn.mlp import Seed
from dpmodel.op import Array

__all__ = ["STYLES", "combine", "make_residual"]

STYLES = ("res_avg", "res_incr", "res_residual")


def combine(terms: Sequence[Array], style: str, residual: Array | None) -> Array:
    """The first term, updated by the others.

    res_avg: the sum over the root of its length. res_incr: the sum of the updates over the root of their number is added.
    res_residual: every update is weighed by a row of `residual` (updates, width).
    """
    old, new = terms[0], terms[1:]
    if not new:
        return old
    if residual is not None:
        for k, term in enumerate(new):
            old = old + term * residual[k, ...]
        return old
    total = new[0]
    for term in new[1:]:
        total = total + term
    if style == "res_avg":
        return (old + total) / math.sqrt(len(terms))
    return old + total / math.sqrt(len(new))


def make_residual(
    count: int, width: int, *, style: str, scale: float, init: str, seed: Seed, dtype: str, trainable: bool
) -> Array | None:
    """(count, width) initial weights of `res_residual`, 0 where they are not trained; None for the other styles."""
    if style != "res_residual":
        return None
    scale = scale if trainable else 0.0
    if init == "const":
        return np.full((count, width), scale, dtype)
    return np.random.default_rng(seed).normal(0.0, scale, (count, width)).astype(dtype)
