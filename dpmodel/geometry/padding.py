"""Graphs of bucketed sizes, so that a compiled function meets few distinct shapes.

`pad_graph` appends: the real atoms, edges and frames keep their rows, so outputs are un-padded by slicing,
`out[:n]` for atoms and `out[:f]` for frames. With ghosts (m > n), rows of nodes are
[n owned, padding, m - n ghosts, padding]: slice the owned rows the same way.

Padding atoms are virtual (type -1) and belong to the last frame, which is always an added, empty one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.graph import Graph, Slots, TypeGroups

__all__ = ["Sizes", "bucket_sizes", "graph_sizes", "pad_graph"]

_GROWTH = 1.25
_SMALLEST = {"atoms": 8, "nodes": 8, "edges": 32, "frames": 2, "widths": 4, "groups": 4}
"""Smallest bucket of each size. None is 0 or 1, which compilers treat as special cases."""
_WASTE = 2.0
"""An earlier bucket is used again while it is at most this much larger than a fresh one."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Every size of a graph that arrays' shapes depend on; hashable."""

    atoms: int
    nodes: int
    edges: int
    frames: int
    widths: tuple[int, ...] = ()
    """Widths of all `Slots` in `Graph.views`, depth first."""
    groups: tuple[int, ...] = ()
    """Lengths of `Graph.types.rows`; empty without grouping."""


def graph_sizes(graph: Graph) -> Sizes:
    """The sizes of a graph as it is."""
    return Sizes(
        atoms=graph.frame.shape[0],
        nodes=graph.atype.shape[0],
        edges=graph.centre.shape[0],
        frames=graph.natoms.shape[0],
        widths=tuple(slots.edge.shape[1] for slots in _all_slots(graph.views)),
        groups=() if graph.types is None else tuple(rows.shape[0] for rows in graph.types.rows),
    )


def bucket_sizes(graph: Graph, previous: Sizes | None = None) -> Sizes:
    """Sizes to pad to: each rounded up in steps of 25 %, and one frame more than the graph has.

    With `previous`, each of its sizes that suffices and is not wasteful (at most twice a fresh one) is taken instead,
    so sizes that fluctuate about a step do not alternate.
    """
    now = graph_sizes(graph)

    def fresh(name: str, size: int) -> int:
        bucket = _SMALLEST[name]
        while bucket < size:
            bucket = math.ceil(bucket * _GROWTH)
        return bucket

    def choose(name: str, size: Any, before: Any) -> Any:
        if isinstance(size, tuple):
            same = isinstance(before, tuple) and len(before) == len(size)
            return tuple(choose(name, s, b) for s, b in zip(size, before if same else (None,) * len(size), strict=True))
        bucket = fresh(name, size)
        return before if before is not None and bucket <= before <= _WASTE * bucket else bucket

    before = {} if previous is None else dataclasses.asdict(previous)
    want = {**dataclasses.asdict(now), "frames": now.frames + 1}
    sizes = {name: choose(name, size, before.get(name)) for name, size in want.items()}
    sizes["nodes"] = sizes["atoms"]
    if now.nodes > now.atoms:
        sizes["nodes"] = choose("nodes", sizes["atoms"] + now.nodes - now.atoms, before.get("nodes"))
    return Sizes(**sizes)


