"""Tracing: every kind of view, any size, and what the compiled code takes for granted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.bridge import graph_to_torch, to_torch, torch_gradient
from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.backends.pt_expt.compile import CompiledLower, model_state, sample_graph, trace
from dpmodel.geometry import GraphBuilder
from dpmodel.graph import AngleRequest, Comm, Graph, NeighbourRequest, check, sized
from dpmodel.models import predict
from dpmodel.op import Array, Op, param
from dpmodel.ops import array_namespace, safe_norm, segment_sum, take_rows, zeros

REQUESTS = (
    NeighbourRequest(rcut=3.0, sel=(20,), layout="edges", angles=AngleRequest(rcut=2.5, sel=9)),
    NeighbourRequest(rcut=3.5, sel=(30,), layout="slots"),
    NeighbourRequest(rcut=2.0, sel=(10, 10), layout="typed_slots"),
)


class Toy(Op):
    """An energy that reads every kind of view, the features of ghosts and groups of types."""

    scale: Array = param()

    def call(self, graph: Graph) -> dict[str, Array]:
        xp = array_namespace(graph.edge_vec)
        n = graph.frame.shape[0]
        fade = xp.exp(-safe_norm(graph.edge_vec)) * self.scale[0]
        fade = xp.where(graph.edge_mask, fade, xp.zeros_like(fade))
        node = segment_sum(fade, graph.centre, n)
        seen = node if graph.owner is None else take_rows(node, graph.owner)
        seen = seen * (graph.atype[: seen.shape[0]] + 1)
        edges, *tables = graph.views
        near = xp.where(edges.mask, take_rows(fade, edges.row), zeros((1,), fade))
        if edges.angles is not None:
            pair = take_rows(near, edges.angles.ij) * take_rows(near, edges.angles.ik) ** 2
            pair = xp.where(edges.angles.mask, pair, xp.zeros_like(pair))
            near = near + segment_sum(pair, edges.angles.ij, near.shape[0])
        node = node + segment_sum(near * take_rows(seen, graph.neighbour)[edges.row], graph.centre[edges.row], n)
        for slots in (tables[0], *tables[1]):
            table = xp.where(slots.mask, take_rows(fade, slots.edge), zeros((1,), fade))
            node = node + xp.sum(table, axis=1) ** 2
        parts = [take_rows(node, rows) * (t + 1.5) for t, rows in enumerate(graph.grouped().rows)]
        node = take_rows(xp.concat(parts), graph.grouped().place)
        return {"atom_energy": node[:, None], "energy": segment_sum(node[:, None], graph.frame, graph.natoms.shape[0])}


MODULE = to_torch(Toy(scale=np.array([1.3])))


def graph_of(frames: int, atoms: int, *, length: float = 4.0, periodic: bool = True) -> Any:
    rng = np.random.default_rng(atoms)
    cell = np.broadcast_to(length * np.eye(3), (frames, 3, 3)) if periodic else None
    builder = GraphBuilder(REQUESTS, 2)
    coord, atype = rng.uniform(0, length, (frames, atoms, 3)), rng.integers(0, 2, (frames, atoms))
    return graph_to_torch(builder.build(coord, atype, cell))


def with_ghosts(graph: Any) -> Any:
    """Every second edge sees a ghost of its own."""
    n, pick = len(graph.frame), torch.arange(0, len(graph.centre), 2)
    owner = torch.cat([torch.arange(n), graph.neighbour[pick]])
    neighbour = graph.neighbour.clone()
    neighbour[pick] = n + torch.arange(len(pick))
    return graph.replace(neighbour=neighbour, owner=owner, atype=graph.atype[owner])


GRAPHS = {
    "crystal": lambda: graph_of(2, 5),
    "molecules": lambda: graph_of(3, 4, length=2.0, periodic=False),
    "no_frame": lambda: graph_of(0, 0),
    "no_atom": lambda: graph_of(1, 0),
    "one_atom": lambda: graph_of(1, 1, periodic=False),
    "no_edge": lambda: graph_of(1, 2, length=200.0, periodic=False),
    "one_pair": lambda: graph_of(1, 2, length=1.0, periodic=False),
}


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Run what would be compiled."""
    with mock.patch.object(compilation, "compile_fx", lambda graph_module, inputs, **_: graph_module):
        yield


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("ghosts", [False, True])
def test_one_trace_serves_every_size(ghosts: bool) -> None:
    lower = CompiledLower(MODULE)
    for name, make in GRAPHS.items():
        graph = with_ghosts(make()) if ghosts else make()
        expected = predict(MODULE, graph, torch_gradient, atomic_virial=True)
        found = lower(graph, forces=True, atomic=True)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].shape == value.shape, (name, key)
            torch.testing.assert_close(found[key], value.detach(), rtol=0, atol=1e-13, msg=f"{name} {key}")
    assert lower.compilations() == 1


