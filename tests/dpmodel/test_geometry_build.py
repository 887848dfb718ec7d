"""The graph builder against an oracle that follows the definition atom by atom, and its refusals."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.errors import InputError
from dpmodel.geometry import GraphBuilder, TruncationWarning, neighbour_counts
from dpmodel.graph import AngleRequest, Edges, NeighbourRequest, check

CELL = np.array([[5.0, 0, 0], [2.0, 5.5, 0], [-1.0, 3.0, -6.0]])


def frames(seed, f=2, na=7, ntypes=2, virtual=True):
    rng = np.random.default_rng(seed)
    coord = rng.uniform(-0.5, 1.5, (f, na, 3)) @ CELL
    return coord, rng.integers(-1 if virtual else 0, ntypes, (f, na)), np.broadcast_to(CELL, (f, 3, 3))


def sees(coord, atype, cell, i, rcut):
    """[(distance, j, vec)] of what real atom i sees within rcut, nearest first."""
    shifts = np.array(list(itertools.product(range(-6, 7), repeat=3)))
    vec = coord - coord[i] + (shifts @ cell)[:, None, :]  # (shifts, atoms, 3)
    r = np.linalg.norm(vec, axis=-1)
    seen = (r <= rcut) & (atype >= 0)
    seen[~shifts.any(axis=1), i] = False
    found = [(float(r[s, j]), int(j), vec[s, j]) for s, j in zip(*np.nonzero(seen), strict=True)]
    return sorted(found, key=lambda entry: entry[0])


def selected(seen, atype, kind, request, *, excluded, t):
    """What fills the slots of type t (None: of all types): nearest sum(sel), then sel[t] of a type, then exclusion."""
    nearest = seen[: sum(request.sel)]
    if t is not None:
        nearest = [entry for entry in nearest if atype[entry[1]] == t][: request.sel[t]]
    return [e for e in nearest if (kind, atype[e[1]]) not in excluded and (atype[e[1]], kind) not in excluded]


REQUESTS = [
    NeighbourRequest(rcut=4.0, sel=(100, 100), layout="typed_slots"),
    NeighbourRequest(rcut=4.5, sel=(3, 8), layout="typed_slots"),
    NeighbourRequest(rcut=4.0, sel=(0, 6), layout="typed_slots"),
    NeighbourRequest(rcut=3.5, sel=(5,), layout="slots"),
    NeighbourRequest(rcut=4.5, sel=(200,), layout="slots"),
]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=3),
    st.sampled_from([(), ((0, 1),), ((1, 1),)]),
)
def test_slots_follow_the_definition(seed, requests, excluded):
    coord, atype, cell = frames(seed)
    f, na = atype.shape
    builder = GraphBuilder(tuple(requests), 2, exclude_pairs=excluded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        graph = builder.build(coord, atype, cell)
    used = set()
    for request, view in zip(requests, graph.views, strict=True):
        assert isinstance(view, tuple) == (request.layout == "typed_slots")
        for t, slots in enumerate(view) if isinstance(view, tuple) else [(None, view)]:
            widest = 0
            for k, i in itertools.product(range(f), range(na)):
                want = []
                if atype[k, i] >= 0:
                    seen = sees(coord[k], atype[k], cell[k], i, request.rcut)
                    want = selected(seen, atype[k], atype[k, i], request, excluded=excluded, t=t)
                row = k * na + i
                edges = slots.edge[row][slots.mask[row]]
                assert slots.mask[row].tolist() == sorted(slots.mask[row].tolist(), reverse=True)
                assert (graph.centre[edges] == row).all()
                assert (graph.neighbour[edges] - k * na).tolist() == [j for _, j, _ in want]
                np.testing.assert_allclose(
                    graph.edge_vec[edges], np.reshape([v for _, _, v in want], (-1, 3)), atol=1e-12
                )
                used.update(edges.tolist())
                widest = max(widest, len(want))
            assert slots.edge.shape == slots.mask.shape == (f * na, widest)
            assert (slots.edge[~slots.mask] == 0).all()
    assert used == set(range(len(graph.centre)))  # edges that no view uses are gone


EDGE_REQUESTS = [
    NeighbourRequest(rcut=4.0, sel=(100,), layout="edges"),
    NeighbourRequest(rcut=4.5, sel=(9,), layout="edges", angles=AngleRequest(rcut=3.6, sel=100)),
    NeighbourRequest(rcut=4.5, sel=(200,), layout="edges", angles=AngleRequest(rcut=3.9, sel=3)),
    NeighbourRequest(rcut=3.0, sel=(7,), layout="edges", angles=AngleRequest(rcut=3.5, sel=0)),
    NeighbourRequest(rcut=3.0, sel=(0,), layout="edges", angles=AngleRequest(rcut=2.5, sel=4)),
]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.sampled_from(EDGE_REQUESTS), min_size=1, max_size=2),
    st.sampled_from([(), ((0, 1),), ((1, 1),)]),
)
def test_edges_and_angles_follow_the_definition(seed, requests, excluded):
    coord, atype, cell = frames(seed)
    f, na = atype.shape
    builder = GraphBuilder((*requests, REQUESTS[3]), 2, exclude_pairs=excluded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        graph = builder.build(coord, atype, cell)
    for request, view in zip(requests, graph.views, strict=False):
        want, angles = [], []
        for k, i in itertools.product(range(f), range(na)):
            own = []
            if atype[k, i] >= 0:
                seen = sees(coord[k], atype[k], cell[k], i, request.rcut)
                own = selected(seen, atype[k], atype[k, i], request, excluded=excluded, t=None)
            if request.angles is not None:
                near = [len(want) + p for p, (r, _, _) in enumerate(own) if r < request.angles.rcut]
                angles += itertools.product(near[: request.angles.sel], repeat=2)
            want += [(k * na + i, k * na + j, vec) for _, j, vec in own]
        assert isinstance(view, Edges)
        assert graph.centre[view.row].tolist() == [i for i, _, _ in want]
        assert graph.neighbour[view.row].tolist() == [j for _, j, _ in want]
        np.testing.assert_allclose(graph.edge_vec[view.row], np.reshape([v for _, _, v in want], (-1, 3)), atol=1e-12)
        assert view.mask.tolist() == [True] * len(want)
        assert (view.angles is None) == (request.angles is None)
        if view.angles is not None:
            assert list(zip(view.angles.ij.tolist(), view.angles.ik.tolist(), strict=True)) == angles
            assert view.angles.mask.tolist() == [True] * len(angles)
            assert {view.angles.ij.dtype, view.angles.ik.dtype, view.row.dtype} == {np.dtype("int64")}


def test_angles_leave_out_their_cutoff():
    """The list of neighbours includes its cutoff, the angles exclude theirs."""
    coord = np.array([[[0.0, 0, 0], [2, 0, 0], [0, 3, 0]]])
    request = NeighbourRequest(rcut=3.0, sel=(9,), layout="edges", angles=AngleRequest(rcut=3.0, sel=9))
    view = GraphBuilder((request,), 1).build(coord, np.zeros((1, 3), int), None).views[0]
    assert view.row.tolist() == [0, 1, 2, 3]  # 0-1, 0-2, 1-0, 2-0
    assert list(zip(view.angles.ij.tolist(), view.angles.ik.tolist(), strict=True)) == [(0, 0), (2, 2)]


def test_excluded_pairs_span_no_angles_and_leave_room():
    coord = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]])
    request = NeighbourRequest(rcut=2.1, sel=(9,), layout="edges", angles=AngleRequest(rcut=2.1, sel=1))
    view = GraphBuilder((request,), 2, exclude_pairs=((0, 1),)).build(coord, np.array([[0, 1, 0]]), None).views[0]
    assert list(zip(view.angles.ij.tolist(), view.angles.ik.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_flat_fields_and_dtypes():
    coord, atype, cell = frames(5, f=3, na=4)
    atype[1] = -1
    rng = np.random.default_rng(0)
    extra = {
        "fparam": rng.normal(size=(3, 2)), "aparam": rng.normal(size=(3, 4, 5)),
        "charge_spin": np.array([[0, 1], [1, 2], [-1, 2]]),
    }  # fmt: skip
    graph = GraphBuilder((NeighbourRequest(rcut=4.0, sel=(90,), layout="slots"),), 2).build(coord, atype, cell, **extra)
    assert graph.atype.tolist() == atype.reshape(-1).tolist()
    assert graph.frame.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert graph.natoms.tolist() == (atype >= 0).sum(1).tolist()
    assert graph.natoms[1] == 0
    assert not np.isin(graph.centre, range(4, 8)).any()
    assert (np.diff(graph.centre) >= 0).all()
    assert graph.edge_mask.all()
    np.testing.assert_array_equal(graph.aparam, extra["aparam"].reshape(12, 5))
    np.testing.assert_array_equal(graph.fparam, extra["fparam"])
    assert graph.owner is None
    assert graph.comm is None
    integers = (
        graph.atype,
        graph.frame,
        graph.natoms,
        graph.centre,
        graph.neighbour,
        graph.views[0].edge,
        graph.types.place,
    )
    assert {x.dtype for x in integers} == {np.dtype("int64")}
    floats = (graph.edge_vec, graph.fparam, graph.aparam, graph.charge_spin)
    assert {x.dtype for x in floats} == {np.dtype("float64")}


def test_types_are_grouped_in_stable_order():
    coord, _, cell = frames(1, f=1, na=7)
    atype = np.array([[2, -1, 0, 2, 0, -1, 2]])
    builder = GraphBuilder((), 4)
    types = builder.build(coord, atype, cell).types
    assert [rows.tolist() for rows in types.rows] == [[1, 2, 4, 5], [], [0, 3, 6], []]
    values = np.arange(7) * 10
    np.testing.assert_array_equal(np.concatenate([values[rows] for rows in types.rows])[types.place], values)
    assert GraphBuilder((), 4, group_by_type=False).build(coord, atype, cell).types is None


@pytest.mark.parametrize("na", [0, 1])
@pytest.mark.parametrize("f", [0, 1, 2])
@pytest.mark.parametrize("open_boundaries", [True, False])
def test_sizes_zero_and_one(f, na, open_boundaries):
    requests = (REQUESTS[0], REQUESTS[4], EDGE_REQUESTS[1])
    cell = None if open_boundaries else np.broadcast_to(4.2 * np.eye(3), (f, 3, 3))
    graph = GraphBuilder(requests, 2).build(np.zeros((f, na, 3)), np.zeros((f, na), int), cell)
    check(graph)
    edges = 0 if open_boundaries else 6 * f * na
    assert graph.edge_vec.shape == (edges, 3)
    assert graph.views[1].edge.shape == (f * na, 6 if edges else 0)
    assert graph.views[0][1].mask.shape == (f * na, 0)
    assert graph.views[2].row.shape == (edges,)
    assert graph.views[2].angles.ij.shape == (0,)  # 4.2 Å is too far
    assert graph.natoms.tolist() == [na] * f


def test_virtual_atoms_are_not_there():
    coord, atype, cell = frames(2, f=1, na=6, virtual=False)
    builder = GraphBuilder((REQUESTS[4],), 2)
    plain = builder.build(coord, atype, cell)
    padded = np.concatenate([coord, np.full((1, 2, 3), np.nan)], axis=1)
    graph = builder.build(padded, np.concatenate([atype, [[-1, -1]]], axis=1), cell)
    np.testing.assert_array_equal(graph.edge_vec, plain.edge_vec)
    np.testing.assert_array_equal(graph.neighbour, plain.neighbour)
    assert not graph.views[0].mask[6:].any()
    assert graph.natoms.tolist() == [6]


def test_the_cutoff_is_inclusive_and_open_axes_do_not_repeat():
    request = NeighbourRequest(rcut=3.0, sel=(9,), layout="slots")
    build = GraphBuilder((request,), 1).build
    one = np.zeros((1, 1, 3)), np.zeros((1, 1), int), 3.0 * np.eye(3)[None]
    assert len(build(*one).centre) == 6
    assert len(build(*one, pbc=(True, False, False)).centre) == 2
    assert len(build(*one, pbc=False).centre) == 0


# --- the warning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "numbers"),
    [
        # One type-0 atom with six type-1 neighbours at 2 Å, which have each other at 2.83 and 4 Å.
        (
            NeighbourRequest(rcut=2.1, sel=(1, 4), layout="typed_slots"),
            r"1 of 7 atoms.*2\.1 Å.*\[1, 4\].*\[1, 6\] by type.*\[1, 6\]",
        ),
        (NeighbourRequest(rcut=2.1, sel=(5,), layout="slots"), r"1 of 7 atoms.*2\.1 Å.*sel = 5 .*at most 6; sel = 6 "),
        (
            NeighbourRequest(rcut=9.0, sel=(6,), layout="edges", angles=AngleRequest(rcut=2.1, sel=4)),
            r"1 of 7 atoms.*2\.1 Å.*sel = 4 of the angles holds.*at most 6; sel = 6 ",
        ),
    ],
)
def test_cutting_off_neighbours_is_said_once(request_, numbers):
    coord = 2.0 * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])[None]
    atype = np.array([[0, 1, 1, 1, 1, 1, 1]])
    builder = GraphBuilder((request_,), 2)
    with pytest.warns(TruncationWarning, match=numbers) as caught:
        builder.build(coord, atype, None)
    assert caught[0].filename == __file__
    builder.build(coord, atype, None)  # a second warning would be an error here
    GraphBuilder((NeighbourRequest(rcut=2.1, sel=(6,), layout="slots"),), 2).build(coord, atype, None)


def test_exclusion_is_no_truncation_and_fills_nothing_back():
    coord = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]])
    request = NeighbourRequest(rcut=2.5, sel=(2,), layout="slots")
    builder = GraphBuilder((request,), 2, exclude_pairs=((1, 0),))
    graph = builder.build(coord, np.array([[0, 1, 0]]), None)
    assert list(zip(graph.centre.tolist(), graph.neighbour.tolist(), strict=True)) == [(0, 2), (2, 0)]
    narrow = GraphBuilder((NeighbourRequest(rcut=2.5, sel=(1,), layout="slots"),), 2, exclude_pairs=((1, 0),))
    with pytest.warns(TruncationWarning):
        graph = narrow.build(coord, np.array([[0, 1, 0]]), None)
    # The nearest of atom 0 is the excluded one; the next does not take its place.
    assert list(zip(graph.centre.tolist(), graph.neighbour.tolist(), strict=True)) == [(2, 0)]


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"coord": np.zeros((7, 3))}, r"coord must have shape \(frames, atoms, 3\)"),
        ({"coord": np.full((2, 7, 3), "x")}, "coord must hold real numbers"),
        ({"atype": np.zeros(7, int)}, r"atype must have shape \(frames, atoms\) = \(2, 7\)"),
        ({"atype": np.zeros((2, 7))}, "atype must hold integers"),
        ({"atype": np.eye(2, 7, 4, dtype=int) * 2}, "frame 0: atom 4 has type 2; expected 0 to 1"),
        ({"atype": np.full((2, 7), -2)}, "frame 0: atom 0 has type -2"),
        ({"atype": np.full((2, 7), 2**64 - 1, np.uint64)}, "frame 0: atom 0 has type 18446744073709551615"),
        ({"cell": np.zeros((2, 9))}, r"cell must have shape \(frames, 3, 3\)"),
        ({"cell": np.stack([np.eye(3) * 9, np.zeros((3, 3))])}, "frame 1: .*linearly dependent"),
        ({"pbc": (True, True)}, "pbc must be"),
        ({"fparam": np.zeros((3, 1))}, r"fparam must have shape \(2, any\)"),
        ({"fparam": np.array([[0.0], [np.inf]])}, "fparam of frame 1"),
        ({"aparam": np.zeros((2, 7))}, r"aparam must have shape \(2, 7, any\)"),
        ({"spin": np.zeros((2, 7, 2))}, r"spin must have shape \(2, 7, 3\)"),
        ({"charge_spin": np.zeros((2, 3))}, r"charge_spin must have shape \(2, 2\)"),
    ],
)
def test_bad_frames_are_refused(change, match):
    coord, atype, cell = frames(0)
    given = {"coord": coord, "atype": atype, "cell": cell, **change}
    with pytest.raises(InputError, match=match):
        GraphBuilder((REQUESTS[4],), 2).build(**given)


@pytest.mark.parametrize("distance", [0.0, 1e-200, 1e-7])
def test_atoms_at_one_place_are_named(distance):
    coord, atype, cell = frames(0, virtual=False)
    coord[1, 5] = coord[1, 2] + cell[1, 0] - cell[1, 2] + [distance, 0.0, 0.0]
    request = NeighbourRequest(rcut=3.0, sel=(200,), layout="slots")
    with pytest.raises(InputError, match=r"frame 1: atoms 2 and 5 are .* Å apart, at one place"):
        GraphBuilder((request,), 2).build(coord, atype, cell)
    with pytest.raises(InputError, match=r"frame 17: atoms 2 and 5"):
        GraphBuilder((request,), 2).build(coord, atype, cell, numbers=(4, 17))
    check(GraphBuilder((request,), 2, allow_overlap=True).build(coord, atype, cell))
    # A pair that is excluded, or of a virtual atom, is none.
    atype = np.zeros_like(atype)
    atype[1, 5] = 1
    check(GraphBuilder((request,), 2, exclude_pairs=((0, 1),)).build(coord, atype, cell))
    atype[1, 5] = -1
    check(GraphBuilder((request,), 2).build(coord, atype, cell))


def test_a_cell_without_height_puts_an_atom_onto_its_image():
    request = NeighbourRequest(rcut=1e-4, sel=(200000,), layout="slots")
    cell = np.diag([5e-7, 5.0, 5.0])[None]
    with pytest.raises(InputError, match=r"frame 0: atom 0 and an image of it are 5e-07 Å apart"):
        GraphBuilder((request,), 1).build(np.zeros((1, 1, 3)), np.zeros((1, 1), int), cell)


def test_bad_coordinates_name_frame_and_atom():
    coord, atype, cell = frames(0, virtual=False)
    coord[1, 3, 2] = np.nan
    with pytest.raises(InputError, match="frame 1: atom 3 has NaN"):
        GraphBuilder((REQUESTS[4],), 2).build(coord, atype, cell)


@pytest.mark.parametrize(
    ("request_", "exclude", "match"),
    [
        (NeighbourRequest(rcut=4.0, sel=(3,), layout="typed_slots"), (), "one number per type"),
        (NeighbourRequest(rcut=4.0, sel="auto", layout="slots"), (), "resolve 'auto'"),
        (NeighbourRequest(rcut=-1.0, sel=(3,), layout="slots"), (), "rcut must be"),
        (NeighbourRequest(rcut=4.0, sel=(3,), layout="table"), (), "layout must be"),
        (NeighbourRequest(rcut=4.0, sel=(3,), layout="slots", angles=AngleRequest(rcut=3.0, sel=2)), (), "angles need"),
        (
            NeighbourRequest(rcut=4.0, sel=(3,), layout="edges", angles=AngleRequest(rcut=0.0, sel=2)),
            (),
            "rcut of the a",
        ),
        (
            NeighbourRequest(rcut=4.0, sel=(3,), layout="edges", angles=AngleRequest(rcut=3.0, sel=-1)),
            (),
            "sel of the a",
        ),
        (REQUESTS[0], ((0, 2),), "excluded pairs"),
    ],
)
def test_bad_requests_are_refused(request_, exclude, match):
    with pytest.raises(InputError, match=match):
        GraphBuilder((request_,), 2, exclude_pairs=exclude)


# --- neighbour statistics --------------------------------------------------------------------------------


def test_counts_against_the_definition():
    coord, atype, cell = (x[0] for x in frames(7, f=1, na=8))
    by_type, total, closest = neighbour_counts(coord, atype, cell, True, 4.0, 2)
    seen = [sees(coord, atype, cell, i, 4.0) for i in np.flatnonzero(atype >= 0)]
    assert by_type.tolist() == [max(sum(atype[j] == t for _, j, _ in s) for s in seen) for t in range(2)]
    assert total == max(map(len, seen))
    assert closest == pytest.approx(min(s[0][0] for s in seen), rel=1e-12)


def test_counts_are_strict_and_the_distance_looks_further():
    one = np.zeros((1, 3)), np.zeros(1, int), 4.0 * np.eye(3), True
    by_type, total, closest = neighbour_counts(*one, 4.0, 3)
    assert (by_type.tolist(), total, closest) == ([0, 0, 0], 0, 4.0)
    assert neighbour_counts(*one, 4.1, 3)[:2][1] == 6
    assert neighbour_counts(*one, 1e-6, 3)[2] == 4.0
    assert neighbour_counts(np.zeros((1, 3)), np.zeros(1, int), None, True, 3.0, 1)[2] == 10.0
    assert neighbour_counts(np.zeros((2, 3)), np.zeros(2, int), None, True, 3.0, 1)[2] == 0.0
    assert neighbour_counts(np.zeros((2, 3)), np.array([0, -1]), None, True, 3.0, 1)[2] == 10.0
    assert neighbour_counts(np.zeros((0, 3)), np.zeros(0, int), None, True, 3.0, 2)[1:] == (0, 10.0)


# --- spins -------------------------------------------------------------------------------------------------


def test_virtual_atoms_stand_for_spins():
    """They follow the atoms of their frame, as types of their own, displaced by the scale of the type."""
    coord, atype, cell = frames(5, f=2, na=4)
    atype[0, 1] = -1
    rng = np.random.default_rng(1)
    spin, aparam = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 1))
    request = NeighbourRequest(rcut=4.0, sel=(200,), layout="edges")
    builder = GraphBuilder((request,), 4, exclude_pairs=((3, 1),), allow_overlap=True, spin_scales=(0.3, 0.0))
    graph = builder.build(coord, atype, cell, spin=spin, aparam=aparam)
    virtual = graph.virtual
    assert virtual.real.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert (virtual.virtual - virtual.real == 4).all()
    assert virtual.owned.tolist() == list(range(8))
    assert virtual.frame.tolist() == [0] * 4 + [1] * 4
    flat = atype.reshape(-1)
    assert graph.atype[virtual.real].tolist() == flat.tolist()
    assert graph.atype[virtual.virtual].tolist() == np.where(flat < 0, -1, flat + 2).tolist()
    assert graph.natoms.tolist() == (atype >= 0).sum(1).tolist()
    assert graph.frame.tolist() == [0] * 8 + [1] * 8
    scale = np.where(flat == 0, 0.3, 0.0)
    np.testing.assert_allclose(virtual.scale, scale)
    np.testing.assert_allclose(virtual.shift, spin.reshape(-1, 3) * scale[:, None])
    np.testing.assert_array_equal(graph.aparam[virtual.real], aparam.reshape(8, 1))
    assert not graph.aparam[virtual.virtual].any()
    moved = np.concatenate([coord, coord + virtual.shift.reshape(2, 4, 3)], axis=1).reshape(-1, 3)
    image = moved[graph.neighbour] - moved[graph.centre] - graph.edge_vec
    box = np.linalg.inv(cell[graph.frame[graph.centre]])
    shifts = np.einsum("ei,eij->ej", image, box)
    np.testing.assert_allclose(shifts, np.round(shifts), atol=1e-9)


@pytest.mark.parametrize("scales", [None, (0.3, 0.2)])
def test_spins_and_the_model_must_fit(scales):
    coord, atype, cell = frames(5, f=1, na=4)
    requests = (NeighbourRequest(rcut=4.0, sel=(90,), layout="edges"),)
    builder = GraphBuilder(requests, 2 if scales is None else 4, spin_scales=scales)
    spin = np.ones((1, 4, 3)) if scales is None else None
    with pytest.raises(InputError, match="takes no spins" if scales is None else "spin is missing"):
        builder.build(coord, atype, cell, spin=spin)
