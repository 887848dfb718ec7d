"""Density of states: numbers per atom, summed to those of the frame."""

from __future__ import annotations

from typing import Any

from dpmodel.config import option, positive
from dpmodel.descriptors.base import Features
from dpmodel.fittings.base import Fitting, FittingConfig, Output
from dpmodel.graph import Graph
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array

__all__ = ["DOSFitting", "DOSFittingConfig"]


class DOSFittingConfig(FittingConfig, key="dos"):
    """The density of states on a grid of energies, from atoms' shares."""

    precision: str = option("float64", "Precision of the computation: default, float16, float32 or float64.")
    numb_dos: int = option(300, "Number of grid points.", check=positive)

    def output(self) -> Output:
        return Output(
            name="dos", atomic="atom_dos", reduced="dos", shape=(self.numb_dos,), differentiable=False, loss="dos"
        )

    def build(
        self, ntypes: int, dim_descriptor: int, mixed_types: bool, *, dim_emb: int = 0, seed: Seed = None
    ) -> DOSFitting:
        """A fitting with fresh random weights."""
        return DOSFitting(**self.initial_state(ntypes, dim_descriptor, self.numb_dos, mixed_types, seed))


class DOSFitting(Fitting):
    """The `dos` fitting."""

    config: Any

    def call(self, features: Features, graph: Graph) -> Array:
        """(n, numb_dos)."""
        return self.core(features, graph)
