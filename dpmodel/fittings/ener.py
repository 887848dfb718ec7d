"""Energy fitting: one number per atom, summed to the energy of the frame."""

from __future__ import annotations

from typing import Any

from dpmodel.config import option
from dpmodel.descriptors.base import Features
from dpmodel.fittings.base import Fitting, FittingConfig, Output
from dpmodel.graph import Graph
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array

__all__ = ["EnerFittingConfig", "EnergyFitting"]

ENERGY = Output(name="energy", atomic="atom_energy", reduced="energy", shape=(1,), differentiable=True, loss="ener")


class EnerFittingConfig(FittingConfig, key="ener"):
    """Energy of an atom from its descriptor."""

    atom_ener: tuple[Any, ...] = option(
        (),
        "By type, a number or null. Where a number is given, the net's value for an isolated atom (zero descriptor) "
        "is subtracted, and training takes the number as the bias of that type instead of fitting it.",
        unit="eV",
    )

    def output(self) -> Output:
        return ENERGY

    def build(
        self, ntypes: int, dim_descriptor: int, mixed_types: bool, *, dim_emb: int = 0, seed: Seed = None
    ) -> EnergyFitting:
        """A fitting with fresh random weights."""
        return EnergyFitting(**self.initial_state(ntypes, dim_descriptor, 1, mixed_types, seed))


class EnergyFitting(Fitting):
    """The `ener` fitting."""

    config: EnerFittingConfig

    def vacuum(self) -> tuple[bool, ...] | None:
        preset = tuple(value is not None for value in self.config.atom_ener or ())
        return preset if any(preset) else None

    def call(self, features: Features, graph: Graph) -> Array:
        """(n, 1), eV."""
        return self.core(features, graph)
