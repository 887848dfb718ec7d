"""Padding changes no sum, and bucketed sizes are few."""

import numpy as np
import pytest

from dpmodel.errors import InputError
from dpmodel.geometry import Buckets, GraphBuilder, bucket_sizes, graph_sizes, pad_graph
from dpmodel.graph import AngleRequest, Comm, Edges, Graph, NeighbourRequest, Slots
from dpmodel.ops import segment_sum, take_rows

REQUESTS = (
    NeighbourRequest(rcut=3.5, sel=(60, 60, 60), layout="typed_slots"),
    NeighbourRequest(rcut=3.0, sel=(90,), layout="slots"),
    NeighbourRequest(rcut=3.2, sel=(90,), layout="edges", angles=AngleRequest(rcut=2.8, sel=40)),
    NeighbourRequest(rcut=2.5, sel=(90,), layout="edges"),
)


def graph_of(seed=0, f=2, na=9):
    rng = np.random.default_rng(seed)
    return GraphBuilder(REQUESTS, 3).build(
        rng.uniform(0, 7, (f, na, 3)),
        rng.integers(-1, 2, (f, na)),
        np.broadcast_to(7 * np.eye(3), (f, 3, 3)),
        fparam=rng.normal(size=(f, 2)),
        aparam=rng.normal(size=(f, na, 1)),
    )


def with_ghosts(graph):
    """The same system with two nodes that copy atoms 1 and 0, seen by the last two edges."""
    n = graph.frame.shape[0]
    neighbour = graph.neighbour.copy()
    neighbour[-2:] = [n, n + 1]
    return graph.replace(
        neighbour=neighbour,
        atype=np.concatenate([graph.atype, graph.atype[[1, 0]]]),
        owner=np.concatenate([np.arange(n), [1, 0]]),
    )


def sums(graph):
    """What layers compute: sums over edges, slots and angles by atom, by frame, per-type functions."""
    n, f, m = graph.frame.shape[0], graph.natoms.shape[0], graph.atype.shape[0]
    weight = np.where(graph.edge_mask, np.exp(-np.sum(graph.edge_vec**2, axis=1)), 0.0)
    by_atom = segment_sum(weight, graph.centre, n)
    seen = segment_sum(weight, graph.neighbour, m)
    if graph.owner is not None:
        seen = segment_sum(seen, graph.owner, n)
    kinds = segment_sum(weight * take_rows(graph.atype, graph.neighbour), graph.centre, n)
    out = [by_atom, seen, kinds, segment_sum(by_atom, graph.frame, f), graph.natoms, graph.fparam, graph.aparam]
    for slots in (*graph.views[0], graph.views[1]):
        table = np.where(slots.mask, take_rows(weight, slots.edge), 0.0) if len(weight) else slots.mask
        out.append(table.sum(axis=1))
    for view in graph.views[2:]:
        near = np.where(view.mask, take_rows(weight, view.row), 0.0)
        out.append(segment_sum(near, graph.centre[view.row], n))
        if view.angles is not None:
            pair = take_rows(near, view.angles.ij) * (1.0 + take_rows(near, view.angles.ik) ** 2)
            spread = segment_sum(np.where(view.angles.mask, pair, 0.0), view.angles.ij, len(near))
            out.append(segment_sum(spread, graph.centre[view.row], n))
    values = by_atom + np.arange(n)
    out.append(np.concatenate([(t + 2.0) * values[rows] for t, rows in enumerate(graph.types.rows)])[graph.types.place])
    return out


