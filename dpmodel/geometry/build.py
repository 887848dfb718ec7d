"""From coordinates to `Graph`s of NumPy arrays, and the counts of neighbours that `sel` is chosen by.

The order of operations decides numbers wherever `sel` is too small: of the pairs within a request's cutoff
(r = rcut included) the nearest sum(sel) of any type are kept, then the nearest sel[t] of each type; only then are
excluded pairs of types removed, and nothing moves up into their places.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.geometry.cells import check_pbc
from dpmodel.geometry.neighbours import neighbour_pairs
from dpmodel.graph import Graph, NeighbourRequest, Slots, TypeGroups

__all__ = ["GraphBuilder", "TruncationWarning", "neighbour_counts"]


class TruncationWarning(UserWarning):
    """Real neighbours within the cutoff were cut off, because `sel` is smaller than what the data needs."""


@dataclasses.dataclass
class _Edges:
    """The pairs of a whole batch, sorted by centre, then distance."""

    centre: np.ndarray
    neighbour: np.ndarray
    vec: np.ndarray
    distance: np.ndarray
    kind: np.ndarray
    """Type of the neighbour."""
    excluded: np.ndarray | None
    """Where the pair of types is excluded; None: nowhere."""


_Table = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows of the edges that fill slots, the slot of each (in the flattened table), the number of edges per atom."""


@dataclasses.dataclass(frozen=True)
class GraphBuilder:
    """Builds the `Graph`s that a model asks for. Raises InputError where requests or exclusions fit no `ntypes`.

    Warns once in its life (`TruncationWarning`) when `sel` cuts off real neighbours.
    """

    requests: tuple[NeighbourRequest, ...]
    """As `Descriptor.requests` gives them; one view each, in order."""
    ntypes: int
    exclude_pairs: tuple[tuple[int, int], ...] = ()
    """Pairs of types that are no neighbours, in either direction."""
    group_by_type: bool = True
    """Whether to fill `Graph.types`."""
    _warned: list[bool] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for request in self.requests:
            sel: Any = request.sel  # from an input file, so it may still be "auto"
            if isinstance(sel, str) or not sel or not all(k >= 0 for k in sel):
                raise InputError(f"sel must be numbers of neighbours, got {sel!r}; resolve 'auto' first")
            if request.typed and len(sel) != self.ntypes:
                raise InputError(f"sel must have one number per type ({self.ntypes}), got {len(sel)}: {list(sel)}")
            if not (math.isfinite(request.rcut) and request.rcut > 0):
                raise InputError(f"rcut must be a positive number in Å, got {request.rcut}")
        pair: Any
        for pair in self.exclude_pairs:
            if len(pair) != 2 or not all(0 <= t < self.ntypes for t in pair):
                raise InputError(f"excluded pairs must be two types in [0, {self.ntypes}), got {pair!r}")

    def build(
        self,
        coord: np.ndarray,
        atype: np.ndarray,
        cell: np.ndarray | None,
        *,
        pbc: bool | Sequence[bool] = (True, True, True),
        fparam: np.ndarray | None = None,
        aparam: np.ndarray | None = None,
        spin: np.ndarray | None = None,
        charge_spin: np.ndarray | None = None,
    ) -> Graph:
        """The graph of f frames of na atoms each.

        coord (f, na, 3), Å. atype (f, na), -1 is a virtual atom (its coordinates are ignored). cell (f, 3, 3), rows
        are vectors, or None (open); `pbc` per axis. fparam (f, df), aparam (f, na, da), spin (f, na, 3),
        charge_spin (f, 2).

        Raises InputError naming frame and atom: shapes, types outside [-1, ntypes), NaN, singular cells.
        """
        coord, atype, cell = _check_frames(coord, atype, cell, self.ntypes)
        pbc = check_pbc(pbc)
        f, na = atype.shape
        extra: dict[str, Any] = _check_extra(f, na, fparam=fparam, aparam=aparam, spin=spin, charge_spin=charge_spin)
        flat = np.reshape(atype, (f * na,))
        edges = self._pairs(coord, atype, cell, pbc)
        tables, kept = [], np.zeros(len(edges.centre), np.bool_)
        for request in self.requests:
            tables.append(self._select(edges, request, f * na))
            for row, _, _ in tables[-1]:
                kept[row] = True
        renumber = None if kept.all() else np.cumsum(kept) - 1
        views = []
        for request, table in zip(self.requests, tables, strict=True):
            slots = tuple(_slots(row, place, count, renumber) for row, place, count in table)
            views.append(slots if request.typed else slots[0])
        if renumber is not None:
            used = np.flatnonzero(kept)
            centre, neighbour, vec = edges.centre[used], edges.neighbour[used], edges.vec[used]
        else:
            centre, neighbour, vec = edges.centre, edges.neighbour, edges.vec
        return Graph(
            atype=flat,
            frame=np.repeat(np.arange(f), na),
            natoms=np.sum(atype >= 0, axis=1, dtype=np.int64),
            centre=centre,
            neighbour=neighbour,
            edge_vec=vec,
            edge_mask=np.ones(len(centre), np.bool_),
            views=tuple(views),
            types=_group(flat, self.ntypes) if self.group_by_type else None,
            **extra,
        )

    def _pairs(
        self, coord: np.ndarray, atype: np.ndarray, cell: np.ndarray | None, pbc: tuple[bool, bool, bool]
    ) -> _Edges:
        """All pairs of real atoms within the largest cutoff, of all frames."""
        f, na = atype.shape
        rcut = max((request.rcut for request in self.requests), default=0.0)
        parts: list[tuple[np.ndarray, ...]] = []
        for k in range(f if rcut > 0.0 else 0):
            real = np.flatnonzero(atype[k] >= 0)
            box = None if cell is None else cell[k]
            pairs = neighbour_pairs(coord[k][real], box, pbc, rcut, where=f"frame {k}: ")
            rows = real + k * na
            parts.append((rows[pairs.centre], rows[pairs.neighbour], pairs.vec, pairs.distance))
        if not parts:
            none = np.zeros(0, np.int64)
            parts = [(none, none, np.zeros((0, 3)), np.zeros(0))]
        if len(parts) > 1:
            parts = [tuple(map(np.concatenate, zip(*parts, strict=True)))]
        centre, neighbour, vec, distance = parts[0]
        flat = np.reshape(atype, (-1,))
        kind = flat[neighbour]
        excluded = None
        if self.exclude_pairs:
            forbidden = np.zeros((self.ntypes, self.ntypes), np.bool_)
            for a, b in self.exclude_pairs:
                forbidden[a, b] = forbidden[b, a] = True
            excluded = forbidden[flat[centre], kind]
        return _Edges(centre, neighbour, vec, distance, kind, excluded)

    def _select(self, edges: _Edges, request: NeighbourRequest, n: int) -> list[_Table]:
        """One table per neighbour type, or a single one."""
        within = np.flatnonzero(edges.distance <= request.rcut)
        centre, kind = edges.centre[within], edges.kind[within]
        first = _rank(centre, n) < sum(request.sel)
        rows = within if first.all() else within[first]
        if request.typed:
            groups = [rows[edges.kind[rows] == t] for t in range(self.ntypes)]
            groups = [group[_rank(edges.centre[group], n) < k] for group, k in zip(groups, request.sel, strict=True)]
        else:
            groups = [rows]
        if not self._warned and sum(map(len, groups)) < len(within):
            self._warned.append(True)
            _warn(request, centre, kind, edges.centre[np.concatenate(groups)], n=n, ntypes=self.ntypes)
        if edges.excluded is not None:
            groups = [group[~edges.excluded[group]] for group in groups]
        return [(group, *_places(edges.centre[group], n)) for group in groups]


