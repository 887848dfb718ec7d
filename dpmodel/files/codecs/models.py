"""Models, as DeePMD-kit's files hold them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from dpmodel.config import FrozenDict, freeze, thaw
from dpmodel.files.codecs.base import Codec, read_node, write_op
from dpmodel.files.codecs.descriptors import DESCRIPTORS
from dpmodel.files.codecs.fittings import FITTINGS
from dpmodel.files.nodes import Node
from dpmodel.fittings.base import Output
from dpmodel.fittings.ener import ENERGY
from dpmodel.models import LinearModel, Model, PairTable, SpinModel, StandardModel, ZBLModel
from dpmodel.precision import global_dtype

__all__ = ["MODELS", "read_model_tree", "write_model_tree"]


def read_base(node: Node, output: Output) -> dict[str, Any]:
    """What every model shares: type map, exclusions, biases."""
    type_map = tuple(node.items("type_map"))
    if not all(isinstance(name, str) for name in type_map) or len(set(type_map)) != len(type_map) or not type_map:
        raise node.fail(f"'type_map' should be a list of different symbols, got {list(type_map)}")
    shape = (1, len(type_map), math.prod(output.shape))
    pairs = [pair if isinstance(pair, list | tuple) else (pair,) for pair in node.items("pair_exclude_types")]
    types = node.items("atom_exclude_types")
    if any(len(pair) != 2 for pair in pairs) or not all(
        isinstance(t, int) and not isinstance(t, bool) and 0 <= t < len(type_map)
        for t in (*types, *itertools.chain(*pairs))
    ):
        raise node.fail(f"excluded types {types} or pairs {pairs} are not types from 0 to {len(type_map) - 1}")
    return {
        "type_map": type_map,
        "atom_exclude_types": tuple(types),
        "pair_exclude_types": tuple((a, b) for a, b in pairs),
        "preset_out_bias": _preset(node, len(type_map), output),
        "out_bias": node.array("out_bias", shape, dtype=global_dtype())[0],
        "out_std": node.array("out_std", shape, dtype=global_dtype())[0],
    }


def _preset(node: Node, ntypes: int, output: Output) -> FrozenDict | None:
    """By output, one entry per type: None or numbers."""
    if node.get("preset_out_bias", None) is None:
        return None
    found = {}
    for name in (preset := node.node("preset_out_bias")).data:
        values = [None if value is None else _numbers(preset, value) for value in preset.items(name)]
        if len(values) != ntypes or name != output.name:
            raise preset.fail(
                f"expected {ntypes} values (null or numbers) of {output.name!r}, got {len(values)} of {name!r}"
            )
        found[name] = freeze(values)
    return FrozenDict(found)


def _numbers(node: Node, value: Any) -> Any:
    try:
        array = np.asarray(value)
    except ValueError as problem:
        raise node.fail(f"{value!r} should be numbers ({problem})") from problem
    if array.dtype.kind not in "fiu" or not np.all(np.isfinite(array)):
        raise node.fail(f"{value!r} should be numbers")
    return array.astype(float).tolist()


def write_base(op: Any) -> dict[str, Any]:
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
    node.get("hessian_mode", False)  # Hessians are there for whoever asks
    descriptor = read_node(node.node("descriptor"), DESCRIPTORS, "descriptor")
    fitting = read_node(node.node("fitting"), FITTINGS, "fitting net")
    base = read_base(node, fitting.output())
    counts = {"type_map": len(base["type_map"]), "descriptor": descriptor.ntypes, "fitting": fitting.ntypes}
    if len(set(counts.values())) != 1:
        raise node.fail(f"numbers of types differ: {counts}")
    for part in (node.node("descriptor"), node.node("fitting")):
        own = part.get("type_map", None)
        if own is not None and part.items("type_map") != list(base["type_map"]):
            raise part.fail(f"'type_map' is {own}, but that of the model is {list(base['type_map'])}")
    if int(node.node("fitting").get("dim_descrpt")) != descriptor.dim_out:
        raise node.fail(
            f"the fitting net takes {node.node('fitting').get('dim_descrpt')} features, the descriptor makes {descriptor.dim_out}"
        )
    return StandardModel(descriptor=descriptor, fitting=fitting, **base)


def _write_standard(op: StandardModel, type_map: tuple[str, ...]) -> dict[str, Any]:
    fitting = {**write_op(op.fitting, FITTINGS, type_map), "exclude_types": list(op.atom_exclude_types)}
    descriptor = write_op(op.descriptor, DESCRIPTORS, type_map)
    head = {"@class": "Model", "type": "standard", "@version": 2}
    return {**head, **write_base(op), "descriptor": descriptor, "fitting": fitting}


def _model_1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 moved nothing that this reader looks at; files of version 1 may lack exclusions, which then are none."""
    return {"atom_exclude_types": [], "pair_exclude_types": [], **data}


