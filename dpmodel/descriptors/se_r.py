"""se_e2_r: the two-body embedding of distances alone (DeepPot-SE, Zhang et al., NeurIPS 2018, radial form).

With x_ij the normalised radial entry of the environment matrix and one net per neighbour type t,

    D_i = 1 / (5 nnei) sum_j Net_t(x_ij)            (M,)

over all nnei = sum(sel) slots: an empty slot has x = -davg/dstd, an excluded neighbour x = 0; neither is nothing,
as nets have biases. Empty slots are added in closed form.
"""

from __future__ import annotations

from typing import Any, ClassVar

from dpmodel.config import option
from dpmodel.descriptors.base import Features
from dpmodel.descriptors.environment import EnvironmentDescriptor, TypedConfig, excluded
from dpmodel.graph import Graph
from dpmodel.nn import MLP, child_seed
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, child
from dpmodel.ops import array_namespace, take_rows, zeros
from dpmodel.type_map import TypeChange

__all__ = ["SeR", "SeRConfig"]


class SeRConfig(TypedConfig, key="se_e2_r", aliases=("se_r",)):
    """Two-body embedding of distances. Not a message-passing descriptor."""

    type_one_side: bool = option(
        True, "There is one embedding net per neighbour type in any case: none per pair of types.", effect="ignored"
    )

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> SeR:
        """`sel` must be resolved (numbers). `seed` is used where the section names none."""
        seed = child_seed(seed if self.seed is None else self.seed, 0)
        config = self.replace(type_one_side=True)
        return SeR(config=config, ntypes=ntypes, networks=self.nets(1, ntypes, seed), **self.neutral(ntypes, 1))


class SeR(EnvironmentDescriptor):
    """The se_e2_r descriptor."""

    radial_only: ClassVar[bool] = True

    config: SeRConfig
    networks: tuple[MLP, ...] = child()
    """By neighbour type."""

    @property
    def dim_out(self) -> int:
        return self.config.neuron[-1]

    def is_smooth(self) -> bool:
        # An excluded neighbour contributes Net(0) where the empty slot that it fills contributed Net(-davg/dstd).
        return not self.config.exclude_types or bool(self.config.set_davg_zero)

    def bytes_per_atom(self) -> int:
        return 5 * sum(self.config.neuron) * self.nnei * self.davg.dtype.itemsize

    def _nets_of_types(self, change: TypeChange) -> dict[str, Any]:
        return {"networks": change.networks(self.networks, 1 if self.config.type_one_side else 2)}

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, M). There are no vectors."""
        xp = array_namespace(graph.edge_vec)
        atype = self._centre_types(graph)
        rows, _ = self._environment(graph, atype)
        empty = self._empty_rows()
        total = zeros((graph.frame.shape[0], self.dim_out), rows)
        for t, (slots, net) in enumerate(zip(graph.views[0], self.networks, strict=True)):
            x = take_rows(rows, slots.edge)
            left_out = excluded(self.config.exclude_types, atype, xp.full_like(atype, t))
            if left_out is not None:
                x = xp.where(left_out[:, None, None], xp.zeros_like(x), x)
            total = total + self._embed(net, x, slots.mask)
            total = total + self._empty_slots(t, slots)[:, None] * take_rows(net(empty), atype)
        return Features(node=total / (5.0 * self.nnei))

    def _embed(self, network: MLP, x: Array, mask: Array) -> Array:
        """(n, w, 1), (n, w) -> (n, M): sum over the occupied slots of Net(x)."""
        xp, g = array_namespace(x), network(x)
        return xp.sum(xp.where(mask[:, :, None], g, xp.zeros_like(g)), axis=1)
