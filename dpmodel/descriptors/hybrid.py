"""hybrid: several descriptors side by side. Each sees its own neighbours; their features are concatenated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from dpmodel.config import Config, sections
from dpmodel.descriptors.base import Capacity, Descriptor, DescriptorConfig, Features
from dpmodel.descriptors.kinds import SINGLE
from dpmodel.errors import InputError
from dpmodel.graph import Graph, NeighbourRequest, split_views
from dpmodel.nn import child_seed
from dpmodel.nn.mlp import Seed
from dpmodel.op import child
from dpmodel.ops import array_namespace, as_dtype
from dpmodel.type_map import TypeChange

__all__ = ["Hybrid", "HybridConfig"]


class HybridConfig(DescriptorConfig, key="hybrid"):
    """Several descriptors side by side."""

    list: tuple[Config, ...] = sections(lambda: SINGLE, "The descriptors.")

    @property
    def parts(self) -> tuple[DescriptorConfig, ...]:
        """The sections of the descriptors."""
        return self.list  # type: ignore[return-value]  # every registered descriptor's section is one

    def sizes(self) -> str:
        return " and ".join(f"{part.key} ({part.sizes()})" for part in self.parts)

    def tolerates_overlap(self) -> bool:
        return all(part.tolerates_overlap() for part in self.parts)

    def takes_charge_spin(self) -> bool:
        return any(part.takes_charge_spin() for part in self.parts)

    def default_charge_spin(self) -> tuple[float, float] | None:
        defaults = {part.default_charge_spin() for part in self.parts if part.takes_charge_spin()}
        return defaults.pop() if len(defaults) == 1 else None

    def capacities(self) -> tuple[Capacity, ...]:
        return tuple(
            dataclasses.replace(each, option=f"list.{k}.{each.option}")
            for k, part in enumerate(self.parts)
            for each in part.capacities()
        )

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> HybridConfig:
        rest = iter(values)
        parts = [part.with_capacities([next(rest) for _ in part.capacities()]) for part in self.parts]
        return self.replace(list=tuple(parts))

    def check(self) -> None:
        """Raise InputError where the parts do not fit together."""
        if not self.parts:
            raise InputError("list: expected at least one descriptor, got none")

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> Hybrid:
        """Capacities must be resolved (numbers). Equal seeds in two sections give different random numbers."""
        self.check()
        parts = tuple(part.build(ntypes, type_map, seed=child_seed(seed, k)) for k, part in enumerate(self.parts))
        return Hybrid(config=self, ntypes=ntypes, parts=parts)


class Hybrid(Descriptor):
    """The hybrid descriptor."""

    config: HybridConfig
    ntypes: int
    parts: tuple[Descriptor, ...] = child()

    @property
    def mixed_types(self) -> bool:
        return any(part.mixed_types for part in self.parts)

    @property
    def message_passing(self) -> bool:
        return any(part.message_passing for part in self.parts)

    def bytes_per_atom(self) -> int:
        return sum(part.bytes_per_atom() for part in self.parts)

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return tuple(request for part in self.parts for request in part.requests())

    def groups_types(self) -> bool:
        return any(part.groups_types() for part in self.parts)

    @property
    def dim_out(self) -> int:
        return sum(part.dim_out for part in self.parts)

    @property
    def dim_emb(self) -> int:
        return sum(part.dim_emb for part in self.parts)

    def is_smooth(self) -> bool:
        return all(part.is_smooth() for part in self.parts)

    def measured(
        self, graphs: Callable[[], Iterable[Graph]]
    ) -> Iterator[tuple[Descriptor, Callable[[], Iterable[Graph]]]]:
        def of(k: int) -> Callable[[], Iterator[Graph]]:
            return lambda: (split_views(graph, self.parts)[k] for graph in graphs())

        for k, part in enumerate(self.parts):
            yield from part.measured(of(k))

    def with_types(self, change: TypeChange) -> Self:
        parts = tuple(part.with_types(change) for part in self.parts)
        config = self.config.replace(list=tuple(part.config for part in parts))
        return self.replace(config=config, ntypes=len(change.new), parts=parts)

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, dim_out), rotation (n, dim_emb, 3), in the widest precision of the parts."""
        xp = array_namespace(graph.edge_vec)
        found = [
            part(own, rotation=rotation) for part, own in zip(self.parts, split_views(graph, self.parts), strict=True)
        ]
        dtype = xp.result_type(*(each.node for each in found))
        node = xp.concat([as_dtype(each.node, dtype) for each in found], axis=-1)
        vectors: list[Any] = [each.rotation for each in found if each.rotation is not None] if rotation else []
        vectors = [as_dtype(each, dtype) for each in vectors]
        return Features(node=node, rotation=xp.concat(vectors, axis=1) if vectors else None)
