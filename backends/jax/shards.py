"""A batch on several devices: each gets some of its frames, padded to one size, and the loss sees all of them again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpmodel.evaluation import select_centres
from dpmodel.geometry.padding import Sizes, pad_graph
from dpmodel.graph import Graph, Leaf, map_leaves, sized

__all__ = ["Part", "join", "pad_rows", "split_frames", "stack"]


class Part(NamedTuple):
    """Some consecutive frames of a batch."""

    graph: Graph
    atoms: slice
    """Rows of labels of atoms in the whole batch."""
    frames: slice
    """Rows of labels of frames in the whole batch."""


def split_frames(graph: Graph, parts: int) -> list[Part]:
    """The graph of a batch (NumPy, without ghosts) cut into parts of equally many frames, as far as that goes."""
    count = graph.natoms.shape[0]
    if parts == 1:
        return [Part(graph, slice(None), slice(None))]
    cuts = [round(k * count / parts) for k in range(parts + 1)]
    return [_select_frames(graph, first, last) for first, last in itertools.pairwise(cuts)]


def _select_frames(graph: Graph, first: int, last: int) -> Part:
    def rows_of(frame: np.ndarray) -> slice:
        return slice(*(int(row) for row in np.searchsorted(frame, (first, last))))

    rows = {"frames": slice(first, last), "atoms": rows_of(graph.frame)}
    rows["nodes"] = labels = rows["atoms"]
    if graph.virtual is not None:
        rows["virtual.pairs"] = rows_of(graph.virtual.frame)
        rows["virtual.owned"] = labels = rows_of(graph.virtual.frame[graph.virtual.owned])
    part, _ = select_centres(graph.replace(virtual=None), rows["atoms"].start, rows["atoms"].stop)

    def select(leaf: Leaf) -> np.ndarray:
        """A leaf that `select_centres` leaves as it is."""
        x: np.ndarray = leaf.array
        own = leaf.axes[0] == "frames" or leaf.path.startswith("virtual.")
        x = x[rows[leaf.axes[0]]] if own else x
        return x - rows[leaf.points].start if leaf.points in rows and (own or leaf.points == "frames") else x

    selected: Graph = map_leaves(part.replace(virtual=graph.virtual), select)
    return Part(selected, labels, rows["frames"])


def pad_rows(x: np.ndarray, rows: slice, size: int) -> np.ndarray:
    """Some rows of labels, with zeros behind them up to `size`."""
    own = x[rows]
    padded = np.zeros((size, *x.shape[1:]), x.dtype)
    padded[: len(own)] = own
    return padded


def stack(parts: Sequence[Part], sizes: Sizes) -> Graph:
    """The padded parts, one behind the other along a new first axis of every array."""
    leaves = [iter(sized(pad_graph(part.graph, sizes))) for part in parts]
    stacked: Graph = map_leaves(parts[0].graph, lambda _: np.stack([next(each).array for each in leaves]))
    return stacked


def join(stacked: Graph, sizes: Sizes) -> Graph:
    """Stacked parts as one graph without edges and views, which is what a loss reads."""
    count = stacked.natoms.shape[0]

    def flat(leaf: Leaf) -> np.ndarray:
        x: np.ndarray = leaf.array
        if leaf.axes[0] == "edges":
            return x[0, :0]
        if leaf.points is not None:
            x = x + sizes[leaf.points] * np.arange(count).reshape(-1, *(1,) * (x.ndim - 1))
        return x.reshape(-1, *x.shape[2:])

    joined: Graph = map_leaves(stacked.replace(views=(), types=None), flat)
    return joined