def check(graph, sizes):
    padded = pad_graph(graph, sizes)
    n, f = graph.frame.shape[0], graph.natoms.shape[0]
    for a, b in zip(sums(graph), sums(padded), strict=True):
        rows = f if len(a) == f != n else n
        np.testing.assert_allclose(b[:rows], a, rtol=1e-13, atol=1e-13)
    assert graph_sizes(padded) == sizes
    assert (padded.atype[n : sizes["atoms"]] == -1).all()
    assert (padded.frame[n:] == sizes["frames"] - 1).all()
    assert (padded.natoms[f:] == 0).all()
    extra = slice(graph.centre.shape[0], None)
    assert not padded.edge_mask[extra].any()
    assert (padded.edge_vec[extra] == [1.0, 0.0, 0.0]).all()
    assert (padded.centre[extra] == sizes["atoms"] - 1).all()
    assert (np.diff(padded.centre) >= 0).all()
    for old, new in zip(graph.views[2:], padded.views[2:], strict=True):
        assert isinstance(new, Edges)
        assert new.mask.sum() == len(old.row)
        assert (np.diff(padded.centre[new.row]) >= 0).all()
        assert (new.angles is None) == (old.angles is None)
        if old.angles is not None:
            assert new.angles.mask.sum() == len(old.angles.ij)
            assert (np.diff(new.angles.ij) >= 0).all()
    for old, new in zip((*graph.views[0], graph.views[1]), (*padded.views[0], padded.views[1]), strict=True):
        assert new.mask.sum() == old.mask.sum()
        assert (new.edge[~new.mask] == 0).all()
    for name in ("atype", "frame", "natoms", "centre", "neighbour", "edge_vec", "edge_mask", "fparam", "aparam"):
        assert getattr(padded, name).dtype == getattr(graph, name).dtype
    return padded


