"""`Graph`: the one input of every layer, and the conventions of the library, said once.

Units: Å, eV, eV/Å. Cell vectors are rows. Displacements point from centre to neighbour:
`edge_vec = x[neighbour] + image shift - x[centre]`. Forces are -dE/dx. The virial is
`V[a, b] = -sum_edges dE/d(edge_vec[a]) edge_vec[b]` (a: force component, the slow index of the
flattened 9; positive for a compressed crystal); the term of an edge belongs to its neighbour.

Atoms are flat: those of all frames of a batch are concatenated, `frame` says which is whose. There is
no frame axis and no padding, so frames of different sizes share a batch and LAMMPS is the one-frame case.

Nodes are the owned atoms, in front, and behind them ghosts (copies of atoms that another row or another
process owns). A periodic system in Python needs no ghosts: its edges point at the owner's row and carry
the image shift inside `edge_vec`. All sizes may be 0 or 1, and nothing here has a data-dependent shape:
whatever depends on the data was decided when the graph was built (`dpmodel.geometry`).

Sizes: n owned atoms, m nodes (m >= n), e edges, f frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform

from dpmodel.op import Array

__all__ = ["Comm", "Graph", "NeighbourRequest", "Record", "Slots", "TypeGroups", "map_record", "record_types"]

T = TypeVar("T", bound="Record")

record_types: list[type[Record]] = []
"""Every record class, for bridges that must register them (torch.export, JAX pytrees)."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """A frozen keyword-only dataclass of arrays, None, tuples of those, and other records."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
        record_types.append(cls)

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields replaced."""
        return cast(T, dataclasses.replace(cast(Any, self), **changes))


class Slots(Record):
    """Neighbours of every owned atom as a table, one column a slot; `w` is as wide as the data needs.

    The capacity (`sel`) is a property of the model: what its remaining, empty slots contribute enters
    through `count`, not through columns.
    """

    edge: Array
    """(n, w) integer: row of the edge in `Graph.edge_vec`; 0 where the slot is empty."""
    mask: Array
    """(n, w) bool: True where the slot holds a neighbour."""


class TypeGroups(Record):
    """Owned atoms grouped by type, so that per-type networks run on blocks.

    `take_rows(concat([f_t(take_rows(x, rows[t])) for t in types]), place)` applies `f_t` per type.
    Virtual atoms (type -1) are in group 0; models mask what is computed for them.
    """

    rows: tuple[Array, ...]
    """Per type t: (n_t,) integer, rows of the atoms of that type (padding, if any, repeats row 0)."""
    place: Array
    """(n,) integer: position of every owned atom in the concatenation of the groups."""


class Comm(Record):
    """What an exchange of ghost rows needs; read by a backend's `_exchange_ghosts` alone."""

    handle: Array
    """(1,) int64 on the CPU: address of a struct of function pointers (see docs/design.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourRequest:
    """What a descriptor needs of the neighbour list; asked once, before any graph is built."""

    rcut: float
    """Cutoff radius, Å."""
    sel: tuple[int, ...]
    """Capacity: per type if `typed`, else one number. The nearest sum(sel) within rcut are kept, then the nearest
    sel[t] of each type."""
    typed: bool
    """True: the view is one `Slots` per neighbour type. False: a single one of all types, nearest first."""


class Graph(Record):
    """Everything that a layer may read besides its features. Arrays of one library and device."""

    atype: Array
    """(m,) integer: type of every node; -1 is a virtual atom (padding): no neighbours, no contribution."""
    frame: Array
    """(n,) integer: frame of every owned atom."""
    natoms: Array
    """(f,) integer: number of real (non-virtual) atoms of every frame."""
    centre: Array
    """(e,) integer in [0, n): the atom that sees."""
    neighbour: Array
    """(e,) integer in [0, m): the node that is seen."""
    edge_vec: Array
    """(e, 3) float, Å: displacement from centre to neighbour. The one leaf of all derivatives."""
    edge_mask: Array
    """(e,) bool: False for padding. Padded edges have edge_vec (1, 0, 0) and are in no view."""
    views: tuple[Any, ...] = ()
    """One per request of the model, in order: `Slots`, or a tuple of `Slots` (one per type) where typed.
    A composite hands each child its own part."""
    types: TypeGroups | None = None
    """Grouping by type, where a part of the model has networks per type."""
    owner: Array | None = None
    """(m,) integer: owned row that each node copies; None: no ghosts, m = n."""
    fparam: Array | None = None
    """(f, df) float: frame parameters."""
    aparam: Array | None = None
    """(n, da) float: atomic parameters."""
    spin: Array | None = None
    """(n, 3) float: magnetic moments."""
    charge_spin: Array | None = None
    """(f, 2) float: total charge and spin multiplicity of every frame."""
    comm: Comm | None = None
    """Ghost exchange with other processes; None within one process."""

    def grouped(self) -> TypeGroups:
        """`types`. Raises ValueError where the graph was built without them."""
        if self.types is None:
            raise ValueError("this model has networks per type: build its graph with group_by_type=True")
        return self.types


def map_record(record: Any, convert: Callable[[Array], Array]) -> Any:
    """Apply `convert` to every array of a record, of nested tuples and records."""
    if record is None:
        return None
    if isinstance(record, tuple):
        return tuple(map_record(item, convert) for item in record)
    if isinstance(record, Record):
        names = [f.name for f in dataclasses.fields(cast(Any, record))]
        return record.replace(**{name: map_record(getattr(record, name), convert) for name in names})
    return convert(record)
