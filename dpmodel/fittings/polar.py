"""Polarizability: a symmetric tensor per atom, from the descriptor's vectors (Sommers et al., PCCP 22, 10592, 2020).

With q_i the net's output times the scale of the type, and v_i (M, 3) the vectors of the descriptor:

    fit_diag   alpha_i = sum_m q_im v_im (x) v_im
    else       alpha_i = v_i^T 1/2 (Q_i + Q_i^T) v_i          Q_i (M, M)

With `shift_diag`, the statistics of the type's tensor are added to the diagonal.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np

from dpmodel.config import option
from dpmodel.descriptors.base import Features
from dpmodel.errors import InputError
from dpmodel.fittings.base import Fitting, FittingConfig, Output
from dpmodel.fittings.vectors import require_vectors, vectors_of
from dpmodel.graph import Graph
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, buffer
from dpmodel.ops import array_namespace, as_dtype, device_of, take_rows
from dpmodel.precision import global_dtype
from dpmodel.type_map import TypeChange

__all__ = ["PolarFitting", "PolarFittingConfig"]

POLAR = Output(
    name="polarizability", atomic="polar", reduced="global_polar", shape=(3, 3), differentiable=False, loss="tensor"
)


def _scale(value: Any) -> str | None:
    given = value if isinstance(value, tuple | list) else [value]
    fits = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in given)
    return None if value is None or (given and fits) else "a finite number, or a list with one for every type"


class PolarFittingConfig(FittingConfig, key="polar"):
    """A symmetric tensor per atom. The descriptor must have vectors."""

    fit_diag: bool = option(True, "The net gives one number per vector; false: one per pair of vectors.")
    scale: Any = option(1.0, "What the net's output is multiplied by: one number, or one per type.", check=_scale)
    shift_diag: bool = option(True, "Whether the mean of the labels is added to the diagonal.")

    def scales(self, ntypes: int) -> np.ndarray:
        """(ntypes, 1). Raises InputError for another number of them."""
        given = [1.0] if self.scale is None else np.ravel(np.asarray(self.scale, np.float64))
        if len(given) not in (1, ntypes):
            raise InputError(f"fitting_net.scale: expected one number or {ntypes}, one per type; got {len(given)}")
        return np.broadcast_to(np.asarray(given, global_dtype()), (ntypes,)).reshape(ntypes, 1).copy()

    sel_type: tuple[int, ...] | None = option(
        None, "Of TensorFlow: give all types, and leave types out with model.atom_exclude_types.",
        aliases=("pol_type",), effect="refused",
    )  # fmt: skip

    def output(self) -> Output:
        return POLAR

    def why_no_bias(self) -> str:
        return "" if self.shift_diag else "shift_diag is false"

    def build(
        self, ntypes: int, dim_descriptor: int, mixed_types: bool, *, dim_emb: int = 0, seed: Seed = None
    ) -> PolarFitting:
        """A fitting with fresh random weights. dim_emb: number of the descriptor's vectors."""
        require_vectors(dim_emb, "polar")
        count = dim_emb if self.fit_diag else dim_emb**2
        state = self.initial_state(ntypes, dim_descriptor, count, mixed_types, seed)
        return PolarFitting(**state, scale=self.scales(ntypes))


class PolarFitting(Fitting):
    """The `polar` fitting."""

    needs_rotation: ClassVar[bool] = True

    config: Any
    scale: Array = buffer(given=True)
    """(ntypes, 1)."""

    def shifted(self, value: Array, atype: Array, bias: Array, std: Array) -> Array:
        if not self.config.shift_diag:
            return value
        xp = array_namespace(value)
        mean = (bias[:, 0] + bias[:, 4] + bias[:, 8]) / 3.0
        shift = take_rows(mean[:, None] * as_dtype(self.scale[...], mean.dtype), atype)[:, :, None]
        return value + shift * xp.eye(3, dtype=value.dtype, device=device_of(value))

    def bias_share(self) -> np.ndarray:
        return np.asarray(self.scale, np.float64)

    def with_types(self, change: TypeChange) -> Self:
        return super().with_types(change).replace(scale=change.rows(self.scale, 1.0))

    def call(self, features: Features, graph: Graph) -> Array:
        """(n, 3, 3)."""
        q = self.core(features, graph)
        xp, v = array_namespace(q), vectors_of(features, q)
        atype = graph.atype[: graph.frame.shape[0]]
        q = q * take_rows(as_dtype(self.scale[...], q.dtype), xp.where(atype < 0, xp.zeros_like(atype), atype))
        if self.config.fit_diag:
            return xp.matmul(xp.permute_dims(v, (0, 2, 1)), q[:, :, None] * v)
        q = xp.reshape(q, (q.shape[0], v.shape[1], v.shape[1]))
        q = 0.5 * (q + xp.permute_dims(q, (0, 2, 1)))
        return xp.matmul(xp.permute_dims(v, (0, 2, 1)), xp.matmul(q, v))
