"""From coordinates to `Graph`s of NumPy arrays, and the counts of neighbours that `sel` is chosen by.

The order of operations decides numbers wherever `sel` is too small: of the pairs within a request's cutoff
(r = rcut included) the nearest sum(sel) of any type are kept, then the nearest sel[t] of each type; only then are
excluded pairs of types removed, and nothing moves up into their places. Angles are spanned by the nearest of the
edges that remain.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.geometry.cells import check_pbc
from dpmodel.geometry.estimate import check_total
from dpmodel.geometry.neighbours import neighbour_pairs
from dpmodel.graph import AngleRequest, Angles, Edges, Graph, NeighbourRequest, Slots, TypeGroups, VirtualAtoms

__all__ = ["GraphBuilder", "TruncationWarning", "neighbour_counts"]


class TruncationWarning(UserWarning):
    """Real neighbours within the cutoff were cut off, because `sel` is smaller than what the data needs."""


@dataclasses.dataclass
class _Pairs:
    """The pairs of a whole batch, sorted by centre, then distance."""

    centre: np.ndarray
    neighbour: np.ndarray
    vec: np.ndarray
    distance: np.ndarray
    kind: np.ndarray
    """Type of the neighbour."""
    excluded: np.ndarray | None
    """Where the pair of types is excluded; None: nowhere."""


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
    allow_overlap: bool = False
    """Whether atoms may be at one place, as `Model.tolerates_overlap` says; else such pairs are refused."""
    spin_scales: tuple[float, ...] | None = None
    """By type, displacement of virtual atoms per unit of spin, Å: half of `ntypes` are virtual then, the latter."""
    _warned: list[bool] = dataclasses.field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for request in self.requests:
            sel: Any = request.sel  # from an input file, so it may still be "auto"
            if isinstance(sel, str) or not sel or not all(k >= 0 for k in sel):
                raise InputError(f"sel must be numbers of neighbours, got {sel!r}; resolve 'auto' first")
            if request.layout not in ("slots", "typed_slots", "edges"):
                raise InputError(f"layout must be 'slots', 'typed_slots' or 'edges', got {request.layout!r}")
            if request.layout == "typed_slots" and len(sel) != self.ntypes:
                raise InputError(f"sel must have one number per type ({self.ntypes}), got {len(sel)}: {list(sel)}")
            if not (math.isfinite(request.rcut) and request.rcut > 0):
                raise InputError(f"rcut must be a positive number in Å, got {request.rcut}")
            if request.angles is not None:
                _check_angles(request.angles, request.layout)
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
        numbers: Sequence[int] | None = None,
    ) -> Graph:
        """The graph of f frames of na atoms each.

        coord (f, na, 3), Å. atype (f, na), -1 is a virtual atom (its coordinates are ignored). cell (f, 3, 3), rows
        are vectors, or None (open); `pbc` per axis. fparam (f, df), aparam (f, na, da), spin (f, na, 3),
        charge_spin (f, 2). numbers: what messages call the frames; None counts from 0.

        Raises InputError naming frame and atom: shapes, types outside [-1, ntypes), NaN, singular cells, atoms at one
        place.
        """
        numbers = range(len(coord)) if numbers is None else numbers
        known = self.ntypes if self.spin_scales is None else len(self.spin_scales)
        coord, atype, cell = _check_frames(coord, atype, cell, known, numbers)
        pbc = check_pbc(pbc)
        f, na = atype.shape
        extra: dict[str, Any] = _check_extra(f, na, fparam=fparam, aparam=aparam, spin=spin, charge_spin=charge_spin)
        natoms = np.sum(atype >= 0, axis=1, dtype=np.int64)
        if self.spin_scales is None and "spin" in extra:
            raise InputError("spin was given, but this model takes no spins; leave it out")
        if self.spin_scales is not None and "spin" not in extra:
            raise InputError("spin is missing: this model takes a vector for every atom")
        if self.spin_scales is not None:
            coord, atype, virtual = _with_virtual(coord, atype, extra.pop("spin"), self.spin_scales)
            na = 2 * na
            extra |= {"virtual": virtual}
            if "aparam" in extra:
                padded = np.zeros((f * na, extra["aparam"].shape[1]))
                padded[virtual.real] = extra["aparam"]
                extra["aparam"] = padded
        flat = np.reshape(atype, (f * na,))
        pairs = self._pairs(coord, atype, cell, pbc, numbers)
        rows = list(map(functools.partial(self._select, pairs, f * na), self.requests))
        pairs, rows = _cut(pairs, rows)
        if not self.allow_overlap:
            _check_overlap(pairs, na, numbers)
        views = tuple(map(functools.partial(self._view, pairs, f * na), self.requests, rows))
        return Graph(
            atype=flat,
            frame=np.repeat(np.arange(f), na),
            natoms=natoms,
            centre=pairs.centre,
            neighbour=pairs.neighbour,
            edge_vec=pairs.vec,
            edge_mask=np.ones(len(pairs.centre), np.bool_),
            views=views,
            types=_group(flat, self.ntypes) if self.group_by_type else None,
            **extra,
        )

    def _pairs(
        self,
        coord: np.ndarray,
        atype: np.ndarray,
        cell: np.ndarray | None,
        pbc: tuple[bool, bool, bool],
        numbers: Sequence[int],
    ) -> _Pairs:
        """All pairs of real atoms within the largest cutoff, of all frames."""
        f, na = atype.shape
        rcut = max((request.rcut for request in self.requests), default=0.0)
        parts: list[tuple[np.ndarray, ...]] = []
        found = 0
        for k in range(f if rcut > 0.0 else 0):
            real = np.flatnonzero(atype[k] >= 0)
            box = None if cell is None else cell[k]
            pairs = neighbour_pairs(coord[k][real], box, pbc, rcut, where=f"frame {numbers[k]}: ")
            found += len(pairs.distance)
            check_total(found, k + 1, f)
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
        return _Pairs(centre, neighbour, vec, distance, kind, excluded)

    def _select(self, pairs: _Pairs, n: int, request: NeighbourRequest) -> list[np.ndarray]:
        """Rows of the pairs that the request sees: an array per neighbour type, or a single one."""
        within = np.flatnonzero(pairs.distance <= request.rcut)
        first = _rank(pairs.centre[within], n) < sum(request.sel)
        rows = within if first.all() else within[first]
        typed = request.layout == "typed_slots"
        if typed:
            groups = [rows[pairs.kind[rows] == t] for t in range(self.ntypes)]
            groups = [group[_rank(pairs.centre[group], n) < k] for group, k in zip(groups, request.sel, strict=True)]
        else:
            groups = [rows]
        if sum(map(len, groups)) < len(within):
            self._warn(pairs, request.rcut, request.sel, within, np.concatenate(groups), n, typed=typed)
        return groups if pairs.excluded is None else [group[~pairs.excluded[group]] for group in groups]

    def _view(self, pairs: _Pairs, n: int, request: NeighbourRequest, rows: list[np.ndarray]) -> Any:
        """What the layout of the request makes of the rows that `_select` gave."""
        if request.layout != "edges":
            slots = tuple(_slots(row, pairs.centre[row], n) for row in rows)
            return slots if request.layout == "typed_slots" else slots[0]
        row, angles = rows[0], None
        if request.angles is not None:
            rcut, sel = request.angles.rcut, request.angles.sel
            near = np.flatnonzero(pairs.distance[row] < rcut)  # sorted by distance: nothing nearer is left out
            chosen = near[_rank(pairs.centre[row[near]], n) < sel]
            if len(chosen) < len(near):
                self._warn(pairs, rcut, (sel,), row[near], row[chosen], n, angles=True)
            angles = _angles(chosen, pairs.centre[row[chosen]], n)
        return Edges(row=row, mask=np.ones(len(row), np.bool_), angles=angles)

    def _warn(
        self, pairs: _Pairs, rcut: float, sel: tuple[int, ...], within: np.ndarray, kept: np.ndarray, n: int,
        *, typed: bool = False, angles: bool = False,
    ) -> None:  # fmt: skip
        """Say, once, how many atoms lose neighbours, how many there are at most, and which `sel` would hold them.

        within: rows of all pairs within the cutoff. kept: rows of those that are not cut off.
        """
        if self._warned:
            return
        self._warned.append(True)
        centre = pairs.centre[within]
        lost = np.count_nonzero(np.bincount(centre, minlength=n) > np.bincount(pairs.centre[kept], minlength=n))
        if typed:
            table = np.bincount(centre * self.ntypes + pairs.kind[within], minlength=n * self.ntypes)
            largest: Any = np.max(np.reshape(table, (n, self.ntypes)), axis=0).tolist()
            enough: Any = [max(a, b) for a, b in zip(largest, sel, strict=True)]
        else:
            largest = enough = int(np.max(np.bincount(centre)))
        warnings.warn(
            f"{lost} of {n} atoms have more neighbours within {rcut} Å than sel = {_plain(sel)} "
            f"{'of the angles ' if angles else ''}holds: the furthest are left out, and energies jump where atoms enter or "
            f"leave the list. Found at most {largest}{' by type' if typed else ''}; sel = {enough} would hold them all. "
            "This is said once.",
            TruncationWarning,
            stacklevel=4,
        )


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


def _with_virtual(
    coord: np.ndarray, atype: np.ndarray, spin: np.ndarray, scales: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, VirtualAtoms]:
    """Coordinates and types of every frame's atoms, then of their virtual atoms. spin: (f * na, 3)."""
    f, na = atype.shape
    scale = np.where(atype >= 0, np.asarray(scales)[np.maximum(atype, 0)], 0.0)
    shift = np.reshape(spin, (f, na, 3)) * scale[:, :, None]
    rows = np.reshape(np.arange(f)[:, None] * 2 * na + np.arange(na), (-1,))
    virtual = VirtualAtoms(
        real=rows,
        virtual=rows + na,
        shift=np.reshape(shift, (f * na, 3)),
        scale=np.reshape(scale, (f * na,)),
        frame=np.repeat(np.arange(f), na),
        owned=np.arange(f * na),
    )
    kinds = np.where(atype >= 0, atype + len(scales), -1)
    return np.concatenate([coord, coord + shift], axis=1), np.concatenate([atype, kinds], axis=1), virtual


