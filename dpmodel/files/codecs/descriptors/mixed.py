"""dpa1 (se_atten), se_atten_v2 and se_e3_tebd: one net for all types, which sees their embeddings."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from dpmodel.config import thaw
from dpmodel.descriptors import DPA1, DPA1Config, SeAttenV2Config, SeTTebd, SeTTebdConfig
from dpmodel.files.codecs.base import Codec, build_config, refuse
from dpmodel.files.codecs.descriptors.shared import (
    check_excluded,
    check_radii,
    env_mat,
    read_counts,
    read_statistics,
    upgrade_of_tables,
    write_statistics,
)
from dpmodel.files.networks import (
    read_collection,
    read_layer_norm,
    read_linear,
    write_collection,
    write_layer,
    write_layer_norm,
)
from dpmodel.files.nodes import Node
from dpmodel.files.type_embedding import read_type_embedding, write_type_embedding
from dpmodel.nn import MLP
from dpmodel.nn.attention import NeighbourAttention
from dpmodel.precision import dtype_name

__all__ = ["MIXED_CODECS", "read_empty_type", "read_nets", "write_empty_type", "write_nets"]

EMPTY_TYPE = "empty_type"
"""Key of our own, see `read_empty_type`."""


def _bias(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says whether the type embedding has a bias; before, it always had one."""
    return {"use_tebd_bias": True, "env_protection": 0.0, **data}


def read_nets(node: Node, widths: int, neuron: tuple[int, ...], strips: bool, dtype: str) -> dict[str, MLP | None]:
    """The nets of the distance and of the types. widths: columns of types that a net sees."""

    def net(key: str, n_in: int) -> MLP:
        found = read_collection(node.node(key), "embedding_network", 0, 1, widths=(n_in, *neuron), dtype=dtype)
        return found[0]

    return {
        "net": net("embeddings", 1 if strips else 1 + widths),
        "type_net": net("embeddings_strip", widths) if strips else None,
    }


def write_nets(op: DPA1 | SeTTebd) -> dict[str, Any]:
    """The inverse of `read_nets`."""
    cfg = op.config
    nets = {"embeddings": op.net} | ({} if op.type_net is None else {"embeddings_strip": op.type_net})
    return {
        key: write_collection(
            (net,), "embedding_network", 0, op.ntypes, resnet_dt=cfg.resnet_dt, precision=dtype_name(cfg.precision),
            activation=cfg.activation_function,
        )
        for key, net in nets.items()
    }  # fmt: skip


def _read(kind: type[Any], node: Node) -> DPA1 | SeTTebd:
    refuse(node, "compress", "reading compressed tables is out of scope; use the model before compression")
    refuse(node, "spin", "spin inside the descriptor belongs to version 1 of the format; use a spin model")
    extra: dict[str, Any] = {"sel": sum(read_counts(node))}
    if kind is DPA1Config:
        extra["stripped_type_embedding"] = None
    if kind is SeAttenV2Config:
        extra["tebd_input_mode"] = "strip"
    if kind is SeTTebdConfig:
        extra["use_tebd_bias"] = node.node("type_embedding").flag("use_tebd_bias", True)
    else:
        node = Node({"lmax": 1, **node.data}, node.path)
    config = build_config(node, kind, **extra)
    ntypes, dtype = node.integer("ntypes"), dtype_name(config.precision)
    check_radii(node, config)
    check_excluded(node, config.exclude_types, ntypes)
    one_side = getattr(config, "type_one_side", False)
    common: dict[str, Any] = {
        "config": config,
        "ntypes": ntypes,
        "type_embedding": read_type_embedding(
            node.node("type_embedding"), ntypes, config.tebd_dim, dtype, econf=config.use_econf_tebd,
            bias=config.use_tebd_bias,
        ),
        **read_nets(node, config.tebd_dim * (1 if one_side else 2), config.neuron, config.strips, dtype),
        **read_statistics(node, ntypes, config.sel, dtype, centred=kind is SeTTebdConfig),
    }  # fmt: skip
    if kind is SeTTebdConfig:
        return SeTTebd(**common)
    gain = node.array("degree_gain_raw", (config.lmax - 1,), dtype=dtype) if config.lmax > 1 else None
    attention = _read_attention(node.node("attention_layers"), config, dtype)
    empty = read_empty_type(node, ntypes)
    return DPA1(**common, attention=attention, degree_gain=gain, trainable=config.trainable, empty_type=empty)


def read_empty_type(node: Node, ntypes: int) -> int:
    """The type of empty slots. Only files of models whose types have changed their order have the key."""
    found = node.integer(EMPTY_TYPE, 0)
    if found >= ntypes:
        raise node.fail(f"{EMPTY_TYPE!r} is {found}, expected a type from 0 to {ntypes - 1}")
    return found


def write_empty_type(op: DPA1) -> dict[str, int]:
    """The inverse of `read_empty_type`; nothing where it is 0, so that other programs know every key."""
    return {EMPTY_TYPE: op.empty_type} if op.empty_type else {}


