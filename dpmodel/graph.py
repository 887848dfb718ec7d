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

Edges are sorted by centre, padding included.

Sizes: n owned atoms, m nodes (m >= n), e edges, f frames. Every array field names its axes of such sizes
(`axes`); padding, compilation and whatever else treats graphs generically derive from this declaration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, NamedTuple, Protocol, TypeVar, cast, dataclass_transform

from dpmodel.op import Array

__all__ = [
    "GLOBAL_AXES",
    "INPUTS",
    "LAST",
    "PARAMETERS",
    "AngleRequest",
    "Angles",
    "Comm",
    "Edges",
    "Graph",
    "Leaf",
    "NeighbourRequest",
    "Record",
    "Slots",
    "TypeGroups",
    "VirtualAtoms",
    "axes",
    "check",
    "map_leaves",
    "map_record",
    "record_types",
    "sized",
    "split_views",
]

T = TypeVar("T", bound="Record")

# --- records and their axes --------------------------------------------------------------------------------

GLOBAL_AXES: Final = ("atoms", "nodes", "edges", "frames")
"""Axes that all parts of a graph share: n, m, e and f."""
PARAMETERS: Final = ("fparam", "aparam", "charge_spin")
"""Inputs beside the geometry, which data, evaluations and ASE hand on by these names."""
INPUTS: Final = (*PARAMETERS, "spin")
"""Those and the spins of atoms, which turn with the geometry: what data systems hold of a model's inputs."""
LAST: Final = "last"
"""Padding that names the last row of what the numbers point to, so that sorted indices stay sorted."""

record_types: list[type[Record]] = []
"""Every record class, for bridges that must register them (torch.export, JAX pytrees)."""


def axes(*names: str, pad: Any = 0, points: str | None = None, **options: Any) -> Any:
    """Declare an array (or None, or a tuple of arrays with an axis each) of a `Record`.

    Args:
        names: of the leading axes whose sizes depend on the data; the sizes of further axes belong to the model.
            Other names than `GLOBAL_AXES` belong to one instance of the record, "^name" to the record that holds it.
        pad: what rows hold that are added for padding, or `LAST`.
        points: the axis that the numbers index, if they are indices.
        options: of `dataclasses.field`.
    """
    return dataclasses.field(metadata={"axes": names, "pad": pad, "points": points}, **options)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(axes, dataclasses.field))
class Record:
    """A frozen keyword-only dataclass of arrays (each declared by `axes`), None, tuples of those, and other records."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
        record_types.append(cls)

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields replaced."""
        return cast(T, dataclasses.replace(cast(Any, self), **changes))


class Leaf(NamedTuple):
    """One array of a record and what its field declares."""

    path: str
    """Where it is: `views.0.edge`."""
    array: Array
    axes: tuple[str, ...]
    """Axes of data-dependent size: global names, or private ones by their whole path (`views.0.width`)."""
    pad: Any
    points: str | None
    """The axis that the numbers index."""

    @property
    def static(self) -> tuple[int, ...]:
        """Sizes of the remaining axes."""
        return tuple(self.array.shape[len(self.axes) :])


def map_leaves(record: Any, convert: Callable[[Leaf], Any]) -> Any:
    """A copy of a record (or a tuple of them) with `convert` applied to every array, in order of declaration.

    Raises TypeError for an array in a field that declares no axes.
    """
    return _map(record, convert, "", "")


def sized(record: Any) -> tuple[Leaf, ...]:
    """Every array of a record, in the order of `map_leaves`."""
    leaves: list[Leaf] = []
    map_leaves(record, leaves.append)
    return tuple(leaves)


def map_record(record: Any, convert: Callable[[Array], Array]) -> Any:
    """Apply `convert` to every array of a record, of nested tuples and records, in the order of `sized`."""
    return map_leaves(record, lambda leaf: convert(leaf.array))


def check(record: Any) -> dict[str, int]:
    """The size of every axis. Looks at shapes alone.

    Raises ValueError where arrays disagree about an axis, or point into an axis of size 0.
    """
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}
    leaves = sized(record)
    for path, array, names, _, _ in leaves:
        if array.ndim < len(names):
            raise ValueError(f"{path}: expected an array over {names}, got shape {tuple(array.shape)}")
        for name, size in zip(names, array.shape, strict=False):
            if sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"{path} has {size} {name}, {origin[name]} has {sizes[name]}: arrays of one record must agree"
                )
            origin.setdefault(name, path)
    for leaf in leaves:
        if leaf.points is not None and sizes.get(leaf.points) == 0 and 0 not in leaf.array.shape:
            raise ValueError(f"{leaf.path} points into {leaf.points}, of which there are none")
    if "nodes" in sizes and sizes["nodes"] < sizes.get("atoms", 0):
        raise ValueError(
            f"{sizes['nodes']} nodes cannot hold {sizes['atoms']} owned atoms, which come first among them"
        )
    return sizes