def neighbour_counts(
    coord: np.ndarray, atype: np.ndarray, cell: np.ndarray | None, pbc: bool | Sequence[bool], rcut: float, ntypes: int
) -> tuple[np.ndarray, int, float]:
    """Largest number of neighbours of each type (ntypes,) and in total around any atom, and the smallest distance.

    coord (n, 3), atype (n,), cell (3, 3) or None: one frame. Counted are r < rcut, strictly; virtual atoms do not
    exist. The distance (Å) is that of the closest pair, images included, whether within rcut or not, and at most 10;
    it is 0 where atoms overlap, which is for the caller to refuse. Raises InputError as `GraphBuilder.build` does.
    """
    frame, types, box = _check_frames(coord[None], atype[None], None if cell is None else cell[None], ntypes)
    real = types[0] >= 0
    frame, types = frame[0][real], types[0][real]
    n, lattice = len(types), None if box is None else box[0]
    pairs = neighbour_pairs(frame, lattice, pbc, rcut)
    within = pairs.distance < rcut
    table = np.bincount(pairs.centre[within] * ntypes + types[pairs.neighbour[within]], minlength=n * ntypes)
    table = np.reshape(table, (n, ntypes))
    closest = float(np.min(pairs.distance, initial=_FARTHEST))
    for wider in (3.0, _FARTHEST):
        if len(pairs.distance) == 0 and wider > rcut:
            pairs = neighbour_pairs(frame, lattice, pbc, wider)
            closest = float(np.min(pairs.distance, initial=_FARTHEST))
    return np.max(table, axis=0, initial=0), int(np.max(np.sum(table, axis=1), initial=0)), closest


_FARTHEST = 10.0
"""Where the search for the smallest distance ends, Å."""


# --- slots and groups ------------------------------------------------------------------------------------


def _rank(centre: np.ndarray, n: int) -> np.ndarray:
    """(e,): how many earlier edges have the same centre; `centre` is sorted."""
    count = np.bincount(centre, minlength=n)
    return np.arange(len(centre)) - np.repeat(np.cumsum(count) - count, count)


