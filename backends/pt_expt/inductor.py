"""What Inductor has to be told, however it is called.

**Sizes.** It asks questions such as "is this product small?" of the sample's sizes and takes the answers for facts: it
would believe that no system is larger than the sample, or that none has 0 or 1 atoms.

**Segment sums.** Its own code for `index_add` adds number by number, atomically, and computes what is added in the same
loop, unvectorised: evaluating dpa3 takes three times as long. As a scatter of whole rows it calls torch's kernel, which
sums rows. (It does so only where the number of threads is not fixed to 1 when compiling.)

**Slices that take all.** The gradient of `x[:, 0:n]` by way of a scatter asks whether "up to the end" is beyond n, which it
cannot say of a size that it may not look at: attention over neighbours (dpa2) would not compile.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.compiler.config as compiler_config
import torch.fx.experimental._config as fx_config
from torch._inductor import config
from torch._inductor.decomposition import select_decomp_table

from dpmodel.errors import BackendError

__all__ = ["OPTIONS", "decompositions", "for_any_size", "scatter_rows", "unslice"]

OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "cpp.dynamic_threads": True,  # the number of threads belongs to the run, not to the machine that compiled
        # What its cache holds was made here, from samples of the same sizes and without guards; it would evaluate the
        # relations between sizes by names of inputs that it does not know.
        "unsafe_skip_cache_dynamic_shape_guards": True,
    }
)
"""Inductor's options."""


def scatter_rows(
    x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, *, alpha: Any = 1
) -> torch.Tensor:
    """`aten.index_add` by `aten.scatter_add`."""
    shape = [1] * source.ndim
    shape[dim] = index.shape[0]
    rows = index.view(shape).expand_as(source)
    return torch.ops.aten.scatter_add.default(x, dim, rows, source if alpha == 1 else source * alpha)


def unslice(
    grad: torch.Tensor,
    input_sizes: Sequence[int],
    dim: int,
    start: int | torch.SymInt,
    end: int | torch.SymInt,
    step: int,
) -> torch.Tensor:
    """`aten.slice_backward` by `aten.slice_scatter`, and by nothing where the slice takes all."""
    if isinstance(start, int) and isinstance(end, int) and (start, end, step) == (0, sys.maxsize, 1):
        return grad.clone()
    return torch.slice_scatter(grad.new_zeros(input_sizes), grad, dim, start, end, step)


_OURS: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {torch.ops.aten.index_add.default: scatter_rows, torch.ops.aten.slice_backward.default: unslice}
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Inductor's, and ours."""
    return {**select_decomp_table(), **_OURS}


_ONE_AT_A_TIME = threading.RLock()
"""The table of decompositions and the filters of warnings belong to the process."""


@contextlib.contextmanager
def for_any_size(shape_env: Any, *, oblivious: bool = True) -> Iterator[None]:
    """Compile in here, one thread at a time. Raises BackendError where the compiler has narrowed the range of a size.

    Without guards, what it answers by the sample's sizes alone leaves no trace here: tests compare at other sizes.

    oblivious: whether it may not look at the sample's sizes at all.
    """
    ranges = dict(shape_env.var_to_range)
    with (
        _ONE_AT_A_TIME,
        warnings.catch_warnings(),
        _our_decompositions(),
        config.patch(dict(OPTIONS)),
        cast(Any, fx_config).patch(backed_size_oblivious=oblivious),
        cast(Any, compiler_config).patch(cache_key_tag=_cache_key(oblivious)),
        shape_env.suppress_guards(),
    ):
        # torch deprecates parts of itself that its compiler still uses.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
    changed = {str(s): str(bounds) for s, bounds in shape_env.var_to_range.items() if ranges.get(s, bounds) != bounds}
    if changed:
        raise BackendError(f"the compiler restricted sizes of the model's inputs: {changed}")


def _cache_key(oblivious: bool) -> str:
    """What Inductor's cache on disk is to tell apart besides what it does: how it was told to look at sizes.

    Whoever compiles with torch into the same folder has guards; versions of this file differ in what they replace.
    """
    return f"{compiler_config.cache_key_tag} dpmodel {_own_hash()} oblivious={oblivious}"


@functools.cache
def _own_hash() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


@contextlib.contextmanager
def _our_decompositions() -> Iterator[None]:
    """Not every way to call Inductor takes a table, but all look into this one."""
    table = select_decomp_table()
    before = {op: table[op] for op in _OURS if op in table}
    table.update(_OURS)
    try:
        yield
    finally:
        for op in _OURS:
            del table[op]
        table.update(before)
