"""Graphs of bucketed sizes, so that a compiled function meets few distinct shapes.

`pad_graph` appends: the real atoms, edges and frames keep their rows, so outputs are un-padded by slicing,
`out[:n]` for atoms and `out[:f]` for frames. With ghosts (m > n), rows of nodes are
[n owned, padding, m - n ghosts, padding]: slice the owned rows the same way.

Padding atoms are virtual (type -1) and belong to the last frame, which is always an added, empty one. What
padding holds is declared by the fields of the records (`dpmodel.graph.axes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.graph import LAST, Graph, Leaf, TypeGroups, check, map_leaves, sized

__all__ = ["Buckets", "Sizes", "bucket_sizes", "graph_sizes", "pad_graph", "rounded_up"]

Sizes = Mapping[str, int]
"""The size of every axis of a graph, by the names of `dpmodel.graph.sized`."""

_GROWTH = 1.25
_SMALLEST = {"atoms": 8, "nodes": 8, "edges": 32, "frames": 2}
"""Smallest bucket of the axes. None is 0 or 1, which compilers treat as special cases."""
_SMALLEST_PRIVATE = 4
"""Smallest bucket of all other axes."""
_WASTE = 2.0
"""An earlier bucket is used again while it is at most this much larger than a fresh one."""
_NEGLIGIBLE = 16384
"""Numbers in a graph that is so small that its size does not matter."""
_FRAMES = 16
"""Frames that cost nothing."""
_MANY = 3
"""So many sizes, and each so many more, double what is wasteful: compiling takes longer than many steps."""


def graph_sizes(graph: Graph) -> dict[str, int]:
    """The sizes of a graph as it is. Raises ValueError where its arrays disagree."""
    return check(graph)


def bucket_sizes(graph: Graph, previous: Sizes | None = None) -> dict[str, int]:
    """Sizes to pad to: each rounded up in steps of 25 %, and one frame more than the graph has.

    With `previous`, each of its sizes that suffices and is not wasteful (at most twice a fresh one) is taken instead,
    so sizes that fluctuate about a step do not alternate.
    """
    now = graph_sizes(graph)

    def choose(axis: str, size: int) -> int:
        bucket = rounded_up(size, _SMALLEST.get(axis, _SMALLEST_PRIVATE))
        before = (previous or {}).get(axis, 0)
        return before if bucket <= before <= _WASTE * bucket else bucket

    sizes = {axis: choose(axis, size + (axis == "frames")) for axis, size in now.items()}
    ghosts = now["nodes"] - now["atoms"]
    sizes["nodes"] = choose("nodes", sizes["atoms"] + ghosts) if ghosts else sizes["atoms"]
    return sizes


def rounded_up(size: int, smallest: int) -> int:
    """The first of the sizes smallest, and each 25 % more, that is not below `size`."""
    bucket = smallest
    while bucket < size:
        bucket = _step(bucket)
    return bucket


class Buckets:
    """Sizes that graphs share, so that a compiled function meets few of them in a long run over many systems.

    A graph takes the smallest sizes known so far that hold it in at most twice the numbers that sizes of its own would
    need (four times, eight times ... once there are many). Otherwise sizes are added that hold it and, within the same
    bound, what earlier ones held, the largest first. What is chosen depends on the graphs before, so `known` belongs to
    the state of a run that is to be repeated exactly.
    """

    def __init__(self, known: Iterable[Sizes] = ()) -> None:
        self.known: list[dict[str, int]] = [dict(sizes) for sizes in known]

    def choose(self, *graphs: Graph) -> Sizes:
        """Sizes that hold each of the graphs, which have the same structure (parts of one batch)."""
        fresh = _largest(*map(bucket_sizes, graphs))
        fresh["frames"] = max(fresh["frames"], _FRAMES)
        least = _largest(*map(_least_sizes, graphs))
        alike = [sizes for sizes in self.known if sizes.keys() == fresh.keys()]
        alike.sort(key=lambda sizes: _count(graphs[0], sizes))
        bound = max(_WASTE * 2 ** (len(alike) // _MANY) * _count(graphs[0], fresh), _NEGLIGIBLE)
        for sizes in alike:
            if _holds(sizes, least) and _count(graphs[0], sizes) <= bound:
                return sizes
        for sizes in reversed(alike):
            # What outgrew earlier sizes once is likely to grow again: more than is needed now.
            wider = {axis: _step(_step(size)) if size > sizes[axis] else size for axis, size in fresh.items()}
            wider["nodes"] = wider["atoms"] + fresh["nodes"] - fresh["atoms"]
            both = _largest(wider, sizes)
            if _count(graphs[0], both) <= bound:
                fresh = both
        self.known.append(fresh)
        return fresh


def _largest(*several: Sizes) -> dict[str, int]:
    """The largest size of every axis; nodes are those atoms and the most ghosts."""
    found = {axis: max(sizes[axis] for sizes in several) for axis in several[0]}
    return {**found, "nodes": found["atoms"] + max(sizes["nodes"] - sizes["atoms"] for sizes in several)}


def _least_sizes(graph: Graph) -> dict[str, int]:
    now = graph_sizes(graph)
    return {**now, "frames": now["frames"] + 1}


def _holds(sizes: Sizes, least: Sizes) -> bool:
    ghosts = least["nodes"] - least["atoms"] <= sizes["nodes"] - sizes["atoms"]
    return ghosts and all(sizes[axis] >= size for axis, size in least.items())


def _count(graph: Graph, sizes: Sizes) -> int:
    """Numbers in the arrays of a graph of these sizes."""
    return sum(math.prod([*(sizes[axis] for axis in leaf.axes), *leaf.static]) for leaf in sized(graph))


def _step(size: int) -> int:
    return math.ceil(size * _GROWTH)


def pad_graph(graph: Graph, sizes: Sizes) -> Graph:
    """The graph (of NumPy arrays) padded to `sizes`. Sums over its atoms, edges, slots and angles are those of before.

    Raises InputError where a size is too small, or the frames leave no empty one, or `graph.comm` is set (its owner
    knows the rows as they are).
    """
    if graph.comm is not None:
        raise InputError("a graph whose ghosts another process owns cannot be padded")
    now = graph_sizes(graph)
    _check_fits(now, sizes)
    n, ghosts = now["atoms"], now["nodes"] - now["atoms"]
    first_ghost = sizes["atoms"]

    def pad(leaf: Leaf) -> np.ndarray:
        x = leaf.array
        if leaf.points == "nodes" and first_ghost > n:
            x = np.where(x >= n, x + first_ghost - n, x)
        shape = (*(sizes[axis] for axis in leaf.axes), *leaf.static)
        if shape == x.shape:
            return x
        value: Any = leaf.pad
        if leaf.pad is LAST and leaf.points is not None:
            value = sizes[leaf.points] - 1
        if leaf.points is not None and sizes[leaf.points] == 0:
            raise InputError(f"sizes[{leaf.points!r}] must be at least 1: padding of {leaf.path} names a row of it")
        new = np.empty(shape, x.dtype)
        new[...] = value
        if leaf.axes[:1] == ("nodes",):
            new[:n], new[first_ghost : first_ghost + ghosts] = x[:n], x[n:]
        else:
            new[tuple(map(slice, x.shape))] = x
        return new

    padded: Graph = map_leaves(graph, pad)
    if padded.owner is not None and first_ghost > n:
        padded.owner[n:first_ghost] = np.arange(n, first_ghost)
    if graph.types is not None and padded.types is not None:
        padded = padded.replace(types=_pad_groups(graph.types, padded.types))
    return padded


def _check_fits(now: Sizes, sizes: Sizes) -> None:
    if now.keys() != sizes.keys():
        raise InputError(f"sizes has entries {sorted(sizes)}, the graph {sorted(now)}; take them from bucket_sizes")
    for axis, size in now.items():
        least = size + (axis == "frames")
        if axis == "nodes":
            least += sizes["atoms"] - now["atoms"]
        if sizes[axis] < least:
            raise InputError(
                f"sizes[{axis!r}] must be at least {least}, got {sizes[axis]}; take them from bucket_sizes"
            )


def _pad_groups(types: TypeGroups, padded: TypeGroups) -> TypeGroups:
    """The places of atoms move with their groups. Padding atoms read the first row of all."""
    place = np.zeros_like(padded.place)
    start = base = 0
    for group, longer in zip(types.rows, padded.rows, strict=True):
        own = np.flatnonzero((types.place >= start) & (types.place < start + len(group)))
        place[own] = types.place[own] - start + base
        start, base = start + len(group), base + len(longer)
    return padded.replace(place=place)
