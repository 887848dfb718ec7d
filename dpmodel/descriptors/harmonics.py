"""Real solid harmonics of degree 2 to 4, the further columns of the environment matrix with `lmax` > 1."""

from __future__ import annotations

import math
from collections.abc import Callable

from dpmodel.op import Array
from dpmodel.ops import array_namespace

__all__ = ["harmonics"]


def _two(x: Array, y: Array, z: Array, q: Array) -> list[Array]:
    root = math.sqrt(3.0)
    return [root * x * y, root * y * z, 0.5 * (3.0 * z * z - q), root * x * z, 0.5 * root * (x * x - y * y)]


def _three(x: Array, y: Array, z: Array, q: Array) -> list[Array]:
    a, b, c = math.sqrt(5.0 / 8.0), math.sqrt(15.0), math.sqrt(3.0 / 8.0)
    xx, yy, zz = x * x, y * y, z * z
    return [
        a * y * (3.0 * xx - yy), b * x * y * z, c * y * (5.0 * zz - q), 0.5 * z * (5.0 * zz - 3.0 * q),
        c * x * (5.0 * zz - q), 0.5 * b * z * (xx - yy), a * x * (xx - 3.0 * yy),
    ]  # fmt: skip


def _four(x: Array, y: Array, z: Array, q: Array) -> list[Array]:
    a, b, c, d = math.sqrt(35.0), math.sqrt(70.0), math.sqrt(5.0), math.sqrt(10.0)
    xx, yy, zz = x * x, y * y, z * z
    return [
        0.5 * a * x * y * (xx - yy), 0.25 * b * y * z * (3.0 * xx - yy), 0.5 * c * x * y * (7.0 * zz - q),
        0.25 * d * y * z * (7.0 * zz - 3.0 * q), 0.125 * (35.0 * zz * zz - 30.0 * zz * q + 3.0 * q * q),
        0.25 * d * x * z * (7.0 * zz - 3.0 * q), 0.25 * c * (xx - yy) * (7.0 * zz - q),
        0.25 * b * x * z * (xx - 3.0 * yy), 0.125 * a * (xx * xx - 6.0 * xx * yy + yy * yy),
    ]  # fmt: skip


_DEGREES: dict[int, Callable[[Array, Array, Array, Array], list[Array]]] = {2: _two, 3: _three, 4: _four}


def harmonics(n: Array, lmax: int) -> Array:
    """(..., 3) -> (..., (lmax + 1)^2 - 4): degrees 2 to lmax, each homogeneous in n."""
    x, y, z = n[..., 0], n[..., 1], n[..., 2]
    q = x * x + y * y + z * z
    columns = [column for degree in range(2, lmax + 1) for column in _DEGREES[degree](x, y, z, q)]
    return array_namespace(n).stack(columns, axis=-1)