def _read_attention(node: Node, config: Any, dtype: str) -> tuple[NeighbourAttention, ...]:
    layers = node.nodes("attention_layers")
    if len(layers) != config.attn_layer:
        raise node.fail(f"there are {len(layers)} attention layers, but 'attn_layer' is {config.attn_layer}")
    return tuple(_read_attention_layer(layer, config, dtype) for layer in layers)


def _read_attention_layer(node: Node, config: Any, dtype: str) -> NeighbourAttention:
    inner, width, hidden = node.node("attention_layer"), config.neuron[-1], config.attn
    for key, value in {"num_heads": 1, "do_mask": False, "hidden_dim": hidden, "bias": True}.items():
        if inner.get(key, value) != value:
            raise inner.fail(f"{key!r} is {inner.get(key)!r}, expected {value!r}")
    temperature = inner.get("temperature")
    scale = float(temperature) if temperature is not None else (hidden * inner.number("scaling_factor")) ** -0.5
    return NeighbourAttention(
        inward=read_linear(inner.node("in_proj"), width, 3 * hidden, dtype),
        outward=read_linear(inner.node("out_proj"), hidden, width, dtype),
        norm=read_layer_norm(node.node("attn_layer_norm"), width, dtype),
        scale=scale,
        normalise=inner.flag("normalize"),
        smooth=inner.flag("smooth"),
        dotr=inner.flag("dotr"),
    )


# --- writing ---------------------------------------------------------------------------------------------


def _write(kind: str, op: Any, type_map: tuple[str, ...]) -> dict[str, Any]:
    cfg = op.config
    left = {"seed", "precision", "sel", "stripped_type_embedding", "lmax"}
    left |= {"tebd_input_mode"} if kind == "se_atten_v2" else set()
    left |= {"use_tebd_bias"} if isinstance(op, SeTTebd) else set()
    shared = {name: thaw(getattr(cfg, name)) for name in cfg.options() if name not in left}
    variables = write_statistics(op, op.nnei)
    tree = {
        "@class": "Descriptor",
        "type": kind,
        "@version": 1 if isinstance(op, SeTTebd) else 2,
        **shared,
        "sel": [op.nnei],
        "ntypes": op.ntypes,
        "precision": dtype_name(cfg.precision),
        "env_mat": env_mat(cfg.rcut, cfg.rcut_smth, cfg.env_protection),
        **write_nets(op),
        "type_embedding": write_type_embedding(op.type_embedding, cfg.precision, type_map),
        "type_map": list(type_map),
        "@variables": variables,
    }
    if isinstance(op, SeTTebd):
        return tree
    tree |= {"spin": None, "attn_mask": False, "attention_layers": _write_attention(op), **write_empty_type(op)}
    if op.degree_gain is not None:
        tree |= {"@version": 4, "lmax": cfg.lmax}
        variables["degree_gain_raw"] = np.asarray(op.degree_gain)
    return tree


def _write_attention(op: DPA1) -> dict[str, Any]:
    cfg = op.config
    outer = {
        "nnei": op.nnei, "embed_dim": cfg.neuron[-1], "hidden_dim": cfg.attn, "dotr": cfg.attn_dotr, "do_mask": False,
        "scaling_factor": cfg.scaling_factor, "normalize": cfg.normalize, "temperature": cfg.temperature,
        "trainable_ln": cfg.trainable_ln, "ln_eps": cfg.epsilon, "precision": cfg.precision,
    }  # fmt: skip
    inner = {key: value for key, value in outer.items() if key not in ("trainable_ln", "ln_eps")}
    layers = [
        {
            **outer,
            "attention_layer": {
                **inner,
                "num_heads": 1,
                "bias": True,
                "smooth": layer.smooth,
                "in_proj": write_layer(layer.inward),
                "out_proj": write_layer(layer.outward),
            },
            "attn_layer_norm": write_layer_norm(layer.norm, cfg.precision),
        }
        for layer in op.attention
    ]
    return {
        "@class": "NeighborGatedAttention", "@version": 1, "layer_num": cfg.attn_layer, **outer,
        "attention_layers": layers,
    }  # fmt: skip


def _codec(op: type[Any], config: type[Any], version: int, *names: str) -> Codec:
    return Codec(
        op=op,
        names=names,
        version=version,
        upgrades={1: _bias, 2: upgrade_of_tables, 3: upgrade_of_tables} if version > 2 else {1: upgrade_of_tables},
        read=functools.partial(_read, config),
        write=functools.partial(_write, names[0]),
        keys=(
            "compress", "embeddings", "embeddings_strip", "env_mat", "spin", "attention_layers", "type_embedding", "ntypes",
            EMPTY_TYPE,
        ),
        config=config,
    )  # fmt: skip


MIXED_CODECS = (
    _codec(DPA1, DPA1Config, 4, "dpa1", "se_atten"),
    _codec(DPA1, SeAttenV2Config, 4, "se_atten_v2"),
    _codec(SeTTebd, SeTTebdConfig, 2, "se_e3_tebd"),
)
