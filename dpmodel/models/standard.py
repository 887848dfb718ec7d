"""The standard model: a descriptor and a fitting net, biases, exclusions, and the sum over atoms."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.config import FrozenDict
from dpmodel.descriptors.base import Descriptor
from dpmodel.fittings.base import Fitting, Output
from dpmodel.graph import Graph, NeighbourRequest
from dpmodel.op import Array, Op, buffer, child
from dpmodel.ops import array_namespace, as_dtype, segment_sum
from dpmodel.precision import ENERGY_DTYPE, global_dtype

__all__ = ["Model", "StandardModel"]


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

    def bytes_per_atom(self) -> int:
        """Rough size of the temporaries that one atom needs in an evaluation with derivatives."""
        raise NotImplementedError(f"{type(self).__name__} does not define bytes_per_atom()")


class StandardModel(Model):
    """Descriptor + fitting.

    Order: fitting, out_bias by type, mask of excluded and virtual atoms, cast to float64, sum over the frame.
    """

    descriptor: Descriptor = child()
    fitting: Fitting = child()
    out_bias: Array = buffer()
    """(ntypes, size of one atom's output), global precision."""
    out_std: Array = buffer()
    """(ntypes, size of one atom's output), global precision."""
    preset_out_bias: FrozenDict | None = None
    """By output name, per type None or numbers: values that statistics keep."""

    @classmethod
    def assemble(
        cls, descriptor: Descriptor, fitting: Fitting, type_map: tuple[str, ...], **options: Any
    ) -> StandardModel:
        """A model with zero bias."""
        size = int(np.prod(fitting.output().shape))
        return cls(
            descriptor=descriptor,
            fitting=fitting,
            type_map=type_map,
            out_bias=np.zeros((len(type_map), size), global_dtype()),
            out_std=np.ones((len(type_map), size), global_dtype()),
            **options,
        )

    def output(self) -> Output:
        return self.fitting.output()

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return self.descriptor.requests()

    def groups_types(self) -> bool:
        return self.descriptor.groups_types() or self.fitting.groups_types()

    def tolerates_overlap(self) -> bool:
        return self.descriptor.tolerates_overlap()

    @property
    def message_passing(self) -> bool:
        return self.descriptor.message_passing

    @property
    def dim_fparam(self) -> int:
        return int(self.fitting.config.numb_fparam)

    @property
    def default_fparam(self) -> tuple[float, ...] | None:
        default = self.fitting.default_fparam
        return None if default is None else tuple(float(x) for x in np.ravel(np.asarray(default)))

    @property
    def dim_aparam(self) -> int:
        return int(self.fitting.config.numb_aparam)

    @property
    def takes_charge_spin(self) -> bool:
        return self.descriptor.takes_charge_spin

    @property
    def default_charge_spin(self) -> tuple[float, float] | None:
        return self.descriptor.default_charge_spin

    def bytes_per_atom(self) -> int:
        return self.descriptor.bytes_per_atom()

    def call(self, graph: Graph) -> dict[str, Array]:
        """Outputs by key: per-atom values (n, *shape), per-frame values (f, *shape) in float64, `mask` (n,) int32."""
        xp = array_namespace(graph.edge_vec)
        n, output = graph.frame.shape[0], self.output()
        value = self.fitting(self.descriptor(graph, rotation=self.fitting.needs_rotation), graph)
        atype = graph.atype[:n]
        real = atype >= 0
        kind, (bias, std) = xp.where(real, atype, xp.zeros_like(atype)), (self.out_bias[...], self.out_std[...])
        value = self.fitting.shifted(value, kind, as_dtype(bias, global_dtype()), as_dtype(std, global_dtype()))
        for excluded in self.atom_exclude_types:
            real = real & (atype != excluded)
        shown = xp.reshape(real, (n, *(1 for _ in output.shape)))
        value = as_dtype(xp.where(shown, value, xp.zeros_like(value)), ENERGY_DTYPE)
        total = segment_sum(value, graph.frame, graph.natoms.shape[0])
        if output.intensive:
            count = segment_sum(as_dtype(real, ENERGY_DTYPE), graph.frame, graph.natoms.shape[0])
            count = xp.where(count > 0, count, xp.ones_like(count))
            total = total / xp.reshape(count, (-1, *(1 for _ in output.shape)))
        return {output.atomic: value, output.reduced: total, "mask": as_dtype(real, "int32")}
