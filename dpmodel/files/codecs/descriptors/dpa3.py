"""dpa3."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.config import MISSING, thaw
from dpmodel.descriptors.dpa3 import DPA3, DPA3Config, RepflowConfig, RepflowLayer
from dpmodel.descriptors.dpa3.descriptor import fresh
from dpmodel.files.codecs.base import Codec, add_type_map, build_config, warn_of_unknown
from dpmodel.files.codecs.descriptors.shared import (
    check_excluded,
    env_mat,
    read_residual,
    read_statistics,
    write_statistics,
)
from dpmodel.files.networks import read_linear, write_layer
from dpmodel.files.nodes import Node
from dpmodel.files.type_embedding import read_type_embedding, write_type_embedding
from dpmodel.input.values import show
from dpmodel.nn import Activation, Linear, activation
from dpmodel.nn.charge_spin import CHARGES, SPINS, ChargeSpin
from dpmodel.precision import dtype_name

__all__ = ["DPA3_CODEC"]

SECTION_DEFAULTS: dict[str, Any] = {
    "concat_output_tebd": False, "activation_function": "silu", "precision": "float64", "exclude_types": [],
    "env_protection": 0.0, "trainable": True, "use_econf_tebd": False, "use_tebd_bias": False, "use_loc_mapping": True,
    "add_chg_spin_ebd": False, "default_chg_spin": None,
}  # fmt: skip
"""What missing keys mean: options came while the version stayed."""
NETS = {
    "node_self": "node_self_mlp",
    "node_sym": "node_sym_linear",
    "node_edge": "node_edge_linear",
    "edge_self": "edge_self_linear",
    "edge_angle1": "edge_angle_linear1",
    "edge_angle2": "edge_angle_linear2",
    "angle_self": "angle_self_linear",
    "narrow_node": "a_compress_n_linear",
    "narrow_edge": "a_compress_e_linear",
}
"""By our field, the key of a net in a layer's dictionary."""
RESIDUALS = {"node_residual": "n_residual", "edge_residual": "e_residual", "angle_residual": "a_residual"}
"""By our field, the key of a residual in a layer's dictionary."""
REPEATED = (
    "e_rcut", "e_rcut_smth", "e_sel", "a_rcut", "a_rcut_smth", "a_sel", "n_dim", "e_dim", "a_dim", "a_compress_rate",
    "a_compress_e_rate", "a_compress_use_split", "n_multi_edge_message", "axis_neuron", "update_angle", "update_style",
    "update_residual", "update_residual_init", "optim_update", "smooth_edge_update", "use_dynamic_sel",
    "sel_reduce_factor", "sequential_update",
)  # fmt: skip
"""Options of the section that every layer's dictionary repeats."""
FREE = ("update_residual", "update_residual_init", "optim_update")
"""Those of them that no number depends on."""


def _read(node: Node) -> DPA3:
    node = Node({**SECTION_DEFAULTS, **node.data}, node.path)
    flow = _read_repflow(node.node("repflow_args"))
    config = build_config(node, DPA3Config, repflow=flow)
    ntypes, dtype, state = node.integer("ntypes"), dtype_name(config.precision), node.node("repflow_variable")
    check_excluded(node, config.exclude_types, ntypes)
    layers = state.nodes("repflow_layers")
    if len(layers) != flow.nlayers:
        raise state.fail(f"'repflow_layers' has {len(layers)} layers, but 'nlayers' is {flow.nlayers}")
    embedding = read_type_embedding(
        node.node("type_embedding"), ntypes, flow.n_dim, dtype, econf=config.use_econf_tebd, bias=config.use_tebd_bias
    )
    blank = fresh(config.replace(use_econf_tebd=False, add_chg_spin_ebd=False), ntypes, (), 0)  # for its shapes
    return blank.replace(
        config=config,
        type_embedding=embedding,
        charge_spin=_read_charge_spin(node, config, dtype) if config.add_chg_spin_ebd else None,
        edge_embedding=read_linear(state.node("edge_embd"), 1, flow.e_dim, dtype),
        angle_embedding=read_linear(state.node("angle_embd"), 1, flow.a_dim, dtype, bias=False),
        layers=tuple(_read_layer(layer, own, config, dtype) for layer, own in zip(layers, blank.layers, strict=True)),
        **read_statistics(state, ntypes, flow.e_sel, dtype),
    )


def _read_repflow(node: Node) -> RepflowConfig:
    """The options of the message passing; missing ones have their defaults."""
    options = RepflowConfig.options()
    warn_of_unknown(node, options)
    defaults = {name: field.default for name, field in options.items() if field.default is not MISSING}
    config: RepflowConfig = build_config(Node({**defaults, **node.data}, node.path), RepflowConfig)
    for name in ("e_sel", "a_sel"):
        if isinstance(value := getattr(config, name), str):
            raise node.fail(
                f"{name!r} should be a number, not {show(value)}; the file is of a model that was never built"
            )
    return config


