"""dpa1 (se_atten) and se_atten_v2: attention between the neighbours of an atom (DPA-1, Zhang et al., npj Comput. Mater. 2024).

With R_ij the normalised environment row, x_ij its radial entry, t the embedding of a type and s_ij the switch function,

    concat   g_ij = Net([x_ij, t_j, t_i])                   (without t_i if `type_one_side`)
    strip    g_ij = Net(x_ij) (1 + NetS([t_j, t_i]) s_ij)   (without s_ij unless smooth)
    g <- `attn_layer` layers of attention                   (`dpmodel.nn.attention`)
    G_i = 1/nnei sum_j g_ij (x) B_ij                        (M, 4), B = R; more columns with lmax > 1
    D_i[a, b] = sum_c omega_c G_i[a, c] G_i[b, c]           a < M, b < axis_neuron; omega_c = 1 for the first four

over all nnei slots. An excluded neighbour has R = 0 and counts as an empty slot for the attention. An empty slot has
R = -davg/dstd and the type 0 (`empty_type`); what becomes of it depends on the centre's type alone and is added in closed form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.config import at_least, option, positive
from dpmodel.descriptors.base import Features
from dpmodel.descriptors.harmonics import harmonics
from dpmodel.descriptors.mixed import MixedConfig, MixedDescriptor
from dpmodel.errors import InputError
from dpmodel.graph import Graph, Slots
from dpmodel.nn import child_seed, joint_net, pair_table
from dpmodel.nn.attention import NeighbourAttention, make_neighbour_attention
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, child, param
from dpmodel.ops import array_namespace, as_dtype, at_least_single, device_of, safe_norm, take_rows, zeros
from dpmodel.precision import dtype_name
from dpmodel.type_map import TypeChange

__all__ = ["DPA1", "DPA1Config", "SeAttenV2Config"]


class _AttentionConfig(MixedConfig):
    """What dpa1 and se_atten_v2 have in common."""

    axis_neuron: int = option(
        4, "Number of columns of the embedding that form the second factor.", aliases=("n_axis_neuron",), check=positive
    )
    set_davg_zero: bool = option(True, "Do not subtract the mean of the environment matrix.")
    type_one_side: bool = option(False, "Whether the net sees the type of the neighbour alone.")
    attn: int = option(128, "Width of queries, keys and values.", check=at_least(1))
    attn_layer: int = option(2, "Number of attention layers.", check=at_least(0))
    attn_dotr: bool = option(True, "Multiply attention by the cosine between the two neighbours.")
    attn_mask: bool = option(False, "Mask the diagonal of the attention; not offered.", effect="refused")
    scaling_factor: float = option(
        1.0, "Queries are divided by the root of this times `attn`, unless there is a `temperature`.", check=positive
    )
    normalize: bool = option(True, "Divide queries, keys and values by their lengths.")
    temperature: float | None = option(None, "Queries are multiplied by this.")
    trainable_ln: bool = option(True, "Whether the layer normalisation is trained.")
    ln_eps: float | None = option(
        None, "Added to the variance in the layer normalisation; null is 1e-5.", check=positive
    )
    lmax: int = option(1, "Highest degree of the harmonics of directions.", choices=(1, 2, 3, 4))

    def smooth(self) -> bool:
        """Whether attention and types' net vanish with the switch function."""
        raise NotImplementedError(f"{type(self).__name__} does not define smooth()")

    @property
    def epsilon(self) -> float:
        """What `ln_eps` means."""
        return 1e-5 if self.ln_eps is None else self.ln_eps

    @property
    def scale(self) -> float:
        """What queries are multiplied by."""
        if self.temperature is not None:
            return float(self.temperature)
        return float((self.attn * self.scaling_factor) ** -0.5)

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Seed = None) -> DPA1:
        """`sel` must be resolved (a number). `seed` is used where the section names none."""
        seed = child_seed(seed if self.seed is None else self.seed, 0)
        return self.part(ntypes, seed).replace(type_embedding=self.make_types(ntypes, type_map, child_seed(seed, 2)))

    def part(self, ntypes: int, seed: Seed) -> DPA1:
        """A descriptor without type embedding."""
        width = self.tebd_dim * (1 if self.type_one_side else 2)
        (net,) = self.nets(1 if self.strips else 1 + width, 1, seed)
        type_net = self.nets(width, 1, seed, first=1)[0] if self.strips else None
        dtype = dtype_name(self.precision)
        attention = tuple(
            make_neighbour_attention(
                self.neuron[-1], self.attn, seed=child_seed(seed, 3 + k), dtype=dtype, scale=self.scale,
                normalise=self.normalize, smooth=self.smooth(), dotr=self.attn_dotr, eps=self.epsilon,
                trainable=self.trainable, trainable_norm=self.trainable and self.trainable_ln,
            )
            for k in range(self.attn_layer)
        )  # fmt: skip
        gain = np.ones(self.lmax - 1, dtype) if self.lmax > 1 else None
        return DPA1(
            config=self, ntypes=ntypes, net=net, type_net=type_net, attention=attention, degree_gain=gain,
            trainable=self.trainable, **self.neutral(ntypes),
        )  # fmt: skip


