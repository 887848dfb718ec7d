"""se_e2_a: the two-body embedding of full coordinates (DeepPot-SE, Zhang et al., NeurIPS 2018).

With R_ij the normalised environment row of slot j (4 components) and g_ij = Net(R_ij[0]),

    G_i = 1/nnei sum_j g_ij (x) R_ij            (M, 4)
    D_i[a, b] = sum_c G_i[a, c] G_i[b, c]       a < M, b < axis_neuron

The sum runs over all nnei = sum(sel) slots. An empty slot has R = -davg/dstd, which depends on the centre's
type alone: those slots are added in closed form, so only slots that hold neighbours are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpmodel.config import at_least, option, positive
from dpmodel.descriptors.base import Capacity, Descriptor, DescriptorConfig, Features
from dpmodel.geometry.switch import env_mat
from dpmodel.graph import Graph, NeighbourRequest, Slots
from dpmodel.nn import MLP, child_seed, make_embedding_net
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, buffer, child
from dpmodel.ops import array_namespace, as_dtype, take_rows, zeros
from dpmodel.precision import dtype_name
from dpmodel.statistics.environment import environment_items, environment_key, environment_mean_and_deviation

if TYPE_CHECKING:
    from dpmodel.statistics.cache import StatCache

__all__ = ["SeA", "SeAConfig"]


class SeAConfig(DescriptorConfig, key="se_e2_a", aliases=("se_a",)):
    """Two-body embedding of full coordinates (DeepPot-SE). Not a message-passing descriptor."""

    sel: Any = option(
        "auto",
        "Capacity of the neighbour list: one number per type, in the order of `type_map`. "
        '"auto" takes 1.1 times the largest count in the training data, "auto:f" f times, rounded up to a multiple of 4.',
    )
    rcut: float = option(6.0, "Cutoff radius.", unit="Å", check=positive)
    rcut_smth: float = option(0.5, "Where the switch function starts to fall from 1.", unit="Å", check=at_least(0))
    neuron: tuple[int, ...] = option((10, 20, 40), "Widths of the embedding nets.")
    axis_neuron: int = option(
        4, "Number of columns of the embedding that form the second factor.", aliases=("n_axis_neuron",), check=positive
    )
    activation_function: str = option("tanh", "Activation of the embedding nets.")
    resnet_dt: bool = option(False, "Use a trained time step in the skip connections.")
    type_one_side: bool = option(
        False, "True: one embedding net per neighbour type. False: one per pair of centre and neighbour type."
    )
    precision: str = option("default", "Precision of the computation: default, float16, float32 or float64.")
    trainable: bool = option(True, "Whether the embedding nets are trained.")
    seed: Any = option(None, "Seed of the initial weights; null is random.")
    exclude_types: tuple[tuple[int, int], ...] = option(
        (), "Pairs of types that do not see each other in this descriptor."
    )
    env_protection: float = option(
        0.0, "Added to every distance in the environment matrix, against division by zero.", unit="Å", check=at_least(0)
    )
    set_davg_zero: bool = option(False, "Do not subtract the mean of the environment matrix.")

    def tolerates_overlap(self) -> bool:
        return self.env_protection > 0.0

    def sizes(self) -> str:
        return f"widths {'-'.join(map(str, self.neuron))}"

    def capacities(self) -> tuple[Capacity, ...]:
        return (Capacity(option="sel", value=self.sel, rcut=self.rcut, typed=True),)

    def with_capacities(self, values: Sequence[tuple[int, ...]]) -> SeAConfig:
        return self.replace(sel=values[0])

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> SeA:
        """`sel` must be resolved (numbers). `seed` is used where the section names none."""
        seed = child_seed(seed if self.seed is None else self.seed, 0)
        dtype = dtype_name(self.precision)
        count = ntypes if self.type_one_side else ntypes * ntypes
        networks = tuple(
            make_embedding_net(
                1, self.neuron, seed=child_seed(seed, k), dtype=dtype, activation=self.activation_function,
                resnet_dt=self.resnet_dt, trainable=self.trainable,
            )
            for k in range(count)
        )  # fmt: skip
        return SeA(
            config=self,
            ntypes=ntypes,
            networks=networks,
            davg=np.zeros((ntypes, 4), dtype),
            dstd=np.ones((ntypes, 4), dtype),
        )


class SeA(Descriptor):
    """The se_e2_a descriptor."""

    config: SeAConfig
    ntypes: int
    networks: tuple[MLP, ...] = child()
    """One-sided: by neighbour type. Two-sided: at centre + ntypes * neighbour."""
    davg: Array = buffer()
    """(ntypes, 4): mean of the environment rows by centre type."""
    dstd: Array = buffer()
    """(ntypes, 4): their deviation."""

    @property
    def mixed_types(self) -> bool:
        return False

    def groups_types(self) -> bool:
        return not self.config.type_one_side

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return (NeighbourRequest(rcut=self.config.rcut, sel=tuple(self.config.sel), layout="typed_slots"),)

    @property
    def dim_out(self) -> int:
        return self.config.neuron[-1] * self.config.axis_neuron

    @property
    def dim_emb(self) -> int:
        return self.config.neuron[-1]

    def is_smooth(self) -> bool:
        # An excluded neighbour contributes 0 where the empty slot that it fills contributed a constant (davg).
        return not self.config.exclude_types or bool(self.config.set_davg_zero)

    def bytes_per_atom(self) -> int:
        # Five arrays as wide as each layer (value, derivative, gradient and two temporaries) live at the peak; an
        # expansion of the nets in 100 terms with two derivatives, as a backend may choose, takes as much as 64 columns.
        return 5 * max(sum(self.config.neuron), 64) * sum(self.config.sel) * self.davg.dtype.itemsize

    def with_statistics(
        self, graphs: Callable[[], Iterable[Graph]], *, protect: float, cache: StatCache | None = None
    ) -> SeA:
        cfg = self.config
        key = environment_key(
            ntypes=self.ntypes, rcut=cfg.rcut, rcut_smth=cfg.rcut_smth, sel=cfg.sel, mixed_types=self.mixed_types
        )
        items = None if cache is None else cache.environment(key)
        if items is None:
            items = environment_items(
                graphs(), 0, rcut=cfg.rcut, rcut_smth=cfg.rcut_smth, sel=cfg.sel, ntypes=self.ntypes,
                protection=cfg.env_protection, exclude_types=cfg.exclude_types,
            )  # fmt: skip
            if cache is not None:
                cache.store_environment(key, items)
        davg, dstd = environment_mean_and_deviation(items, self.ntypes, protect=protect)
        dtype = self.davg.dtype
        return self.replace(davg=self.davg if cfg.set_davg_zero else davg.astype(dtype), dstd=dstd.astype(dtype))

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, M * axis_neuron) with M the slow index, rotation (n, M, 3)."""
        xp = array_namespace(graph.edge_vec)
        cfg, n = self.config, graph.frame.shape[0]
        atype = graph.atype[:n]
        atype = xp.where(atype < 0, xp.zeros_like(atype), atype)
        rows = self._environment(graph, atype)
        moment = zeros((n, self.dim_emb, 4), rows)
        for t, slots in enumerate(graph.views[0]):
            part = self._neighbours(t, slots, rows, graph)
            for c in range(self.ntypes):
                if (c, t) in cfg.exclude_types or (t, c) in cfg.exclude_types:
                    # An excluded neighbour keeps its slot and contributes 0; empty slots are not excluded.
                    part = xp.where(atype[:, None, None] == c, xp.zeros_like(part), part)
            moment = moment + part + self._empty(t, slots, atype)
        moment = moment / float(sum(cfg.sel))
        second = xp.permute_dims(moment[:, : cfg.axis_neuron, :], (0, 2, 1))
        node = xp.reshape(xp.matmul(moment, second), (n, self.dim_out))
        return Features(node=node, rotation=moment[:, :, 1:])

    def _environment(self, graph: Graph, atype: Array) -> Array:
        """(e, 4): normalised environment rows of all edges."""
        cfg, dtype = self.config, self.davg.dtype
        vec = as_dtype(graph.edge_vec, dtype)
        matrix, _ = env_mat(vec, graph.edge_mask, cfg.rcut, cfg.rcut_smth, cfg.env_protection)
        centre_type = take_rows(atype, graph.centre)
        return (matrix - take_rows(self.davg, centre_type)) / take_rows(self.dstd, centre_type)

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
        empty = -self.davg / self.dstd
        if self.config.type_one_side:
            g = self.networks[t](empty[:, :1])
        else:
            nets = [self.networks[c + self.ntypes * t] for c in range(self.ntypes)]
            g = xp.concat([net(empty[c : c + 1, :1]) for c, net in enumerate(nets)], axis=0)
        per_type = g[:, :, None] * empty[:, None, :]
        count = float(self.config.sel[t]) - as_dtype(xp.sum(as_dtype(slots.mask, "int64"), axis=1), empty.dtype)
        return count[:, None, None] * take_rows(per_type, atype)