def _read_charge_spin(node: Node, config: DPA3Config, dtype: str) -> ChargeSpin:
    n = config.repflow.n_dim
    return ChargeSpin(
        charge=read_type_embedding(node.node("chg_embedding"), CHARGES, n, dtype),
        spin=read_type_embedding(node.node("spin_embedding"), SPINS, n, dtype),
        mix=read_linear(node.node("mix_cs_mlp"), 2 * n, n, dtype),
        activation=Activation(name=config.activation_function),
    )


def _read_layer(node: Node, blank: RepflowLayer, config: DPA3Config, dtype: str) -> RepflowLayer:
    """blank: a layer of the same section, whose shapes are right."""
    node = node.upgraded(2)
    _check_repeated(node, config)
    name = node.get("activation_function", config.activation_function)
    try:
        activation(name if isinstance(name, str) else f"{name!r}, which is no text")
    except ValueError as problem:
        raise node.fail(f"'activation_function': {problem}") from problem
    found: dict[str, Any] = {}
    for field, key in NETS.items():
        net: Linear | None = getattr(blank, field)
        if net is not None:
            n_in, n_out = net.w.shape
            found[field] = read_linear(node.node(key), n_in, n_out, dtype, bias=net.b is not None)
    for field, key in RESIDUALS.items():
        vectors = getattr(blank, field)
        if vectors is not None:
            found[field] = read_residual(node, key, vectors.shape, dtype)
    return blank.replace(activation=Activation(name=name), **found)


def _check_repeated(node: Node, config: DPA3Config) -> None:
    """Raise ModelFileError where a layer says something else than the section."""
    for name in REPEATED:
        expected = getattr(config.repflow, name)
        found = node.get(name, expected)
        if name not in FREE and found not in (expected, [expected]):
            raise node.fail(f"{name!r} is {found!r}, but that of the section is {expected!r}")


# --- writing ---------------------------------------------------------------------------------------------


def _write(op: DPA3, type_map: tuple[str, ...]) -> dict[str, Any]:
    cfg, flow = op.config, op.config.repflow
    arguments = {name: thaw(getattr(flow, name)) for name in flow.options() if name != "skip_stat"}
    shared = {name: thaw(getattr(cfg, name)) for name in cfg.options() if name not in ("seed", "repflow")}
    variable = {
        "edge_embd": write_layer(op.edge_embedding),
        "angle_embd": write_layer(op.angle_embedding),
        "repflow_layers": [_write_layer(layer, op) for layer in op.layers],
        "env_mat": env_mat(flow.e_rcut, flow.e_rcut_smth, 0.0),
        "@variables": write_statistics(op, flow.e_sel),
    }
    return {
        "@class": "Descriptor",
        "type": "dpa3",
        "@version": 2,
        "ntypes": op.ntypes,
        "repflow_args": {**arguments, "fix_stat_std": flow.deviation},
        **shared,
        "type_map": list(type_map),
        "type_embedding": write_type_embedding(op.type_embedding, cfg.precision, type_map),
        **_write_charge_spin(op.charge_spin, cfg.precision),
        "repflow_variable": variable,
    }


def _write_charge_spin(op: ChargeSpin | None, precision: str) -> dict[str, Any]:
    if op is None:
        return {}
    return {
        "chg_embedding": write_type_embedding(op.charge, precision, None),
        "spin_embedding": write_type_embedding(op.spin, precision, None),
        "mix_cs_mlp": write_layer(op.mix),
    }


def _write_layer(layer: RepflowLayer, op: DPA3) -> dict[str, Any]:
    flow = op.config.repflow
    nets = {key: getattr(layer, field) for field, key in NETS.items()}
    out = {
        "@class": "RepFlowLayer",
        "@version": 2,
        **{name: getattr(flow, name) for name in REPEATED},
        "e_sel": [flow.e_sel],
        "ntypes": op.ntypes,
        "activation_function": layer.activation.name,
        "precision": op.config.precision,
        **{key: write_layer(net) for key, net in nets.items() if net is not None},
    }
    if layer.node_residual is not None:
        out["@variables"] = {key: list(np.asarray(getattr(layer, field))) for field, key in RESIDUALS.items()}
    return out


DPA3_CODEC = Codec(
    op=DPA3,
    names=("dpa3",),
    version=2,
    upgrades={1: add_type_map},
    read=_read,
    write=_write,
    keys=(
        "chg_embedding",
        "mix_cs_mlp",
        "ntypes",
        "repflow_args",
        "repflow_variable",
        "spin_embedding",
        "type_embedding",
    ),
    config=DPA3Config,
)
