"""dpa3: message passing on atoms, edges and angles (DPA-3, Zhang et al., arXiv:2506.01686).

Atoms begin with the embedding of their type, edges with that of their length, angles with that of their cosine; each
of `nlayers` layers (`dpmodel.descriptors.dpa3.layer`) updates all three. Features of neighbours are exchanged once
before every layer, those of edges and angles belong to the centre and never travel. The descriptor is the atoms'
features after the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dpmodel.descriptors.base import Features
from dpmodel.descriptors.dpa3.layer import Environment, RepflowLayer, State
from dpmodel.descriptors.message_passing import MessagePassing
from dpmodel.geometry.switch import env_mat
from dpmodel.graph import AngleRequest, Edges, Graph, NeighbourRequest
from dpmodel.nn import Activation, Linear, TypeEmbedding, child_seed, make_linear, make_type_embedding
from dpmodel.nn.charge_spin import ChargeSpin, make_charge_spin
from dpmodel.nn.mlp import Seed
from dpmodel.nn.residual import make_residual
from dpmodel.op import Array, buffer, child
from dpmodel.ops import array_namespace, as_dtype, safe_norm, segment_outer, segment_sum, take_rows
from dpmodel.precision import dtype_name
from dpmodel.statistics.environment import cached_environment_items, environment_mean_and_deviation
from dpmodel.type_map import TypeChange

if TYPE_CHECKING:
    from dpmodel.descriptors.dpa3.config import DPA3Config
    from dpmodel.statistics.cache import StatCache
    from dpmodel.statistics.items import StatItem

__all__ = ["DPA3", "fresh"]


class DPA3(MessagePassing):
    """The dpa3 descriptor."""

    config: DPA3Config
    ntypes: int
    activation: Activation = child()
    type_embedding: TypeEmbedding = child()
    charge_spin: ChargeSpin | None = child(default=None)
    edge_embedding: Linear = child()
    angle_embedding: Linear = child()
    layers: tuple[RepflowLayer, ...] = child()
    davg: Array = buffer()
    """(ntypes, 4): mean of the environment rows by centre type."""
    dstd: Array = buffer()
    """(ntypes, 4): their deviation."""

    @property
    def mixed_types(self) -> bool:
        return True

    def requests(self) -> tuple[NeighbourRequest, ...]:
        flow = self.config.repflow
        angles = AngleRequest(rcut=flow.a_rcut, sel=flow.a_sel) if flow.update_angle else None
        return (NeighbourRequest(rcut=flow.e_rcut, sel=(flow.e_sel,), layout="edges", angles=angles),)

    @property
    def dim_out(self) -> int:
        return self.config.repflow.n_dim * (2 if self.config.concat_output_tebd else 1)

    @property
    def dim_emb(self) -> int:
        return int(self.config.repflow.e_dim)

    def is_smooth(self) -> bool:
        flow = self.config.repflow
        return (flow.smooth_edge_update or not flow.update_angle) and not flow.use_exp_switch

    def bytes_per_atom(self) -> int:
        # Measured with torch: per layer, about three arrays on edges and on angles live until the backward pass.
        flow = self.config.repflow
        edges = flow.e_sel * (flow.n_dim * (flow.n_multi_edge_message + 1) + 4 * flow.e_dim)
        angles = flow.a_sel**2 * (flow.a_dim + flow.e_dim) if flow.update_angle else 0
        return 3 * flow.nlayers * (edges + angles) * self.davg.dtype.itemsize

    def sums(self, graphs: Callable[[], Iterable[Graph]], cache: StatCache | None = None) -> dict[str, StatItem]:
        cfg, flow = self.config, self.config.repflow
        if flow.deviation > 0.0:  # whatever the data
            return {}
        return cached_environment_items(
            graphs, cache, ntypes=self.ntypes, rcut=flow.e_rcut, rcut_smth=flow.e_rcut_smth, sel=(flow.e_sel,),
            mixed_types=True, protection=cfg.env_protection, exclude_types=cfg.exclude_types,
        )  # fmt: skip

    def with_sums(self, sums: Mapping[str, StatItem], *, protect: float) -> Self:
        if self.config.repflow.deviation > 0.0:
            return self.replace(dstd=np.full_like(np.asarray(self.dstd), self.config.repflow.deviation))
        _, dstd = environment_mean_and_deviation(sums, self.ntypes, protect=protect)
        return self.replace(dstd=dstd.astype(self.dstd.dtype))

    def with_types(self, change: TypeChange) -> Self:
        return self.replace(
            config=change.section(self.config), ntypes=len(change.new),
            type_embedding=self.type_embedding.with_types(change), davg=change.rows(self.davg, 0.0),
            dstd=change.rows(self.dstd, self.config.repflow.deviation or 1.0),
        )  # fmt: skip

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, dim_out), rotation (n, e_dim, 3).

        Raises ValueError where the model needs `Graph.charge_spin` and there is none.
        """
        xp, n = array_namespace(graph.edge_vec), graph.frame.shape[0]
        env, edge, angle = self._begin(graph)
        first = self.type_embedding(graph.atype[:n])
        if self.charge_spin is not None:
            first = first + take_rows(self.charge_spin(self._charge_spin(graph)), graph.frame)
        state = State(self.activation(first), edge, angle)
        sequential, last = self.config.repflow.sequential_update, len(self.layers) - 1
        for k, layer in enumerate(self.layers):
            seen = self._exchange_ghosts(state.node, graph)
            edges = k < last or rotation
            state = layer(state, seen, env, edges=edges or sequential, angles=k + 1 < last or (k < last and rotation))
        node = xp.concat([state.node, first], axis=-1) if self.config.concat_output_tebd else state.node
        if not rotation:
            return Features(node=node)
        moment = segment_outer(env.h, state.edge, env.centre, n) / math.sqrt(self.config.repflow.edge_norm)
        return Features(node=node, rotation=xp.permute_dims(moment, (0, 2, 1)))

    def _charge_spin(self, graph: Graph) -> Array:
        """(f, 2)."""
        if graph.charge_spin is not None:
            return graph.charge_spin
        xp, default = array_namespace(graph.edge_vec), self.default_charge_spin
        if default is None:
            raise ValueError("this model needs charge_spin (charge and spin of every frame) and has no default")
        ones = xp.ones_like(graph.natoms)
        return xp.stack([ones * int(default[0]), ones * int(default[1])], axis=-1)

    def _begin(self, graph: Graph) -> tuple[Environment, Array, Array | None]:
        """What all layers share, and the features of edges and angles before the first."""
        xp, cfg, flow = array_namespace(graph.edge_vec), self.config, self.config.repflow
        view: Edges = graph.views[0]
        centre, neighbour = take_rows(graph.centre, view.row), take_rows(graph.neighbour, view.row)
        vec = as_dtype(take_rows(graph.edge_vec, view.row), self.davg.dtype)
        kind, other = take_rows(graph.atype, centre), take_rows(graph.atype, neighbour)
        keep = view.mask
        for a, b in cfg.exclude_types:
            keep = keep & ~(((kind == a) & (other == b)) | ((kind == b) & (other == a)))
        vec = xp.where(keep[:, None], vec, xp.ones_like(vec))
        protect, exp = cfg.env_protection, flow.use_exp_switch
        rows, s = env_mat(vec, keep, flow.e_rcut, flow.e_rcut_smth, protect, use_exp_switch=exp)
        kind = xp.where(kind < 0, xp.zeros_like(kind), kind)  # padding
        rows = (rows - take_rows(self.davg, kind)) / take_rows(self.dstd, kind)
        r = safe_norm(vec, keepdims=True)
        edge = self.edge_embedding(r) if flow.edge_init_use_dist else self.activation(self.edge_embedding(rows[:, :1]))
        if view.angles is None or not flow.update_angle:
            none = centre[:0]
            return Environment(centre, neighbour, rows[:, 1:] * s, s, none, none, s[:0, :], keep[:0, None]), edge, None
        _, near = env_mat(vec, keep, flow.a_rcut, flow.a_rcut_smth, protect, use_exp_switch=exp)
        ij, ik = view.angles.ij, view.angles.ik
        real = (view.angles.mask & take_rows(keep, ij) & take_rows(keep, ik))[:, None]
        sa = take_rows(near, ij) * take_rows(near, ik)
        sa = xp.where(real, sa, xp.zeros_like(sa))
        spans = segment_sum(as_dtype(real, vec.dtype), ij, vec.shape[0]) > 0
        unit = vec / (r + 1e-6)
        cosine = xp.sum(take_rows(unit, ij) * take_rows(unit, ik), axis=-1, keepdims=True)
        angle = self.angle_embedding(cosine * ((1.0 - 1e-6) / math.sqrt(math.pi)))
        return Environment(centre, neighbour, rows[:, 1:] * s, s, ij, ik, sa, spans), edge, angle