# --- models of models --------------------------------------------------------------------------------------


def _read_parts(node: Node) -> tuple[tuple[Model, ...], Output]:
    parts: tuple[Model, ...] = tuple(read_node(part, PARTS, "model") for part in node.nodes("models"))
    if not parts or len({part.output() for part in parts}) != 1:
        raise node.fail(f"'models' should predict one and the same, got {[part.output().name for part in parts]}")
    for part in parts:
        missing = sorted(set(node.items("type_map")) - set(part.type_map))
        if missing:
            raise node.fail(f"a part has the types {list(part.type_map)}, which lack {missing}")
        if part.pair_exclude_types:
            raise node.fail("a part excludes pairs of types, which is not supported: exclude them in the whole model")
        if part.type_map != tuple(node.items("type_map")) and any(r.layout == "typed_slots" for r in part.requests()):
            raise node.fail("a part with neighbours counted by type needs the types of the whole model, in its order")
    return parts, parts[0].output()


def _read_linear(node: Node) -> LinearModel:
    parts, output = _read_parts(node)
    weights = node.get("weights", "mean")
    if weights not in ("mean", "sum"):
        numbers = _numbers(node, weights)
        if not isinstance(numbers, list) or len(numbers) != len(parts):
            raise node.fail(f"'weights' should be mean, sum or {len(parts)} numbers, got {weights!r}")
        weights = tuple(numbers)
    return LinearModel(parts=parts, weights=weights, **read_base(node, output))


def _read_zbl(node: Node) -> ZBLModel:
    parts, output = _read_parts(node)
    if len(parts) != 2 or not isinstance(parts[1], PairTable):
        raise node.fail("'models' should be a model and a pair table")
    low, high, alpha = node.number("sw_rmin"), node.number("sw_rmax"), node.number("smin_alpha", 0.1)
    if not 0.0 <= low < high or alpha <= 0.0:
        raise node.fail(f"expected 0 <= sw_rmin < sw_rmax and smin_alpha > 0, got {low}, {high} and {alpha}")
    return ZBLModel(parts=parts, smin_alpha=alpha, sw_rmin=low, sw_rmax=high, **read_base(node, output))


def _write_parts(op: LinearModel) -> dict[str, Any]:
    return {**write_base(op), "models": [write_op(part, PARTS, part.type_map) for part in op.parts]}


def _write_linear(op: LinearModel, _: tuple[str, ...]) -> dict[str, Any]:
    # DeePMD-kit 3.2.0 reads both names with NumPy, but knows only this one with PyTorch; it writes "linear".
    head = {"@class": "Model", "type": "linear_ener", "@version": 3}
    return {**head, **_write_parts(op), "weights": thaw(op.weights)}


def _write_zbl(op: ZBLModel, _: tuple[str, ...]) -> dict[str, Any]:
    head = {"@class": "Model", "type": "zbl", "@version": 2, "weights": "mean"}
    return {**head, **_write_parts(op), "sw_rmin": op.sw_rmin, "sw_rmax": op.sw_rmax, "smin_alpha": op.smin_alpha}


# --- pair tables -------------------------------------------------------------------------------------------


def _read_table(node: Node) -> PairTable:
    tab = node.node("tab").upgraded(1)
    ntypes, intervals = tab.integer("ntypes"), tab.integer("nspline")
    flat = tab.array("tab_data", dtype=np.float64)
    if flat.size != ntypes * ntypes * intervals * 4 or flat.size == 0:
        raise tab.fail(f"'tab_data' has {flat.size} numbers, expected 4 for {ntypes}^2 pairs and {intervals} intervals")
    rmin, step, cutoff = tab.number("rmin"), tab.number("hh"), node.number("rcut")
    if step <= 0.0 or cutoff <= 0.0:
        raise tab.fail(f"'hh' and 'rcut' should be above 0, got {step} and {cutoff}")
    sel = node.get("sel")
    sel = sum(sel) if isinstance(sel, list | tuple) else node.integer("sel")
    base = read_base(node, ENERGY)
    if ntypes != len(base["type_map"]):
        raise tab.fail(f"the table has {ntypes} types, 'type_map' {len(base['type_map'])}")
    return PairTable(
        rmin=rmin, step=step, cutoff=cutoff, sel=sel, coefficients=flat.reshape(ntypes, ntypes, intervals, 4),
        rows=tab.array("vdata", dtype=np.float64), rmax=tab.number("rmax"), **base,
    )  # fmt: skip


