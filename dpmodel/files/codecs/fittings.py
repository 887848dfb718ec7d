"""Fitting nets, as DeePMD-kit's files hold them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpmodel.config import Config, thaw
from dpmodel.files.codecs.base import Codec, add_type_map, build_config, refuse
from dpmodel.files.networks import read_collection, write_collection
from dpmodel.files.nodes import Node, Upgrade
from dpmodel.fittings import (
    DipoleFitting,
    DipoleFittingConfig,
    DOSFitting,
    DOSFittingConfig,
    EnerFittingConfig,
    EnergyFitting,
    PolarFitting,
    PolarFittingConfig,
    PropertyFitting,
    PropertyFittingConfig,
)
from dpmodel.fittings.base import Fitting
from dpmodel.precision import global_dtype

__all__ = ["FITTINGS"]


def _add_case_embedding(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 has the width of the case embedding; before, there was none."""
    return {"dim_case_embd": 0, **data}


def _add_default_fparam(data: dict[str, Any]) -> dict[str, Any]:
    """Version 4 has default frame parameters; before, there were none."""
    return {"default_fparam": None, **data}


FITTING_UPGRADES: dict[int, Upgrade] = {1: add_type_map, 2: _add_case_embedding, 3: _add_default_fparam}


def _read_fitting_state(node: Node, config: type[Config], dim_out: int, **more: Any) -> dict[str, Any]:
    """Fields of a `Fitting`. dim_out: width of the net's output. more: options that the file names otherwise."""
    refuse(node, "tot_ener_zero", "a total energy shifted to zero is not supported")
    refuse(node, "spin", "spin inside the fitting net belongs to version 1 of the format; use a spin model")
    refuse(node, "layer_name", "sharing layers by name is not supported")
    extra: dict[str, Any] = {"layer_name": None, "trainable": _flags(node), **more}
    if "sel_type" in config.options():  # of inputs alone
        extra["sel_type"] = None
    if "atom_ener" in config.options():
        extra["atom_ener"] = _atom_ener(node)
    cfg = build_config(node, config, **extra)
    if isinstance(cfg.trainable, tuple) and len(cfg.trainable) != len(cfg.neuron) + 1:
        raise node.fail(f"'trainable' should have one flag per layer ({len(cfg.neuron) + 1}), got {len(cfg.trainable)}")
    ntypes, mixed = node.integer("ntypes"), node.flag("mixed_types")
    nf, na, nc = cfg.numb_fparam, cfg.numb_aparam, cfg.dim_case_embd
    n_in = node.integer("dim_descrpt") + nf + (0 if cfg.use_aparam_as_mask else na) + nc
    networks = read_collection(
        node.node("nets"), "fitting_network", 0 if mixed else 1, ntypes, widths=(n_in, *cfg.neuron, dim_out),
        dtype=cfg.dtype,
    )  # fmt: skip
    widths = {"fparam_avg": nf, "fparam_inv_std": nf, "aparam_avg": na, "aparam_inv_std": na, "case_embd": nc}
    stats = {k: node.array(k, (width,), dtype=cfg.dtype) if width else None for k, width in widths.items()}
    if cfg.default_fparam is not None and len(cfg.default_fparam) != nf:
        raise node.fail(f"default_fparam has {len(cfg.default_fparam)} numbers, but numb_fparam is {nf}")
    default = None if cfg.default_fparam is None else np.asarray(cfg.default_fparam, cfg.dtype)
    if default is not None and not np.all(np.isfinite(default)):
        raise node.fail("default_fparam holds NaN or infinite numbers")
    bias = node.array("bias_atom_e", (ntypes, dim_out), dtype=global_dtype())
    return {
        "config": cfg, "ntypes": ntypes, "mixed_types": mixed, "networks": networks, "bias_atom_e": bias,
        "default_fparam": default, **stats,
    }  # fmt: skip


def _atom_ener(node: Node) -> tuple[float | None, ...]:
    """By type a number or None; other writers put numbers into lists of one."""
    if node.get("atom_ener") is None:
        return ()
    found = []
    for value in node.items("atom_ener"):
        number = np.ravel(value) if value is not None else None
        if number is not None and (number.dtype.kind not in "fiu" or number.size != 1 or not np.isfinite(number[0])):
            raise node.fail(f"'atom_ener' should hold one number or null per type, got {value!r}")
        found.append(None if number is None else float(number[0]))
    return tuple(found)


def _flags(node: Node) -> Any:
    """One flag, or one per layer; null is true."""
    flags = node.get("trainable", True)
    each = flags if isinstance(flags, list | tuple) else [flags]
    if not all(isinstance(flag, bool) or flag is None for flag in each):
        raise node.fail(f"'trainable' should be true or false, or a list of these, got {flags!r}")
    return tuple(flag is not False for flag in flags) if isinstance(flags, list | tuple) else flags is not False


