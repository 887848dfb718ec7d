"""dpa2."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.config import MISSING, Config, thaw
from dpmodel.descriptors import DPA1
from dpmodel.descriptors.dpa2 import DPA2, DPA2Config, Repformer, RepformerConfig, RepformerLayer, RepinitConfig
from dpmodel.descriptors.dpa2.descriptor import fresh
from dpmodel.descriptors.dpa2.layer import LocalAttention, PairAttention
from dpmodel.files.codecs.base import Codec, build_config, refuse, warn_of_unknown
from dpmodel.files.codecs.descriptors.mixed import read_empty_type, read_nets, write_empty_type, write_nets
from dpmodel.files.codecs.descriptors.shared import (
    check_excluded,
    env_mat,
    read_residual,
    read_statistics,
    upgrade_of_tables,
    write_statistics,
)
from dpmodel.files.networks import read_layer_norm, read_linear, write_layer, write_layer_norm
from dpmodel.files.nodes import Node
from dpmodel.files.type_embedding import read_type_embedding, write_type_embedding
from dpmodel.input.values import show
from dpmodel.nn import Activation, Linear
from dpmodel.precision import dtype_name

__all__ = ["DPA2_CODEC"]

NETS = {
    "linear1": "linear1",
    "linear2": "linear2",
    "self_mlp": "g1_self_mlp",
    "convolution": "proj_g1g2",
    "pair_product": "proj_g1g1g2",
}
"""By our field, the key of a net in a layer's dictionary."""
RESIDUALS = {"node_residual": "g1_residual", "pair_residual": "g2_residual", "direction_residual": "h2_residual"}