# --- views and groups ------------------------------------------------------------------------------------


def _cut(pairs: _Pairs, rows: list[list[np.ndarray]]) -> tuple[_Pairs, list[list[np.ndarray]]]:
    """Only the pairs that a view uses, and their rows by view and group."""
    kept = np.zeros(len(pairs.centre), np.bool_)
    for own in rows:
        for group in own:
            kept[group] = True
    if kept.all():
        return pairs, rows
    place = np.cumsum(kept) - 1
    fewer: dict[str, Any] = {name: None if x is None else x[kept] for name, x in vars(pairs).items()}
    return _Pairs(**fewer), [[place[group] for group in own] for own in rows]


def _rank(centre: np.ndarray, n: int) -> np.ndarray:
    """(e,): how many earlier edges have the same centre; `centre` is sorted."""
    count = np.bincount(centre, minlength=n)
    return np.arange(len(centre)) - np.repeat(np.cumsum(count) - count, count)


def _slots(row: np.ndarray, centre: np.ndarray, n: int) -> Slots:
    """The table of some edges, which are given by row and centre."""
    count = np.bincount(centre, minlength=n)
    width = int(np.max(count, initial=0))
    edge = np.zeros((n, width), np.int64)
    edge[centre, _rank(centre, n)] = row
    return Slots(edge=edge, mask=np.arange(width) < count[:, None])


