"""What the array API standard lacks, written by asking the array for its namespace.

No framework is imported here. Functions that a library offers in a faster form (scatter-add) look the
library up through the array they were given.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace, is_jax_array, is_numpy_array, is_torch_array
from array_api_compat import device as array_device

from dpmodel.op import Array

__all__ = [
    "array_namespace",
    "as_dtype",
    "at_least_single",
    "device_of",
    "is_float",
    "safe_norm",
    "segment_outer",
    "segment_sum",
    "softmax",
    "take_rows",
    "zeros",
]


def device_of(x: Array) -> Any:
    """The device of an array, to create others beside it."""
    return array_device(x)


def as_dtype(x: Array, dtype: str | Any) -> Array:
    """Cast to a dtype of the same library, given as a name ("float32") or a dtype. No copy where none is needed."""
    xp = array_namespace(x)
    target = getattr(xp, dtype) if isinstance(dtype, str) else dtype
    return x if x.dtype == target else xp.astype(x, target)


def at_least_single(x: Array) -> Array:
    """float16 as float32; other floating-point arrays as they are."""
    return as_dtype(x, "float32") if array_namespace(x).finfo(x.dtype).bits < 32 else x


def is_float(x: Array) -> bool:
    """True for real floating-point arrays."""
    return bool(array_namespace(x).isdtype(x.dtype, "real floating"))


def zeros(shape: tuple[int, ...], like: Array, dtype: Any = None) -> Array:
    """Zeros of the library, device and (unless said) dtype of `like`."""
    xp = array_namespace(like)
    return xp.zeros(shape, dtype=like.dtype if dtype is None else dtype, device=device_of(like))


def take_rows(x: Array, index: Array) -> Array:
    """`x[index]` along axis 0 for an index array of any shape: (n, *rest), (*i,) -> (*i, *rest)."""
    xp = array_namespace(x)
    flat = xp.take(x, xp.reshape(index, (-1,)), axis=0)
    return flat if index.ndim == 1 else xp.reshape(flat, (*index.shape, *x.shape[1:]))


def safe_norm(x: Array, *, keepdims: bool = False) -> Array:
    """Euclidean norm over the last axis; 0 with gradient 0 (not NaN) for zero vectors."""
    xp = array_namespace(x)
    square = xp.sum(x * x, axis=-1, keepdims=keepdims)
    positive = square > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, square, xp.ones_like(square))), xp.zeros_like(square))


def softmax(x: Array) -> Array:
    """exp(x) / sum exp(x) over the last axis, which has one entry or more. torch has a faster form."""
    if is_torch_array(x):
        return x.softmax(-1)
    xp = array_namespace(x)
    weights = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return weights / xp.sum(weights, axis=-1, keepdims=True)


def segment_sum(x: Array, index: Array, size: int) -> Array:
    """Sum rows that share an index: (n, *rest), (n,) -> (size, *rest). `index` lies in [0, size).

    torch: index_add; JAX: at[].add; NumPy: add.at; anything else: a one-hot product.
    """
    if is_torch_array(x):
        return x.new_zeros((size, *x.shape[1:])).index_add(0, index, x)
    xp = array_namespace(x)
    if is_jax_array(x):
        return xp.zeros((size, *x.shape[1:]), dtype=x.dtype).at[index].add(x)
    if is_numpy_array(x):
        total = xp.zeros((size, *x.shape[1:]), dtype=x.dtype)
        xp.add.at(total, index, x)
        return total
    columns = xp.arange(size, dtype=index.dtype, device=device_of(index))
    one_hot = xp.astype(index[None, :] == columns[:, None], x.dtype)
    flat = xp.matmul(one_hot, xp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))))
    return xp.reshape(flat, (size, *x.shape[1:]))


def segment_outer(x: Array, y: Array, index: Array, size: int) -> Array:
    """Sum outer products of rows that share an index: (n, a), (n, b), (n,) -> (size, a, b)."""
    return segment_sum(x[:, :, None] * y[:, None, :], index, size)