class DPA1Config(_AttentionConfig, key="dpa1", aliases=("se_atten",)):
    """Attention between the neighbours of an atom. Not a message-passing descriptor."""

    smooth_type_embedding: bool = option(
        False, "Let attention, and the types' net, vanish with the switch function.", aliases=("smooth_type_embdding",)
    )
    stripped_type_embedding: bool | None = option(
        None,
        "Old form of tebd_input_mode: true is strip, false is concat.",
    )

    def smooth(self) -> bool:
        return self.smooth_type_embedding

    def part(self, ntypes: int, seed: Seed) -> DPA1:
        """A descriptor without type embedding; the old form of an option becomes the new one."""
        if (old := self.stripped_type_embedding) is None:
            return super().part(ntypes, seed)
        new = self.replace(tebd_input_mode="strip" if old else "concat", stripped_type_embedding=None)
        return new.part(ntypes, seed)


class SeAttenV2Config(_AttentionConfig, key="se_atten_v2"):
    """dpa1 with tebd_input_mode strip and smooth_type_embedding. Not a message-passing descriptor."""

    tebd_input_mode: str = option("strip", "Always strip.", choices=("strip",))
    set_davg_zero: bool = option(False, "Do not subtract the mean of the environment matrix.")

    def smooth(self) -> bool:
        return True


