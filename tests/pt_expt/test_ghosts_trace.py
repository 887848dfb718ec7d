"""The exchange operators in graphs: traced, exported, on fakes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from dpmodel.backends.pt_expt.ghosts import MappingProvider, load_ops

from .exchanges import OWNER, Elsewhere, each_dtype, handle_of


@pytest.fixture(scope="module")
def ops() -> Any:
    load_ops()
    return torch.ops.dpmodel


def layers(x, handle, n_all, centre, neighbour, count):
    for _ in range(count):
        seen = torch.ops.dpmodel.ghost_forward(x, handle, n_all)
        x = torch.tanh(x + torch.zeros_like(x).index_add(0, centre, seen[neighbour]))
    return x


class Toy(torch.nn.Module):
    """Message passing of some layers, and the slope of its energy; the first features are constants or depend on r."""

    def __init__(self, count, constant):
        super().__init__()
        self.count, self.constant = count, constant

    def forward(self, own, kind, centre, neighbour, r, handle):
        r = r.detach().requires_grad_(True)
        along = torch.zeros((own.shape[0], 3), dtype=r.dtype).index_add(0, centre, r)
        x = own[:, None].to(r.dtype) * torch.ones((1, 3), dtype=r.dtype)
        x = x if self.constant else x + along
        seen = torch.ops.dpmodel.ghost_forward(x, handle, kind.shape[0])
        x = torch.tanh(x + torch.zeros_like(x).index_add(0, centre, seen[neighbour] * r))
        x = layers(x, handle, kind.shape[0], centre, neighbour, self.count - 1)
        energy = (x * x).sum()
        return energy.detach(), torch.autograd.grad(energy, r)[0]


def toy_inputs(n, owner, edges, dtype, provider):
    generator = torch.Generator().manual_seed(n)
    m = n + len(owner)
    return (
        torch.arange(n),
        torch.zeros(m, dtype=torch.int64),
        torch.randint(0, max(n, 1), (edges,), generator=generator),
        torch.randint(0, max(m, 1), (edges,), generator=generator),
        torch.randn((edges, 3), dtype=dtype, generator=generator),
        handle_of(provider),
    )


def op_nodes(graph):
    return [str(node.target) for node in graph.nodes if "ghost" in str(node.target)]


@each_dtype
@pytest.mark.parametrize(("count", "constant"), list(itertools.product([1, 2, 3], [True, False])))
def test_exported_graphs_hold_every_exchange_once(ops, dtype, count, constant):
    """Forward exchanges in program order, then their adjoints; none where the first features are constants."""
    provider = MappingProvider(np.arange(7) % 11)
    inputs = toy_inputs(11, provider.owner, 29, dtype, provider)
    toy = Toy(count, constant)
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} if k < 5 else None for k in range(6))
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        traced = make_fx(toy, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
        exported = torch.export.export(traced, inputs, dynamic_shapes=dynamic, strict=False)
    expected = ["dpmodel.ghost_forward.default"] * count
    expected += ["dpmodel.ghost_reverse.default"] * (count - 1 if constant else count)
    assert op_nodes(traced.graph) == expected
    assert op_nodes(exported.graph) == expected
    run = exported.module()
    for n, owner, edges in ((11, provider.owner, 29), (4, np.array([0, 3]), 8), (3, OWNER[:0], 2), (1, OWNER[:0], 1)):
        other = MappingProvider(owner)
        case = toy_inputs(n, owner, edges, dtype, other)
        for ours, eager in zip(run(*case), toy(*case), strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-5)
        assert (other.n_forward, other.n_reverse) == (2 * count, 2 * len(expected) - 2 * count)


@pytest.mark.parametrize("constant", [True, False])
def test_exchanges_without_any_owned_row(ops, constant):
    """An empty process makes as many exchanges as the others, in the trace too."""
    provider = Elsewhere()
    toy, inputs = Toy(3, constant), toy_inputs(0, np.zeros(4), 0, torch.float64, provider)
    toy(*inputs)
    assert (provider.n_forward, provider.n_reverse) == (3, 2 if constant else 3)


def test_fakes_touch_no_memory(ops):
    with torch._subclasses.FakeTensorMode():
        for dtype in (torch.float32, torch.float64):
            x, handle = torch.empty((3, 2, 5), dtype=dtype).transpose(1, 2), torch.empty(1, dtype=torch.int64)
            for op, asked in ((ops.ghost_forward, 9), (ops.ghost_reverse, 2)):
                out = op(x, handle, asked)
                assert (out.shape, out.dtype, out.is_contiguous()) == ((asked, 5, 2), dtype, True)
