"""What all descriptors share: their output and what a model may ask of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from dpmodel.config import Config
from dpmodel.graph import Graph, NeighbourRequest, Record, axes
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, Op
from dpmodel.type_map import TypeChange

if TYPE_CHECKING:
    from dpmodel.statistics.cache import StatCache
    from dpmodel.statistics.items import StatItem

__all__ = ["Capacity", "Descriptor", "DescriptorConfig", "Features"]


class Features(Record):
    """Output of a descriptor for the n owned atoms, in the descriptor's precision."""

    node: Array = axes("atoms")
    """(n, dim_out): invariant features."""
    rotation: Array | None = axes("atoms", default=None)
    """(n, dim_emb, 3): lab-frame vectors that rotate with the system; None where a descriptor has none, or nobody asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """An option that says how many neighbours are kept, and which."""

    option: str
    """Its place below the section: "sel", "repflow.e_sel"."""
    value: Any
    """A number, one per type, "auto" or "auto:f"."""
    rcut: float
    """Of the neighbours that it counts, Å."""
    typed: bool
    """One number per type of neighbour; False: one for all."""


class DescriptorConfig(Config):
    """Base of the descriptors' sections."""

    def sizes(self) -> str:
        """Widths and numbers of layers, for people."""
        raise NotImplementedError(f"{type(self).__name__} does not define sizes()")

    def capacities(self) -> tuple[Capacity, ...]:
        """The options that statistics of the data resolve, or are compared with."""
        raise NotImplementedError(f"{type(self).__name__} does not define capacities()")

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> DescriptorConfig:
        """A copy with numbers for `capacities()`, in that order."""
        raise NotImplementedError(f"{type(self).__name__} does not define with_capacities()")

    def tolerates_overlap(self) -> bool:
        """Whether the features are finite where two atoms are at one place."""
        return False

    def takes_charge_spin(self) -> bool:
        """Whether the total charge and spin of every frame are inputs."""
        return False

    def default_charge_spin(self) -> tuple[float, float] | None:
        """Charge and spin of frames that come without; None: they must come with."""
        return None

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> Descriptor:
        """A descriptor with fresh random weights and neutral statistics (mean 0, deviation 1)."""
        raise NotImplementedError(f"{type(self).__name__} does not define build()")


class Descriptor(Op):
    """Base of all descriptors."""

    config: Any
    ntypes: int

    @property
    def mixed_types(self) -> bool:
        """True: one set of neighbours for all types, and one fitting net; False: neighbours and nets per type."""
        raise NotImplementedError(f"{type(self).__name__} does not define mixed_types")

    @property
    def message_passing(self) -> bool:
        """True where an atom's features depend on more than its own edges."""
        return False

    def bytes_per_atom(self) -> int:
        """Rough size of the temporaries that one atom needs in an evaluation with derivatives."""
        raise NotImplementedError(f"{type(self).__name__} does not define bytes_per_atom()")

    def requests(self) -> tuple[NeighbourRequest, ...]:
        """The neighbour lists that `call` expects in `graph.views`, in order."""
        raise NotImplementedError(f"{type(self).__name__} does not define requests()")

    def tolerates_overlap(self) -> bool:
        """Whether features are finite where two atoms are at one place."""
        return bool(self.config.tolerates_overlap())

    @property
    def takes_charge_spin(self) -> bool:
        """Whether `call` reads `Graph.charge_spin`."""
        return bool(self.config.takes_charge_spin())

    @property
    def default_charge_spin(self) -> tuple[float, float] | None:
        """What stands in where a graph has none; None: nothing does."""
        found: tuple[float, float] | None = self.config.default_charge_spin()
        return found

    def groups_types(self) -> bool:
        """Whether `call` needs `Graph.types`."""
        return False

    @property
    def dim_out(self) -> int:
        """Width of `Features.node`."""
        raise NotImplementedError(f"{type(self).__name__} does not define dim_out")

    @property
    def dim_emb(self) -> int:
        """Rows of `Features.rotation`; 0 where there is none."""
        return 0

    def is_smooth(self) -> bool:
        """Whether energies are continuously differentiable where a neighbour enters the cutoff (while `sel` suffices)."""
        raise NotImplementedError(f"{type(self).__name__} does not define is_smooth()")

    def with_statistics(
        self, graphs: Callable[[], Iterable[Graph]], *, protect: float, cache: StatCache | None = None
    ) -> Self:
        """A copy normalised by the statistics of the training data.

        graphs: makes the graphs (NumPy) of the data, called only where the cache does not know. protect: smallest
        deviation.
        """
        sums = {id(part): part.sums(own, cache) for part, own in self.measured(graphs)}

        def change(op: Op, copy: Op) -> Op:
            return (
                copy.with_sums(sums[id(op)], protect=protect)
                if isinstance(copy, Descriptor) and id(op) in sums
                else copy
            )

        return self.map_ops(change)

    def measured(
        self, graphs: Callable[[], Iterable[Graph]]
    ) -> Iterator[tuple[Descriptor, Callable[[], Iterable[Graph]]]]:
        """The parts that have statistics (this descriptor or those inside), and the graphs as each of them sees them."""
        yield self, graphs

    def sums(self, graphs: Callable[[], Iterable[Graph]], cache: StatCache | None = None) -> dict[str, StatItem]:
        """Running sums over the graphs of what a part of `measured` is normalised by; those of several tasks add."""
        raise NotImplementedError(f"{type(self).__name__} does not define sums()")

    def with_sums(self, sums: Mapping[str, StatItem], *, protect: float) -> Self:
        """A copy normalised by them. protect: smallest deviation."""
        raise NotImplementedError(f"{type(self).__name__} does not define with_sums()")

    def with_types(self, change: TypeChange) -> Self:
        """A copy for other types. Raises InputError for types that it cannot have."""
        raise NotImplementedError(f"{type(self).__name__} does not define with_types()")

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms. rotation False: `Features.rotation` is not needed and may be None."""
        raise NotImplementedError(f"{type(self).__name__} does not define call()")
