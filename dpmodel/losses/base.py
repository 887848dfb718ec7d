"""What all losses share: label requests, prefactors, and means that padding cannot change.

Atoms are flat (`dpmodel.graph`). An atom counts when its type is not negative; a frame counts when it has such an
atom. Every mean over a batch is first taken inside each frame and then over the frames that count, so frames of
different sizes weigh equally, and neither padded atoms nor padded frames (no atoms at all) change anything.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dpmodel.graph import Graph
from dpmodel.op import Array
from dpmodel.ops import array_namespace, as_dtype, segment_sum

__all__ = ["Label", "Means", "plain_number", "prefactor", "shown", "weights_or_one"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """One quantity that a loss reads from the data."""

    name: str
    """Name of the file, and key in `labels` and `found`."""
    shape: tuple[int, ...]
    """Shape of one atom's (if `atomic`) or one frame's value."""
    atomic: bool
    """True: labels[name] is (n, *shape); False: (f, *shape)."""
    required: bool
    """At least one system of the data must have it; systems without it contribute nothing to its term."""
    default: float = 0.0
    """What stands in where a system does not have it."""
    repeat: int = 1
    """Numbers of the value that one number of the file stands for."""
    high_precision: bool = False
    """Read in float64, whatever the interface precision is."""


def plain_number(value: float | Array) -> float | Array:
    """Numbers of Python and NumPy as a float, which goes with the arrays of every library; other arrays as they are."""
    return float(value) if isinstance(value, int | float | np.generic | np.ndarray) else value


def prefactor(start: float, limit: float, lr: float | Array, start_lr: float) -> float | Array:
    """limit + (start - limit) lr / start_lr.

    `start_lr` is the configured one, not that of the warm-up: during warm-up, prefactors begin near their limits.
    """
    return limit + (start - limit) * (lr / start_lr)


def shown(value: Array, found: float | Array) -> Array:
    """The metric as it is displayed: NaN where the label was not found."""
    xp = array_namespace(value)
    missing = xp.full_like(value, float("nan"))
    if isinstance(found, float):
        return value if found > 0 else missing
    return xp.where(found > 0, value, missing)


def weights_or_one(weights: Array, found: float | Array) -> Array:
    """The weights where they were found (1.0), ones where they were not (0.0)."""
    xp = array_namespace(weights)
    if isinstance(found, float):
        return weights if found > 0 else xp.ones_like(weights)
    return xp.where(found > 0, weights, xp.ones_like(weights))


class Means:
    """Masked means of one batch, in the float dtype of `like`."""

    def __init__(self, graph: Graph, like: Array) -> None:
        xp = array_namespace(like)
        self.frame = graph.frame
        self.nframes: int = graph.natoms.shape[0]
        self.real_atom = graph.atype[: graph.frame.shape[0]] >= 0  # (n,)
        self.real_frame = graph.natoms > 0  # (f,)
        natoms = xp.where(self.real_frame, graph.natoms, xp.ones_like(graph.natoms))
        self.natoms = as_dtype(natoms, like.dtype)
        """(f,): number of real atoms, 1 for frames without any."""
        count = xp.sum(as_dtype(self.real_frame, like.dtype))
        self.count = xp.where(count > 0, count, xp.ones_like(count))

    def mask_atoms(self, x: Array) -> Array:
        """(n, *rest): 0 on atoms that do not count, with gradient 0 whatever stood there."""
        xp = array_namespace(x)
        return xp.where(xp.reshape(self.real_atom, (-1, *(1,) * (x.ndim - 1))), x, xp.zeros_like(x))

    def mask_frames(self, x: Array) -> Array:
        """(f, k): 0 on frames that do not count, with gradient 0 whatever stood there."""
        xp = array_namespace(x)
        return xp.where(self.real_frame[:, None], x, xp.zeros_like(x))

    def frames(self, x: Array) -> Array:
        """Mean over the k values of every frame, then over the real frames: (f, k) -> scalar."""
        xp = array_namespace(x)
        return xp.sum(xp.mean(self.mask_frames(x), axis=1)) / self.count

    def atom_sum(self, x: Array) -> Array:
        """Sum over the real atoms of every frame: (n, k) -> (f, k)."""
        return segment_sum(self.mask_atoms(x), self.frame, self.nframes)

    def atoms(self, x: Array) -> Array:
        """M_k of the specification: (n, k) -> scalar, < sum over real atoms and components / (k N_f) >_f."""
        return self.frames(self.atom_sum(x) / self.natoms[:, None])