# --- random weights ----------------------------------------------------------------------------------------


def fresh(config: DPA3Config, ntypes: int, type_map: tuple[str, ...], seed: Seed) -> DPA3:
    """A descriptor with random weights and neutral statistics."""
    flow, dtype = config.repflow, dtype_name(config.precision)
    seed = child_seed(seed if config.seed is None else config.seed, 0)
    own: dict[str, Any] = {"dtype": dtype, "trainable": config.trainable}
    phi = Activation(name=config.activation_function)
    layers = tuple(_fresh_layer(config, phi, child_seed(seed, 3 + k), own) for k in range(flow.nlayers))
    econf = type_map if config.use_econf_tebd else None
    return DPA3(
        config=config,
        ntypes=ntypes,
        activation=phi,
        type_embedding=make_type_embedding(
            ntypes, flow.n_dim, seed=child_seed(seed, 0), bias=config.use_tebd_bias, type_map=econf, **own
        ),
        charge_spin=make_charge_spin(flow.n_dim, phi, seed=child_seed(seed, 3 + flow.nlayers), **own)
        if config.add_chg_spin_ebd
        else None,
        edge_embedding=make_linear(1, flow.e_dim, seed=child_seed(seed, 1), **own),
        angle_embedding=make_linear(1, flow.a_dim, seed=child_seed(seed, 2), bias=False, **own),
        layers=layers,
        davg=np.zeros((ntypes, 4), dtype),
        dstd=np.full((ntypes, 4), flow.deviation or 1.0, dtype),
    )


