"""Graphs per rank: what they hold, and one rank with ghosts against none."""

from __future__ import annotations

import numpy as np
import pytest

from dpmodel.backends.pt.bridge import graph_to_torch, override_table, to_torch, torch_gradient
from dpmodel.backends.pt_expt.ghosts import GhostExchange, MappingProvider, decompose, slabs
from dpmodel.descriptors.message_passing import MessagePassing
from dpmodel.geometry import GraphBuilder
from dpmodel.graph import AngleRequest, Comm, NeighbourRequest, check
from dpmodel.input.sections import ModelConfig
from dpmodel.models import predict
from dpmodel.models.build import build_model

CELL = np.array([[5.4, 0.0, 0.0], [1.9, 5.1, 0.0], [-1.2, 0.8, 4.9]])
OVERRIDES = override_table({MessagePassing: GhostExchange})
REQUESTS = (
    NeighbourRequest(rcut=3.5, sel=(40,), layout="edges", angles=AngleRequest(rcut=2.8, sel=20)),
    NeighbourRequest(rcut=3.0, sel=(30,), layout="slots"),
    NeighbourRequest(rcut=3.2, sel=(20, 20), layout="typed_slots"),
)
N = 14


def system(periodic=True):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[rng.permutation(27)[:N]] / 3
    atype = rng.integers(0, 2, N)
    atype[3] = -1
    return (grid + rng.uniform(-0.05, 0.05, (N, 3))) @ CELL, atype, CELL if periodic else None


def graph_of(requests=REQUESTS, periodic=True, **options):
    coord, atype, cell = system(periodic)
    box = None if cell is None else cell[None]
    return GraphBuilder(requests, 2).build(coord[None], atype[None], box, pbc=periodic, **options), coord, cell


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("ranks", [[0] * N, [0, 1, 2] * 5, [2] * 7 + [0] * 7, [1] + [0] * 13], ids=str)
def test_parts_hold_the_whole_once(ranks, periodic):
    rng = np.random.default_rng(1)
    extra = {
        "aparam": rng.normal(size=(1, N, 2)),
        "fparam": rng.normal(size=(1, 3)),
    }
    graph, coord, cell = graph_of(periodic=periodic, **extra)
    ranks = np.array(ranks)[:N]
    parts = decompose(graph, coord, cell, ranks, 3)
    assert np.array_equal(np.sort(np.concatenate([part.atoms for part in parts])), np.arange(N))
    assert sum(len(part.graph.centre) for part in parts) == len(graph.centre)
    assert sum(len(part.graph.views[0].angles.ij) for part in parts) == len(graph.views[0].angles.ij)
    assert sum(part.graph.natoms[0] for part in parts) == N - 1
    for rank, part in enumerate(parts):
        own, n = part.graph, len(part.atoms)
        check(own)
        assert np.array_equal(part.atoms, np.flatnonzero(ranks == rank))
        assert np.all(np.diff(part.ghost_rank) >= 0)
        assert len(own.atype) == n + len(part.ghost_rank)
        originals = np.array(
            [*part.atoms, *(parts[r].atoms[k] for r, k in zip(part.ghost_rank, part.ghost_row, strict=True))], int
        )
        assert np.array_equal(own.atype, graph.atype[originals])
        assert np.array_equal(own.aparam, graph.aparam[part.atoms])
        assert np.array_equal(own.fparam, graph.fparam)
        kept = ranks[graph.centre] == rank
        assert np.array_equal(part.atoms[own.centre], graph.centre[kept])
        assert np.array_equal(originals[own.neighbour], graph.neighbour[kept])
        assert np.array_equal(own.edge_vec, graph.edge_vec[kept])
        assert np.array_equal(
            np.unique(own.neighbour[own.neighbour >= n]), np.arange(n, len(own.atype))
        )  # all are seen
        # Every ghost is at one place.
        seen = coord[part.atoms[own.centre]] + own.edge_vec
        for node in range(len(own.atype)):
            places = seen[own.neighbour == node]
            assert len(places) == 0 or np.ptp(places, axis=0).max() < 1e-9
        for ours, whole in ((own.views[1], graph.views[1]), *zip(own.views[2], graph.views[2], strict=True)):
            for row, atom in enumerate(part.atoms):
                mine, full = ours.edge[row][ours.mask[row]], whole.edge[atom][whole.mask[atom]]
                assert np.array_equal(own.edge_vec[mine], graph.edge_vec[full])
                assert np.all(own.centre[mine] == row)
        edges, everything = own.views[0], graph.views[0]
        assert np.array_equal(
            own.edge_vec[edges.row], graph.edge_vec[everything.row][ranks[graph.centre[everything.row]] == rank]
        )
        assert np.array_equal(own.centre[edges.row[edges.angles.ij]], own.centre[edges.row[edges.angles.ik]])
        assert np.array_equal(np.sort(edges.angles.ij), edges.angles.ij)
        for kind, rows in enumerate(own.types.rows):
            assert np.all(np.maximum(own.atype[rows], 0) == kind)
        assert np.array_equal(np.concatenate(own.types.rows)[own.types.place], np.arange(n))