@pytest.mark.parametrize("ghosts", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_padding_changes_no_sum(seed, ghosts):
    graph = with_ghosts(graph_of(seed)) if ghosts else graph_of(seed)
    padded = check(graph, bucket_sizes(graph))
    if ghosts:
        real = graph.owner[-2:]
        place = bucket_sizes(graph)["atoms"]
        np.testing.assert_array_equal(padded.owner[place : place + 2], real)
        np.testing.assert_array_equal(padded.atype[place : place + 2], graph.atype[real])


@pytest.mark.parametrize(("f", "na"), [(0, 0), (1, 0), (1, 1), (2, 1)])
def test_small_graphs(f, na):
    graph = graph_of(f=f, na=na)
    padded = check(graph, bucket_sizes(graph))
    sizes = graph_sizes(padded)
    assert min(sizes.values()) >= 2


def test_least_sizes_add_one_empty_frame_and_nothing_else():
    graph = graph_of()
    now = graph_sizes(graph)
    padded = check(graph, {**now, "frames": now["frames"] + 1})
    np.testing.assert_array_equal(padded.types.place, graph.types.place)


def test_without_padding_atoms_the_last_one_is_the_centre():
    graph = graph_of()
    now = graph_sizes(graph)
    sizes = {**now, "frames": now["frames"] + 1, "edges": now["edges"] + 5, "views.2.count": now["views.2.count"] + 3}
    padded = check(graph, sizes)
    assert (padded.centre[-5:] == now["atoms"] - 1).all()
    assert (padded.views[2].row[-3:] == sizes["edges"] - 1).all()


def test_nested_views_and_missing_fields():
    graph = graph_of()
    nested = graph.replace(
        views=((graph.views[0], graph.views[1]), graph.views[1]), types=None, fparam=None, aparam=None
    )
    padded = pad_graph(nested, bucket_sizes(nested))
    assert isinstance(padded.views[0][0], tuple)
    assert isinstance(padded.views[0][1], Slots)
    assert padded.types is None
    assert padded.fparam is None
    bare = Graph(**{**vars(nested), "views": ()})
    assert pad_graph(bare, bucket_sizes(bare)).views == ()


def test_buckets_are_few_and_grow_by_a_quarter():
    seen = set()
    bare = graph_of().replace(views=())
    for count in range(0, 20_000, 7):
        index = np.zeros(count, int)
        edges = {"centre": index, "neighbour": index, "edge_vec": np.zeros((count, 3)), "edge_mask": index > 0}
        size = bucket_sizes(bare.replace(**edges))["edges"]
        assert count <= size <= max(32, 1.25 * count + 2)
        seen.add(size)
    assert len(seen) < 32


def test_earlier_buckets_are_used_again_until_they_waste():
    graph = graph_of()
    fresh = bucket_sizes(graph)

    def scaled(factor):
        return {axis: int(factor * size) for axis, size in fresh.items()}

    assert bucket_sizes(graph, scaled(1.7)) == scaled(1.7)
    check(graph, scaled(1.7))
    assert bucket_sizes(graph, scaled(3)) == fresh
    assert bucket_sizes(graph, scaled(0.5)) == fresh
    # One size that no longer suffices does not disturb the others.
    short = {**scaled(1.7), "edges": fresh["edges"] - 1}
    assert bucket_sizes(graph, short) == {**scaled(1.7), "edges": fresh["edges"]}
    # Another structure: nothing to take over.
    assert not any("views" in axis for axis in bucket_sizes(graph.replace(views=()), scaled(1.7)))


AXES = (
    "atoms", "nodes", "edges", "frames", "views.0.1.width", "views.1.width", "views.2.count", "views.2.angles.count",
    "types.rows.0.members",
)  # fmt: skip


@pytest.mark.parametrize("axis", AXES)
def test_sizes_that_do_not_fit_are_refused(axis):
    graph = graph_of()
    now = graph_sizes(graph)
    enough = {**now, "frames": now["frames"] + 1}
    with pytest.raises(InputError, match=rf"sizes\['{axis}'\] must be at least {enough[axis]}"):
        pad_graph(graph, {**enough, axis: enough[axis] - 1})


def test_padding_needs_a_row_to_name():
    graph = graph_of(f=1, na=0)
    sizes = {**graph_sizes(graph), "frames": 2, "edges": 4}
    with pytest.raises(InputError, match=r"sizes\['atoms'\] must be at least 1"):
        pad_graph(graph, sizes)


def test_other_structures_and_foreign_ghosts_are_refused():
    graph = graph_of()
    sizes = bucket_sizes(graph)
    with pytest.raises(InputError, match="entries"):
        pad_graph(graph.replace(views=()), sizes)
    with pytest.raises(InputError, match="another process"):
        pad_graph(graph.replace(comm=Comm(handle=np.zeros(1, np.int64))), sizes)


def test_buckets_are_shared():
    """Many sizes of systems need few buckets, and what is chosen follows from what was known."""
    sizes = (3, 5, 8, 13, 21, 34)
    graphs = [graph_of(seed, 1 + seed % 3, sizes[seed % 6]) for seed in range(60)]
    buckets, chosen = Buckets(), []
    for graph in graphs:
        known = Buckets(buckets.known)
        chosen.append(buckets.choose(graph))
        assert known.choose(graph) == chosen[-1]
        padded = pad_graph(graph, chosen[-1])
        for a, b in zip(sums(graph), sums(padded), strict=True):
            np.testing.assert_allclose(b[: len(a)], a, rtol=0, atol=1e-12)
    own = {tuple(bucket_sizes(graph).items()) for graph in graphs}
    assert len(buckets.known) == len({tuple(each.items()) for each in chosen}) <= len(own) // 4


def test_buckets_hold_all_parts_and_ghosts():
    parts = [graph_of(0, 2, 4), graph_of(1, 1, 9), with_ghosts(graph_of(2, 1, 6)).replace(owner=None)]
    chosen = Buckets().choose(*parts)
    for part in parts:
        assert graph_sizes(pad_graph(part, chosen)) == dict(chosen)


def test_buckets_do_not_waste():
    """A small graph after a large one gets sizes of its own."""
    buckets = Buckets()
    large, small = (buckets.choose(graph_of(0, frames, 30)) for frames in (40, 2))
    assert small["atoms"] < 0.5 * large["atoms"]
    assert buckets.choose(graph_of(1, 40, 30))["atoms"] == large["atoms"]
