"""The one mapping between DeePMD-kit's dictionaries and our Ops: descriptors, fitting nets, models.

A `Codec` says which "type" it owns, its newest version, the upgrades to it, and how to read and write. Keys
that have the same name and meaning as an option of the `Config` are copied; only the rest is spelled out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dpmodel.config import Config, FrozenDict, freeze, thaw
from dpmodel.descriptors import SeA, SeAConfig
from dpmodel.errors import ModelFileError
from dpmodel.files.networks import read_collection, write_collection
from dpmodel.files.nodes import Node, Upgrade
from dpmodel.fittings import EnergyFitting, EnerFittingConfig
from dpmodel.fittings.base import Fitting
from dpmodel.models import Model, StandardModel
from dpmodel.op import Op
from dpmodel.precision import dtype_name, global_dtype

__all__ = ["DESCRIPTORS", "FITTINGS", "MODELS", "Codec", "read_node", "write_op"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """How one kind of Op is stored."""

    op: type[Op]
    names: tuple[str, ...]
    """Values of "type" that mean it; the first is written."""
    version: int
    upgrades: Mapping[int, Upgrade]
    read: Callable[[Node], Any]
    write: Callable[[Any], dict[str, Any]]


OUT_OF_SCOPE = {
    "dpa4": "dpa3",
    "sezm": "dpa3",
    "native_spin": "the virtual-atom spin model (`spin` in the model section)",
    "frozen": "the model file itself",
    "pairwise_dprc": "a standard model",
    "dipole_charge": "a standard model",
    "population": "property",
    "dens": "ener",
    "denoise": "ener",
}
"""Kinds that are not supported, and what to use instead."""


def read_node(node: Node, table: tuple[Codec, ...], what: str) -> Any:
    """Read a dictionary by its "type". Raises ModelFileError for kinds that are unknown or out of scope."""
    name = str(node.get("type", "standard" if what == "model" else "")).lower()
    for codec in table:
        if name in codec.names:
            return codec.read(node.upgraded(codec.version, codec.upgrades))
    known = sorted(codec.names[0] for codec in table)
    if name in OUT_OF_SCOPE:
        raise node.fail(f"a {what} of type {name!r} is out of scope of dpmodel; use {OUT_OF_SCOPE[name]} instead")
    raise node.fail(f"a {what} of type {name!r} is not known here; known are {known}")


def write_op(op: Op, table: tuple[Codec, ...]) -> dict[str, Any]:
    """The inverse of `read_node`."""
    for codec in table:
        if type(op) is codec.op:
            return codec.write(op)
    raise ModelFileError(f"{type(op).__name__} has no file format; known are {[c.op.__name__ for c in table]}")


def _options(node: Node, config: type[Config], *, skip: tuple[str, ...] = ("seed",)) -> dict[str, Any]:
    """The keys that a config and its dictionary share by name."""
    return {name: freeze(node.get(name)) for name in config.options() if name in node.data and name not in skip}


def _build_config(node: Node, config: type[Config], **extra: Any) -> Any:
    try:
        return config(**{**_options(node, config), **extra})
    except (TypeError, ValueError) as problem:
        raise node.fail(f"the options do not form a {config.key!r} section: {problem}") from problem


def _refuse(node: Node, key: str, why: str) -> None:
    if node.get(key, None) not in (None, False):
        raise node.fail(f"{key!r} = {node.get(key)!r}: {why}")


def _constant_statistics(node: Node, name: str, shape: tuple[int, int, int]) -> Any:
    """(ntypes, nnei, 4) -> (ntypes, 4). Statistics that vary along the slots are refused."""
    array = node.array(name, shape)
    if not np.array_equal(array, np.broadcast_to(array[:, :1], shape)):
        raise node.fail(
            f"{name!r} varies along the neighbour axis; every known writer makes it constant there, and dpmodel relies on it. "
            "Recompute the statistics in the program that wrote the file"
        )
    return array[:, 0].copy()


# --- descriptors --------------------------------------------------------------------------------------


def _add_type_map(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 of descriptors and fitting nets carries the type map; before, only the model did."""
    return {"type_map": None, **data}


