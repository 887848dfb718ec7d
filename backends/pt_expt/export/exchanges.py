"""The exchanges of a program: put into one order that no compiler can change, and read off."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch._ops import OpOverload

from dpmodel.errors import BackendError

__all__ = ["EXCHANGES", "Exchange", "order_exchanges", "read_exchanges"]

EXCHANGES = {"dpmodel::ghost_forward": "forward", "dpmodel::ghost_reverse": "reverse"}
"""The operators that talk to other processes."""


class Exchange(NamedTuple):
    """One exchange of rows with other processes."""

    op: str
    """forward or reverse."""
    dtype: str
    width: int
    """Numbers per row."""


def order_exchanges(module: torch.fx.GraphModule) -> None:
    """Let every exchange of a trace depend on the one before, and drop those whose results nothing uses.

    Descriptors side by side pass messages independently of each other, and so do the derivatives of several
    components. Each process must make the same exchanges in the same order: the order in which they were traced becomes
    one of the data, by handles that are there only once the exchange before is done.
    """
    graph = module.graph
    graph.eliminate_dead_code()
    last: torch.fx.Node | None = None
    for node, behind in _dependencies(graph):
        if last is not None and last not in behind:
            rows, handle, size = node.args
            with graph.inserting_before(node):
                later = graph.call_function(torch.ops.dpmodel.ghost_after.default, (handle, last))
            node.args = (rows, later, size)
        last = node
    module.recompile()


def read_exchanges(graph: torch.fx.Graph) -> tuple[Exchange, ...]:
    """Those of an exported program, in order. Raises BackendError unless each can be carried and depends on the one before."""
    found: list[Exchange] = []
    last: torch.fx.Node | None = None
    for node, behind in _dependencies(graph):
        op, number = EXCHANGES[_schema_name(node.target)], len(found)
        if last is not None and last not in behind:
            raise BackendError(f"export: exchange {number} ({op}) does not depend on exchange {number - 1}")
        value = node.meta["val"]
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in ("float32", "float64"):
            raise BackendError(
                f"export: exchange {number} ({op}) is of {dtype}, only float32 and float64 can be exchanged: use "
                "precision 'float32' in the descriptor"
            )
        found.append(Exchange(op, dtype, int(np.prod([int(size) for size in value.shape[1:]]))))
        last = node
    return tuple(found)


def _dependencies(graph: torch.fx.Graph) -> list[tuple[torch.fx.Node, frozenset[torch.fx.Node]]]:
    """Every exchange, and the exchanges that it depends on."""
    found = []
    before: dict[torch.fx.Node, frozenset[torch.fx.Node]] = {}
    for node in graph.nodes:
        behind: frozenset[torch.fx.Node] = frozenset().union(*(before[each] for each in node.all_input_nodes))
        if node.op == "call_function" and _schema_name(node.target) in EXCHANGES:
            found.append((node, behind))
            behind |= {node}
        before[node] = behind
    return found


def _schema_name(target: object) -> str:
    return str(target).removesuffix(".default").replace(".", "::", 1) if isinstance(target, OpOverload) else ""
