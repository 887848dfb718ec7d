"""dpa2: an environment embedding, then message passing on atoms and pairs (DPA-2, Zhang et al., npj Comput. Mater. 2024).

Atoms begin with the features of dpa1 without attention (`repinit`), and of se_e3_tebd on request, brought to the width
of the layers; pairs with the environment matrix of a shorter cutoff. Each of `nlayers` layers
(`dpmodel.descriptors.dpa2.layer`) updates both. Features of neighbours are exchanged once before every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from dpmodel.descriptors.base import Descriptor, Features
from dpmodel.descriptors.dpa1 import DPA1, DPA1Config
from dpmodel.descriptors.dpa2.layer import LocalAttention, PairAttention, RepformerLayer
from dpmodel.descriptors.dpa2.repformer import Repformer
from dpmodel.descriptors.environment import EnvironmentConfig, EnvironmentDescriptor
from dpmodel.descriptors.message_passing import MessagePassing
from dpmodel.descriptors.se_t_tebd import SeTTebd, SeTTebdConfig
from dpmodel.graph import Graph, NeighbourRequest, split_views
from dpmodel.nn import Activation, Linear, TypeEmbedding, child_seed, make_layer_norm, make_linear, make_type_embedding
from dpmodel.nn.mlp import Seed
from dpmodel.nn.residual import make_residual
from dpmodel.op import Array, child
from dpmodel.ops import array_namespace
from dpmodel.precision import dtype_name
from dpmodel.type_map import TypeChange

if TYPE_CHECKING:
    from dpmodel.descriptors.dpa2.config import DPA2Config

__all__ = ["DPA2", "fresh"]


class DPA2(MessagePassing):
    """The dpa2 descriptor."""

    config: DPA2Config
    ntypes: int
    type_embedding: TypeEmbedding = child()
    repinit: DPA1 = child()
    three_body: SeTTebd | None = child(default=None)
    reshape: Linear | None = child(default=None)
    """To the width of the layers, without bias; None where the widths are equal."""
    add_types: Linear | None = child(default=None)
    """(tebd_dim, g1), without bias."""
    repformer: Repformer = child()

    @property
    def mixed_types(self) -> bool:
        return True

    @property
    def parts(self) -> dict[str, EnvironmentDescriptor]:
        """By field, those that have views and statistics, in the order of the views."""
        found: dict[str, EnvironmentDescriptor] = {"repinit": self.repinit}
        if self.three_body is not None:
            found["three_body"] = self.three_body
        return {**found, "repformer": self.repformer}

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return tuple(request for part in self.parts.values() for request in part.requests())

    @property
    def dim_out(self) -> int:
        cfg = self.config
        return cfg.repformer.g1_dim + (cfg.repinit.tebd_dim if cfg.concat_output_tebd else 0)

    @property
    def dim_emb(self) -> int:
        return int(self.config.repformer.g2_dim)

    def is_smooth(self) -> bool:
        return self.config.smooth and self.repinit.is_smooth()

    def bytes_per_atom(self) -> int:
        flow = self.config.repformer
        pairs = flow.nsel * (4 * flow.g1_dim + 8 * flow.g2_dim * flow.attn2_nhead + 2 * flow.nsel * flow.attn2_nhead)
        local = flow.nsel * flow.attn1_nhead * (flow.attn1_hidden + flow.g1_dim)
        own = 3 * flow.nlayers * (pairs + local) * self.repformer.davg.dtype.itemsize
        return own + sum(part.bytes_per_atom() for name, part in self.parts.items() if name != "repformer")

    def measured(
        self, graphs: Callable[[], Iterable[Graph]]
    ) -> Iterator[tuple[Descriptor, Callable[[], Iterable[Graph]]]]:
        def of(k: int) -> Callable[[], Iterator[Graph]]:
            return lambda: (split_views(graph, list(self.parts.values()))[k] for graph in graphs())

        for k, part in enumerate(self.parts.values()):
            yield part, of(k)

    def with_types(self, change: TypeChange) -> Self:
        parts = {name: part.with_types(change) for name, part in self.parts.items()}
        return self.replace(
            config=change.section(self.config), ntypes=len(change.new),
            type_embedding=self.type_embedding.with_types(change), **parts,
        )  # fmt: skip

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        """Features of the owned atoms: node (n, dim_out), rotation (n, g2_dim, 3)."""
        xp, table = array_namespace(graph.edge_vec), self.type_embedding.table()
        views = iter(graph.views)
        node, _ = self.repinit.moments(graph, next(views), table)
        if self.three_body is not None:
            node = xp.concat([node, self.three_body.angles(graph, next(views), table)], axis=-1)
        node = node if self.reshape is None else self.reshape(node)
        kind = self.type_embedding(graph.atype[: graph.frame.shape[0]])
        if self.add_types is not None:
            node = node + self.add_types(kind)
        node, vectors = self.repformer.advance(
            node, graph, next(views), lambda x: self._exchange_ghosts(x, graph), rotation=rotation
        )
        node = xp.concat([node, kind], axis=-1) if self.config.concat_output_tebd else node
        return Features(node=node, rotation=vectors)


# --- random weights ----------------------------------------------------------------------------------------


def fresh(config: DPA2Config, ntypes: int, type_map: tuple[str, ...], seed: Seed) -> DPA2:
    """A descriptor with random weights and neutral statistics."""
    first, flow = config.repinit, config.repformer
    seed = child_seed(seed if config.seed is None else config.seed, 0)
    dtype = dtype_name(config.precision)
    own: dict[str, Any] = {"dtype": dtype, "trainable": config.trainable}
    shared: dict[str, Any] = {
        "precision": config.precision, "trainable": config.trainable, "exclude_types": config.exclude_types,
        "env_protection": config.env_protection,
    }  # fmt: skip
    net = {
        "activation_function": first.activation_function, "resnet_dt": first.resnet_dt, "tebd_dim": first.tebd_dim,
        "tebd_input_mode": first.tebd_input_mode, "set_davg_zero": first.set_davg_zero, "concat_output_tebd": False,
    }  # fmt: skip
    repinit = DPA1Config(
        sel=first.nsel, rcut=first.rcut, rcut_smth=first.rcut_smth, neuron=first.neuron, axis_neuron=first.axis_neuron,
        type_one_side=first.type_one_side, attn_layer=0, smooth_type_embedding=config.smooth, **shared, **net,
    ).part(ntypes, child_seed(seed, 0))  # fmt: skip
    width, three_body = first.neuron[-1] * first.axis_neuron, None
    if first.use_three_body:
        three_body = SeTTebdConfig(
            sel=first.three_body_sel, rcut=first.three_body_rcut, rcut_smth=first.three_body_rcut_smth,
            neuron=first.three_body_neuron, smooth=config.smooth, **shared, **net,
        ).part(ntypes, child_seed(seed, 1))  # fmt: skip
        width += first.three_body_neuron[-1]
    adds, reshapes = config.add_tebd_to_repinit_out, width != flow.g1_dim
    return DPA2(
        config=config,
        ntypes=ntypes,
        type_embedding=make_type_embedding(
            ntypes, first.tebd_dim, seed=child_seed(seed, 2), bias=config.use_tebd_bias,
            type_map=type_map if config.use_econf_tebd else None, **own,
        ),
        repinit=repinit,
        three_body=three_body,
        reshape=make_linear(width, flow.g1_dim, seed=child_seed(seed, 3), bias=False, **own) if reshapes else None,
        add_types=make_linear(first.tebd_dim, flow.g1_dim, seed=child_seed(seed, 4), bias=False, **own) if adds else None,
        repformer=_fresh_repformer(config, ntypes, child_seed(seed, 5), own, shared),
    )  # fmt: skip


def _fresh_repformer(
    config: DPA2Config, ntypes: int, seed: Seed, own: dict[str, Any], shared: dict[str, Any]
) -> Repformer:
    flow = config.repformer
    section = EnvironmentConfig(
        sel=flow.nsel, rcut=flow.rcut, rcut_smth=flow.rcut_smth, set_davg_zero=flow.set_davg_zero, **shared
    )
    phi = Activation(name=flow.activation_function)
    return Repformer(
        config=section,
        ntypes=ntypes,
        smooth=config.smooth,
        direct=flow.direct_dist,
        activation=phi,
        pair_embedding=make_linear(1, flow.g2_dim, seed=child_seed(seed, 0), **own),
        layers=tuple(
            _fresh_layer(config, phi, child_seed(seed, 1 + k), own, last=k + 1 == flow.nlayers)
            for k in range(flow.nlayers)
        ),
        **section.neutral(ntypes),
    )


def _fresh_layer(config: DPA2Config, phi: Activation, seed: Seed, own: dict[str, Any], *, last: bool) -> RepformerLayer:
    flow, smooth = config.repformer, config.smooth
    a, b, d, e = flow.g1_dim, flow.g2_dim, flow.attn1_hidden, flow.attn2_hidden
    attends, turns = flow.update_g2_has_attn and not last, flow.update_h2 and not last
    products = flow.update_g2_has_g1g1 and not last
    inner = (0 if flow.g1_out_mlp else a) + (b if flow.update_g1_has_conv and not flow.g1_out_conv else 0)
    inner += flow.axis_neuron * (flow.update_g1_has_grrg * b + flow.update_g1_has_drrd * a)

    def net(k: int, n_in: int, n_out: int, *, bias: bool = True) -> Linear:
        return make_linear(n_in, n_out, seed=child_seed(seed, k), bias=bias, **own)

    def residual(k: int, count: int, width: int) -> Array | None:
        return make_residual(
            count, width, style=flow.update_style, scale=flow.update_residual, init=flow.update_residual_init,
            seed=child_seed(seed, k), **own,
        )  # fmt: skip

    norm = make_layer_norm(
        b,
        dtype=own["dtype"],
        eps=flow.epsilon,
        trainable=own["trainable"] and flow.trainable_ln,
    )
    conv = (b, a) if flow.g1_out_conv else (a, b)
    heads1, heads2 = flow.attn1_nhead, flow.attn2_nhead
    return RepformerLayer(
        axis=flow.axis_neuron,
        style=flow.update_style,
        smooth=smooth,
        root=flow.use_sqrt_nnei,
        activation=phi,
        linear1=net(0, inner, a),
        linear2=None if last else net(1, b, b),
        self_mlp=net(2, a, a) if flow.g1_out_mlp else None,
        convolution=net(3, *conv, bias=False) if flow.update_g1_has_conv else None,
        drrd=flow.update_g1_has_drrd,
        grrg=flow.update_g1_has_grrg,
        pair_product=net(4, a, b, bias=False) if products else None,
        pair_attention=PairAttention(
            heads=heads2,
            hidden=e,
            gate=flow.attn2_has_gate,
            smooth=smooth,
            query_key=net(5, b, 2 * e * heads2, bias=False),
            value=net(6, b, b * heads2, bias=False) if attends else None,
            head=net(7, b * heads2, b) if attends else None,
            norm=norm if attends else None,
            turn=net(8, heads2, 1, bias=False) if turns else None,
        )
        if attends or turns
        else None,
        local_attention=LocalAttention(
            heads=heads1,
            hidden=d,
            smooth=smooth,
            query=net(9, a, d * heads1, bias=False),
            key_value=net(10, a, (d + a) * heads1, bias=False),
            head=net(11, a * heads1, a),
        )
        if flow.update_g1_has_attn
        else None,
        node_residual=residual(12, 1 + flow.g1_out_mlp + (flow.update_g1_has_conv and flow.g1_out_conv) + flow.update_g1_has_attn, a),
        pair_residual=None if last else residual(13, 1 + products + attends, b),
        direction_residual=residual(14, 1, 1) if turns else None,
        convolves_out=flow.g1_out_conv,
        trainable=config.trainable,
    )  # fmt: skip
