"""se_e2_a."""

from __future__ import annotations

from typing import Any

from dpmodel.config import thaw
from dpmodel.descriptors import SeA, SeAConfig
from dpmodel.files.codecs.base import Codec, add_type_map, build_config, refuse
from dpmodel.files.codecs.descriptors.shared import env_mat, read_statistics, write_statistics
from dpmodel.files.networks import read_collection, write_collection
from dpmodel.files.nodes import Node
from dpmodel.precision import dtype_name

__all__ = ["SE_A_CODEC"]


def _1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 carries the type map; the protected distance came while version 1 was current, so it may be missing."""
    return add_type_map({"env_protection": 0.0, **data})


def _compressed(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 differs from 2 by the tables of a compressed model alone."""
    return dict(data)


def _read(node: Node) -> SeA:
    refuse(node, "compress", "reading compressed tables is out of scope; use the model before compression")
    refuse(node, "spin", "spin inside the descriptor belongs to version 1 of the format; use a spin model")
    sel = _selection(node)
    config = build_config(node, SeAConfig, sel=sel)
    if config.rcut_smth >= config.rcut or not 0 < config.axis_neuron <= (config.neuron or (0,))[-1]:
        raise node.fail(
            f"rcut_smth = {config.rcut_smth} should be below rcut = {config.rcut}, and axis_neuron = "
            f"{config.axis_neuron} at most the last of neuron = {list(config.neuron)}"
        )
    ntypes, nnei = len(sel), sum(sel)
    ndim, dtype = 1 if config.type_one_side else 2, dtype_name(config.precision)
    networks = read_collection(
        node.node("embeddings"), "embedding_network", ndim, ntypes, widths=(1, *config.neuron), dtype=dtype
    )
    return SeA(config=config, ntypes=ntypes, networks=networks, **read_statistics(node, ntypes, nnei, dtype))


def _selection(node: Node) -> tuple[int, ...]:
    sel = node.items("sel")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sel) or sum(sel) < 1:
        raise node.fail(f"'sel' should be one number of neighbours per type, at least one in all; got {sel}")
    return tuple(sel)


def _write(op: SeA, type_map: tuple[str, ...]) -> dict[str, Any]:
    cfg = op.config
    shared = {name: thaw(getattr(cfg, name)) for name in cfg.options() if name not in ("seed", "precision")}
    precision = dtype_name(cfg.precision)
    embeddings = write_collection(
        op.networks, "embedding_network", 1 if cfg.type_one_side else 2, op.ntypes, resnet_dt=cfg.resnet_dt,
        precision=precision, activation=cfg.activation_function,
    )  # fmt: skip
    return {
        "@class": "Descriptor",
        "type": "se_e2_a",
        "@version": 2,
        **shared,
        "precision": precision,
        "spin": None,
        "env_mat": env_mat(cfg.rcut, cfg.rcut_smth, cfg.env_protection),
        "embeddings": embeddings,
        "type_map": list(type_map),
        "@variables": write_statistics(op, sum(cfg.sel)),
    }


SE_A_CODEC = Codec(
    op=SeA,
    names=("se_e2_a", "se_a"),
    version=3,
    upgrades={1: _1_to_2, 2: _compressed},
    read=_read,
    write=_write,
    keys=("compress", "embeddings", "env_mat", "ntypes", "spin"),
    config=SeAConfig,
)
