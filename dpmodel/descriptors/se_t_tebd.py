"""se_e3_tebd: the three-body embedding with embedded types.

With v_ij the three angular entries of the normalised environment row, c_jk = v_ij . v_ik, t_j the embedding of the
type of neighbour j and s_ij the switch function,

    D_i = 1/nnei^2 sum_jk c_jk g_jk                                             (M,)
    concat   g_jk = Net([c_jk, t_j, t_k])
    strip    g_jk = Net(c_jk) (1 + NetS([t_j, t_k]) s_ij s_ik)                  (without the switches unless `smooth`)

over all pairs of slots, j = k included. Empty slots and excluded neighbours have v = 0 and contribute nothing.
"""

from __future__ import annotations

from dpmodel.config import option
from dpmodel.descriptors.base import Features
from dpmodel.descriptors.mixed import MixedConfig, MixedDescriptor
from dpmodel.graph import Graph, Slots
from dpmodel.nn import child_seed, joint_net, pair_table
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array
from dpmodel.ops import array_namespace, take_rows

__all__ = ["SeTTebd", "SeTTebdConfig"]


class SeTTebdConfig(MixedConfig, key="se_e3_tebd"):
    """Three-body embedding with embedded types. Not a message-passing descriptor."""

    set_davg_zero: bool = option(True, "Do not subtract the mean of the environment matrix.")
    use_tebd_bias: bool = option(True, "Whether the type embedding has a bias.")
    smooth: bool = option(True, "Multiply the types' net by the switch functions; in the mode strip.")

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> SeTTebd:
        """`sel` must be resolved (a number). `seed` is used where the section names none."""
        seed = child_seed(seed if self.seed is None else self.seed, 0)
        return self.part(ntypes, seed).replace(type_embedding=self.make_types(ntypes, type_map, child_seed(seed, 2)))

    def part(self, ntypes: int, seed: Seed) -> SeTTebd:
        """A descriptor without type embedding."""
        width = 2 * self.tebd_dim
        (net,) = self.nets(1 if self.strips else 1 + width, 1, seed)
        type_net = self.nets(width, 1, seed, first=1)[0] if self.strips else None
        return SeTTebd(config=self, ntypes=ntypes, net=net, type_net=type_net, **self.neutral(ntypes))


class SeTTebd(MixedDescriptor):
    """The se_e3_tebd descriptor."""

    config: SeTTebdConfig

    @property
    def dim_out(self) -> int:
        return self.config.neuron[-1] + (self.config.tebd_dim if self.config.concat_output_tebd else 0)

    def is_smooth(self) -> bool:
        return True

    def bytes_per_atom(self) -> int:
        return 4 * sum(self.config.neuron) * self.nnei**2 * self.davg.dtype.itemsize

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, dim_out). There are no vectors."""
        assert self.type_embedding is not None
        table, xp = self.type_embedding.table(), array_namespace(graph.edge_vec)
        node = self.angles(graph, graph.views[0], table)
        if self.config.concat_output_tebd:
            node = xp.concat([node, take_rows(table, self._centre_types(graph))], axis=-1)
        return Features(node=node)

    def angles(self, graph: Graph, slots: Slots, table: Array) -> Array:
        """(n, M). table: (ntypes + 1, d), the embedding of types."""
        xp, (n, w) = array_namespace(table), slots.edge.shape
        centre, kind = self._centre_types(graph), self._neighbour_types(graph, slots)
        shown = self._shown(slots, centre, kind)[:, :, None]
        rows, switch = self._environment(graph, centre)
        v = take_rows(rows[:, 1:], slots.edge)
        v = xp.where(shown, v, xp.zeros_like(v))
        c = xp.matmul(v, xp.permute_dims(v, (0, 2, 1)))[:, :, :, None]
        one, other = kind[:, :, None], kind[:, None, :]
        if self.type_net is None:
            g = joint_net(self.net, c, table, (one, other))
        else:
            # The table has the second of a pair as the fast index, and begins its input with it.
            g2 = take_rows(pair_table(self.type_net, table), other * table.shape[0] + one)
            if self.config.smooth:
                s = take_rows(switch, slots.edge)
                s = xp.where(shown, s, xp.zeros_like(s))
                g2 = g2 * (s[:, :, None, :] * s[:, None, :, :])
            g = self.net(c)
            g = g * g2 + g
        g = xp.reshape(g, (n, w * w, g.shape[-1]))
        c = xp.reshape(c, (n, w * w, 1))
        return xp.matmul(xp.permute_dims(g, (0, 2, 1)), c)[:, :, 0] / float(self.nnei**2)