@pytest.mark.parametrize("periodic", [True, False])
def test_one_rank_with_ghosts_equals_none(periodic):
    """Images as ghosts, through the operators, equal edges that carry the image's shift."""
    flow = {
        "n_dim": 6, "e_dim": 5, "a_dim": 4, "nlayers": 2, "e_rcut": 3.5, "e_rcut_smth": 2.0, "e_sel": 60, "a_rcut": 2.6,
        "a_rcut_smth": 1.5, "a_sel": 25, "axis_neuron": 2, "smooth_edge_update": True,
    }  # fmt: skip
    section = {
        "type_map": ["O", "H"],
        "descriptor": {"type": "dpa3", "seed": 1, "repflow": flow},
        "fitting_net": {"type": "ener", "neuron": [6], "seed": 1},
    }
    model = build_model(ModelConfig.from_dict(section), seed=1).map_arrays(lambda x: 2 * x)
    graph, coord, cell = graph_of(model.requests(), periodic)
    (part,) = decompose(graph, coord, cell, np.zeros(N, int), 1)
    provider = MappingProvider(part.ghost_row)
    module = to_torch(model, overrides=OVERRIDES)
    expected, ours = (
        {
            k: v.detach().numpy()
            for k, v in predict(module, graph_to_torch(g), torch_gradient, atomic_virial=True).items()
        }
        for g in (graph, part.graph.replace(comm=Comm(handle=provider.handle)))
    )
    assert (len(part.ghost_row) > 0) == periodic
    assert (provider.n_forward, provider.n_reverse) == (2, 1)
    assert np.abs(expected["force"]).max() > 0.01
    for key in ("force", "atom_virial"):
        ours[key] = provider.fold(ours[key], N)
    for key, value in expected.items():
        assert np.abs(ours[key] - value).max() <= 1e-12 * max(1.0, np.abs(value).max()), key


def test_slabs():
    coord, _, cell = system()
    ranks = slabs(coord, cell, 3, axis=1)
    fraction = np.linalg.solve(CELL.T, coord.T)[1] % 1.0
    assert np.array_equal(ranks, np.floor(3 * fraction))
    assert set(slabs(coord, None, 2)) == {0, 1}
    assert np.array_equal(slabs(np.zeros((2, 3)), None, 4), [0, 0])
    assert slabs(np.zeros((0, 3)), None, 2).shape == (0,)
    nowhere = np.append(coord, [[np.nan, np.inf, -np.inf]], axis=0)  # a virtual atom
    for box in (cell, None):
        assert np.array_equal(slabs(nowhere, box, 3, axis=1)[:-1] >= 0, np.ones(len(coord)))
    assert np.array_equal(slabs(nowhere, cell, 3, axis=1)[:-1], ranks)
    assert np.array_equal(slabs(coord + 7 * CELL[1], cell, 3, axis=1), ranks)


def test_what_does_not_fit():
    graph, coord, cell = graph_of()
    zeros = np.zeros(N, int)
    for arguments, message in (
        ((graph, coord, cell, zeros + 2, 2), r"ranks must be in \[0, 2\), got \[2, 2\]"),
        ((graph, coord[:-1], cell, zeros, 2), "the graph has 14 atoms, coord 13"),
        ((graph, coord, cell, zeros[:-1], 2), r"assignment shape \(13,\)"),
        ((graph.replace(comm=Comm(handle=zeros[:1])), coord, cell, zeros, 1), "one frame without ghosts"),
        ((graph.replace(natoms=np.array([7, 7])), coord, cell, zeros, 1), "one frame without ghosts"),
    ):
        with pytest.raises(ValueError, match=message):
            decompose(*arguments)