def _fresh_layer(config: DPA3Config, phi: Activation, seed: Seed, own: dict[str, Any]) -> RepflowLayer:
    flow = config.repflow
    n, e, a = flow.n_dim, flow.e_dim, flow.a_dim
    heads, (nw, ew) = flow.n_multi_edge_message, flow.message_widths
    joint, angles = 2 * n + e, flow.update_angle
    narrowed = angles and flow.a_compress_rate != 0 and not flow.a_compress_use_split

    def net(k: int, n_in: int, n_out: int, *, bias: bool = True) -> Linear:
        return make_linear(n_in, n_out, seed=child_seed(seed, k), bias=bias, **own)

    def residual(k: int, count: int, width: int) -> Array | None:
        return make_residual(
            count, width, style=flow.update_style, scale=flow.update_residual, init=flow.update_residual_init,
            seed=child_seed(seed, k), **own,
        )  # fmt: skip

    return RepflowLayer(
        n_dim=n,
        e_dim=e,
        a_dim=a,
        axis=flow.axis_neuron,
        edge_norm=flow.edge_norm,
        angle_norm=flow.angle_norm,
        style=flow.update_style,
        smooth=flow.smooth_edge_update,
        sequential=flow.sequential_update,
        widths=(nw, ew),
        activation=phi,
        node_self=net(0, n, n),
        node_sym=net(1, flow.axis_neuron * (n + e), n),
        node_edge=net(2, joint, heads * n),
        edge_self=net(3, joint, e),
        edge_angle1=net(4, a + nw + 2 * ew, e) if angles else None,
        edge_angle2=net(5, e, e) if angles else None,
        angle_self=net(6, a + nw + 2 * ew, a) if angles else None,
        narrow_node=net(7, n, nw, bias=False) if narrowed else None,
        narrow_edge=net(8, e, ew, bias=False) if narrowed else None,
        node_residual=residual(9, 2 + heads, n),
        edge_residual=residual(10, 2 if angles else 1, e),
        angle_residual=residual(11, 1 if angles else 0, a),
        trainable=config.trainable,
    )
