"""From the graph of one frame to one graph per process: owned atoms, behind them ghosts, edges of owned centres only.

Each rank owns the atoms that an assignment gives it. Its edges are those of the whole graph whose centres it owns, so
truncation and exclusions are the same however the atoms are spread. Where an edge sees an atom of another rank, or a
periodic image, it sees a ghost: one row for every image of an atom that any edge of the rank sees.

A virtual atom belongs to the rank of the atom whose spin it stands for, and a ghost of either has the other beside it:
forces on both go home together.

    parts = decompose(graph, coord, cell, slabs(coord, cell, 2), 2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpmodel.graph import Angles, Edges, Graph, Slots, TypeGroups, VirtualAtoms

__all__ = ["Part", "decompose", "slabs"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank computes on. n: owned atoms of the graph, g: ghosts; s: owned atoms without virtual ones."""

    graph: Graph
    """NumPy arrays; n owned atoms, m = n + g nodes; neither `owner` nor `comm`."""
    atoms: np.ndarray
    """(s,): which atoms the rank owns, ascending; numbers count as in `coord`."""
    ghost_rank: np.ndarray
    """(g,): which rank owns the atom that a ghost copies, ascending."""
    ghost_row: np.ndarray
    """(g,): its row among the owned atoms of that rank."""
    total: int
    """Atoms of all ranks, without virtual ones."""


def slabs(coord: np.ndarray, cell: np.ndarray | None, size: int, *, axis: int = 0) -> np.ndarray:
    """(n,) ranks: slabs of equal thickness along a cell vector, or (cell None) along a coordinate.

    coord (n, 3), cell (3, 3), Å. Slabs without atoms are legal. Virtual atoms may be anywhere, NaN too.
    """
    coord = np.nan_to_num(coord, nan=0.0, posinf=0.0, neginf=0.0)
    if cell is None:
        x = coord[:, axis]
        span = float(np.ptp(x)) if len(x) else 0.0
        part = (x - np.min(x, initial=np.inf)) / (span or 1.0)
    else:
        part = np.linalg.solve(cell.T, coord.T)[axis]
        part = part - np.floor(part)
    return np.clip((part * size).astype(np.int64), 0, size - 1)


def decompose(
    graph: Graph, coord: np.ndarray, cell: np.ndarray | None, assignment: np.ndarray, size: int
) -> tuple[Part, ...]:
    """The part of every rank.

    Args:
        graph: of one frame, as `GraphBuilder.build` makes it (NumPy arrays, no ghosts).
        coord: (s, 3) or (1, s, 3), the coordinates that it was built from, Å.
        cell: (3, 3) or (1, 3, 3) or None, likewise.
        assignment: (s,) ranks in [0, size).
        size: number of ranks.

    Raises ValueError where these do not fit each other.
    """
    n = len(graph.frame)
    coord, assignment = np.reshape(coord, (-1, 3)), np.asarray(assignment)
    if len(graph.natoms) != 1 or len(graph.atype) != n or graph.comm is not None:
        raise ValueError("decompose takes the graph of one frame without ghosts")
    s = n if graph.virtual is None else len(graph.virtual.owned)
    if coord.shape != (s, 3) or assignment.shape != (s,):
        raise ValueError(f"the graph has {s} atoms, coord {len(coord)}, assignment shape {assignment.shape}")
    if s and not (assignment.min() >= 0 and assignment.max() < size):
        raise ValueError(f"ranks must be in [0, {size}), got [{assignment.min()}, {assignment.max()}]")
    if graph.virtual is not None:  # of one frame: atoms first, then virtual ones
        coord, assignment = np.concatenate([coord, coord + graph.virtual.shift]), np.tile(assignment, 2)
    shift = _images(graph, coord, cell)
    place = np.zeros(n, np.int64)  # row among the atoms of the rank
    for rank in range(size):
        own = np.flatnonzero(assignment == rank)
        place[own] = np.arange(len(own))
    return tuple(_part(graph, shift, assignment, place, rank) for rank in range(size))


def _images(graph: Graph, coord: np.ndarray, cell: np.ndarray | None) -> np.ndarray:
    """(e, 3) integer: which periodic image of the neighbour every edge sees."""
    if cell is None:
        return np.zeros((len(graph.centre), 3), np.int64)
    away = graph.edge_vec - (coord[graph.neighbour] - coord[graph.centre])
    return np.rint(np.linalg.solve(np.reshape(cell, (3, 3)).T, away.T).T).astype(np.int64)