def _map(value: Any, convert: Callable[[Leaf], Any], path: str, outer: str) -> Any:
    """`map_leaves` of the value at `path`, held by the record at `outer`."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_map(item, convert, _join(path, str(k)), outer) for k, item in enumerate(value))
    if not isinstance(value, Record):
        raise TypeError(f"{path or 'this'} is a {type(value).__name__} in a field that declares no axes (see `axes`)")
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, value)):
        here, item = _join(path, field.name), getattr(value, field.name)
        if item is None or "axes" not in field.metadata:
            changes[field.name] = _map(item, convert, here, path)
        elif isinstance(item, tuple):
            parts = [(_join(here, str(k)), x) for k, x in enumerate(item)]
            changes[field.name] = tuple(convert(_leaf(field.metadata, x, at, at, outer)) for at, x in parts)
        else:
            changes[field.name] = convert(_leaf(field.metadata, item, here, path, outer))
    return value.replace(**changes)


def _leaf(about: Mapping[str, Any], array: Array, path: str, own: str, outer: str) -> Leaf:
    """own, outer: what private axes, and those with "^", are named after."""

    def key(name: str) -> str:
        if name in GLOBAL_AXES:
            return name
        return _join(outer, name[1:]) if name.startswith("^") else _join(own, name)

    points = about["points"]
    return Leaf(path, array, tuple(map(key, about["axes"])), about["pad"], None if points is None else key(points))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# --- what a graph consists of ------------------------------------------------------------------------------


class Slots(Record):
    """Neighbours of every owned atom as a table, one column a slot; `w` is as wide as the data needs.

    The capacity (`sel`) is a property of the model: what its remaining, empty slots contribute enters
    through `count`, not through columns.
    """

    edge: Array = axes("atoms", "width", points="edges")
    """(n, w) integer: row of the edge in `Graph.edge_vec`; 0 where the slot is empty."""
    mask: Array = axes("atoms", "width")
    """(n, w) bool: True where the slot holds a neighbour."""


class Angles(Record):
    """Ordered pairs of edges of one centre, those of an edge with itself included, sorted by `ij`."""

    ij: Array = axes("count", pad=LAST, points="^count")
    """(a,) integer: position of the first edge in the `Edges` that hold these."""
    ik: Array = axes("count", pad=LAST, points="^count")
    """(a,) integer: position of the second edge."""
    mask: Array = axes("count")
    """(a,) bool: False for padding."""


class Edges(Record):
    """The edges that one descriptor sees, sorted by centre, nearest first."""

    row: Array = axes("count", pad=LAST, points="edges")
    """(k,) integer: row in `Graph.edge_vec`."""
    mask: Array = axes("count")
    """(k,) bool: False for padding."""
    angles: Angles | None = None
    """Pairs of the edges that are near enough to span angles, where the descriptor asks for them."""


class TypeGroups(Record):
    """Owned atoms grouped by type, so that per-type networks run on blocks.

    `take_rows(concat([f_t(take_rows(x, rows[t])) for t in types]), place)` applies `f_t` per type.
    Virtual atoms (type -1) are in group 0; models mask what is computed for them.
    """

    rows: tuple[Array, ...] = axes("members", points="atoms")
    """Per type t: (n_t,) integer, rows of the atoms of that type (padding, if any, repeats row 0)."""
    place: Array = axes("atoms")
    """(n,) integer: position of every owned atom in the concatenation of the groups."""


class VirtualAtoms(Record):
    """Atoms that stand for the spins of others: each is displaced from its own by the spin times a length of its type."""

    real: Array = axes("pairs", points="nodes")
    """(p,) integer: rows of the atoms that the user knows; those of owned atoms, behind them those of ghosts."""
    virtual: Array = axes("pairs", points="nodes")
    """(p,) integer: rows of the atoms that stand for their spins: owned where the other is, a ghost where it is one."""
    shift: Array = axes("pairs")
    """(p, 3) float, Å: displacement of the virtual atom."""
    scale: Array = axes("pairs")
    """(p,) float, Å per unit of spin; 0 for types without spin."""
    frame: Array = axes("pairs", pad=LAST, points="frames")
    """(p,) integer: frame of every pair."""
    owned: Array = axes("owned", points="pairs")
    """(s,) integer: which pairs are of owned atoms, the first s."""


class Comm(Record):
    """What an exchange of ghost rows needs; read by a backend's `_exchange_ghosts` alone."""

    handle: Array = axes()
    """(1,) int64 on the CPU: address of a struct of function pointers (see docs/exchange.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AngleRequest:
    """Which pairs of edges a descriptor needs."""

    rcut: float
    """Edges shorter than this (strictly) span angles, Å."""
    sel: int
    """Capacity: the nearest `sel` of an atom's edges in the view."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourRequest:
    """What a descriptor needs of the neighbour list; asked once, before any graph is built."""

    rcut: float
    """Cutoff radius, Å."""
    sel: tuple[int, ...]
    """Capacity: per type for typed slots, else one number. The nearest sum(sel) within rcut are kept, then the
    nearest sel[t] of each type."""
    layout: Literal["slots", "typed_slots", "edges"]
    """The view: one `Slots` of all types, nearest first; a tuple of `Slots`, one per neighbour type; or `Edges`."""
    angles: AngleRequest | None = None
    """Only with the layout "edges"."""


