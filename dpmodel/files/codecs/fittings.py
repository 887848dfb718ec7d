"""Fitting nets, as DeePMD-kit's files hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.config import Config, thaw
from dpmodel.files.codecs.base import Codec, add_type_map, build_config, refuse
from dpmodel.files.networks import read_collection, write_collection
from dpmodel.files.nodes import Node, Upgrade
from dpmodel.fittings import EnerFittingConfig, EnergyFitting
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


def _read_fitting_state(node: Node, config: type[Config], dim_out: int) -> dict[str, Any]:
    """Fields of a `Fitting`."""
    refuse(node, "tot_ener_zero", "a total energy shifted to zero is not supported")
    refuse(node, "spin", "spin inside the fitting net belongs to version 1 of the format; use a spin model")
    refuse(node, "layer_name", "sharing layers by name is not supported")
    extra: dict[str, Any] = {"layer_name": None, "trainable": _flags(node)}
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


def _write_fitting(op: Fitting, type_map: tuple[str, ...], kind: str, dim_out: int) -> dict[str, Any]:
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


FITTINGS: tuple[Codec, ...] = (
    Codec(
        op=EnergyFitting,
        names=("ener",),
        version=4,
        upgrades=FITTING_UPGRADES,
        read=lambda node: EnergyFitting(**_read_fitting_state(node, EnerFittingConfig, 1)),
        write=lambda op, type_map: _write_fitting(op, type_map, "ener", 1),
        keys=(
            "dim_descrpt",
            "dim_out",
            "exclude_types",
            "layer_name",
            "mixed_types",
            "nets",
            "ntypes",
            "rcond",
            "spin",
            "tot_ener_zero",
            "var_name",
        ),
        config=EnerFittingConfig,
    ),
)