def _angles(chosen: np.ndarray, centre: np.ndarray, n: int) -> Angles:
    """All ordered pairs of the chosen edges of each centre. chosen: their positions in the view."""
    count = np.bincount(centre, minlength=n)
    partners = count[centre]  # of every chosen edge, itself included
    first = np.repeat(np.arange(len(chosen)), partners)
    start = np.repeat((np.cumsum(count) - count)[centre], partners)
    second = start + np.arange(len(first)) - np.repeat(np.cumsum(partners) - partners, partners)
    return Angles(ij=chosen[first], ik=chosen[second], mask=np.ones(len(first), np.bool_))


def _group(atype: np.ndarray, ntypes: int) -> TypeGroups:
    kind = np.maximum(atype, 0)
    order = np.argsort(kind, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    ends = np.cumsum(np.bincount(kind, minlength=ntypes))
    return TypeGroups(rows=tuple(np.split(order, ends[:-1])), place=place)


def _plain(sel: tuple[int, ...]) -> Any:
    return int(sel[0]) if len(sel) == 1 else [int(k) for k in sel]


# --- validation ------------------------------------------------------------------------------------------


def _check_angles(angles: AngleRequest, layout: str) -> None:
    if layout != "edges":
        raise InputError(f"angles need the layout 'edges', not {layout!r}")
    if not (math.isfinite(angles.rcut) and angles.rcut > 0):
        raise InputError(f"rcut of the angles must be a positive number in Å, got {angles.rcut}")
    if angles.sel < 0:
        raise InputError(f"sel of the angles must be a number of neighbours, got {angles.sel}")


def _check_frames(
    coord: np.ndarray, atype: np.ndarray, cell: np.ndarray | None, ntypes: int, numbers: Sequence[int] = (0,)
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
    wrong = (atype < -1) | (atype >= ntypes)  # before the conversion, which makes -1 of 2^64 - 1
    if wrong.any():
        k, a = np.argwhere(wrong)[0]
        raise InputError(
            f"frame {numbers[k]}: atom {a} has type {atype[k, a]}; expected 0 to {ntypes - 1}, or -1 for a virtual atom"
        )
    atype = atype.astype(np.int64, copy=False)
    wrong = ~np.isfinite(coord).all(axis=2) & (atype >= 0)
    if wrong.any():
        k, a = np.argwhere(wrong)[0]
        raise InputError(f"frame {numbers[k]}: atom {a} has NaN or infinite coordinates: {coord[k, a].tolist()}")
    if cell is not None:
        cell = _as_numbers("cell", np.asarray(cell))
        if cell.shape != (coord.shape[0], 3, 3):
            raise InputError(f"cell must have shape (frames, 3, 3) = {(coord.shape[0], 3, 3)}, got {cell.shape}")
    return coord, atype, cell


_SAME_PLACE = 1e-6
"""Å. Nearer atoms make descriptors and their derivatives overflow."""


def _check_overlap(pairs: _Pairs, na: int, numbers: Sequence[int]) -> None:
    """Refuse atoms at one place, where the environment matrix divides by zero."""
    if float(np.min(pairs.distance, initial=_FARTHEST)) >= _SAME_PLACE:
        return
    row = int(np.argmin(pairs.distance))
    (k, a), b = divmod(int(pairs.centre[row]), na), int(pairs.neighbour[row]) % na
    who = f"atoms {a} and {b} are" if a != b else f"atom {a} and an image of it are"
    raise InputError(
        f"frame {numbers[k]}: {who} {pairs.distance[row]:.3g} Å apart, at one place: "
        "energies and forces would be NaN or infinite. Remove one of them, and check units and cell"
    )


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
