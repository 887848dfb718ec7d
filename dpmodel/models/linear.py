"""Models of models: weighted sums of energies (`linear`), and a pair table that takes over at short distance (`zbl`).

Every part adds its own bias before it is weighted, and the whole adds its own at the end:

    E_i = sum_k w_k(i) E_i^(k) + bias[t_i]

zbl has two parts, a model and a pair table, with the weights 1 - w and w of the table: with r the distances of the
neighbours of atom i and a `smin_alpha`,

    sigma_i = sum_j r_ij exp(-r_ij / a) / sum_j exp(-r_ij / a)
    u       = (sigma - sw_rmin) / (sw_rmax - sw_rmin)
    w       = 1 for u < 0, -6 u^5 + 15 u^4 - 10 u^3 + 1 for 0 <= u < 1, 0 beyond and without neighbours

(Wang et al., Appl. Phys. Lett. 114, 244101, 2019).
"""

from __future__ import annotations

from typing import Self

from dpmodel.config import FrozenDict
from dpmodel.fittings.base import Output
from dpmodel.graph import Edges, Graph, NeighbourRequest, split_views
from dpmodel.models.base import Model
from dpmodel.op import Array, buffer, child
from dpmodel.ops import array_namespace, as_dtype, safe_norm, segment_sum, take_rows
from dpmodel.precision import ENERGY_DTYPE
from dpmodel.type_map import TypeChange

__all__ = ["LinearModel", "ZBLModel"]


class LinearModel(Model):
    """A weighted sum of models."""

    parts: tuple[Model, ...] = child()
    weights: str | tuple[float, ...] = "mean"
    """"mean", "sum", or one number per part."""
    out_bias: Array = buffer()
    """(ntypes, size of one atom's output), global precision."""
    out_std: Array = buffer()
    """The same, stored."""
    preset_out_bias: FrozenDict | None = None
    """By output name, per type None or numbers: values that statistics keep."""

    def output(self) -> Output:
        return self.parts[0].output()

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return tuple(request for part in self.parts for request in part.requests())

    def groups_types(self) -> bool:
        return any(part.groups_types() for part in self.parts)

    def tolerates_overlap(self) -> bool:
        return all(part.tolerates_overlap() for part in self.parts)

    @property
    def message_passing(self) -> bool:
        return any(part.message_passing for part in self.parts)

    @property
    def dim_fparam(self) -> int:
        return max(part.dim_fparam for part in self.parts)

    @property
    def default_fparam(self) -> tuple[float, ...] | None:
        found = {part.default_fparam for part in self.parts if part.dim_fparam}
        return found.pop() if len(found) == 1 else None

    @property
    def dim_aparam(self) -> int:
        return max(part.dim_aparam for part in self.parts)

    @property
    def takes_charge_spin(self) -> bool:
        return any(part.takes_charge_spin for part in self.parts)

    @property
    def default_charge_spin(self) -> tuple[float, float] | None:
        found = {part.default_charge_spin for part in self.parts if part.takes_charge_spin}
        return found.pop() if len(found) == 1 else None

    def with_types(self, change: TypeChange) -> Self:
        return self.replace(
            parts=tuple(part.with_type_map(change.new) for part in self.parts),
            out_bias=change.rows(self.out_bias, 0.0), out_std=change.rows(self.out_std, 1.0),
            preset_out_bias=change.by_output(self.preset_out_bias), **self._types_changed(change),
        )  # fmt: skip

    def bytes_per_atom(self) -> int:
        return sum(part.bytes_per_atom() for part in self.parts)

    def call(self, graph: Graph) -> dict[str, Array]:
        """As every model."""
        atype, key = graph.atype, self.output().atomic
        total = None
        for part, own, weight in zip(self.parts, self.part_graphs(graph), self._weights(graph), strict=True):
            value = part(own)[key] * weight
            total = value if total is None else total + value
        assert total is not None
        xp, kind = array_namespace(total), atype[: graph.frame.shape[0]]
        bias = take_rows(self.out_bias[...], xp.where(kind < 0, xp.zeros_like(kind), kind))
        return self._outputs(total + xp.reshape(as_dtype(bias, total.dtype), total.shape), graph)

    def part_graphs(self, graph: Graph) -> tuple[Graph, ...]:
        """The graph as every part sees it: its own neighbours, types as it numbers them."""
        # Views behind those of the parts are this model's own.
        count = sum(len(part.requests()) for part in self.parts)
        views = split_views(graph.replace(views=graph.views[:count]), self.parts)
        return tuple(
            own.replace(atype=self._renamed(part, graph.atype)) for part, own in zip(self.parts, views, strict=True)
        )

    def _weights(self, graph: Graph) -> list[float | Array]:
        if not isinstance(self.weights, str):
            return list(self.weights)
        return [1.0 if self.weights == "sum" else 1.0 / len(self.parts)] * len(self.parts)

    def _renamed(self, part: Model, atype: Array) -> Array:
        """Types as a part numbers them."""
        if part.type_map[: self.ntypes] == self.type_map:
            return atype
        xp = array_namespace(atype)
        table = [part.type_map.index(name) for name in self.type_map]
        new = atype
        for old, number in enumerate(table):
            new = xp.where(atype == old, xp.full_like(atype, number), new)
        return new


class ZBLModel(LinearModel):
    """A model and a pair table; the table takes over where atoms are near each other."""

    sw_rmin: float
    """Å."""
    sw_rmax: float
    """Å."""
    smin_alpha: float = 0.1
    """Å."""

    def requests(self) -> tuple[NeighbourRequest, ...]:
        found = super().requests()
        widest = max(found, key=lambda request: sum(request.sel))
        return (*found, NeighbourRequest(rcut=widest.rcut, sel=(sum(widest.sel),), layout="edges"))

    def _weights(self, graph: Graph) -> list[float | Array]:
        w = self._table_share(graph, graph.views[-1])[:, None]
        return [1.0 - w, w]

    def _table_share(self, graph: Graph, view: Edges) -> Array:
        """(n,): w."""
        xp, n = array_namespace(graph.edge_vec), graph.frame.shape[0]
        vec = as_dtype(take_rows(graph.edge_vec, view.row), ENERGY_DTYPE)
        r = safe_norm(xp.where(view.mask[:, None], vec, xp.ones_like(vec)))
        centre = take_rows(graph.centre, view.row)
        weight = xp.exp(-r / self.smin_alpha)
        weight = xp.where(view.mask, weight, xp.zeros_like(weight))
        total = segment_sum(weight, centre, n)
        none = total == 0
        sigma = segment_sum(r * weight, centre, n) / xp.where(none, xp.ones_like(total), total)
        u = (sigma - self.sw_rmin) / (self.sw_rmax - self.sw_rmin)
        u = xp.where(none, xp.ones_like(u), xp.clip(u, 0.0, 1.0))
        return 1.0 + u * u * u * ((15.0 - 6.0 * u) * u - 10.0)