def _write_fitting(
    op: Fitting,
    type_map: tuple[str, ...],
    kind: str,
    version: int,
    extra: dict[str, Any],
    left_out: tuple[str, ...] = (),
) -> dict[str, Any]:
    """extra: keys of this kind. left_out: options of the section that are not stored."""
    cfg = op.config
    skip = ("seed", "trainable", "atom_ener", "default_fparam", *left_out)
    shared = {name: thaw(getattr(cfg, name)) for name in cfg.options() if name not in skip}
    n_extra = cfg.numb_fparam + (0 if cfg.use_aparam_as_mask else cfg.numb_aparam) + cfg.dim_case_embd
    return {
        "@class": "Fitting",
        "@version": version,
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
        **extra,
        "type_map": list(type_map),
        "nets": write_collection(
            op.networks, "fitting_network", 0 if op.mixed_types else 1, op.ntypes, resnet_dt=cfg.resnet_dt,
            precision=cfg.precision, activation=cfg.activation_function,
        ),
        "@variables": {
            name: getattr(op, name)
            for name in ("bias_atom_e", "case_embd", "fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")
        },
    }  # fmt: skip


# --- kinds -----------------------------------------------------------------------------------------------


def _read_energy(node: Node) -> EnergyFitting:
    return EnergyFitting(**_read_fitting_state(node, EnerFittingConfig, 1))


def _write_energy(op: EnergyFitting, type_map: tuple[str, ...]) -> dict[str, Any]:
    extra = {"dim_out": 1, "atom_ener": thaw(op.config.atom_ener) or None}
    return _write_fitting(op, type_map, "ener", 4, extra)


def _read_dos(node: Node) -> DOSFitting:
    count = node.integer("dim_out")
    return DOSFitting(**_read_fitting_state(node, DOSFittingConfig, count, numb_dos=count))


def _write_dos(op: DOSFitting, type_map: tuple[str, ...]) -> dict[str, Any]:
    return _write_fitting(op, type_map, "dos", 4, {"dim_out": op.config.numb_dos, "atom_ener": None}, ("numb_dos",))


def _read_property(node: Node) -> PropertyFitting:
    count = node.integer("task_dim", node.get("dim_out", 1))
    node = Node({"distinguish_types": False, "intensive": False, **node.data}, node.path)
    extra = {"property_name": str(node.get("var_name")), "task_dim": count}
    return PropertyFitting(**_read_fitting_state(node, PropertyFittingConfig, count, **extra))


def _write_property(op: PropertyFitting, type_map: tuple[str, ...]) -> dict[str, Any]:
    extra = {"dim_out": op.config.task_dim, "atom_ener": None}
    return _write_fitting(op, type_map, "property", 6, extra, ("property_name",))


def _read_dipole(node: Node) -> DipoleFitting:
    count = node.integer("embedding_width")
    return DipoleFitting(**_read_fitting_state(node, DipoleFittingConfig, count))


def _write_dipole(op: DipoleFitting, type_map: tuple[str, ...]) -> dict[str, Any]:
    extra = {"embedding_width": op.dim_core, "r_differentiable": True, "c_differentiable": True}
    return _write_fitting(op, type_map, "dipole", 4, extra, ("sel_type",))


def _read_polar(node: Node) -> PolarFitting:
    width, diagonal = node.integer("embedding_width"), node.flag("fit_diag")
    ntypes = node.integer("ntypes")
    constant = node.array("constant_matrix", optional=True)
    if constant is not None and np.any(constant):
        raise node.fail(
            "'constant_matrix' is not zero; backends of DeePMD-kit disagree on whether it counts, so it cannot be read"
        )
    scale = node.array("scale", dtype=global_dtype()).reshape(-1, 1)
    if scale.shape != (ntypes, 1):
        raise node.fail(f"the array 'scale' has {scale.size} numbers, expected {ntypes}")
    # What the section said of it has become an array.
    state = _read_fitting_state(
        node, PolarFittingConfig, width if diagonal else width**2, scale=tuple(float(v) for v in scale[:, 0])
    )
    return PolarFitting(**state, scale=scale)


def _write_polar(op: PolarFitting, type_map: tuple[str, ...]) -> dict[str, Any]:
    width = op.dim_core if op.config.fit_diag else math.isqrt(op.dim_core)
    tree = _write_fitting(op, type_map, "polar", 5, {"embedding_width": width}, ("scale", "sel_type"))
    tree["var_name"] = "polar"  # not the name of the label
    tree["@variables"] |= {"scale": op.scale, "constant_matrix": np.zeros(op.ntypes, global_dtype())}
    return tree


_KEYS = (
    "atom_ener", "dim_descrpt", "dim_out", "exclude_types", "layer_name", "mixed_types", "nets", "ntypes", "rcond", "spin",
    "tot_ener_zero", "var_name",
)  # fmt: skip


def _codec(op: type[Fitting], config: type[Config], version: int, read: Any, write: Any, *keys: str) -> Codec:
    name = config.key
    return Codec(
        op=op, names=(name,), version=version, upgrades=FITTING_UPGRADES, read=read, write=write, keys=(*_KEYS, *keys),
        config=config,
    )  # fmt: skip


FITTINGS: tuple[Codec, ...] = (
    _codec(EnergyFitting, EnerFittingConfig, 4, _read_energy, _write_energy),
    _codec(DOSFitting, DOSFittingConfig, 4, _read_dos, _write_dos),
    _codec(PropertyFitting, PropertyFittingConfig, 6, _read_property, _write_property),
    _codec(
        DipoleFitting, DipoleFittingConfig, 4, _read_dipole, _write_dipole, "embedding_width", "r_differentiable",
        "c_differentiable",
    ),
    _codec(PolarFitting, PolarFittingConfig, 5, _read_polar, _write_polar, "embedding_width"),
)  # fmt: skip
