"""se_e2_a: the two-body embedding of full coordinates (DeepPot-SE, Zhang et al., NeurIPS 2018).

With R_ij the normalised environment row of slot j (4 components) and g_ij = Net(R_ij[0]),

    G_i = 1/nnei sum_j g_ij (x) R_ij            (M, 4)
    D_i[a, b] = sum_c G_i[a, c] G_i[b, c]       a < M, b < axis_neuron

The sum runs over all nnei = sum(sel) slots. An empty slot has R = -davg/dstd, which depends on the centre's
type alone: those slots are added in closed form, so only slots that hold neighbours are computed.
"""

from __future__ import annotations

from typing import Any

from dpmodel.config import option, positive
from dpmodel.descriptors.base import Features
from dpmodel.descriptors.environment import EnvironmentDescriptor, TypedConfig
from dpmodel.graph import Graph, Slots
from dpmodel.nn import MLP, child_seed
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, child
from dpmodel.ops import array_namespace, take_rows, zeros
from dpmodel.type_map import TypeChange

__all__ = ["SeA", "SeAConfig"]


class SeAConfig(TypedConfig, key="se_e2_a", aliases=("se_a",)):
    """Two-body embedding of full coordinates (DeepPot-SE). Not a message-passing descriptor."""

    axis_neuron: int = option(
        4, "Number of columns of the embedding that form the second factor.", aliases=("n_axis_neuron",), check=positive
    )
    type_one_side: bool = option(
        False, "True: one embedding net per neighbour type. False: one per pair of centre and neighbour type."
    )

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> SeA:
        """`sel` must be resolved (numbers). `seed` is used where the section names none."""
        seed = child_seed(seed if self.seed is None else self.seed, 0)
        count = ntypes if self.type_one_side else ntypes * ntypes
        return SeA(config=self, ntypes=ntypes, networks=self.nets(1, count, seed), **self.neutral(ntypes))


class SeA(EnvironmentDescriptor):
    """The se_e2_a descriptor."""

    config: SeAConfig
    networks: tuple[MLP, ...] = child()
    """One-sided: by neighbour type. Two-sided: at centre + ntypes * neighbour."""

    def groups_types(self) -> bool:
        return not self.config.type_one_side

    def is_smooth(self) -> bool:
        # An excluded neighbour contributes 0 where the empty slot that it fills contributed a constant (davg).
        return not self.config.exclude_types or bool(self.config.set_davg_zero)

    def bytes_per_atom(self) -> int:
        # Five arrays as wide as each layer (value, derivative, gradient and two temporaries) live at the peak; an
        # expansion of the nets in 100 terms with two derivatives, as a backend may choose, takes as much as 64 columns.
        return 5 * max(sum(self.config.neuron), 64) * self.nnei * self.davg.dtype.itemsize

    @property
    def dim_out(self) -> int:
        return self.config.neuron[-1] * self.config.axis_neuron

    @property
    def dim_emb(self) -> int:
        return self.config.neuron[-1]

    def _nets_of_types(self, change: TypeChange) -> dict[str, Any]:
        return {"networks": change.networks(self.networks, 1 if self.config.type_one_side else 2)}

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, M * axis_neuron) with M the slow index, rotation (n, M, 3)."""
        xp = array_namespace(graph.edge_vec)
        cfg, n = self.config, graph.frame.shape[0]
        atype = self._centre_types(graph)
        rows, _ = self._environment(graph, atype)
        moment = zeros((n, self.dim_emb, 4), rows)
        for t, slots in enumerate(graph.views[0]):
            part = self._neighbours(t, slots, rows, graph)
            for c in range(self.ntypes):
                if (c, t) in cfg.exclude_types or (t, c) in cfg.exclude_types:
                    # An excluded neighbour keeps its slot and contributes 0; empty slots are not excluded.
                    part = xp.where(atype[:, None, None] == c, xp.zeros_like(part), part)
            moment = moment + part + self._empty(t, slots, atype)
        moment = moment / float(self.nnei)
        second = xp.permute_dims(moment[:, : cfg.axis_neuron, :], (0, 2, 1))
        node = xp.reshape(xp.matmul(moment, second), (n, self.dim_out))
        return Features(node=node, rotation=moment[:, :, 1:])

    def _neighbours(self, t: int, slots: Slots, rows: Array, graph: Graph) -> Array:
        """(n, M, 4): sum over the occupied slots of neighbour type t."""
        xp = array_namespace(rows)
        table = take_rows(rows, slots.edge)
        table = xp.where(slots.mask[:, :, None], table, xp.zeros_like(table))
        if self.config.type_one_side:
            return self._embed(self.networks[t], table)
        parts = [
            self._embed(self.networks[c + self.ntypes * t], take_rows(table, graph.grouped().rows[c]))
            for c in range(self.ntypes)
        ]
        return take_rows(xp.concat(parts, axis=0), graph.grouped().place)

    def _embed(self, network: MLP, table: Array) -> Array:
        """(n, w, 4) -> (n, M, 4): sum over slots of Net(R[0]) (x) R."""
        xp = array_namespace(table)
        return xp.matmul(xp.permute_dims(network(table[:, :, :1]), (0, 2, 1)), table)

    def _empty(self, t: int, slots: Slots, atype: Array) -> Array:
        """(n, M, 4): the empty slots of neighbour type t, in closed form."""
        xp = array_namespace(self.davg)
        empty = self._empty_rows()
        if self.config.type_one_side:
            g = self.networks[t](empty[:, :1])
        else:
            nets = [self.networks[c + self.ntypes * t] for c in range(self.ntypes)]
            g = xp.concat([net(empty[c : c + 1, :1]) for c, net in enumerate(nets)], axis=0)
        per_type = g[:, :, None] * empty[:, None, :]
        return self._empty_slots(t, slots)[:, None, None] * take_rows(per_type, atype)
