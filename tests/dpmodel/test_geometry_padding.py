"""Padding changes no sum, and bucketed sizes are few."""

import numpy as np
import pytest

from dpmodel.errors import InputError
from dpmodel.geometry import GraphBuilder, Sizes, bucket_sizes, graph_sizes, pad_graph
from dpmodel.graph import Graph, NeighbourRequest, Slots
from dpmodel.ops import segment_sum, take_rows

REQUESTS = (
    NeighbourRequest(rcut=3.5, sel=(60, 60, 60), typed=True),
    NeighbourRequest(rcut=3.0, sel=(90,), typed=False),
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
    """What layers compute: sums over edges by atom and frame, over slots, per-type functions, all for real atoms."""
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
    assert (padded.atype[n : sizes.atoms] == -1).all()
    assert (padded.frame[n:] == sizes.frames - 1).all()
    assert (padded.natoms[f:] == 0).all()
    extra = slice(graph.centre.shape[0], None)
    assert not padded.edge_mask[extra].any()
    assert (padded.edge_vec[extra] == [1.0, 0.0, 0.0]).all()
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
        place = bucket_sizes(graph).atoms
        np.testing.assert_array_equal(padded.owner[place : place + 2], real)
        np.testing.assert_array_equal(padded.atype[place : place + 2], graph.atype[real])


@pytest.mark.parametrize(("f", "na"), [(0, 0), (1, 0), (1, 1), (2, 1)])
def test_small_graphs(f, na):
    graph = graph_of(f=f, na=na)
    padded = check(graph, bucket_sizes(graph))
    sizes = graph_sizes(padded)
    assert min(sizes.atoms, sizes.edges, sizes.frames, *sizes.widths, *sizes.groups) >= 2


def test_least_sizes_add_one_empty_frame_and_nothing_else():
    graph = graph_of()
    now = graph_sizes(graph)
    padded = check(graph, Sizes(**{**vars(now), "frames": now.frames + 1}))
    np.testing.assert_array_equal(padded.types.place, graph.types.place)


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
    graph = graph_of()
    seen = set()
    for edges in range(0, 20_000, 7):
        size = bucket_sizes(graph.replace(centre=np.zeros(edges, int))).edges
        assert edges <= size <= max(32, 1.25 * edges + 2)
        seen.add(size)
    assert len(seen) < 32


def test_earlier_buckets_are_used_again_until_they_waste():
    graph = graph_of()
    fresh = bucket_sizes(graph)
    assert hash(fresh) == hash(bucket_sizes(graph))

    def scaled(factor):
        values = {
            k: tuple(int(factor * x) for x in v) if isinstance(v, tuple) else int(factor * v)
            for k, v in vars(fresh).items()
        }
        return Sizes(**values)

    assert bucket_sizes(graph, scaled(1.7)) == scaled(1.7)
    check(graph, scaled(1.7))
    assert bucket_sizes(graph, scaled(3)) == fresh
    assert bucket_sizes(graph, scaled(0.5)) == fresh
    # One size that no longer suffices does not disturb the others.
    short = Sizes(**{**vars(scaled(1.7)), "edges": fresh.edges - 1})
    assert bucket_sizes(graph, short) == Sizes(**{**vars(scaled(1.7)), "edges": fresh.edges})
    # Another structure: nothing to take over.
    assert bucket_sizes(graph.replace(views=()), scaled(1.7)).widths == ()


@pytest.mark.parametrize("name", ["atoms", "edges", "frames", "widths", "groups"])
def test_sizes_that_do_not_fit_are_refused(name):
    graph = graph_of()
    now = graph_sizes(graph)
    enough = {**vars(now), "frames": now.frames + 1}
    value = enough[name]
    less = (value[0] - 1, *value[1:]) if isinstance(value, tuple) else value - 1
    with pytest.raises(InputError, match=f"sizes.{name} must be at least"):
        pad_graph(graph, Sizes(**{**enough, name: less}))


def test_other_structures_and_foreign_ghosts_are_refused():
    graph = graph_of()
    sizes = bucket_sizes(graph)
    with pytest.raises(InputError, match="entries"):
        pad_graph(graph.replace(views=()), sizes)
    with pytest.raises(InputError, match="another process"):
        pad_graph(graph.replace(comm=object()), sizes)
