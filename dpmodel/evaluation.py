"""Evaluating a graph in pieces that fit into memory, and putting the pieces together."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from dpmodel.backend import Evaluator
from dpmodel.errors import InputError
from dpmodel.fittings.base import Output
from dpmodel.graph import Angles, Edges, Graph, Leaf, Slots, TypeGroups, map_leaves
from dpmodel.models import HessianRequest, Model

__all__ = ["assemble_frames", "atoms_per_call", "evaluate_graph", "select_centres"]

BYTES_PER_CALL = 1 << 30
"""Rough bound on the temporaries of one call."""


def atoms_per_call(model: Model) -> int:
    """How many atoms one call may hold: `DP_INFER_BATCH_SIZE`, else what keeps temporaries near 1 GiB."""
    text = os.environ.get("DP_INFER_BATCH_SIZE")
    if text is None:
        return max(64, BYTES_PER_CALL // max(1, model.bytes_per_atom()))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"DP_INFER_BATCH_SIZE must be a number of atoms above 0, not {text!r}")
    return int(text)


def evaluate_graph(
    evaluator: Evaluator, graph: Graph, model: Model, *, forces: bool, atomic: bool, size: int, hessian: bool = False
) -> dict[str, np.ndarray]:
    """Flat outputs of a graph (NumPy), `size` centres at a time where the model is local.

    hessian: second derivatives too, of the graph as a whole and so many columns at a time that they fit.
    """
    if hessian:
        request = HessianRequest.of(graph, atoms_per_call=size)
        return evaluator(graph, forces=True, atomic=atomic, hessian=request)
    n, m = graph.frame.shape[0], graph.atype.shape[0]
    if n <= size or model.message_passing or graph.virtual is not None:
        return evaluator(graph, forces=forces, atomic=atomic)
    output = model.output()
    if output.intensive:
        raise InputError(f"{output.name!r} is a mean over {n} atoms and needs them at once; raise DP_INFER_BATCH_SIZE")
    frame_keys = {output.reduced, "virial"}
    node_keys = {"force", "atom_virial"}
    total: dict[str, np.ndarray] = {}
    for start in range(0, n, size):
        piece, nodes = select_centres(graph, start, min(start + size, n))
        owned = nodes[: piece.frame.shape[0]]
        for key, value in evaluator(piece, forces=forces, atomic=atomic).items():
            rows = slice(None) if key in frame_keys else nodes if key in node_keys else owned
            length = graph.natoms.shape[0] if key in frame_keys else m if key in node_keys else n
            target = total.setdefault(key, np.zeros((length, *value.shape[1:]), value.dtype))
            target[rows] += value
    return total


def select_centres(graph: Graph, start: int, stop: int) -> tuple[Graph, np.ndarray]:
    """The part of a graph that centres start..stop of a local model need: (graph, rows of its nodes in the whole).

    The part's owned atoms are those centres; every other atom that they see is a ghost without an owner, so
    forces come back for all its nodes. Raises ValueError where the graph itself has ghosts with owners.
    """
    if graph.owner is not None or graph.comm is not None or graph.virtual is not None:
        raise ValueError("a graph whose ghosts have owners, or that has virtual atoms, cannot be cut into pieces")
    first, last = (int(row) for row in np.searchsorted(graph.centre, (start, stop)))
    others = np.unique(graph.neighbour[first:last])
    others = others[(others < start) | (others >= stop)]
    nodes = np.concatenate([np.arange(start, stop), others])
    place = np.zeros(graph.atype.shape[0], dtype=np.int64)
    place[nodes] = np.arange(nodes.size)
    rows = {"atoms": slice(start, stop), "edges": slice(first, last), "nodes": nodes, "frames": slice(None)}

    def select(leaf: Leaf) -> np.ndarray:
        x: np.ndarray = leaf.array[rows[leaf.axes[0]]]
        if leaf.points == "atoms":
            return x - start
        return place[x] if leaf.points == "nodes" else x

    part: Graph = map_leaves(graph.replace(views=(), types=None), select)
    views = tuple(_select_view(view, graph.centre, start, stop, first) for view in graph.views)
    return part.replace(
        views=views, types=None if graph.types is None else _select_types(graph.types, start, stop)
    ), nodes


def _select_view(view: Any, centre: np.ndarray, start: int, stop: int, first: int) -> Any:
    """The part of a view that centres start..stop see; its edges begin at row `first` of the whole."""
    if isinstance(view, tuple):
        return tuple(_select_slots(slots, start, stop, first) for slots in view)
    if isinstance(view, Slots):
        return _select_slots(view, start, stop, first)
    low, high = np.searchsorted(centre[view.row], (start, stop))
    return Edges(
        row=view.row[low:high] - first,
        mask=view.mask[low:high],
        angles=None if view.angles is None else _select_angles(view.angles, low, high),
    )


def _select_angles(angles: Angles, low: int, high: int) -> Angles:
    own = slice(*np.searchsorted(angles.ij, (low, high)))
    return Angles(ij=angles.ij[own] - low, ik=angles.ik[own] - low, mask=angles.mask[own])


def _select_slots(slots: Slots, start: int, stop: int, first: int) -> Slots:
    mask = slots.mask[start:stop]
    width = int(mask.sum(axis=1).max(initial=0))  # occupied slots come first
    mask = mask[:, :width]
    return Slots(edge=np.where(mask, slots.edge[start:stop, :width] - first, 0), mask=mask)


def _select_types(types: TypeGroups, start: int, stop: int) -> TypeGroups:
    rows = tuple(r[(r >= start) & (r < stop)] - start for r in types.rows)
    place = np.zeros(stop - start, dtype=np.int64)
    place[np.concatenate(rows)] = np.arange(stop - start)
    return TypeGroups(rows=rows, place=place)


def assemble_frames(
    flat: dict[str, np.ndarray], shape: tuple[int, ...], output: Output, *, atomic: bool
) -> dict[str, np.ndarray]:
    """Flat outputs to arrays with a frame axis; per-atom ones only where asked for."""
    nf, na = shape
    out = {}
    for key, value in flat.items():
        if key in (output.reduced, "virial"):
            out[key] = value
        elif key == "hessian":
            out[key] = value.reshape(nf, 3 * na, 3 * na)
        elif atomic or key in ("force", "force_mag", "mask_mag"):
            out[key] = value.reshape(nf, na, *value.shape[1:])
    return {
        key: value if key in ("mask", "mask_mag") else value.astype(np.float64, copy=False)
        for key, value in out.items()
    }