def _older(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 brought three options of the message passing, which were off before."""
    off = {"use_sqrt_nnei": False, "g1_out_conv": False, "g1_out_mlp": False}
    return {**data, "repformer_args": {**off, **data.get("repformer_args", {})}}


def _oldest(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says whether the type embedding has a bias; before, it always had one."""
    return {"use_tebd_bias": True, **data}


def _read(node: Node) -> DPA2:
    refuse(node, "compress", "reading compressed tables is out of scope; use the model before compression")
    defaults = {"env_protection": 0.0, "use_econf_tebd": False, "use_tebd_bias": False}
    node = Node({**defaults, **node.data}, node.path)
    first = _read_section(node.node("repinit_args"), RepinitConfig, ("nsel", "three_body_sel"))
    flow = _read_section(node.node("repformer_args"), RepformerConfig, ("nsel",))
    config = build_config(node, DPA2Config, repinit=first, repformer=flow)
    ntypes, dtype = node.integer("ntypes"), dtype_name(config.precision)
    check_excluded(node, config.exclude_types, ntypes)
    blank = fresh(config.replace(use_econf_tebd=False), ntypes, (), 0)  # for its shapes
    changes: dict[str, Any] = {
        "config": config,
        "type_embedding": read_type_embedding(
            node.node("type_embedding"), ntypes, first.tebd_dim, dtype, econf=config.use_econf_tebd,
            bias=config.use_tebd_bias,
        ),
        "repinit": _read_part(node.node("repinit_variable"), blank.repinit, dtype),
        "repformer": _read_repformer(node.node("repformers_variable"), blank.repformer, config, dtype),
    }  # fmt: skip
    if blank.three_body is not None:
        changes["three_body"] = _read_part(node.node("repinit_three_body_variable"), blank.three_body, dtype)
    for field, key in {"reshape": "g1_shape_tranform", "add_types": "tebd_transform"}.items():
        if (net := getattr(blank, field)) is not None:
            changes[field] = _read_like(node.node(key), net, dtype)
    return blank.replace(**changes)


def _read_section(node: Node, kind: type[Config], capacities: tuple[str, ...]) -> Any:
    """Options of a part; missing ones have their defaults."""
    options = kind.options()
    warn_of_unknown(node, options)
    defaults = {name: field.default for name, field in options.items() if field.default is not MISSING}
    config = build_config(Node({**defaults, **node.data}, node.path), kind)
    for name in capacities:
        if isinstance(value := getattr(config, name), str):
            raise node.fail(
                f"{name!r} should be a number, not {show(value)}; the file is of a model that was never built"
            )
    return config


def _read_like(node: Node, net: Linear, dtype: str) -> Linear:
    n_in, n_out = net.w.shape
    return read_linear(node, n_in, n_out, dtype, bias=net.b is not None)


def _read_part(node: Node, blank: Any, dtype: str) -> Any:
    """The environment embedding, or that of angles."""
    refuse(node, "compress", "reading compressed tables is out of scope; use the model before compression")
    cfg = blank.config
    width = cfg.tebd_dim * (1 if getattr(cfg, "type_one_side", False) else 2)
    empty = {"empty_type": read_empty_type(node, blank.ntypes)} if isinstance(blank, DPA1) else {}
    return blank.replace(
        **empty,
        **read_nets(node, width, cfg.neuron, cfg.strips, dtype),
        **read_statistics(node, blank.ntypes, cfg.sel, dtype, centred=not hasattr(cfg, "attn_layer")),
    )


def _read_repformer(node: Node, blank: Repformer, config: DPA2Config, dtype: str) -> Repformer:
    layers = node.nodes("repformer_layers")
    if len(layers) != len(blank.layers):
        raise node.fail(f"'repformer_layers' has {len(layers)} layers, but 'nlayers' is {len(blank.layers)}")
    return blank.replace(
        pair_embedding=_read_like(node.node("g2_embd"), blank.pair_embedding, dtype),
        layers=tuple(_read_layer(part, own, dtype) for part, own in zip(layers, blank.layers, strict=True)),
        **read_statistics(node, blank.ntypes, config.repformer.nsel, dtype),
    )


def _read_layer(node: Node, blank: RepformerLayer, dtype: str) -> RepformerLayer:
    """blank: a layer of the same section, whose shapes are right."""
    node = node.upgraded(2)
    found: dict[str, Any] = {"activation": Activation(name=node.get("activation_function", blank.activation.name))}
    for field, key in NETS.items():
        if (net := getattr(blank, field)) is not None:
            found[field] = _read_like(node.node(key), net, dtype)
    for field, key in RESIDUALS.items():
        if (vectors := getattr(blank, field)) is not None:
            found[field] = read_residual(node, key, vectors.shape, dtype)
    if (pair := blank.pair_attention) is not None:
        found["pair_attention"] = _read_pair_attention(node, pair, dtype)
    if (local := blank.local_attention) is not None:
        part = node.node("loc_attn")
        found["local_attention"] = local.replace(
            query=_read_like(part.node("mapq"), local.query, dtype),
            key_value=_read_like(part.node("mapkv"), local.key_value, dtype),
            head=_read_like(part.node("head_map"), local.head, dtype),
        )
    return blank.replace(**found)


def _read_pair_attention(node: Node, blank: PairAttention, dtype: str) -> PairAttention:
    found: dict[str, Any] = {"query_key": _read_like(node.node("attn2g_map").node("mapqk"), blank.query_key, dtype)}
    if blank.value is not None and blank.head is not None:
        part = node.node("attn2_mh_apply")
        found["value"] = _read_like(part.node("mapv"), blank.value, dtype)
        found["head"] = _read_like(part.node("head_map"), blank.head, dtype)
        found["norm"] = read_layer_norm(node.node("attn2_lm"), blank.value.w.shape[0], dtype)
    if blank.turn is not None:
        found["turn"] = _read_like(node.node("attn2_ev_apply").node("head_map"), blank.turn, dtype)
    return blank.replace(**found)


# --- writing ---------------------------------------------------------------------------------------------


def _write(op: DPA2, type_map: tuple[str, ...]) -> dict[str, Any]:
    cfg = op.config
    names = [name for name in cfg.options() if name not in ("seed", "repinit", "repformer")]
    tree: dict[str, Any] = {
        "@class": "Descriptor",
        "type": "dpa2",
        "@version": 3,
        "ntypes": op.ntypes,
        "repinit_args": cfg.repinit.to_dict(),
        "repformer_args": cfg.repformer.to_dict(),
        **{name: thaw(getattr(cfg, name)) for name in names},
        "type_map": list(type_map),
        "type_embedding": write_type_embedding(op.type_embedding, cfg.precision, type_map),
        "g1_shape_tranform": {"@class": "Identity", "@version": 1} if op.reshape is None else write_layer(op.reshape),
        "repinit_variable": _write_part(op.repinit),
        "repformers_variable": {
            "g2_embd": write_layer(op.repformer.pair_embedding),
            "repformer_layers": [_write_layer(layer, op) for layer in op.repformer.layers],
            "env_mat": env_mat(cfg.repformer.rcut, cfg.repformer.rcut_smth, 0.0),
            "@variables": write_statistics(op.repformer, cfg.repformer.nsel),
        },
    }
    if op.add_types is not None:
        tree["tebd_transform"] = write_layer(op.add_types)
    if op.three_body is not None:
        tree["repinit_three_body_variable"] = _write_part(op.three_body)
    return tree


def _write_part(op: Any) -> dict[str, Any]:
    return {
        **write_nets(op),
        **(write_empty_type(op) if isinstance(op, DPA1) else {}),
        "env_mat": env_mat(op.config.rcut, op.config.rcut_smth, 0.0),
        "@variables": write_statistics(op, op.nnei),
    }


def _write_layer(layer: RepformerLayer, op: DPA2) -> dict[str, Any]:
    cfg, flow = op.config, op.config.repformer
    repeated = (
        "rcut", "rcut_smth", "g1_dim", "g2_dim", "axis_neuron", "update_g1_has_conv", "update_g1_has_drrd",
        "update_g1_has_grrg", "update_g1_has_attn", "attn1_hidden", "attn1_nhead", "attn2_hidden", "attn2_nhead",
        "attn2_has_gate", "update_style", "trainable_ln", "use_sqrt_nnei", "g1_out_conv", "g1_out_mlp",
    )  # fmt: skip
    pair = layer.pair_attention
    tree: dict[str, Any] = {
        "@class": "RepformerLayer",
        "@version": 2,
        **{name: thaw(getattr(flow, name)) for name in repeated},
        "sel": [flow.nsel],
        "ntypes": op.ntypes,
        "update_chnnl_2": layer.linear2 is not None,
        "update_g2_has_g1g1": layer.pair_product is not None,
        "update_g2_has_attn": pair is not None and pair.value is not None,
        "update_h2": pair is not None and pair.turn is not None,
        "activation_function": layer.activation.name,
        "smooth": cfg.smooth,
        "precision": cfg.precision,
        "ln_eps": flow.epsilon,
    }
    tree |= {key: write_layer(net) for field, key in NETS.items() if (net := getattr(layer, field)) is not None}
    if pair is not None:
        tree |= _write_pair_attention(pair, cfg.precision, flow.g2_dim)
    if (local := layer.local_attention) is not None:
        tree["loc_attn"] = _write_attention("LocalAtten", local, cfg.precision, flow.g1_dim) | {
            "mapq": write_layer(local.query),
            "mapkv": write_layer(local.key_value),
            "head_map": write_layer(local.head),
        }
    vectors = {key: getattr(layer, field) for field, key in RESIDUALS.items()}
    if flow.update_style == "res_residual":
        # Lists of vectors, one per update.
        tree["@variables"] = {key: [] if v is None else list(np.asarray(v)) for key, v in vectors.items()}
    return tree


def _write_attention(name: str, op: PairAttention | LocalAttention, precision: str, width: int) -> dict[str, Any]:
    return {
        "@class": name, "@version": 1, "input_dim": width, "hidden_dim": op.hidden, "head_num": op.heads,
        "smooth": op.smooth, "attnw_shift": 20.0, "precision": precision,
    }  # fmt: skip


def _write_pair_attention(op: PairAttention, precision: str, width: int) -> dict[str, Any]:
    head = {"@version": 1, "input_dim": width, "head_num": op.heads, "precision": precision}
    tree: dict[str, Any] = {
        "attn2g_map": _write_attention("Atten2Map", op, precision, width)
        | {"has_gate": op.gate, "mapqk": write_layer(op.query_key)}
    }
    if op.value is not None and op.head is not None and op.norm is not None:
        tree["attn2_mh_apply"] = {
            "@class": "Atten2MultiHeadApply", **head, "mapv": write_layer(op.value), "head_map": write_layer(op.head),
        }  # fmt: skip
        tree["attn2_lm"] = write_layer_norm(op.norm, precision)
    if op.turn is not None:
        tree["attn2_ev_apply"] = {"@class": "Atten2EquiVarApply", **head, "head_map": write_layer(op.turn)}
    return tree


DPA2_CODEC = Codec(
    op=DPA2,
    names=("dpa2",),
    version=4,
    upgrades={1: _oldest, 2: _older, 3: upgrade_of_tables},
    read=_read,
    write=_write,
    keys=(
        "compress", "ntypes", "repinit_args", "repformer_args", "type_embedding", "g1_shape_tranform", "tebd_transform",
        "repinit_variable", "repformers_variable", "repinit_three_body_variable",
    ),
    config=DPA2Config,
)  # fmt: skip
