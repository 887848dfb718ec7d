"""What all models share: what they may be asked, exclusions, and the sum over atoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from dpmodel.fittings.base import Output
from dpmodel.graph import Graph, NeighbourRequest
from dpmodel.op import Array, Op
from dpmodel.ops import array_namespace, as_dtype, segment_sum
from dpmodel.precision import ENERGY_DTYPE
from dpmodel.type_map import TypeChange

__all__ = ["Model"]


class Model(Op):
    """Base of all models: `call(graph)` gives the outputs that need no derivative."""

    type_map: tuple[str, ...]
    atom_exclude_types: tuple[int, ...] = ()
    """Types whose atoms contribute nothing (they are still neighbours)."""
    pair_exclude_types: tuple[tuple[int, int], ...] = ()
    """Pairs of types that are no neighbours; applied when the graph is built."""

    @property
    def ntypes(self) -> int:
        """Number of types."""
        return len(self.type_map)

    def output(self) -> Output:
        """What this model predicts."""
        raise NotImplementedError(f"{type(self).__name__} does not define output()")

    def requests(self) -> tuple[NeighbourRequest, ...]:
        """The neighbour lists that `call` expects in `graph.views`."""
        raise NotImplementedError(f"{type(self).__name__} does not define requests()")

    def groups_types(self) -> bool:
        """Whether `call` needs `graph.types`."""
        raise NotImplementedError(f"{type(self).__name__} does not define groups_types()")

    def tolerates_overlap(self) -> bool:
        """Whether outputs are finite where two atoms are at one place."""
        return False

    @property
    def rcut(self) -> float:
        """The largest cutoff, Å."""
        return max(request.rcut for request in self.requests())

    @property
    def message_passing(self) -> bool:
        """True where an atom's output depends on more than its own edges."""
        raise NotImplementedError(f"{type(self).__name__} does not define message_passing")

    @property
    def dim_fparam(self) -> int:
        """Frame parameters per frame."""
        return 0

    @property
    def default_fparam(self) -> tuple[float, ...] | None:
        """Frame parameters of frames that come without; None: they must come with."""
        return None

    @property
    def has_default_fparam(self) -> bool:
        """Whether frame parameters may be left out."""
        return self.default_fparam is not None

    @property
    def dim_aparam(self) -> int:
        """Atomic parameters per atom."""
        return 0

    @property
    def takes_charge_spin(self) -> bool:
        """Whether the total charge and spin of every frame are inputs."""
        return False

    @property
    def default_charge_spin(self) -> tuple[float, float] | None:
        """Charge and spin of frames that come without; None: they must come with."""
        return None

    @property
    def spin_scales(self) -> tuple[float, ...] | None:
        """By type, displacement of the virtual atom per unit of spin, Å; None: the model takes no spins."""
        return None

    @property
    def graph_model(self) -> Model:
        """The model whose types and excluded pairs the graph has; another than this only where there are virtual atoms."""
        return self

    def with_type_map(self, type_map: Sequence[str]) -> Self:
        """The model (NumPy) for other types: another order, fewer, more; see `dpmodel.type_map`.

        A model of types in another order gives the same numbers. Raises InputError for types that it cannot have.
        """
        change = TypeChange(old=self.type_map, new=tuple(type_map))
        return self.with_types(change) if change.old != change.new else self

    def with_types(self, change: TypeChange) -> Self:
        """What `with_type_map` does, of this kind of model."""
        raise NotImplementedError(f"{type(self).__name__} does not define with_types()")

    def _types_changed(self, change: TypeChange) -> dict[str, Any]:
        """The fields that every model has, changed."""
        return {
            "type_map": change.new,
            "atom_exclude_types": change.types(self.atom_exclude_types),
            "pair_exclude_types": change.pairs(self.pair_exclude_types),
        }

    def bytes_per_atom(self) -> int:
        """Rough size of the temporaries that one atom needs in an evaluation with derivatives."""
        raise NotImplementedError(f"{type(self).__name__} does not define bytes_per_atom()")

    def _real(self, graph: Graph) -> Array:
        """(n,) bool: atoms that contribute."""
        atype = graph.atype[: graph.frame.shape[0]]
        real = atype >= 0
        for excluded in self.atom_exclude_types:
            real = real & (atype != excluded)
        return real

    def _outputs(self, value: Array, graph: Graph) -> dict[str, Array]:
        """Outputs by key from the values of atoms (n, *shape): those in float64, their sums (f, *shape), `mask` (n,) int32."""
        xp, output, real = array_namespace(value), self.output(), self._real(graph)
        ones, frames = (1,) * len(output.shape), graph.natoms.shape[0]
        shown = xp.reshape(real, (value.shape[0], *ones))
        value = as_dtype(xp.where(shown, value, xp.zeros_like(value)), ENERGY_DTYPE)
        total = segment_sum(value, graph.frame, frames)
        if output.intensive:
            count = segment_sum(as_dtype(real, ENERGY_DTYPE), graph.frame, frames)
            count = xp.where(count > 0, count, xp.ones_like(count))
            total = total / xp.reshape(count, (-1, *ones))
        return {output.atomic: value, output.reduced: total, "mask": as_dtype(real, "int32")}
