"""Any property of a frame: numbers per atom, summed or averaged."""

from __future__ import annotations

import re
from typing import Any

from dpmodel.config import option, positive
from dpmodel.descriptors.base import Features
from dpmodel.fittings.base import Fitting, FittingConfig, Output
from dpmodel.graph import Graph
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array
from dpmodel.ops import array_namespace, take_rows

__all__ = ["PropertyFitting", "PropertyFittingConfig"]


_TAKEN = frozenset(
    (
        "aparam", "box", "charge_spin", "coord", "energy", "force", "force_mag", "fparam", "hessian", "mask", "mask_mag",
        "real_atom_types", "spin", "stress", "type", "type_map", "virial",
    )
)  # fmt: skip
"""Names of other outputs and files of data."""


def _free_name(name: str) -> str | None:
    """Check: a name of files and columns that nothing else has."""
    if name and name not in _TAKEN and not re.search(r"[\\/\s]", name):
        return None
    return f"a name without spaces and slashes that is none of {', '.join(sorted(_TAKEN))}"


class PropertyFittingConfig(FittingConfig, key="property"):
    """A property by name, the sum (extensive) or the mean (intensive) of atoms' shares."""

    property_name: str = option(doc="Name of the property, of its labels and of its columns.", check=_free_name)
    task_dim: int = option(1, "Number of components.", check=positive)
    intensive: bool = option(False, "Whether the property is the mean over the atoms, not the sum.")
    distinguish_types: bool = option(True, "Whether every type has its own shift and scale from the statistics.")

    def output(self) -> Output:
        name = self.property_name
        return Output(
            name=name, atomic=f"atom_{name}", reduced=name, shape=(self.task_dim,), differentiable=False,
            intensive=self.intensive, by_type=self.distinguish_types,
        )  # fmt: skip

    def why_no_bias(self) -> str:
        return "" if self.distinguish_types else "distinguish_types is false, and the one bias is that of the labels"

    def build(
        self, ntypes: int, dim_descriptor: int, mixed_types: bool, *, dim_emb: int = 0, seed: Seed = None
    ) -> PropertyFitting:
        """A fitting with fresh random weights."""
        return PropertyFitting(**self.initial_state(ntypes, dim_descriptor, self.task_dim, mixed_types, seed))


class PropertyFitting(Fitting):
    """The `property` fitting."""

    config: Any

    def shifted(self, value: Array, atype: Array, bias: Array, std: Array) -> Array:
        kind = atype if self.config.distinguish_types else array_namespace(atype).zeros_like(atype)
        return value * take_rows(std, kind) + take_rows(bias, kind)

    def call(self, features: Features, graph: Graph) -> Array:
        """(n, task_dim)."""
        return self.core(features, graph)
