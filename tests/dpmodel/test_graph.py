"""Records say what their axes are; graphs are checked, split and cut by that."""

import dataclasses

import numpy as np
import pytest

from dpmodel.descriptors import Features
from dpmodel.evaluation import select_centres
from dpmodel.geometry import GraphBuilder
from dpmodel.graph import (
    LAST,
    AngleRequest,
    Angles,
    Comm,
    Edges,
    Graph,
    NeighbourRequest,
    Record,
    Slots,
    TypeGroups,
    VirtualAtoms,
    axes,
    check,
    map_leaves,
    map_record,
    record_types,
    sized,
    split_views,
)

REQUESTS = (
    NeighbourRequest(rcut=3.5, sel=(60, 60), layout="typed_slots"),
    NeighbourRequest(rcut=3.0, sel=(90,), layout="slots"),
    NeighbourRequest(rcut=3.2, sel=(90,), layout="edges", angles=AngleRequest(rcut=2.8, sel=40)),
    NeighbourRequest(rcut=2.5, sel=(90,), layout="edges"),
)


def graph_of(seed=0, f=2, na=6):
    rng = np.random.default_rng(seed)
    graph = GraphBuilder(REQUESTS, 2).build(
        rng.uniform(0, 6, (f, na, 3)),
        rng.integers(-1, 2, (f, na)),
        np.broadcast_to(6 * np.eye(3), (f, 3, 3)),
        fparam=rng.normal(size=(f, 2)),
        aparam=rng.normal(size=(f, na, 1)),
    )
    virtual = VirtualAtoms(
        real=np.arange(3),
        virtual=np.arange(3, 6),
        shift=rng.normal(size=(3, 3)),
        scale=rng.uniform(size=3),
        frame=np.zeros(3, np.int64),
        owned=np.arange(2),
    )
    return graph.replace(comm=Comm(handle=np.array([7])), virtual=virtual)


# --- the declaration -------------------------------------------------------------------------------------


def test_every_array_is_declared():
    ours = {Graph, Slots, Edges, Angles, TypeGroups, VirtualAtoms, Comm, Features}
    assert ours <= set(record_types)
    nested = {(Graph, "views"), (Graph, "types"), (Graph, "virtual"), (Graph, "comm"), (Edges, "angles")}
    for cls in ours:
        for field in dataclasses.fields(cls):
            assert ("axes" in field.metadata) == ((cls, field.name) not in nested), (cls, field.name)


def test_leaves_and_their_axes():
    leaves = {leaf.path: leaf for leaf in sized(graph_of())}
    assert list(leaves) == [
        "atype", "frame", "natoms", "centre", "neighbour", "edge_vec", "edge_mask",
        "views.0.0.edge", "views.0.0.mask", "views.0.1.edge", "views.0.1.mask", "views.1.edge", "views.1.mask",
        "views.2.row", "views.2.mask", "views.2.angles.ij", "views.2.angles.ik", "views.2.angles.mask",
        "views.3.row", "views.3.mask", "types.rows.0", "types.rows.1", "types.place",
        "fparam", "aparam", "virtual.real", "virtual.virtual", "virtual.shift", "virtual.scale", "virtual.frame",
        "virtual.owned", "comm.handle",
    ]  # fmt: skip
    found = {path: (leaves[path].axes, leaves[path].points, leaves[path].static) for path in leaves}
    assert found["edge_vec"] == (("edges",), None, (3,))
    assert found["neighbour"] == (("edges",), "nodes", ())
    assert found["views.0.1.edge"] == (("atoms", "views.0.1.width"), "edges", ())
    assert found["views.2.row"] == (("views.2.count",), "edges", ())
    assert found["views.2.angles.ik"] == (("views.2.angles.count",), "views.2.count", ())
    assert found["types.rows.1"] == (("types.rows.1.members",), "atoms", ())
    assert found["types.place"] == (("atoms",), None, ())
    assert found["comm.handle"] == ((), None, (1,))
    assert leaves["centre"].pad == leaves["views.2.angles.ij"].pad == LAST
    assert leaves["edge_vec"].pad == (1.0, 0.0, 0.0)


def test_mapping_goes_in_the_same_order_and_keeps_the_structure():
    graph = graph_of()
    order = []
    copy = map_leaves(graph, lambda leaf: order.append(leaf.path) or leaf.array + 0)
    assert order == [leaf.path for leaf in sized(graph)] == [leaf.path for leaf in sized(copy)]
    numbers = iter(range(100))
    leaves = sized(map_record(graph, lambda x: np.full(x.shape, next(numbers))))
    assert all((leaf.array == k).all() for k, leaf in enumerate(leaves))
    assert isinstance(copy.views[2].angles, Angles)
    assert copy.views[3].angles is None
    assert copy.owner is None


def test_an_array_without_axes_is_an_error():
    class Careless(Record):
        numbers: np.ndarray
        given: np.ndarray = axes("atoms")

    try:
        with pytest.raises(TypeError, match="numbers is a ndarray in a field that declares no axes"):
            sized(Careless(numbers=np.zeros(3), given=np.zeros(3)))
    finally:
        record_types.remove(Careless)


