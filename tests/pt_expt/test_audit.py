"""Careless code in a layer: each kind is refused by name, in traces for evaluation and for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._functorch.aot_autograd import aot_compile_joint_with_descriptors

from dpmodel.backends.pt.bridge import graph_to_torch, to_torch
from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.backends.pt_expt.compile import CompiledLower, CompiledStep, trace
from dpmodel.errors import BackendError
from dpmodel.geometry.build import GraphBuilder
from dpmodel.graph import Graph, NeighbourRequest
from dpmodel.op import Array, Op, param

Energies = Callable[["Careless", Graph, Array], Array]


class Careless(Op):
    """Energies of edges, by whatever the test does."""

    scale: Array = param()
    energies: Energies

    def call(self, graph: Graph) -> dict[str, Array]:
        square = (graph.edge_vec**2).sum(dim=1) * self.scale
        return {"energy": self.energies(self, graph, square).sum()[None, None]}


OUTSIDE = torch.ones(1, dtype=torch.float64)


def fine(_: Careless, graph: Graph, x: Array) -> Array:
    return torch.where(graph.edge_mask, x, torch.zeros_like(x)) / (graph.natoms.shape[0] + 1)


def constant(_: Careless, graph: Graph, x: Array) -> Array:
    return x * torch.tensor([2.0], dtype=torch.float64)


def closed_over(_: Careless, graph: Graph, x: Array) -> Array:
    return x * OUTSIDE


def item(op: Careless, graph: Graph, x: Array) -> Array:
    return x * graph.natoms.sum().item()


def branch_on_data(op: Careless, graph: Graph, x: Array) -> Array:
    return x if bool(graph.edge_mask.all()) else -x


def shape_from_data(op: Careless, graph: Graph, x: Array) -> Array:
    return x[graph.edge_mask]


def python_size(_: Careless, graph: Graph, x: Array) -> Array:
    return x / int(graph.natoms.shape[0])


def branch_on_size(_: Careless, graph: Graph, x: Array) -> Array:
    return x * 2 if graph.frame.shape[0] > 5 else x


def branch_on_large_size(_: Careless, graph: Graph, x: Array) -> Array:
    """Chunks, say."""
    return x * 2 if graph.frame.shape[0] > 4096 else x


def branch_on_one_size(_: Careless, graph: Graph, x: Array) -> Array:
    return x * 2 if graph.frame.shape[0] == 10 else x


def branch_on_a_multiple(_: Careless, graph: Graph, x: Array) -> Array:
    return x * 2 if 8 * graph.frame.shape[0] == 160 else x


def branch_on_a_product(_: Careless, graph: Graph, x: Array) -> Array:
    return x * 2 if graph.frame.shape[0] * x.shape[0] > 2**31 else x


def even_size(_: Careless, graph: Graph, x: Array) -> Array:
    return torch.cat([x, x, x]).reshape(3, -1) if graph.frame.shape[0] % 2 else x


def unequal_sizes(_: Careless, graph: Graph, x: Array) -> Array:
    return x * 2 if graph.frame.shape[0] != x.shape[0] else x


def mixed_rows(_: Careless, graph: Graph, x: Array) -> Array:
    return x.sum() * graph.atype * graph.frame


def random(_: Careless, graph: Graph, x: Array) -> Array:
    return torch.nn.functional.dropout(x, 0.5)


REFUSED: dict[Energies, str] = {
    constant: r"holds constants \['_tensor_constant0'\].*Make it a buffer",
    closed_over: r"cannot be traced in Careless \(.*test_audit.py:47\)",
    item: r"reads a number out of an array \(aten._local_scalar_dense.*\.item\(\)",
    branch_on_data: r"cannot be traced in Careless.*data-dependent.*no branch on data",
    shape_from_data: r"an array whose size depends on data \(aten.index.*selecting by a mask",
    python_size: r"takes the size of frames \(of natoms\) for \d+: a layer compares it with a number",
    branch_on_size: r"is right only where .*atoms > 5: a layer branches on a size.*fails for \{'atoms': 0\}",
    branch_on_large_size: r"is right only where .*atoms <= 4096: a layer branches on a size.*fails for \{'atoms': 4097\}",
    branch_on_one_size: r"is right only where Ne\(.*10.*: a layer branches on a size.*fails for \{'atoms': 10\}",
    branch_on_a_multiple: r"is right only where Ne\(.*: a layer branches on a size.*fails for \{'atoms': 20\}",
    branch_on_a_product: r"is right only where atoms\*edges <= 2147483648: a layer branches on a size",
    even_size: r"is right only where .*atoms.*2.*a layer branches on a size",
    unequal_sizes: r"is right only where Ne\(atoms, edges\).*fails for \{'atoms': 0, 'edges': 0\}",
    mixed_rows: r"cannot be traced in Careless \(.*test_audit.py:\d+\): RuntimeError: The size of tensor a",
    random: r"draws random numbers",
}


def graph_of(atoms: int) -> Any:
    rng = np.random.default_rng(atoms)
    builder = GraphBuilder((NeighbourRequest(rcut=3.0, sel=(20,), layout="slots"),), 1)
    return graph_to_torch(
        builder.build(rng.uniform(0, 4, (2, atoms, 3)), np.zeros((2, atoms), int), np.tile(4 * np.eye(3), (2, 1, 1)))
    )


def module_of(energies: Energies) -> Any:
    return to_torch(Careless(scale=np.array([1.3]), energies=energies))


@pytest.mark.parametrize("energies", REFUSED, ids=lambda f: f.__name__)
def test_refused(energies: Energies) -> None:
    with pytest.raises(BackendError, match=REFUSED[energies]):
        trace(module_of(energies), graph_of(4), forces=True, atomic=False)


@pytest.mark.parametrize(
    "energies",
    [constant, item, branch_on_size, branch_on_large_size, branch_on_one_size, unequal_sizes, mixed_rows, random],
    ids=lambda f: f.__name__,
)
def test_refused_in_training(energies: Energies) -> None:
    step = CompiledStep(module_of(energies), frozenset(("energy", "force")), derivatives=True)
    with pytest.raises(BackendError, match=REFUSED[energies]):
        step(graph_of(4))
    assert step.compilations() == 0


def test_what_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "compile_fx", lambda graph_module, inputs, **_: graph_module)
    monkeypatch.setattr(compilation, "compile_joint", aot_compile_joint_with_descriptors)
    module = module_of(fine)
    lower = CompiledLower(module)
    step = CompiledStep(module, frozenset(("energy",)), derivatives=True)
    for atoms in (4, 1, 0, 7):
        graph = graph_of(atoms)
        expected = module(graph)["energy"]
        torch.testing.assert_close(lower(graph, forces=True, atomic=False)["energy"], expected.detach())
        torch.testing.assert_close(step(graph)["energy"], expected)


def test_a_failing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler\nand more lines")

    monkeypatch.setattr(compilation, "compile_fx", broken)
    monkeypatch.setattr(compilation, "compile_joint", broken)
    module, graph = module_of(fine), graph_of(4)
    message = r"compiling the model failed: RuntimeError: no compiler\. A C\+\+ compiler is needed"
    with pytest.raises(BackendError, match=message):
        CompiledLower(module)(graph, forces=False, atomic=False)
    with pytest.raises(BackendError, match=message):
        CompiledStep(module, frozenset(("energy",)), derivatives=False)(graph)
