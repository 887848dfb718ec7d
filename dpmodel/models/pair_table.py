"""A pair potential from a table: cubic splines of E(r) for every pair of types.

E_i = 1/2 sum_j E_{t_i t_j}(r_ij),    0 from the end of the table, or from `rcut`, on

Below the beginning of the table energies go on in a straight line, with the mean slope s of the first interval. The spline
begins with a slope d of its own (0 in files of the family), so the line is reached over one interval more: with
u = (r - rmin) / step below 0 and c = max(u, -1),

    E = E(rmin) + d u + (s - d) (u - c - c^2 / 2)

Forces are continuous everywhere.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from dpmodel.config import FrozenDict
from dpmodel.fittings.base import Output
from dpmodel.fittings.ener import ENERGY
from dpmodel.graph import Edges, Graph, NeighbourRequest
from dpmodel.models.base import Model
from dpmodel.op import Array, buffer
from dpmodel.ops import array_namespace, as_dtype, safe_norm, segment_sum, take_rows
from dpmodel.type_map import TypeChange

__all__ = ["PairTable"]


class PairTable(Model):
    """Energies by pairs of types, from splines."""

    rmin: float
    """Where the table begins, Å."""
    step: float
    """Width of its intervals, Å."""
    cutoff: float
    """Å."""
    sel: int
    """Capacity of the neighbour list."""
    coefficients: Array = buffer(given=True)
    """(ntypes, ntypes, intervals, 4): a3, a2, a1, a0 of the fraction of the interval, eV."""
    rows: Array = buffer(given=True)
    """The table as it was read, stored: (intervals + 1, 1 + pairs), Å and eV."""
    rmax: float
    """Where the table ends, stored, Å."""
    out_bias: Array = buffer()
    """(ntypes, 1), global precision."""
    out_std: Array = buffer()
    """(ntypes, 1), stored."""
    preset_out_bias: FrozenDict | None = None
    """Stored."""

    def output(self) -> Output:
        return ENERGY

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return (NeighbourRequest(rcut=self.cutoff, sel=(self.sel,), layout="edges"),)

    def groups_types(self) -> bool:
        return False

    @property
    def message_passing(self) -> bool:
        return False

    def with_types(self, change: TypeChange) -> Self:
        change.none_added("a pair table", "it has no energies for them")
        n = len(change.old)
        pairs = [(a, b) for a in range(n) for b in range(a, n)]
        kept = [source for source in change.sources if source is not None]
        columns = [1 + pairs.index((min(a, b), max(a, b))) for k, a in enumerate(kept) for b in kept[k:]]
        return self.replace(
            coefficients=np.asarray(self.coefficients)[kept][:, kept], rows=np.asarray(self.rows)[:, [0, *columns]],
            out_bias=change.rows(self.out_bias, 0.0), out_std=change.rows(self.out_std, 1.0),
            preset_out_bias=change.by_output(self.preset_out_bias), **self._types_changed(change),
        )  # fmt: skip

    def bytes_per_atom(self) -> int:
        return 200 * self.sel

    def call(self, graph: Graph) -> dict[str, Array]:
        """As every model: `atom_energy` (n, 1), `energy` (f, 1), `mask` (n,)."""
        n, view = graph.frame.shape[0], graph.views[0]
        value = segment_sum(self._pairs(graph, view), take_rows(graph.centre, view.row), n)
        xp, atype = array_namespace(value), graph.atype[:n]
        kind = xp.where(atype < 0, xp.zeros_like(atype), atype)
        return self._outputs(0.5 * value + take_rows(as_dtype(self.out_bias[...], value.dtype), kind), graph)

    def _pairs(self, graph: Graph, view: Edges) -> Array:
        """(k, 1): energies of the edges."""
        table = self.coefficients[...]
        xp, (ntypes, _, intervals, _) = array_namespace(table), table.shape
        vec = as_dtype(take_rows(graph.edge_vec, view.row), table.dtype)
        r = safe_norm(xp.where(view.mask[:, None], vec, xp.ones_like(vec)))
        u = (r - self.rmin) / self.step
        below = xp.where(u < 0, u, xp.zeros_like(u))
        u = u - below
        whole = xp.floor(u)
        k = xp.clip(xp.astype(whole, graph.centre.dtype), 0, intervals - 1)
        types = [take_rows(graph.atype, take_rows(index, view.row)) for index in (graph.centre, graph.neighbour)]
        one, other = (xp.where(kind < 0, xp.zeros_like(kind), kind) for kind in types)
        rows = take_rows(xp.reshape(table, (ntypes * ntypes * intervals, 4)), (one * ntypes + other) * intervals + k)
        f = u - whole
        energy = ((rows[:, 0] * f + rows[:, 1]) * f + rows[:, 2]) * f + rows[:, 3]
        c = xp.maximum(below, xp.full_like(below, -1.0))
        energy = energy + rows[:, 2] * below + (rows[:, 0] + rows[:, 1]) * (below - c - 0.5 * c * c)
        inside = view.mask & (r < self.cutoff) & (r < self.rmin + intervals * self.step)
        return xp.where(inside, energy, xp.zeros_like(energy))[:, None]