# --- check -----------------------------------------------------------------------------------------------


def test_sizes_by_axis():
    graph = graph_of()
    sizes = check(graph)
    n, e = len(graph.frame), len(graph.centre)
    assert (sizes["atoms"], sizes["nodes"], sizes["edges"], sizes["frames"]) == (n, n, e, 2)
    assert sizes["views.1.width"] == graph.views[1].edge.shape[1]
    assert sizes["views.2.angles.count"] == len(graph.views[2].angles.ij)
    assert sizes["types.rows.0.members"] + sizes["types.rows.1.members"] == n


BROKEN = {
    "edge_mask has 1 edges, centre has": lambda g: g.replace(edge_mask=g.edge_mask[:1]),
    "aparam has 3 atoms, frame has 12": lambda g: g.replace(aparam=g.aparam[:3]),
    "views.1.mask has 1 views.1.width": lambda g: g.replace(
        views=(g.views[0], g.views[1].replace(mask=g.views[1].mask[:, :1]), *g.views[2:])
    ),
    "views.3.mask has 0 views.3.count": lambda g: g.replace(
        views=(*g.views[:3], g.views[3].replace(mask=g.views[3].mask[:0]))
    ),
    "views.1.edge: expected an array over": lambda g: g.replace(
        views=(g.views[0], Slots(edge=g.centre[0], mask=g.edge_mask[0]), *g.views[2:])
    ),
    "11 nodes cannot hold 12 owned atoms": lambda g: g.replace(atype=g.atype[:11]),
    "frame points into frames, of which there are none": lambda g: g.replace(natoms=g.natoms[:0], fparam=None),
}


@pytest.mark.parametrize("message", BROKEN)
def test_arrays_that_disagree_are_refused(message):
    with pytest.raises(ValueError, match=message):
        check(BROKEN[message](graph_of()))


# --- composites ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Part:
    asked: tuple[NeighbourRequest, ...]

    def requests(self):
        return self.asked


def test_parts_get_their_own_views():
    graph = graph_of()
    parts = (Part(REQUESTS[:1]), Part(()), Part(REQUESTS[1:3]), Part(REQUESTS[3:]))
    own = split_views(graph, parts)
    assert [part.views for part in own] == [graph.views[:1], (), graph.views[1:3], graph.views[3:]]
    assert all(part.edge_vec is graph.edge_vec and part.types is graph.types for part in own)
    assert split_views(graph.replace(views=()), ()) == ()
    with pytest.raises(ValueError, match="the parts ask for 2 views, the graph has 4"):
        split_views(graph, parts[2:3])


# --- pieces ----------------------------------------------------------------------------------------------


def seen_by(graph, atom):
    """What an atom sees in every view, as sets or lists of displacements and types."""
    found = []
    for view in (*graph.views[0], graph.views[1]):
        edges = view.edge[atom][view.mask[atom]]
        found.append([(*graph.edge_vec[e], graph.atype[graph.neighbour[e]]) for e in edges])
    for view in graph.views[2:]:
        own = np.flatnonzero((graph.centre[view.row] == atom) & view.mask)
        found.append([(*graph.edge_vec[e], graph.atype[graph.neighbour[e]]) for e in view.row[own]])
        if view.angles is not None:
            pairs = zip(view.angles.ij, view.angles.ik, strict=True)
            found.append([(*graph.edge_vec[view.row[j]], *graph.edge_vec[view.row[k]]) for j, k in pairs if j in own])
    return found


@pytest.mark.parametrize("size", [1, 5, 12])
def test_pieces_see_what_the_whole_sees(size):
    graph = graph_of().replace(comm=None, virtual=None)
    n = len(graph.frame)
    for start in range(0, n, size):
        stop = min(start + size, n)
        piece, nodes = select_centres(graph, start, stop)
        sizes = check(piece)
        assert (sizes["atoms"], sizes["nodes"], sizes["frames"]) == (stop - start, len(nodes), 2)
        assert nodes[: stop - start].tolist() == list(range(start, stop))
        assert (piece.atype == graph.atype[nodes]).all()
        for name in ("frame", "aparam"):
            assert (getattr(piece, name) == getattr(graph, name)[start:stop]).all()
        for atom in range(stop - start):
            assert seen_by(piece, atom) == seen_by(graph, start + atom)
        by_type = np.concatenate([np.full(len(rows), t) for t, rows in enumerate(piece.types.rows)])
        assert (by_type[piece.types.place] == np.maximum(graph.atype[start:stop], 0)).all()


def test_ghosts_with_owners_are_not_cut():
    graph = graph_of()
    with pytest.raises(ValueError, match="cannot be cut"):
        select_centres(graph, 0, 2)
    with pytest.raises(ValueError, match="cannot be cut"):
        select_centres(graph.replace(comm=None, owner=np.arange(12)), 0, 2)
