"""What Inductor is told."""

from __future__ import annotations

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.value_ranges import ValueRanges

from dpmodel.backends.pt_expt.inductor import decompositions, for_any_size, scatter_rows
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


def test_facts_about_sizes_are_refused() -> None:
    env = ShapeEnv()
    size = env.create_unbacked_symint()
    with pytest.raises(BackendError, match="restricted sizes"), for_any_size(env):
        env.var_to_range[size.node.expr] = ValueRanges(0, 27)
