"""Models of magnetic systems, by virtual atoms (DeepSPIN, Yang et al., Phys. Rev. B 110, 064427, 2024).

For every atom there is a virtual one of a type of its own, displaced from it by its spin times the `virtual_scale` of
the type (0 for types without spin). A model of twice as many types, the backbone, gives the energy; virtual atoms
contribute nothing themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from dpmodel.config import Config
from dpmodel.descriptors.hybrid import Hybrid
from dpmodel.fittings.base import Output
from dpmodel.graph import Graph, NeighbourRequest
from dpmodel.models.base import Model
from dpmodel.models.standard import StandardModel
from dpmodel.op import Array, Op, buffer, child
from dpmodel.ops import as_dtype, take_rows
from dpmodel.type_map import TypeChange

__all__ = ["VIRTUAL", "SpinModel"]


VIRTUAL = "_spin"
"""Of the names of virtual types."""


class SpinModel(Model):
    """A backbone on real and virtual atoms."""

    backbone: StandardModel = child()
    """Its types are those of this model, then as many virtual ones."""
    use_spin: tuple[bool, ...]
    """By type."""
    virtual_scale: Array = buffer(given=True)
    """(ntypes,), Å per unit of spin."""

    def output(self) -> Output:
        return self.backbone.output()

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return self.backbone.requests()

    def groups_types(self) -> bool:
        return self.backbone.groups_types()

    def tolerates_overlap(self) -> bool:
        return self.backbone.tolerates_overlap()

    @property
    def spin_scales(self) -> tuple[float, ...] | None:
        scale = np.where(self.use_spin, np.asarray(self.virtual_scale), 0.0)
        return tuple(float(value) for value in scale)

    @property
    def graph_model(self) -> Model:
        return self.backbone

    @property
    def message_passing(self) -> bool:
        return self.backbone.message_passing

    @property
    def dim_fparam(self) -> int:
        return self.backbone.dim_fparam

    @property
    def default_fparam(self) -> tuple[float, ...] | None:
        return self.backbone.default_fparam

    @property
    def dim_aparam(self) -> int:
        return self.backbone.dim_aparam

    @property
    def takes_charge_spin(self) -> bool:
        return self.backbone.takes_charge_spin

    @property
    def default_charge_spin(self) -> tuple[float, float] | None:
        return self.backbone.default_charge_spin

    def with_types(self, change: TypeChange) -> Self:
        """Types that are new have no spin: nobody sees their virtual atoms."""
        n, own = len(change.old), self.backbone.type_map
        virtual = tuple(
            f"{name}{VIRTUAL}" if source is None else own[n + source]
            for name, source in zip(change.new, change.sources, strict=True)
        )
        backbone = self.backbone.with_type_map((*change.new, *virtual))
        if change.added:
            hidden = {name for name, at in zip(change.old, range(n, 2 * n), strict=True) if self._is_hidden(at)}
            hidden.update(change.added)
            backbone = _without(backbone, [len(change.new) + k for k, name in enumerate(change.new) if name in hidden])
        return self.replace(
            backbone=backbone,
            use_spin=change.values(self.use_spin, False),
            virtual_scale=change.rows(self.virtual_scale, 0.0),
            **self._types_changed(change),
        )

    def _is_hidden(self, kind: int) -> bool:
        """Whether atoms of a type of the backbone are neighbours of nobody."""
        pairs = {tuple(sorted(pair)) for pair in self.backbone.pair_exclude_types}
        return all((min(kind, q), max(kind, q)) in pairs for q in range(self.backbone.ntypes))

    def bytes_per_atom(self) -> int:
        return 2 * self.backbone.bytes_per_atom()

    def call(self, graph: Graph) -> dict[str, Array]:
        """As every model, per-atom values of the s real atoms; `mask_mag` (s, 1) int32: atoms of types with spin.

        Raises ValueError for a graph without virtual atoms.
        """
        virtual = graph.virtual
        if virtual is None:
            raise ValueError("this model takes spins: build its graph with them")
        outputs, output = self.backbone(graph), self.output()
        real, magnetic = (take_rows(x, virtual.owned) for x in (virtual.real, virtual.scale > 0))
        rows = {key: take_rows(outputs[key], real) for key in (output.atomic, "mask")}
        return {**outputs, **rows, "mask_mag": as_dtype(magnetic, "int32")[:, None]}


def _without(backbone: StandardModel, types: Sequence[int]) -> StandardModel:
    """The backbone with atoms of these (virtual) types contributing nothing, and neighbours of nobody."""
    count = backbone.ntypes
    pairs = tuple((p, q) for p in types for q in range(count))

    def shut(op: Op, copy: Op) -> Op:
        section = getattr(op, "config", None)
        if isinstance(section, Config) and "exclude_types" in section.options():
            hidden = tuple(dict.fromkeys((*section.exclude_types, *pairs)))  # type: ignore[attr-defined]  # asked above
            return copy.replace(config=section.replace(exclude_types=hidden))
        if isinstance(copy, Hybrid):
            return copy.replace(config=copy.config.replace(list=tuple(part.config for part in copy.parts)))
        return copy

    return backbone.replace(
        descriptor=backbone.descriptor.map_ops(shut),
        atom_exclude_types=tuple(dict.fromkeys((*backbone.atom_exclude_types, *types))),
        pair_exclude_types=tuple(dict.fromkeys((*backbone.pair_exclude_types, *pairs))),
    )