def _places(centre: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Position of every edge in a table (n, w) flattened, and the number of edges per atom."""
    count = np.bincount(centre, minlength=n)
    width = int(np.max(count, initial=0))
    return centre * width + _rank(centre, n), count


def _slots(row: np.ndarray, place: np.ndarray, count: np.ndarray, renumber: np.ndarray | None) -> Slots:
    n, width = len(count), int(np.max(count, initial=0))
    edge = np.zeros(n * width, np.int64)
    edge[place] = row if renumber is None else renumber[row]
    return Slots(edge=np.reshape(edge, (n, width)), mask=np.arange(width) < count[:, None])


def _group(atype: np.ndarray, ntypes: int) -> TypeGroups:
    kind = np.maximum(atype, 0)
    order = np.argsort(kind, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    ends = np.cumsum(np.bincount(kind, minlength=ntypes))
    return TypeGroups(rows=tuple(np.split(order, ends[:-1])), place=place)


def _warn(
    request: NeighbourRequest,
    centre: np.ndarray,
    kind: np.ndarray,
    kept: np.ndarray,
    *,
    n: int,
    ntypes: int,
) -> None:
    """Say how many atoms lose neighbours, how many there are at most, and which `sel` would hold them.

    centre, kind: centre and type of every neighbour within the cutoff. kept: centres of those that fill slots.
    """
    lost = np.count_nonzero(np.bincount(centre, minlength=n) > np.bincount(kept, minlength=n))
    if request.typed:
        table = np.reshape(np.bincount(centre * ntypes + kind, minlength=n * ntypes), (n, ntypes))
        largest: Any = np.max(table, axis=0).tolist()
        enough: Any = [max(a, b) for a, b in zip(largest, request.sel, strict=True)]
    else:
        largest = int(np.max(np.bincount(centre)))
        enough = largest
    warnings.warn(
        f"{lost} of {n} atoms have more neighbours within {request.rcut} Å than sel = {_plain(request.sel)} holds: the "
        f"furthest are left out, and energies jump where atoms enter or leave the list. Found at most {largest}"
        f"{' by type' if request.typed else ''}; sel = {enough} would hold them all. This is said once.",
        TruncationWarning,
        stacklevel=4,
    )


def _plain(sel: tuple[int, ...]) -> Any:
    return int(sel[0]) if len(sel) == 1 else [int(k) for k in sel]


# --- validation ------------------------------------------------------------------------------------------


def _check_frames(
    coord: np.ndarray, atype: np.ndarray, cell: np.ndarray | None, ntypes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The three as float64, int64, float64, after checks of shapes, types and numbers (not of the cells' volumes)."""
    coord, atype = np.asarray(coord), np.asarray(atype)
    if coord.ndim != 3 or coord.shape[2] != 3:
        raise InputError(f"coord must have shape (frames, atoms, 3), got {coord.shape}")
    if atype.shape != coord.shape[:2]:
        raise InputError(f"atype must have shape (frames, atoms) = {coord.shape[:2]} as coord has, got {atype.shape}")
    coord = _as_numbers("coord", coord)
    if atype.size and atype.dtype.kind not in "iu":
        raise InputError(f"atype must hold integers, got {atype.dtype}")
    atype = atype.astype(np.int64, copy=False)
    wrong = (atype < -1) | (atype >= ntypes)
    if wrong.any():
        k, a = np.argwhere(wrong)[0]
        raise InputError(
            f"frame {k}: atom {a} has type {atype[k, a]}; expected 0 to {ntypes - 1}, or -1 for a virtual atom"
        )
    wrong = ~np.isfinite(coord).all(axis=2) & (atype >= 0)
    if wrong.any():
        k, a = np.argwhere(wrong)[0]
        raise InputError(f"frame {k}: atom {a} has NaN or infinite coordinates: {coord[k, a].tolist()}")
    if cell is not None:
        cell = _as_numbers("cell", np.asarray(cell))
        if cell.shape != (coord.shape[0], 3, 3):
            raise InputError(f"cell must have shape (frames, 3, 3) = {(coord.shape[0], 3, 3)}, got {cell.shape}")
    return coord, atype, cell


def _as_numbers(name: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "fiu":
        raise InputError(f"{name} must hold real numbers, got {x.dtype}")
    return x.astype(np.float64, copy=False)


def _check_extra(f: int, na: int, **given: Any) -> dict[str, np.ndarray]:
    """The optional inputs that were given, as float64, per-atom ones flattened over frames."""
    lead = {"fparam": (f,), "charge_spin": (f,), "aparam": (f, na), "spin": (f, na)}
    last = {"charge_spin": 2, "spin": 3}
    checked = {}
    for name, value in given.items():
        if value is None:
            continue
        x = _as_numbers(name, np.asarray(value))
        want = lead[name]
        if x.ndim != len(want) + 1 or x.shape[:-1] != want or x.shape[-1] != last.get(name, x.shape[-1]):
            shape = ", ".join(map(str, (*want, last.get(name, "any"))))
            raise InputError(f"{name} must have shape ({shape}), got {x.shape}")
        if not np.isfinite(x).all():
            raise InputError(f"{name} of frame {np.argwhere(~np.isfinite(x))[0][0]} holds NaN or infinite numbers")
        checked[name] = x if len(want) == 1 else np.reshape(x, (f * na, x.shape[-1]))
    return checked
