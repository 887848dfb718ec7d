"""The standard model: a descriptor and a fitting net, biases, exclusions, and the sum over atoms."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from dpmodel.config import FrozenDict
from dpmodel.descriptors.base import Descriptor
from dpmodel.fittings.base import Fitting, Output
from dpmodel.graph import Graph, NeighbourRequest
from dpmodel.models.base import Model
from dpmodel.op import Array, buffer, child
from dpmodel.ops import array_namespace, as_dtype
from dpmodel.precision import global_dtype
from dpmodel.type_map import TypeChange

__all__ = ["StandardModel"]


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

    def with_types(self, change: TypeChange) -> Self:
        # A bias that all types share is that of the first row.
        shared = not self.output().by_type
        biases = {
            name: np.repeat(np.asarray(array)[:1], len(change.new), axis=0) if shared else change.rows(array, fill)
            for name, array, fill in (("out_bias", self.out_bias, 0.0), ("out_std", self.out_std, 1.0))
        }
        return self.replace(
            descriptor=self.descriptor.with_types(change), fitting=self.fitting.with_types(change),
            preset_out_bias=change.by_output(self.preset_out_bias), **biases, **self._types_changed(change),
        )  # fmt: skip

    def bytes_per_atom(self) -> int:
        return self.descriptor.bytes_per_atom()

    def call(self, graph: Graph) -> dict[str, Array]:
        """Outputs by key: per-atom values (n, *shape), per-frame values (f, *shape) in float64, `mask` (n,) int32."""
        value = self.fitting(self.descriptor(graph, rotation=self.fitting.needs_rotation), graph)
        xp, atype = array_namespace(value), graph.atype[: graph.frame.shape[0]]
        kind, (bias, std) = xp.where(atype >= 0, atype, xp.zeros_like(atype)), (self.out_bias[...], self.out_std[...])
        value = self.fitting.shifted(value, kind, as_dtype(bias, global_dtype()), as_dtype(std, global_dtype()))
        return self._outputs(value, graph)