def _part(graph: Graph, shift: np.ndarray, assignment: np.ndarray, place: np.ndarray, rank: int) -> Part:
    own = np.flatnonzero(assignment == rank)
    kept = assignment[graph.centre] == rank
    edges = np.flatnonzero(kept)
    neighbour, image = graph.neighbour[edges], shift[edges]
    here = (assignment[neighbour] == rank) & np.all(image == 0, axis=1)
    away = ~here
    ghosts, which, virtual = _ghosts(graph, own, neighbour[away], image[away], assignment)
    node = place[neighbour]
    node[away] = len(own) + which
    owned: dict[str, Any] = {"aparam": None if graph.aparam is None else graph.aparam[own]}
    new = np.cumsum(kept) - 1
    atoms = own if virtual is None else own[: len(virtual.owned)]
    part = graph.replace(
        atype=np.concatenate([graph.atype[own], graph.atype[ghosts]]),
        frame=graph.frame[own],
        natoms=np.array([np.count_nonzero(graph.atype[atoms] >= 0)], np.int64),
        centre=place[graph.centre[edges]],
        neighbour=node,
        edge_vec=graph.edge_vec[edges],
        edge_mask=graph.edge_mask[edges],
        views=tuple(_view(view, own, kept, new) for view in graph.views),
        types=None if graph.types is None else _group(graph.types, assignment == rank, place),
        virtual=virtual,
        **owned,
    )
    total = len(assignment) if graph.virtual is None else len(graph.virtual.owned)
    return Part(graph=part, atoms=atoms, ghost_rank=assignment[ghosts], ghost_row=place[ghosts], total=total)


def _ghosts(
    graph: Graph, own: np.ndarray, seen: np.ndarray, image: np.ndarray, assignment: np.ndarray
) -> tuple[np.ndarray, np.ndarray, VirtualAtoms | None]:
    """Rows of the atoms that ghosts copy, by rank; which ghost each edge sees; and the pairs of virtual atoms.

    seen, image: atom and image of every edge that sees one of these.
    """
    virtual = graph.virtual
    pair = seen if virtual is None else seen % len(virtual.owned)
    keys = np.concatenate([assignment[pair, None], pair[:, None], image], axis=1)
    found, which = np.unique(keys, axis=0, return_inverse=True)
    which, copied = np.reshape(which, (-1,)), found[:, 1]
    if virtual is None:
        return copied, which, None
    # Both of every pair, still sorted by rank.
    n, s, g = len(own), len(virtual.owned), len(copied)
    rows = np.concatenate([copied, copied + s])
    order = np.argsort(assignment[rows], kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(2 * g)
    mine, ghost = np.arange(n // 2), n + place
    pairs = np.concatenate([own[: n // 2], copied])
    virtual = VirtualAtoms(
        real=np.concatenate([mine, ghost[:g]]),
        virtual=np.concatenate([mine + n // 2, ghost[g:]]),
        shift=virtual.shift[pairs],
        scale=virtual.scale[pairs],
        frame=virtual.frame[pairs],
        owned=mine,
    )
    return rows[order], place[which + g * (seen >= s)], virtual


def _view(view: Any, own: np.ndarray, kept: np.ndarray, new: np.ndarray) -> Any:
    """What a view of the whole graph leaves on the owned atoms. kept, new: of every edge."""
    if isinstance(view, Edges):
        mine = kept[view.row]
        angles, position = view.angles, np.cumsum(mine) - 1
        if angles is not None:
            both = mine[angles.ij]
            angles = Angles(ij=position[angles.ij[both]], ik=position[angles.ik[both]], mask=angles.mask[both])
        return Edges(row=new[view.row[mine]], mask=view.mask[mine], angles=angles)
    if isinstance(view, Slots):
        mask = view.mask[own]
        mask = mask[:, : int(np.max(np.sum(mask, axis=1), initial=0))]
        return Slots(edge=np.where(mask, new[view.edge[own, : mask.shape[1]]], 0), mask=mask)
    return tuple(_view(slots, own, kept, new) for slots in view)


def _group(types: TypeGroups, mine: np.ndarray, place: np.ndarray) -> TypeGroups:
    rows = tuple(place[rows[mine[rows]]] for rows in types.rows)
    return TypeGroups(rows=rows, place=np.argsort(np.concatenate(rows), kind="stable"))