def _compressed(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 differs from 2 by the tables of a compressed model alone."""
    return dict(data)


def _read_se_a(node: Node) -> SeA:
    _refuse(node, "compress", "reading compressed tables is out of scope; use the model before compression")
    _refuse(node, "spin", "spin inside the descriptor belongs to version 1 of the format; use a spin model")
    sel = tuple(int(n) for n in node.get("sel"))
    config = _build_config(node, SeAConfig, sel=sel)
    ntypes, nnei = len(sel), sum(sel)
    if nnei < 1:
        raise node.fail(f"sel = {list(sel)} leaves no room for neighbours")
    ndim = 1 if config.type_one_side else 2
    networks = read_collection(node.node("embeddings"), "embedding_network", ndim, ntypes)
    width = {net.layers[-1].w.shape[1] for net in networks}
    if width != {config.neuron[-1]}:
        raise node.fail(f"the embedding nets are {sorted(width)} wide, expected {config.neuron[-1]} (the end of 'neuron')")
    stats = {name: _constant_statistics(node, name, (ntypes, nnei, 4)) for name in ("davg", "dstd")}
    return SeA(config=config, ntypes=ntypes, networks=networks, **stats)


def _env_mat(config: Any) -> dict[str, Any]:
    """Written for other readers; not authoritative."""
    return {
        "rcut": config.rcut,
        "rcut_smth": config.rcut_smth,
        "protection": config.env_protection,
        "use_exp_switch": False,
    }


def _write_se_a(op: SeA) -> dict[str, Any]:
    cfg, nnei = op.config, sum(op.config.sel)
    shared = {name: thaw(getattr(cfg, name)) for name in cfg.options() if name not in ("seed", "precision")}
    precision = dtype_name(cfg.precision)
    embeddings = write_collection(
        op.networks, "embedding_network", 1 if cfg.type_one_side else 2, op.ntypes, resnet_dt=cfg.resnet_dt,
        precision=precision, activation=cfg.activation_function,
    )  # fmt: skip
    stats = {name: np.repeat(np.asarray(getattr(op, name))[:, None], nnei, axis=1) for name in ("davg", "dstd")}
    return {
        "@class": "Descriptor",
        "type": "se_e2_a",
        "@version": 2,
        **shared,
        "precision": precision,
        "spin": None,
        "env_mat": _env_mat(cfg),
        "embeddings": embeddings,
        "@variables": stats,
    }


DESCRIPTORS: tuple[Codec, ...] = (
    Codec(
        op=SeA,
        names=("se_e2_a", "se_a"),
        version=3,
        upgrades={1: _add_type_map, 2: _compressed},
        read=_read_se_a,
        write=_write_se_a,
    ),
)


# --- fitting nets -------------------------------------------------------------------------------------


def _add_case_embedding(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 has the width of the case embedding; before, there was none."""
    return {"dim_case_embd": 0, **data}


def _add_default_fparam(data: dict[str, Any]) -> dict[str, Any]:
    """Version 4 has default frame parameters; before, there were none."""
    return {"default_fparam": None, **data}


FITTING_UPGRADES: dict[int, Upgrade] = {1: _add_type_map, 2: _add_case_embedding, 3: _add_default_fparam}


def _read_fitting_state(node: Node, config: type[Config], dim_out: int) -> dict[str, Any]:
    """Fields of a `Fitting`."""
    _refuse(node, "tot_ener_zero", "a total energy shifted to zero is not supported")
    _refuse(node, "spin", "spin inside the fitting net belongs to version 1 of the format; use a spin model")
    _refuse(node, "layer_name", "sharing layers by name is not supported")
    atom_ener = node.get("atom_ener", None)
    extra: dict[str, Any] = {"layer_name": None, "trainable": _flags(node)}
    if "atom_ener" in config.options():
        extra["atom_ener"] = () if atom_ener is None else tuple(None if v is None else float(np.ravel(v)[0]) for v in atom_ener)
    cfg = _build_config(node, config, **extra)
    ntypes, mixed = int(node.get("ntypes")), bool(node.get("mixed_types"))
    networks = read_collection(node.node("nets"), "fitting_network", 0 if mixed else 1, ntypes)
    nf, na, nc = cfg.numb_fparam, cfg.numb_aparam, cfg.dim_case_embd
    widths = {"fparam_avg": nf, "fparam_inv_std": nf, "aparam_avg": na, "aparam_inv_std": na, "case_embd": nc}
    stats = {k: node.array(k, (width,)) if width else None for k, width in widths.items()}
    if cfg.default_fparam is not None and len(cfg.default_fparam) != nf:
        raise node.fail(f"default_fparam has {len(cfg.default_fparam)} numbers, but numb_fparam is {nf}")
    default = None if cfg.default_fparam is None else np.asarray(cfg.default_fparam, cfg.dtype)
    n_in = int(node.get("dim_descrpt")) + nf + (0 if cfg.use_aparam_as_mask else na) + nc
    for net in networks:
        if (net.layers[0].w.shape[0], net.layers[-1].w.shape[1]) != (n_in, dim_out):
            raise node.fail(
                f"the nets map {net.layers[0].w.shape[0]} to {net.layers[-1].w.shape[1]} numbers, expected {n_in} to {dim_out}"
            )
    bias = node.array("bias_atom_e", (ntypes, dim_out))
    return {
        "config": cfg, "ntypes": ntypes, "mixed_types": mixed, "networks": networks, "bias_atom_e": bias,
        "default_fparam": default, **stats,
    }  # fmt: skip


def _flags(node: Node) -> Any:
    flags = node.get("trainable", True)
    return tuple(bool(flag) for flag in flags) if isinstance(flags, list | tuple) else flags


def _write_fitting(op: Fitting, kind: str, dim_out: int) -> dict[str, Any]:
    cfg = op.config
    skip = ("seed", "trainable", "atom_ener", "default_fparam")
    shared = {name: thaw(getattr(cfg, name)) for name in cfg.options() if name not in skip}
    n_extra = cfg.numb_fparam + (0 if cfg.use_aparam_as_mask else cfg.numb_aparam) + cfg.dim_case_embd
    return {
        "@class": "Fitting",
        "@version": 4,
        "type": kind,
        "var_name": op.output().name,
        "ntypes": op.ntypes,
        "dim_descrpt": int(op.networks[0].layers[0].w.shape[0]) - n_extra,
        **shared,
        "default_fparam": None if op.default_fparam is None else [float(v) for v in np.asarray(op.default_fparam)],
        "mixed_types": op.mixed_types,
        "trainable": list(cfg.layer_trainable()),
        "tot_ener_zero": False,
        "spin": None,
        "dim_out": dim_out,
        "atom_ener": thaw(cfg.atom_ener) or None,
        "nets": write_collection(
            op.networks, "fitting_network", 0 if op.mixed_types else 1, op.ntypes, resnet_dt=cfg.resnet_dt,
            precision=cfg.precision, activation=cfg.activation_function,
        ),
        "@variables": {
            name: getattr(op, name)
            for name in ("bias_atom_e", "case_embd", "fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")
        },
    }  # fmt: skip


FITTINGS: tuple[Codec, ...] = (
    Codec(
        op=EnergyFitting,
        names=("ener",),
        version=4,
        upgrades=FITTING_UPGRADES,
        read=lambda node: EnergyFitting(**_read_fitting_state(node, EnerFittingConfig, 1)),
        write=lambda op: _write_fitting(op, "ener", 1),
    ),
)


# --- models -------------------------------------------------------------------------------------------


def read_base(node: Node, size: int) -> dict[str, Any]:
    """What every model shares: type map, exclusions, biases."""
    type_map = tuple(str(name) for name in node.get("type_map"))
    shape = (1, len(type_map), size)
    preset = node.get("preset_out_bias", None)
    return {
        "type_map": type_map,
        "atom_exclude_types": tuple(int(t) for t in node.get("atom_exclude_types", ())),
        "pair_exclude_types": tuple((int(a), int(b)) for a, b in node.get("pair_exclude_types", ())),
        "preset_out_bias": None if preset is None else FrozenDict({k: freeze(_numbers(v)) for k, v in preset.items()}),
        "out_bias": node.array("out_bias", shape)[0].astype(global_dtype()),
        "out_std": node.array("out_std", shape)[0].astype(global_dtype()),
    }


def _numbers(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return value if value is None else np.asarray(value, dtype=float).tolist()


def write_base(op: StandardModel) -> dict[str, Any]:
    """The inverse of `read_base`."""
    return {
        "type_map": list(op.type_map),
        "atom_exclude_types": list(op.atom_exclude_types),
        "pair_exclude_types": [list(pair) for pair in op.pair_exclude_types],
        "rcond": None,
        "preset_out_bias": None if op.preset_out_bias is None else {k: thaw(v) for k, v in op.preset_out_bias.items()},
        "@variables": {"out_bias": np.asarray(op.out_bias)[None], "out_std": np.asarray(op.out_std)[None]},
    }


def _read_standard(node: Node) -> StandardModel:
    descriptor = read_node(node.node("descriptor"), DESCRIPTORS, "descriptor")
    fitting = read_node(node.node("fitting"), FITTINGS, "fitting net")
    size = int(np.prod(fitting.output().shape))
    base = read_base(node, size)
    counts = {"type_map": len(base["type_map"]), "descriptor": descriptor.ntypes, "fitting": fitting.ntypes}
    if len(set(counts.values())) != 1:
        raise node.fail(f"numbers of types differ: {counts}")
    if int(node.node("fitting").get("dim_descrpt")) != descriptor.dim_out:
        raise node.fail(
            f"the fitting net takes {node.node('fitting').get('dim_descrpt')} features, the descriptor makes {descriptor.dim_out}"
        )
    return StandardModel(descriptor=descriptor, fitting=fitting, **base)


def _write_standard(op: StandardModel) -> dict[str, Any]:
    type_map = {"type_map": list(op.type_map)}
    fitting = {**write_op(op.fitting, FITTINGS), **type_map, "exclude_types": list(op.atom_exclude_types)}
    descriptor = {**write_op(op.descriptor, DESCRIPTORS), **type_map}
    head = {"@class": "Model", "type": "standard", "@version": 2}
    return {**head, **write_base(op), "descriptor": descriptor, "fitting": fitting}


def _model_1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 moved nothing that this reader looks at; PyTorch files of version 1 hold the same keys."""
    return dict(data)


MODELS: tuple[Codec, ...] = (
    Codec(
        op=StandardModel,
        names=("standard",),
        version=2,
        upgrades={1: _model_1_to_2},
        read=_read_standard,
        write=_write_standard,
    ),
)


def read_model_tree(data: Any) -> Model:
    """A model from its dictionary."""
    model: Model = read_node(Node(data, "model"), MODELS, "model")
    return model


def write_model_tree(model: Model) -> dict[str, Any]:
    """The inverse of `read_model_tree`."""
    return write_op(model, MODELS)
