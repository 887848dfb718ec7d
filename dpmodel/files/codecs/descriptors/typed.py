"""se_e2_a, se_e2_r, se_e3: nets per type, one environment matrix."""

from __future__ import annotations

import functools
from typing import Any

from dpmodel.config import thaw
from dpmodel.descriptors import SeA, SeAConfig, SeR, SeRConfig, SeT, SeTConfig
from dpmodel.descriptors.environment import EnvironmentDescriptor, TypedConfig
from dpmodel.files.codecs.base import Codec, build_config, refuse
from dpmodel.files.codecs.descriptors.shared import (
    check_excluded,
    check_radii,
    env_mat,
    read_counts,
    read_statistics,
    upgrade_1_to_2,
    upgrade_of_tables,
    write_statistics,
)
from dpmodel.files.networks import read_collection, write_collection
from dpmodel.files.nodes import Node
from dpmodel.precision import dtype_name

__all__ = ["SE_A_CODEC", "SE_R_CODEC", "SE_T_CODEC"]


def _keys(config: TypedConfig) -> int:
    """How many types name a net."""
    if isinstance(config, SeTConfig):
        return 2
    return 1 if config.type_one_side else 2  # type: ignore[attr-defined]  # an option of the two others


def _read(op: type[Any], kind: type[TypedConfig], node: Node) -> EnvironmentDescriptor:
    refuse(node, "compress", "reading compressed tables is out of scope; use the model before compression")
    refuse(node, "spin", "spin inside the descriptor belongs to version 1 of the format; use a spin model")
    sel = read_counts(node)
    config = build_config(node, kind, sel=sel)
    if isinstance(config, SeRConfig) and not config.type_one_side:
        raise node.fail("'type_one_side' is false: nets per pair of types do not exist for this descriptor")
    ntypes, dtype = len(sel), dtype_name(config.precision)
    check_radii(node, config)
    check_excluded(node, config.exclude_types, ntypes)
    networks = read_collection(
        node.node("embeddings"), "embedding_network", _keys(config), ntypes, widths=(1, *config.neuron), dtype=dtype
    )
    statistics = read_statistics(node, ntypes, sum(sel), dtype, columns=1 if op.radial_only else 4, centred=op is SeT)
    return op(config=config, ntypes=ntypes, networks=networks, **statistics)


def _write(kind: str, op: Any, type_map: tuple[str, ...]) -> dict[str, Any]:
    cfg = op.config
    shared = {name: thaw(getattr(cfg, name)) for name in cfg.options() if name not in ("seed", "precision")}
    precision = dtype_name(cfg.precision)
    embeddings = write_collection(
        op.networks, "embedding_network", _keys(cfg), op.ntypes, resnet_dt=cfg.resnet_dt, precision=precision,
        activation=cfg.activation_function,
    )  # fmt: skip
    return {
        "@class": "Descriptor",
        "type": kind,
        "@version": 2,
        **shared,
        "precision": precision,
        **({} if isinstance(op, SeT) else {"spin": None}),
        "env_mat": env_mat(cfg.rcut, cfg.rcut_smth, cfg.env_protection),
        "embeddings": embeddings,
        "type_map": list(type_map),
        "@variables": write_statistics(op, sum(cfg.sel)),
    }


def _codec(op: type[EnvironmentDescriptor], config: type[TypedConfig], *names: str) -> Codec:
    return Codec(
        op=op,
        names=names,
        version=3,
        upgrades={1: upgrade_1_to_2, 2: upgrade_of_tables},
        read=functools.partial(_read, op, config),
        write=functools.partial(_write, names[0]),
        keys=("compress", "embeddings", "env_mat", "ntypes", "spin"),
        config=config,
    )


SE_A_CODEC = _codec(SeA, SeAConfig, "se_e2_a", "se_a")
SE_R_CODEC = _codec(SeR, SeRConfig, "se_r", "se_e2_r")
SE_T_CODEC = _codec(SeT, SeTConfig, "se_e3", "se_at", "se_a_3be", "se_t")