class Graph(Record):
    """Everything that a layer may read besides its features. Arrays of one library and device."""

    atype: Array = axes("nodes", pad=-1)
    """(m,) integer: type of every node; -1 is a virtual atom (padding): no neighbours, no contribution."""
    frame: Array = axes("atoms", pad=LAST, points="frames")
    """(n,) integer: frame of every owned atom."""
    natoms: Array = axes("frames")
    """(f,) integer: number of real (non-virtual) atoms of every frame."""
    centre: Array = axes("edges", pad=LAST, points="atoms")
    """(e,) integer in [0, n), sorted: the atom that sees."""
    neighbour: Array = axes("edges", points="nodes")
    """(e,) integer in [0, m): the node that is seen."""
    edge_vec: Array = axes("edges", pad=(1.0, 0.0, 0.0))
    """(e, 3) float, Å: displacement from centre to neighbour. The one leaf of all derivatives."""
    edge_mask: Array = axes("edges")
    """(e,) bool: False for padding. Padded edges have edge_vec (1, 0, 0) and the last atom's row as centre, and every
    view masks them."""
    views: tuple[Any, ...] = ()
    """One per request of the model, in order: `Slots`, a tuple of `Slots` (one per type), or `Edges`.
    A composite hands each child its own part (`split_views`)."""
    types: TypeGroups | None = None
    """Grouping by type, where a part of the model has networks per type."""
    owner: Array | None = axes("nodes", pad=LAST, points="atoms", default=None)
    """(m,) integer: owned row that each node copies; None: no ghosts, m = n."""
    fparam: Array | None = axes("frames", default=None)
    """(f, df) float: frame parameters."""
    aparam: Array | None = axes("atoms", default=None)
    """(n, da) float: atomic parameters."""
    virtual: VirtualAtoms | None = None
    """Atoms that stand for spins, where the model takes spins."""
    charge_spin: Array | None = axes("frames", default=None)
    """(f, 2) float: total charge and spin multiplicity of every frame."""
    comm: Comm | None = None
    """Ghost exchange with other processes; None within one process."""

    def grouped(self) -> TypeGroups:
        """`types`. Raises ValueError where the graph was built without them."""
        if self.types is None:
            raise ValueError("this model has networks per type: build its graph with group_by_type=True")
        return self.types


class HasRequests(Protocol):
    """Whatever says which views it needs: descriptors, models."""

    def requests(self) -> tuple[NeighbourRequest, ...]:
        """The neighbour lists that it needs, in order."""


def split_views(graph: Graph, parts: Sequence[HasRequests]) -> tuple[Graph, ...]:
    """The graph of every part of a composite: its own views, everything else shared.

    Raises ValueError where the views are not those that the parts ask for together.
    """
    counts = [len(part.requests()) for part in parts]
    if sum(counts) != len(graph.views):
        raise ValueError(f"the parts ask for {sum(counts)} views, the graph has {len(graph.views)}")
    ends = [sum(counts[: k + 1]) for k in range(len(counts))]
    return tuple(graph.replace(views=graph.views[e - c : e]) for c, e in zip(counts, ends, strict=True))