def test_each_structure_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_compile_traced", lambda *_: mock.Mock(names=(), run=lambda *_: ()))
    lower = CompiledLower(MODULE)
    graph = graph_of(2, 5)
    flat = graph.replace(views=(graph.views[0].replace(angles=None), *graph.views[1:]))
    wide, narrow = (graph.replace(fparam=torch.ones(2, k, dtype=torch.float64)) for k in (3, 1))
    structures = (graph, flat, wide, narrow, narrow.replace(fparam=narrow.fparam.float()), with_ghosts(graph))
    for k, one in enumerate(structures, start=1):
        for _ in range(2):
            lower(one, forces=False, atomic=False)
            assert lower.compilations() == k
    lower(graph_of(1, 3), forces=False, atomic=False)
    assert lower.compilations() == len(structures)
    lower(graph, forces=True, atomic=False)
    assert lower.compilations() == len(structures) + 1


@pytest.mark.usefixtures("uncompiled")
def test_other_sizes_and_dtypes_are_refused() -> None:
    lower = CompiledLower(MODULE)
    graph = graph_of(2, 5)
    lower(graph, forces=False, atomic=False)
    with pytest.raises(ValueError, match="edge_mask has 1 edges"):
        lower(graph.replace(edge_mask=graph.edge_mask[:1]), forces=False, atomic=False)
    with pytest.raises(ValueError, match=r"centre has dtype torch.int32; integers are int64"):
        lower(graph.replace(centre=graph.centre.int()), forces=False, atomic=False)
    with pytest.raises(ValueError, match=r"edge_vec has dtype torch.float16"):
        lower(graph.replace(edge_vec=graph.edge_vec.half()), forces=False, atomic=False)
    # The order of memory is no one's concern.
    strided = graph.replace(edge_vec=graph.edge_vec.T.contiguous().T)
    torch.testing.assert_close(*(lower(g, forces=False, atomic=False)["energy"] for g in (graph, strided)))


def test_the_sample_has_distinct_sizes_and_keeps_handles() -> None:
    graph = graph_of(1, 3).replace(comm=Comm(handle=torch.tensor([12345])), fparam=torch.ones(1, 2))
    sample = sample_graph(graph)
    sizes = check(sample)
    assert len(set(sizes.values())) == len(sizes) == len(check(graph))
    assert sizes["nodes"] > sizes["atoms"]
    assert all(size > 10 and all(size % k for k in range(2, size)) for size in sizes.values())
    assert sample.comm.handle.tolist() == [12345]
    assert sample.fparam.shape == (sizes["frames"], 2)
    assert [leaf.path for leaf in sized(sample)] == [leaf.path for leaf in sized(graph)]


def test_inputs_of_a_trace() -> None:
    graph = graph_of(1, 3).replace(comm=Comm(handle=torch.tensor([12345])))
    traced = trace(MODULE, graph, forces=True, atomic=False)
    assert traced.names == ("atom_energy", "energy", "virial", "force")
    inputs = [str(node.target) for node in traced.graph_module.graph.nodes if node.op == "placeholder"]
    state, leaves = model_state(MODULE), sized(graph)
    assert list(state) == ["scale"]
    assert len(inputs) == len(traced.fakes) == len(state) + len(leaves)
    assert not any(re.fullmatch(r"s\d+", name) for name in inputs)
    symbolic = [sum(isinstance(size, torch.SymInt) for size in fake.shape) for fake in traced.fakes]
    assert symbolic == [0, *(len(leaf.axes) for leaf in leaves)]
