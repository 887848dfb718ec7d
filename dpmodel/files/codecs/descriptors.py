"""Descriptors, as DeePMD-kit's files hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.config import thaw
from dpmodel.descriptors import SeA, SeAConfig
from dpmodel.files.codecs.base import Codec, add_type_map, build_config, refuse
from dpmodel.files.networks import read_collection, write_collection
from dpmodel.files.nodes import Node
from dpmodel.precision import dtype_name

__all__ = ["DESCRIPTORS"]


def _constant_statistics(node: Node, name: str, shape: tuple[int, int, int]) -> Any:
    """(ntypes, nnei, 4) -> (ntypes, 4). Statistics that vary along the slots are refused."""
    array = node.array(name, shape)
    if not np.array_equal(array, np.broadcast_to(array[:, :1], shape)):
        raise node.fail(
            f"{name!r} varies along the neighbour axis; every known writer makes it constant there, and dpmodel relies on it. "
            "Recompute the statistics in the program that wrote the file"
        )
    return array[:, 0].copy()


def _compressed(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 differs from 2 by the tables of a compressed model alone."""
    return dict(data)


def _read_se_a(node: Node) -> SeA:
    refuse(node, "compress", "reading compressed tables is out of scope; use the model before compression")
    refuse(node, "spin", "spin inside the descriptor belongs to version 1 of the format; use a spin model")
    sel = tuple(int(n) for n in node.get("sel"))
    config = build_config(node, SeAConfig, sel=sel)
    ntypes, nnei = len(sel), sum(sel)
    if nnei < 1:
        raise node.fail(f"sel = {list(sel)} leaves no room for neighbours")
    ndim = 1 if config.type_one_side else 2
    networks = read_collection(node.node("embeddings"), "embedding_network", ndim, ntypes)
    width = {net.layers[-1].w.shape[1] for net in networks}
    if width != {config.neuron[-1]}:
        raise node.fail(
            f"the embedding nets are {sorted(width)} wide, expected {config.neuron[-1]} (the end of 'neuron')"
        )
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
        upgrades={1: add_type_map, 2: _compressed},
        read=_read_se_a,
        write=_write_se_a,
    ),
)
