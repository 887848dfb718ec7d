"""Activation functions by name (spec: `tanh`, `relu`, `relu6`, `gelu`, `softplus`, `sigmoid`, `silu`, `silut`, `linear`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from dpmodel.op import Array, Op
from dpmodel.ops import array_namespace

__all__ = ["ACTIVATIONS", "Activation", "activation", "silut_numbers", "silut_threshold"]


def _tanh(x: Array) -> Array:
    return array_namespace(x).tanh(x)


def _relu(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x))


def _relu6(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.where(x < 0, xp.zeros_like(x), xp.where(x > 6, xp.full_like(x, 6.0), x))


def _gelu(x: Array) -> Array:
    """Hendrycks and Gimpel 2016, the tanh form."""
    return 0.5 * x * (1.0 + array_namespace(x).tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def _softplus(x: Array) -> Array:
    xp = array_namespace(x)
    return _relu(x) + xp.log1p(xp.exp(-xp.abs(x)))


def _sigmoid(x: Array) -> Array:
    return 0.5 * (array_namespace(x).tanh(0.5 * x) + 1.0)


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _linear(x: Array) -> Array:
    return x


def silut_numbers(threshold: float) -> tuple[float, float]:
    """Slope and value of silu at the threshold, from which silut goes on."""
    s = 1.0 / (1.0 + math.exp(-threshold))
    return s + threshold * s * (1.0 - s), threshold * s


def _silut(threshold: float) -> Callable[[Array], Array]:
    """silu below the threshold T; above it tanh(a (x - T)) + T s(T), with a = silu'(T): value and slope continue."""
    slope, value = silut_numbers(threshold)

    def silut(x: Array) -> Array:
        xp = array_namespace(x)
        below = x < threshold
        top = xp.where(below, xp.full_like(x, threshold), x)
        return xp.where(below, _silu(x), xp.tanh(slope * (top - threshold)) + value)

    return silut


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": _tanh,
    "relu": _relu,
    "relu6": _relu6,
    "gelu": _gelu,
    "gelu_tf": _gelu,
    "softplus": _softplus,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "none": _linear,
    "linear": _linear,
}


def silut_threshold(name: str) -> float | None:
    """T of `silut:T` (3.0 if absent); None for other activations. Raises ValueError where T is no number."""
    key = name.lower()
    if not key.startswith(("silut", "custom_silu")):
        return None
    text = key.rpartition(":")[2] if ":" in key else "3.0"
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"activation_function {name!r}: the part after ':' must be a number, as in 'silut:10.0'"
        ) from None


@cache
def activation(name: str) -> Callable[[Array], Array]:
    """The function of that name (any case). `silut:T` takes its threshold T from the name (3.0 if absent).

    Raises ValueError listing the known names.
    """
    key = name.lower()
    if key in ACTIVATIONS:
        return ACTIVATIONS[key]
    threshold = silut_threshold(name)
    if threshold is not None:
        return _silut(threshold)
    raise ValueError(f"unknown activation_function {name!r}; known are {sorted(ACTIVATIONS)} and 'silut:T'")


class Activation(Op):
    """An activation function as a part of its own: backends override it where arrays are large."""

    name: str

    def call(self, x: Array) -> Array:
        """Elementwise, any shape."""
        return activation(self.name)(x)
