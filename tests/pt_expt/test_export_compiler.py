"""What the compiler of exported programs is told."""

from __future__ import annotations

import pytest
import torch
from torch._inductor.decomposition import decompositions

from dpmodel.backends.pt_expt.export import compiler

INDEX_ADD = torch.ops.aten.index_add.default


@pytest.mark.parametrize(
    ("shape", "dim"), [((7,), 0), ((7, 3), 0), ((7, 2, 3), 0), ((0, 3), 0), ((7, 0), 0), ((0,), 0), ((2, 7), 1)]
)
def test_sums_by_rows_are_sums(shape: tuple[int, ...], dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(shape, generator=generator, dtype=torch.float64)
    index = torch.randint(0, 4, (shape[dim],), generator=generator)
    x = torch.rand([4 if d == dim else n for d, n in enumerate(shape)], generator=generator, dtype=torch.float64)
    with compiler._sums_by_rows():
        replacement = decompositions[INDEX_ADD]
    for alpha in (1, 2.5):
        found = replacement(x, dim, index, source, alpha=alpha)
        torch.testing.assert_close(found, x.index_add(dim, index, source, alpha=alpha), rtol=0, atol=1e-15)


@pytest.mark.parametrize("known", [True, False])
def test_torch_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    if known:
        monkeypatch.setitem(decompositions, INDEX_ADD, print)
    else:
        monkeypatch.delitem(decompositions, INDEX_ADD, raising=False)
    before = dict(decompositions)
    with compiler._sums_by_rows():
        assert decompositions[INDEX_ADD] is compiler._index_add
    assert decompositions == before
    with pytest.raises(RuntimeError), compiler._sums_by_rows():
        raise RuntimeError
    assert decompositions == before
