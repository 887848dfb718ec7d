"""What Inductor is told."""

from __future__ import annotations

import sys
import threading
from typing import Any, cast

import pytest
import torch
import torch.compiler.config as compiler_config
from torch._inductor.codecache import compiled_fx_graph_hash
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.value_ranges import ValueRanges

from dpmodel.backends.pt_expt.inductor import decompositions, for_any_size, scatter_rows, unslice
from dpmodel.errors import BackendError

INDEX_ADD = torch.ops.aten.index_add.default


@pytest.mark.parametrize(
    ("shape", "dim"), [((7,), 0), ((7, 3), 0), ((7, 2, 3), 0), ((0, 3), 0), ((7, 0), 0), ((0,), 0), ((2, 7), 1)]
)
def test_sums_by_rows_are_sums(shape: tuple[int, ...], dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(shape, generator=generator, dtype=torch.float64)
    index = torch.randint(0, 4, (shape[dim],), generator=generator)
    x = torch.rand([4 if d == dim else n for d, n in enumerate(shape)], generator=generator, dtype=torch.float64)
    assert decompositions()[INDEX_ADD] is scatter_rows
    for alpha in (1, 2.5):
        found = scatter_rows(x, dim, index, source, alpha=alpha)
        torch.testing.assert_close(found, x.index_add(dim, index, source, alpha=alpha), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("dim", "start", "end", "step"),
    [(1, 0, sys.maxsize, 1), (1, 0, 3, 1), (0, 1, sys.maxsize, 1), (1, 0, sys.maxsize, 2)],
)
def test_gradients_of_slices(dim: int, start: int, end: int, step: int) -> None:
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad = torch.ops.aten.slice.Tensor(x, dim, start, end, step)
    arguments = (grad, list(x.shape), dim, start, end, step)
    assert torch.equal(unslice(*arguments), torch.ops.aten.slice_backward.default(*arguments))
    assert decompositions()[torch.ops.aten.slice_backward.default] is unslice


@pytest.mark.parametrize("known", [True, False])
def test_torch_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    table = select_decomp_table()
    if known:
        monkeypatch.setitem(table, INDEX_ADD, print)
    else:
        monkeypatch.delitem(table, INDEX_ADD, raising=False)
    before = dict(table)
    with for_any_size(ShapeEnv()):
        assert select_decomp_table()[INDEX_ADD] is scatter_rows
    assert select_decomp_table() is table and table == before
    with pytest.raises(RuntimeError), for_any_size(ShapeEnv()):
        raise RuntimeError
    assert table == before


def test_threads_compile_one_after_the_other() -> None:
    table = select_decomp_table()
    before, inside, leave, seen = dict(table), threading.Event(), threading.Event(), list[Any]()

    def other() -> None:
        with for_any_size(ShapeEnv()):
            inside.set()
            leave.wait(10)
            seen.append(table.get(INDEX_ADD))

    thread = threading.Thread(target=other)
    with for_any_size(ShapeEnv()), for_any_size(ShapeEnv()):  # one thread may be in there twice
        thread.start()
        assert not inside.wait(0.2)
    assert inside.wait(10)
    leave.set()
    thread.join(10)
    assert seen == [scatter_rows] and table == before


def test_the_cache_on_disk_tells_settings_apart() -> None:
    """One graph, compiled by us in two ways and by others who use the same folder."""
    traced = torch.fx.symbolic_trace(torch.nn.ReLU())

    def key() -> str:
        return compiled_fx_graph_hash(traced, [], {}, [])[0]

    keys = [key()]
    for oblivious in (True, False):
        with for_any_size(ShapeEnv(), oblivious=oblivious):
            keys += [key(), key()]
    assert keys[1] == keys[2] and keys[3] == keys[4] and len(set(keys)) == 3
    assert key() == keys[0]
    with cast(Any, compiler_config).patch(cache_key_tag="user"), for_any_size(ShapeEnv()):
        assert "user" in compiler_config.cache_key_tag
        assert key() not in keys


def test_facts_about_sizes_are_refused() -> None:
    env = ShapeEnv()
    size = env.create_unbacked_symint()
    with pytest.raises(BackendError, match="restricted sizes"), for_any_size(env):
        env.var_to_range[size.node.expr] = ValueRanges(0, 27)
