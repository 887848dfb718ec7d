"""Models, as DeePMD-kit's files hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.config import FrozenDict, freeze, thaw
from dpmodel.files.codecs.base import Codec, read_node, write_op
from dpmodel.files.codecs.descriptors import DESCRIPTORS
from dpmodel.files.codecs.fittings import FITTINGS
from dpmodel.files.nodes import Node
from dpmodel.models import Model, StandardModel
from dpmodel.precision import global_dtype

__all__ = ["MODELS", "read_model_tree", "write_model_tree"]


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
