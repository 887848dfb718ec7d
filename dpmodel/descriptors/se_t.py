"""se_e3: the three-body embedding (DeepPot-SE of angles, Wang et al., Modelling Simul. Mater. Sci. Eng. 2022).

With v_ij the three angular entries of the normalised environment row and c_jk = v_ij . v_ik,

    D_i = sum_{a <= b} 1 / (sel_a sel_b) sum_{j in a, k in b} c_jk Net_ab(c_jk)          (M,)

over the blocks a, b of neighbour types, pairs of a slot with itself included. Empty slots and excluded neighbours have
v = 0 and contribute nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from dpmodel.descriptors.base import Features
from dpmodel.descriptors.environment import EnvironmentDescriptor, TypedConfig, excluded
from dpmodel.graph import Graph
from dpmodel.nn import MLP, child_seed
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, child
from dpmodel.ops import array_namespace, take_rows, zeros
from dpmodel.type_map import TypeChange

__all__ = ["SeT", "SeTConfig"]


class SeTConfig(TypedConfig, key="se_e3", aliases=("se_at", "se_a_3be", "se_t")):
    """Three-body embedding, of the angles between neighbours. Not a message-passing descriptor."""

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> SeT:
        """`sel` must be resolved (numbers). `seed` is used where the section names none."""
        seed = child_seed(seed if self.seed is None else self.seed, 0)
        return SeT(config=self, ntypes=ntypes, networks=self.nets(1, ntypes**2, seed), **self.neutral(ntypes))


class SeT(EnvironmentDescriptor):
    """The se_e3 descriptor."""

    angular_mean: ClassVar[bool] = False

    config: SeTConfig
    networks: tuple[MLP, ...] = child()
    """At a + ntypes * b for the types a <= b of two neighbours; the others are not used."""

    @property
    def dim_out(self) -> int:
        return self.config.neuron[-1]

    def is_smooth(self) -> bool:
        return True

    def bytes_per_atom(self) -> int:
        return 3 * sum(self.config.neuron) * self.nnei**2 * self.davg.dtype.itemsize

    def _nets_of_types(self, change: TypeChange) -> dict[str, Any]:
        return {"networks": change.networks(self.networks, 2, ordered=False)}

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, M). There are no vectors."""
        atype = self._centre_types(graph)
        rows, _ = self._environment(graph, atype)
        blocks = [self._vectors(t, slots.edge, slots.mask, rows, atype) for t, slots in enumerate(graph.views[0])]
        total = zeros((graph.frame.shape[0], self.dim_out), rows)
        for b in range(self.ntypes):
            for a in range(b + 1):
                sizes = self.config.capacity[a] * self.config.capacity[b]
                if sizes > 0:
                    total = total + self._pairs(self.networks[a + self.ntypes * b], blocks[a], blocks[b]) / float(sizes)
        return Features(node=total)

    def _vectors(self, t: int, edge: Array, mask: Array, rows: Array, atype: Array) -> Array:
        """(n, w, 3): v of the slots of neighbour type t."""
        xp = array_namespace(rows)
        left_out = excluded(self.config.exclude_types, atype, xp.full_like(atype, t))
        shown = mask if left_out is None else mask & ~left_out[:, None]
        v = take_rows(rows[:, 1:], edge)
        return xp.where(shown[:, :, None], v, xp.zeros_like(v))

    def _pairs(self, network: MLP, x: Array, y: Array) -> Array:
        """(n, w, 3), (n, u, 3) -> (n, M): sum over pairs of slots."""
        xp = array_namespace(x)
        c = xp.matmul(x, xp.permute_dims(y, (0, 2, 1)))
        c = xp.reshape(c, (c.shape[0], c.shape[1] * c.shape[2], 1))
        return xp.matmul(xp.permute_dims(network(c), (0, 2, 1)), c)[:, :, 0]