def pad_graph(graph: Graph, sizes: Sizes) -> Graph:
    """The graph (of NumPy arrays) padded to `sizes`. Sums over its atoms, edges and slots are those of the original.

    Raises InputError where a size is too small, or the frames leave no empty one, or `graph.comm` is set (its owner
    knows the rows as they are).
    """
    now = graph_sizes(graph)
    _check_fits(now, sizes, graph)
    n, added = now.atoms, sizes.atoms - now.atoms
    lengths = {"atoms": added, "nodes": sizes.nodes - now.nodes, "edges": sizes.edges - now.edges}

    def extend(x: np.ndarray | None, count: int, value: Any = 0) -> Any:
        """Append `count` rows."""
        if x is None or count == 0:
            return x
        return np.concatenate([x, np.broadcast_to(np.asarray(value, x.dtype), (count, *x.shape[1:]))])

    def extend_nodes(x: np.ndarray, value: Any) -> Any:
        """Owned rows, padding, ghosts, padding."""
        return extend(np.concatenate([extend(x[:n], added, value), x[n:]]), lengths["nodes"] - added, value)

    owner = graph.owner
    if owner is not None:
        owner = extend_nodes(owner, max(sizes.atoms - 1, 0))
        owner[n : sizes.atoms] = np.arange(n, sizes.atoms)
    neighbour = np.where(graph.neighbour >= n, graph.neighbour + added, graph.neighbour) if added else graph.neighbour
    return graph.replace(
        atype=extend_nodes(graph.atype, -1),
        frame=extend(graph.frame, added, sizes.frames - 1),
        natoms=extend(graph.natoms, sizes.frames - now.frames),
        centre=extend(graph.centre, lengths["edges"]),
        neighbour=extend(neighbour, lengths["edges"]),
        edge_vec=extend(graph.edge_vec, lengths["edges"], (1.0, 0.0, 0.0)),
        edge_mask=extend(graph.edge_mask, lengths["edges"], False),
        views=_pad_views(graph.views, iter(sizes.widths), sizes.atoms),
        types=None if graph.types is None else _pad_groups(graph.types, sizes.groups, sizes.atoms),
        owner=owner,
        fparam=extend(graph.fparam, sizes.frames - now.frames),
        charge_spin=extend(graph.charge_spin, sizes.frames - now.frames),
        aparam=extend(graph.aparam, added),
        spin=extend(graph.spin, added),
    )


def _check_fits(now: Sizes, sizes: Sizes, graph: Graph) -> None:
    want, have = dataclasses.asdict(now), dataclasses.asdict(sizes)
    for name, least in {**want, "frames": now.frames + 1}.items():
        pairs = zip(least, have[name], strict=False) if isinstance(least, tuple) else [(least, have[name])]
        if isinstance(least, tuple) and len(least) != len(have[name]):
            raise InputError(f"sizes.{name} has {len(have[name])} entries, the graph {len(least)}")
        if any(size < low for low, size in pairs):
            raise InputError(f"sizes.{name} must be at least {least}, got {have[name]}; take them from bucket_sizes")
    if sizes.nodes - now.nodes < sizes.atoms - now.atoms:
        raise InputError(f"sizes.nodes must be at least {now.nodes + sizes.atoms - now.atoms}, got {sizes.nodes}")
    if graph.types is not None and sizes.atoms == 0:
        raise InputError("sizes.atoms must be at least 1: padded groups repeat row 0")
    if graph.comm is not None:
        raise InputError("a graph whose ghosts another process owns cannot be padded")


def _all_slots(views: Any) -> Iterator[Slots]:
    if isinstance(views, Slots):
        yield views
    else:
        for view in views:
            yield from _all_slots(view)


def _pad_views(views: Any, widths: Iterator[int], atoms: int) -> Any:
    if not isinstance(views, Slots):
        return tuple(_pad_views(view, widths, atoms) for view in views)
    n, width = views.edge.shape
    margins = ((0, atoms - n), (0, next(widths) - width))
    pad: Callable[..., np.ndarray] = np.pad
    return Slots(edge=pad(views.edge, margins), mask=pad(views.mask, margins))


def _pad_groups(types: TypeGroups, lengths: tuple[int, ...], atoms: int) -> TypeGroups:
    """Row 0 fills each group; the places of atoms move with their groups. Padding atoms read the first row of all."""
    place = np.zeros(atoms, types.place.dtype)
    rows, start, base = [], 0, 0
    for group, length in zip(types.rows, lengths, strict=True):
        count = group.shape[0]
        own = (types.place >= start) & (types.place < start + count)
        place[: len(own)][own] = types.place[own] - start + base
        rows.append(np.concatenate([group, np.zeros(length - count, group.dtype)]))
        start, base = start + count, base + length
    return TypeGroups(rows=tuple(rows), place=place)
