"""hybrid."""

from __future__ import annotations

from typing import Any

from dpmodel.descriptors import Hybrid, HybridConfig
from dpmodel.files.codecs.base import Codec, read_node, write_op
from dpmodel.files.nodes import Node

__all__ = ["hybrid_codec"]


def hybrid_codec(parts: tuple[Codec, ...]) -> Codec:
    """The codec of hybrids of what `parts` know."""

    def read(node: Node) -> Hybrid:
        found = tuple(read_node(part, parts, "descriptor") for part in node.nodes("list"))
        if not found or len({part.ntypes for part in found}) != 1:
            raise node.fail(f"'list' should hold descriptors of equal 'ntypes', got {[part.ntypes for part in found]}")
        config = HybridConfig(list=tuple(part.config for part in found))
        return Hybrid(config=config, ntypes=found[0].ntypes, parts=found)

    def write(op: Hybrid, type_map: tuple[str, ...]) -> dict[str, Any]:
        return {
            "@class": "Descriptor",
            "type": "hybrid",
            "@version": 1,
            "list": [write_op(part, parts, type_map) for part in op.parts],
        }

    return Codec(op=Hybrid, names=("hybrid",), version=1, upgrades={}, read=read, write=write, keys=("list",))
