"""Dipole: a vector per atom, from the descriptor's vectors (Zhang et al., Phys. Rev. B 102, 041121, 2020).

With p_i the net's output, one number per vector, and v_im the vectors of the descriptor: mu_i = sum_m p_im v_im.
"""

from __future__ import annotations

from typing import Any, ClassVar

from dpmodel.config import option
from dpmodel.descriptors.base import Features
from dpmodel.fittings.base import Fitting, FittingConfig, Output
from dpmodel.fittings.vectors import require_vectors, vectors_of
from dpmodel.graph import Graph
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array
from dpmodel.ops import array_namespace

__all__ = ["DipoleFitting", "DipoleFittingConfig"]

DIPOLE = Output(name="dipole", atomic="dipole", reduced="global_dipole", shape=(3,), differentiable=True, loss="tensor")


class DipoleFittingConfig(FittingConfig, key="dipole"):
    """A vector per atom. The descriptor must have vectors."""

    sel_type: tuple[int, ...] | None = option(
        None, "Of TensorFlow: give all types, and leave types out with model.atom_exclude_types.",
        aliases=("dipole_type",), effect="refused",
    )  # fmt: skip

    def output(self) -> Output:
        return DIPOLE

    def why_no_bias(self) -> str:
        return "a shift of vectors would not turn with the system"

    def build(
        self, ntypes: int, dim_descriptor: int, mixed_types: bool, *, dim_emb: int = 0, seed: Seed = None
    ) -> DipoleFitting:
        """A fitting with fresh random weights. dim_emb: number of the descriptor's vectors."""
        require_vectors(dim_emb, "dipole")
        return DipoleFitting(**self.initial_state(ntypes, dim_descriptor, dim_emb, mixed_types, seed))


class DipoleFitting(Fitting):
    """The `dipole` fitting."""

    needs_rotation: ClassVar[bool] = True

    config: Any

    def shifted(self, value: Array, atype: Array, bias: Array, std: Array) -> Array:
        return value  # a shift would not turn with the system

    def call(self, features: Features, graph: Graph) -> Array:
        """(n, 3)."""
        p = self.core(features, graph)
        return array_namespace(p).sum(p[:, :, None] * vectors_of(features, p), axis=1)
