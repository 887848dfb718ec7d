"""Sending home what derivatives leave on ghosts."""

from __future__ import annotations

from collections.abc import Callable

from dpmodel.graph import Graph
from dpmodel.op import Array
from dpmodel.ops import segment_sum, take_rows

__all__ = ["NODE_KEYS", "fold"]

NODE_KEYS = frozenset({"force", "force_mag", "atom_virial"})
"""Outputs that have rows of ghosts: shares of atoms that another row or another process owns."""


def fold(value: Array, graph: Graph, home: Callable[[Array], Array]) -> Array:
    """The rows of owned atoms with the shares of their ghosts.

    value: an output of `NODE_KEYS` for a graph whose ghosts keep their shares: a row for every node, or (with virtual
    atoms) for every pair. home: from rows of all nodes to those of the owned ones, to which it adds those of ghosts.
    """
    virtual = graph.virtual
    if virtual is None:
        return home(value)
    nodes = segment_sum(value, virtual.real, graph.atype.shape[0])
    return take_rows(home(nodes), take_rows(virtual.real, virtual.owned))