def _write_table(op: PairTable, _: tuple[str, ...]) -> dict[str, Any]:
    coefficients = np.asarray(op.coefficients)
    ntypes, _, intervals, _ = coefficients.shape
    tab = {
        "@class": "PairTab", "@version": 1, "rmin": op.rmin, "rmax": op.rmax, "hh": op.step, "ntypes": ntypes,
        "rcut": op.cutoff, "nspline": intervals,
        "@variables": {
            "vdata": np.asarray(op.rows),
            "tab_info": np.array([op.rmin, op.step, intervals, ntypes]),
            "tab_data": coefficients.ravel(),
        },
    }  # fmt: skip
    head = {"@class": "Model", "type": "pairtab", "@version": 2}
    return {**head, **write_base(op), "tab": tab, "rcut": op.cutoff, "sel": op.sel}


# --- spin --------------------------------------------------------------------------------------------------


def _read_spin(node: Node) -> SpinModel:
    backbone = _read_standard(node.node("backbone_model").upgraded(2, {1: _model_1_to_2}))
    spin, half = node.node("spin"), len(backbone.type_map) // 2
    use, scale = spin.items("use_spin"), np.ravel(_numbers(spin, spin.get("virtual_scale")))
    if len(backbone.type_map) != 2 * half or len(use) != half or not all(isinstance(flag, bool) for flag in use):
        raise node.fail(f"'use_spin' should be true or false for each of {half} types, got {use}")
    if scale.size not in (1, half):
        raise spin.fail(f"'virtual_scale' should be one number or {half}, got {scale.size}")
    scale = np.broadcast_to(scale, (half,)).astype(np.float64)
    return SpinModel(
        type_map=backbone.type_map[:half], backbone=backbone, use_spin=tuple(use), virtual_scale=scale.copy()
    )


def _write_spin(op: SpinModel, _: tuple[str, ...]) -> dict[str, Any]:
    scale = [float(value) for value in np.asarray(op.virtual_scale)]
    return {
        "type": "spin_ener",
        "backbone_model": _write_standard(op.backbone, op.backbone.type_map),
        "spin": {"use_spin": list(op.use_spin), "virtual_scale": scale},
    }


_BASE_KEYS = ("atom_exclude_types", "data_stat_protect", "pair_exclude_types", "preset_out_bias", "rcond")

_STANDARD = Codec(
    op=StandardModel,
    names=("standard",),
    version=2,
    upgrades={1: _model_1_to_2},
    read=_read_standard,
    write=_write_standard,
    keys=(*_BASE_KEYS, "descriptor", "fitting", "hessian_mode"),
)
_TABLE = Codec(
    op=PairTable,
    names=("pairtab",),
    version=2,
    upgrades={1: _model_1_to_2},
    read=_read_table,
    write=_write_table,
    keys=(*_BASE_KEYS, "tab", "rcut", "sel"),
)
PARTS: tuple[Codec, ...] = (_STANDARD, _TABLE)
"""What models of models are made of."""
MODELS: tuple[Codec, ...] = (
    _STANDARD,
    Codec(
        op=LinearModel,
        names=("linear", "linear_ener"),
        version=3,
        upgrades={1: _model_1_to_2},
        read=_read_linear,
        write=_write_linear,
        keys=(*_BASE_KEYS, "models", "weights"),
    ),
    Codec(
        op=ZBLModel,
        names=("zbl",),
        version=2,
        upgrades={1: _model_1_to_2},
        read=_read_zbl,
        write=_write_zbl,
        keys=(*_BASE_KEYS, "models", "weights", "sw_rmin", "sw_rmax", "smin_alpha"),
    ),
    Codec(
        op=SpinModel,
        names=("spin_ener",),
        version=1,
        upgrades={},
        read=_read_spin,
        write=_write_spin,
        keys=("backbone_model", "spin"),
    ),
)


def read_model_tree(data: Any) -> Model:
    """A model from its dictionary."""
    model: Model = read_node(Node(data, "model"), MODELS, "model")
    return model


def write_model_tree(model: Model) -> dict[str, Any]:
    """The inverse of `read_model_tree`."""
    return write_op(model, MODELS, model.type_map)
