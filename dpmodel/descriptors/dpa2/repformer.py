"""The message passing of dpa2, without the exchange: what pairs begin with, and the layers."""

from __future__ import annotations

from collections.abc import Callable

from dpmodel.descriptors.dpa2.layer import Pairs, RepformerLayer, symmetrised
from dpmodel.descriptors.environment import EnvironmentConfig, EnvironmentDescriptor, excluded
from dpmodel.graph import Graph, Slots
from dpmodel.nn import Activation, Linear
from dpmodel.op import Array, child
from dpmodel.ops import array_namespace, as_dtype, safe_norm, take_rows

__all__ = ["Repformer"]


class Repformer(EnvironmentDescriptor):
    """The layers of dpa2 and their environment matrix."""

    config: EnvironmentConfig
    smooth: bool
    direct: bool
    """Pairs begin with length and direction, both divided by the cutoff."""
    activation: Activation = child()
    pair_embedding: Linear = child()
    """(1, g2)."""
    layers: tuple[RepformerLayer, ...] = child()

    def advance(
        self, g1: Array, graph: Graph, slots: Slots, exchange: Callable[[Array], Array], *, rotation: bool
    ) -> tuple[Array, Array | None]:
        """Features of the owned atoms after all layers (n, g1), and rotation (n, g2, 3) on request.

        exchange: from features of the owned atoms to those of all nodes.
        """
        xp, phi = array_namespace(g1), self.activation
        pairs, node, a, h2 = self._begin(graph, slots)
        g1, g2 = phi(g1), phi(self.pair_embedding(a))
        by, of = None, None
        for layer in self.layers:
            if layer.pair_attention is not None and of is not h2:
                by, of = layer.pair_attention.gates(h2, pairs), h2
            g1, g2, h2 = layer(g1, take_rows(exchange(g1), node), g2, h2, pairs, by)
        if not rotation:
            return g1, None
        last = self.layers[-1]
        moment = symmetrised(g2, h2, pairs, smooth=self.smooth, root=last.root)
        return g1, xp.permute_dims(moment, (0, 2, 1))

    def _begin(self, graph: Graph, slots: Slots) -> tuple[Pairs, Array, Array, Array]:
        """What all layers share; nodes of the neighbours (n, w); length (n, w, 1) and direction (n, w, 3) of pairs."""
        xp, cfg = array_namespace(graph.edge_vec), self.config
        centre = self._centre_types(graph)
        node = take_rows(graph.neighbour, slots.edge)
        left_out = excluded(cfg.exclude_types, centre[:, None], take_rows(graph.atype, node))
        real = slots.mask if left_out is None else slots.mask & ~left_out
        rows, switch = self._environment(graph, centre)
        if self.direct:
            vec = as_dtype(graph.edge_vec, rows.dtype)
            rows = xp.concat([safe_norm(vec, keepdims=True), vec], axis=-1) / cfg.rcut
        rows = take_rows(rows, slots.edge)
        rows = xp.where(real[:, :, None], rows, xp.zeros_like(rows))
        s = take_rows(switch, slots.edge)[:, :, 0] if self.smooth else xp.ones_like(rows[:, :, 0])
        s = xp.where(real, s, xp.zeros_like(s))
        count = as_dtype(xp.sum(as_dtype(real, "int64"), axis=1), rows.dtype)
        pairs = Pairs(real, s, count, float(self.nnei) - count, float(self.nnei))
        return pairs, node, rows[:, :, :1], rows[:, :, 1:]