class DPA1(MixedDescriptor):
    """The dpa1 descriptor."""

    config: Any
    attention: tuple[NeighbourAttention, ...] = child(default=())
    degree_gain: Array | None = param(default=None)
    """(lmax - 1,): the root of the weight of every degree from 2 on."""
    empty_type: int = 0
    """The type that neighbours in empty slots count as; 0 unless types have changed their order."""
    trainable: bool = True  # type: ignore[misc]  # a field of this class, a constant of the others

    @property
    def dim_out(self) -> int:
        cfg = self.config
        return cfg.neuron[-1] * cfg.axis_neuron + (cfg.tebd_dim if cfg.concat_output_tebd else 0)

    @property
    def dim_emb(self) -> int:
        return int(self.config.neuron[-1])

    def is_smooth(self) -> bool:
        # At the cutoff a neighbour has the row of an empty slot, which counts unless there is no mean; a net that sees
        # its type tells it from one, and an excluded neighbour has no row at all.
        cfg = self.config
        soft = cfg.strips and cfg.smooth() and not cfg.exclude_types
        return (cfg.smooth() or cfg.attn_layer == 0) and (bool(cfg.set_davg_zero) or soft)

    def bytes_per_atom(self) -> int:
        cfg = self.config
        attention = cfg.attn_layer * (4 * cfg.attn + 6 * self.nnei)
        return (5 * sum(cfg.neuron) + 3 * attention) * self.nnei * self.davg.dtype.itemsize

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, dim_out), rotation (n, M, 3)."""
        assert self.type_embedding is not None
        table, xp = self.type_embedding.table(), array_namespace(graph.edge_vec)
        node, moment = self.moments(graph, graph.views[0], table)
        if self.config.concat_output_tebd:
            node = xp.concat([node, take_rows(table, self._centre_types(graph))], axis=-1)
        return Features(node=node, rotation=moment[:, :, 1:4])

    def moments(self, graph: Graph, slots: Slots, table: Array) -> tuple[Array, Array]:
        """Features without types (n, M * axis_neuron), and G (n, M, columns). table: (ntypes + 1, d), of types."""
        xp, cfg = array_namespace(table), self.config
        centre, kind = self._centre_types(graph), self._neighbour_types(graph, slots)
        real = self._shown(slots, centre, kind)
        rows, switch = self._environment(graph, centre)
        if self.degree_gain is not None:
            rows = xp.concat([rows, self._higher(graph, switch, centre)], axis=-1)
        rows = take_rows(rows, slots.edge)
        rows = xp.where(real[:, :, None], rows, xp.zeros_like(rows))
        s = take_rows(switch, slots.edge)[:, :, 0]
        s = xp.where(real, s, xp.zeros_like(s))
        moment = self._gather(rows, kind, centre, real, s, table) + self._empty(slots, centre, table)
        moment = moment / float(self.nnei)
        second = moment[:, : cfg.axis_neuron, :]
        if self.degree_gain is not None:
            second = second * self._weights()
        node = xp.matmul(moment, xp.permute_dims(second, (0, 2, 1)))
        return xp.reshape(node, (node.shape[0], self.dim_emb * cfg.axis_neuron)), moment

    def _gather(self, rows: Array, neighbour: Array, centre: Array, real: Array, s: Array, table: Array) -> Array:
        """(n, M, columns): sum over the occupied slots of g (x) B.

        rows: (n, w, columns), B. neighbour: (n, w) and centre: (n,), types. real: (n, w), slots that take part.
        s: (n, w), 0 elsewhere.
        """
        xp = array_namespace(rows)
        g = self._embed(rows[:, :, :1], neighbour, centre[:, None], s[:, :, None], table)
        if self.attention:
            v = at_least_single(rows[:, :, 1:4])  # squares of small numbers vanish in float16
            u = v / xp.maximum(safe_norm(v, keepdims=True), xp.full_like(v[:, :, :1], 1e-12))
            u = as_dtype(u, rows.dtype)
            cosine = xp.matmul(u, xp.permute_dims(u, (0, 2, 1)))
            hidden = float(self.nnei) - as_dtype(xp.sum(as_dtype(real, "int64"), axis=1), g.dtype)
            by = self.attention[0].gates(real, s, cosine, hidden)
            for layer in self.attention:
                g = layer(g, by)
        return xp.matmul(xp.permute_dims(g, (0, 2, 1)), rows)

    def _embed(self, x: Array, neighbour: Array, centre: Array, s: Array, table: Array) -> Array:
        """g before the attention. x, s: (..., 1). neighbour, centre: types that broadcast to (...)."""
        if self.type_net is None:
            return joint_net(self.net, x, table, (neighbour,) if self.config.type_one_side else (neighbour, centre))
        if self.config.type_one_side:
            g2 = take_rows(self.type_net(table), neighbour)
        else:
            g2 = take_rows(pair_table(self.type_net, table), centre * table.shape[0] + neighbour)
        g = self.net(x)
        return g * (g2 * s if self.config.smooth() else g2) + g

    def _empty(self, slots: Slots, centre: Array, table: Array) -> Array:
        """(n, M, columns): the empty slots, in closed form."""
        xp, empty = array_namespace(table), self._empty_rows()
        own = xp.arange(self.ntypes, dtype=centre.dtype, device=device_of(centre))
        g = self._embed(empty[:, :1], xp.full_like(own, self.empty_type), own, xp.zeros_like(empty[:, :1]), table)
        for layer in self.attention:
            g = layer.alone(g)
        if self.degree_gain is not None:
            empty = xp.concat([empty, zeros((self.ntypes, (self.config.lmax + 1) ** 2 - 4), empty)], axis=-1)
        per_type = g[:, :, None] * empty[:, None, :]
        return self._empty_slots(0, slots)[:, None, None] * take_rows(per_type, centre)

    def _nets_of_types(self, change: TypeChange) -> dict[str, Any]:
        return {**super()._nets_of_types(change), "empty_type": self._empty_type(change)}

    def _empty_type(self, change: TypeChange) -> int:
        """The type of empty slots, where it means anything: they hold nothing but a mean."""
        if not np.any(np.asarray(self.davg)) or (self.config.strips and self.config.smooth()):
            return 0
        name = change.old[self.empty_type]
        if name not in change.new:
            raise InputError(
                f"type_map: empty slots of this descriptor count as {name}, as its environment matrix has a mean "
                f"(set_davg_zero is false): keep {name} in the type_map, got {list(change.new)}"
            )
        return change.new.index(name)

    def _higher(self, graph: Graph, switch: Array, centre: Array) -> Array:
        """(e, columns): the degrees from 2 on of every edge."""
        xp, cfg = array_namespace(switch), self.config
        vec = as_dtype(graph.edge_vec, switch.dtype)
        vec = xp.where(graph.edge_mask[:, None], vec, xp.ones_like(vec))
        inverse = 1.0 / (safe_norm(vec, keepdims=True) + cfg.env_protection)
        scale = switch * inverse / take_rows(self.dstd[:, :1], take_rows(centre, graph.centre))
        return harmonics(vec * inverse, cfg.lmax) * scale

    def _weights(self) -> Array:
        """(columns,): omega."""
        xp = array_namespace(self.davg)
        assert self.degree_gain is not None
        gain = self.degree_gain[...]
        parts = [xp.ones_like(self.davg[0, :])]
        parts += [xp.broadcast_to(gain[k : k + 1] ** 2, (2 * k + 5,)) for k in range(self.config.lmax - 1)]
        return xp.concat(parts, axis=0)
