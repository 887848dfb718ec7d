"""What the fittings of vectors and tensors need of a descriptor."""

from __future__ import annotations

from dpmodel.descriptors.base import Features
from dpmodel.errors import InputError
from dpmodel.op import Array
from dpmodel.ops import as_dtype

__all__ = ["require_vectors", "vectors_of"]


def require_vectors(count: int, kind: str) -> None:
    """Raise InputError for a descriptor without vectors."""
    if count < 1:
        raise InputError(
            f"fitting_net.type: {kind!r} needs a descriptor with vectors (se_e2_a, dpa1, dpa2, dpa3); this one has none"
        )


def vectors_of(features: Features, like: Array) -> Array:
    """(n, M, 3), in the dtype of `like`."""
    if features.rotation is None:
        raise ValueError("this fitting net needs the descriptor's vectors")
    return as_dtype(features.rotation, like.dtype)
