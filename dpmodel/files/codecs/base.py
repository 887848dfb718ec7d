"""What the mapping between DeePMD-kit's dictionaries and our Ops is made of.

A `Codec` says which "type" it owns, its newest version, the upgrades to it, and how to read and write. Keys
that have the same name and meaning as an option of the `Config` are copied; only the rest is spelled out.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from dpmodel.config import Config, freeze, thaw
from dpmodel.descriptors import CONFIGS, Descriptor
from dpmodel.errors import ModelFileError
from dpmodel.files.nodes import Node, Upgrade
from dpmodel.input.values import coerce, hints, option_of, problem, show
from dpmodel.nn.activation import activation
from dpmodel.op import Op
from dpmodel.precision import dtype_name

__all__ = ["Codec", "add_type_map", "build_config", "options", "read_node", "refuse", "warn_of_unknown", "write_op"]

logger = logging.getLogger(__name__)

DERIVED = "dpmodel:"
"""Begins the "type" of descriptors whose layout is derived."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """How one kind of Op is stored."""

    op: type[Op]
    names: tuple[str, ...]
    """Values of "type" that mean it; the first is written."""
    version: int
    upgrades: Mapping[int, Upgrade]
    read: Callable[[Node], Any]
    write: Callable[[Any, tuple[str, ...]], dict[str, Any]]
    """From the Op and the type map of the model."""
    keys: Collection[str]
    """Keys that mean something here beyond those of `KEYS` and the options of the section, or are known not to."""
    config: type[Config] | None = None
    """The section whose options the dictionary holds."""


KEYS = frozenset({"@class", "type", "@version", "@variables", "type_map"})
"""Keys of every dictionary."""

OUT_OF_SCOPE = {
    "dpa4": "dpa3",
    "sezm": "dpa3",
    "sezm_ener": "ener",
    "sezm_spin": "the virtual-atom spin model (`spin` in the model section)",
    "sezm_native_spin": "the virtual-atom spin model (`spin` in the model section)",
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
    name = str(node.get("type", "standard") if what == "model" else node.get("type")).lower()
    for codec in table:
        if name in codec.names:
            warn_of_unknown(node, {*codec.keys, *(codec.config.options() if codec.config is not None else ())})
            return codec.read(node.upgraded(codec.version, codec.upgrades))
    if name.startswith(DERIVED) and what == "descriptor":
        return _read_derived(node.upgraded(1), name.removeprefix(DERIVED))
    known = sorted(codec.names[0] for codec in table)
    if name in OUT_OF_SCOPE:
        raise node.fail(f"a {what} of type {name!r} is out of scope of dpmodel; use {OUT_OF_SCOPE[name]} instead")
    raise node.fail(f"a {what} of type {name!r} is not known here; known are {known}")


def warn_of_unknown(node: Node, known: Collection[str]) -> None:
    """Say which keys have no effect."""
    unknown = sorted(str(key) for key in node.data if key not in known and key not in KEYS)
    if unknown:
        logger.warning("%s: not known here, and without effect: %s", node.path, ", ".join(unknown))


def write_op(op: Op, table: tuple[Codec, ...], type_map: tuple[str, ...]) -> dict[str, Any]:
    """The inverse of `read_node`."""
    for codec in table:
        if type(op) is codec.op and (codec.config is None or type(getattr(op, "config", None)) is codec.config):
            return codec.write(op, type_map)
    if isinstance(op, Descriptor):
        return {**_write_derived(op), "type_map": list(type_map)}
    raise ModelFileError(f"{type(op).__name__} has no file format; known are {[c.op.__name__ for c in table]}")


def options(node: Node, config: type[Config], *, skip: Collection[str] = ()) -> dict[str, Any]:
    """The keys that a config and its dictionary share by name, of the types that the config declares.

    Every option must be there: the defaults of input files are not those of model files, so a default would give
    other numbers. What older versions lack is for upgrades to add. Seeds, and options without effect, are not stored.
    """
    found = {}
    for name, annotation in hints(config).items():
        info = option_of(config, name)
        if name in skip or name == "seed" or info.effect == "ignored":
            continue
        value = thaw(node.get(name))
        wrong = problem(annotation, info, config.options()[name].default, value)
        if wrong is not None:
            raise node.fail(f"{name!r} should be {wrong}, got {show(value)}")
        if name == "activation_function":
            _check_activation(node, value)
        found[name] = freeze(coerce(annotation, value))
    return found


def _check_activation(node: Node, name: str) -> None:
    try:
        activation(name)
    except ValueError as wrong:
        raise node.fail(f"'activation_function': {wrong}") from wrong


def build_config(node: Node, config: type[Config], **extra: Any) -> Any:
    """The section that a dictionary amounts to; `extra` wins. Raises ModelFileError for options that do not form one."""
    found = {**options(node, config, skip=extra), **extra}
    try:
        section = config(**found)
        section.check()
        if "precision" in found:
            np.dtype(dtype_name(found["precision"]))
    except (TypeError, ValueError) as wrong:
        raise node.fail(
            f"the options do not form a {config.key or node.path.rpartition('.')[2]!r} section: {wrong}"
        ) from wrong
    infinite = [name for name, value in found.items() if isinstance(value, float) and not math.isfinite(value)]
    if infinite:
        raise node.fail(f"{infinite} should be finite numbers")
    return section


def refuse(node: Node, key: str, why: str) -> None:
    """Raise ModelFileError where a key that is not supported has a value."""
    if node.get(key, None) not in (None, False):
        raise node.fail(f"{key!r} = {node.get(key)!r}: {why}")


def add_type_map(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 of descriptors and fitting nets carries the type map; before, only the model did."""
    return {"type_map": None, **data}


# --- what DeePMD-kit does not have: a layout derived from the declared fields --------------------------------


def _write_derived(op: Descriptor) -> dict[str, Any]:
    """A descriptor without a dictionary of its own: its section, and its state by path."""
    return {
        "@class": "Descriptor",
        "type": DERIVED + op.config.key,
        "@version": 1,
        "ntypes": op.ntypes,
        "config": op.config.to_dict(),
        "@variables": {path: np.asarray(value) for path, value in op.state().items()},
    }


def _read_derived(node: Node, key: str) -> Any:
    config = next((kind for kind in CONFIGS if kind.key == key), None)
    if config is None:
        raise node.fail(f"a descriptor of type {key!r} is not known here; known are {[kind.key for kind in CONFIGS]}")
    ntypes, type_map = node.integer("ntypes"), tuple(node.items("type_map"))
    if len(type_map) != ntypes:
        raise node.fail(f"'ntypes' is {ntypes}, but 'type_map' is {list(type_map)}")
    try:
        options(node.node("config"), config)
        section: Any = config.from_dict(node.node("config").data)
        section.check()
        fresh = section.build(ntypes, type_map)
        own = fresh.state()
        state = {
            path: node.array(path, dtype=getattr(own.get(path), "dtype", None)) for path in node.node("@variables").data
        }
        return fresh.with_state(state)
    except ModelFileError:
        raise
    except (TypeError, ValueError) as wrong:
        raise node.fail(str(wrong)) from wrong
