"""The Hessian: second derivatives of the energy with respect to positions, for every model.

An edge vector is linear in positions, r_e = x[neighbour] + shift - x[centre]. With u_e = v[neighbour] - v[centre] for a
displacement v of the atoms,

    w     = d(sum_e g_e . u_e) / dr,    g_e = dE/dr_e
    H v   = sum_{e: neighbour} w_e - sum_{e: centre} w_e

so a column of the Hessian takes one derivative of the gradient. Frames do not see each other: v displaces an atom of
every frame at once. Periodic images move with their atom; spins stay as they are, and virtual atoms move with theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from dpmodel.graph import Graph, VirtualAtoms
from dpmodel.op import Array
from dpmodel.ops import array_namespace, as_dtype, device_of, segment_sum, take_rows
from dpmodel.precision import ENERGY_DTYPE

__all__ = ["Curvature", "HessianRequest", "hessian", "place_in_frame"]


@dataclasses.dataclass(frozen=True)
class HessianRequest:
    """How a Hessian is computed. Hashable, so that tracing compilers may keep it."""

    atoms: int
    """Atoms of the largest frame, padding included: the Hessian has 3 times as many columns."""
    columns: int
    """Columns at a time, which bounds the memory."""

    @classmethod
    def of(cls, graph: Graph, *, atoms_per_call: int | None = None) -> HessianRequest:
        """For a graph of NumPy arrays.

        atoms_per_call: how many atoms one evaluation may hold; None: all columns at once.
        """
        frame = graph.frame if graph.virtual is None else graph.virtual.frame[graph.virtual.owned]
        atoms = int(np.bincount(frame).max(initial=0))
        if atoms_per_call is None:
            return cls(atoms, max(1, 3 * atoms))
        return cls(atoms, max(1, min(3 * atoms, atoms_per_call // max(1, graph.frame.shape[0]))))

    @classmethod
    def all_columns(cls, label: Array) -> HessianRequest:
        """All at once, as many as a label (n, 3, 3 atoms) has."""
        return cls(label.shape[2] // 3, max(1, label.shape[2]))


class Curvature(Protocol):
    """Second derivatives, as a backend supplies them."""

    def __call__(
        self,
        function: Callable[[Array], tuple[Array, dict[str, Array]]],
        x: Array,
        direction: Callable[[Array], Array],
        collect: Callable[[Array], Array],
        request: HessianRequest,
    ) -> tuple[dict[str, Array], Array, Array]:
        """For function(x) -> (scalar, outputs): (outputs, g = d scalar / dx, columns).

        direction(k (c,)) -> (e, c, 3): directions u_k; with w_k = d(g . u_k)/dx the columns are collect(w (e, c, 3)),
        joined along axis 1, for k from 0 to 3 * request.atoms.
        """


def hessian(
    function: Callable[[Array], tuple[Array, dict[str, Array]]],
    graph: Graph,
    curvature: Curvature,
    request: HessianRequest,
) -> tuple[dict[str, Array], Array, Array]:
    """(outputs, dE/d(edge_vec) (e, 3), Hessian (n, 3, 3 * request.atoms) in eV/Å^2) for function(edge_vec).

    Rows belong to the atoms that the user knows, columns to those of the row's frame in their order; columns that a
    smaller frame does not have are 0. Raises ValueError for graphs with an exchange of ghosts.
    """
    if graph.comm is not None:
        raise ValueError("a Hessian needs all atoms in one process: this graph has an exchange of ghosts")
    frame = graph.frame if graph.virtual is None else take_rows(graph.virtual.frame, graph.virtual.owned)
    place = place_in_frame(frame, graph.natoms.shape[0])

    def direction(k: Array) -> Array:
        xp = array_namespace(place)
        columns = 3 * place[:, None, None] + xp.arange(3, dtype=place.dtype, device=device_of(place))[None, None, :]
        v = as_dtype(columns == k[None, :, None], graph.edge_vec.dtype)  # (n, c, 3)
        v = _to_nodes(v, graph)
        return take_rows(v, graph.neighbour) - take_rows(v, graph.centre)

    def collect(w: Array) -> Array:
        m, w = graph.atype.shape[0], as_dtype(w, ENERGY_DTYPE)
        return _from_nodes(segment_sum(w, graph.neighbour, m) - segment_sum(w, graph.centre, m), graph)

    outputs, slope, columns = curvature(function, graph.edge_vec, direction, collect, request)
    return outputs, slope, array_namespace(columns).permute_dims(columns, (0, 2, 1))


def place_in_frame(frame: Array, nframes: int) -> Array:
    """(n,) integer: position of every atom among those of its frame; frame (n,) integer, sorted."""
    xp = array_namespace(frame)
    count = segment_sum(xp.ones_like(frame), frame, nframes)
    start = xp.cumulative_sum(count) - count
    order = xp.arange(frame.shape[0], dtype=frame.dtype, device=device_of(frame))
    return order - as_dtype(take_rows(start, frame), frame.dtype)


def _to_nodes(v: Array, graph: Graph) -> Array:
    """From the user's atoms to all nodes: virtual atoms move with theirs, ghosts with their owners."""
    if graph.virtual is not None:
        n, (real, virtual) = graph.frame.shape[0], _owned_pairs(graph.virtual)
        v = segment_sum(v, real, n) + segment_sum(v, virtual, n)
    return v if graph.owner is None else take_rows(v, graph.owner)


def _from_nodes(w: Array, graph: Graph) -> Array:
    """The transpose of `_to_nodes`."""
    if graph.owner is not None:
        w = segment_sum(w, graph.owner, graph.frame.shape[0])
    if graph.virtual is None:
        return w
    real, virtual = _owned_pairs(graph.virtual)
    return take_rows(w, real) + take_rows(w, virtual)


def _owned_pairs(virtual: VirtualAtoms) -> tuple[Array, Array]:
    """(s,) rows of the user's atoms, and of those that stand for their spins."""
    return take_rows(virtual.real, virtual.owned), take_rows(virtual.virtual, virtual.owned)
