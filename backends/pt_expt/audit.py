"""What a trace must not contain, and a name for what it does contain.

A trace is right for every graph of its structure if it holds no data (constants, numbers read out of arrays), nothing
random, and no assumption about sizes. Each of these enters silently by careless code in a layer, and none shows in the
results for the sizes that were traced.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from dpmodel.errors import BackendError
from dpmodel.graph import Leaf

__all__ = ["audit", "content_hash", "holds_for_every_size"]


def audit(graph: torch.fx.Graph, leaves: Sequence[Leaf], fakes: Sequence[torch.Tensor], shape_env: Any) -> None:
    """Raise BackendError, naming what is wrong, unless the trace serves every graph of this structure.

    leaves, fakes: the arrays of the sample graph and what stood for them in the trace.
    """
    baked = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    if baked:
        raise BackendError(
            f"the trace of the model holds constants {baked}: a layer made a tensor from Python data in call(). Make "
            "it a buffer, or compute it from its inputs"
        )
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.data_dependent_output in tags:
            raise BackendError(
                f"the trace of the model reads a number out of an array ({node.target}; .item(), float(), int() or "
                "bool() of an array does that): keep it an array"
            )
        if free_unbacked_symbols(node.meta.get("val")):
            raise BackendError(
                f"the trace of the model makes an array whose size depends on data ({node.target}; selecting by a mask "
                "does that): compute all rows and mask the result"
            )
        if torch.Tag.nondeterministic_seeded in tags:
            raise BackendError(f"the trace of the model draws random numbers ({node.target}): it must be a function")
    names = _axes(leaves, fakes, shape_env)
    for guard in shape_env.guards:
        _check_guard(guard.expr.xreplace(shape_env.replacements).xreplace(names))


def _axes(leaves: Sequence[Leaf], fakes: Sequence[torch.Tensor], shape_env: Any) -> dict[sympy.Symbol, sympy.Symbol]:
    """For every symbol of the trace, one that bears the name of its axis."""
    names: dict[sympy.Symbol, sympy.Symbol] = {}
    for leaf, fake in zip(leaves, fakes, strict=True):
        sizes: Sequence[Any] = fake.shape
        for axis, size in zip(leaf.axes, sizes, strict=False):
            found = sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size)
            found = found.xreplace(shape_env.replacements)
            if not isinstance(found, sympy.Symbol):
                raise BackendError(
                    f"the trace of the model takes the size of {axis} (of {leaf.path}) for {found}: a layer compares "
                    "it with a number, or makes a Python number of it"
                )
            # No two axes can share a symbol: their sizes in the sample differ.
            names[found] = sympy.Symbol(axis, integer=True, nonnegative=True)
    return names


_SIZES = (0, 1, 2, 3, 7, 1000, 10**6, 10**12)


def _sizes(condition: Any) -> list[int]:
    """Sizes to try: small, large, and where the numbers of the condition may change its answer."""
    numbers = {abs(int(number)) for number in condition.atoms(sympy.Integer)}
    numbers |= {a // b for a in numbers for b in numbers if b}  # 8 * atoms < 80
    around = {number + step for number in numbers for step in (-1, 0, 1)}
    return sorted({*_SIZES, *(size for size in around if size >= 0)})


def holds_for_every_size(condition: Any, axis_of: Mapping[str, str]) -> bool:
    """Whether a condition on sizes holds for every graph that `dpmodel.graph.check` accepts.

    It is tried: at small and large sizes, and around every number in it, where a comparison changes its answer.

    axis_of: by name of a symbol, the axis whose size it is; symbols of one axis are equal.
    """
    return _counterexample(condition, axis_of) is None


def _counterexample(condition: Any, axis_of: Mapping[str, str], *, leave_out: int = -1) -> dict[str, int] | None:
    """Sizes of axes, none of them `leave_out`, for which the condition does not hold."""
    condition = sympy.sympify(condition)
    tried = [size for size in _sizes(condition) if size != leave_out]
    axes = {symbol: axis_of.get(str(symbol), str(symbol)) for symbol in condition.free_symbols}
    names = sorted(set(axes.values()))
    for sizes in itertools.product(tried, repeat=len(names)):
        size = dict(zip(names, sizes, strict=True))
        if size.get("nodes", max(tried)) < size.get("atoms", 0):  # owned atoms are nodes
            continue
        # At once: `subs` goes symbol by symbol, and a size of 0 contradicts what is left of a symbol that torch calls positive.
        if condition.xreplace({symbol: sympy.Integer(size[axis]) for symbol, axis in axes.items()}) != sympy.true:
            return size
    return None


def _check_guard(guard: Any) -> None:
    """Raise BackendError for a condition that does not hold at every size.

    A size of 1 is left out: how memory is laid out asks for it everywhere, and code that is right for any other size is
    right for 1, which the tests of compiled models look at.
    """
    sizes = _counterexample(guard, {}, leave_out=1)
    if sizes is not None:
        raise BackendError(
            f"the trace of the model is right only where {guard}: a layer branches on a size, or needs sizes that "
            f"are not what the graph promises (it fails for {sizes})"
        )


# --- content -----------------------------------------------------------------------------------------------


def content_hash(graph: torch.fx.Graph, fakes: Sequence[torch.Tensor], shape_env: Any) -> str:
    """A key for everything that the trace computes: equal keys, equal functions.

    Values of parameters and buffers are inputs and do not enter; numbers in the code of layers do.
    Raises BackendError for an argument whose content cannot be named.
    """
    number = {node: k for k, node in enumerate(graph.nodes)}
    lines = [f"torch {torch.__version__}"]
    lines += [f"{_described(x)} {x.requires_grad}" for x in fakes]
    lines += sorted(str(guard.expr) for guard in shape_env.guards)
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else _name(node.target)
        if node.op == "placeholder":  # the names of inputs are not content
            target = _described(node.meta.get("val"))
        lines.append(f"{node.op} {target} {_text(node.args, number)} {_text(node.kwargs, number)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(map(str, value.shape))} {tuple(map(str, value.stride()))} {value.dtype} {value.device}"
    return f"{type(value).__name__} {value}"


def _name(target: Any) -> str:
    if isinstance(target, OpOverload):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}"


def _text(value: Any, number: Mapping[torch.fx.Node, int]) -> str:
    """Any argument of a traced operation."""
    if isinstance(value, torch.fx.Node):
        return f"%{number[value]}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(item, number) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_text(item, number)}' for key, item in sorted(value.items()))}}}"
    if isinstance(value, slice):
        return f"slice{_text((value.start, value.stop, value.step), number)}"
    if isinstance(value, float):
        return value.hex()
    if value is None or isinstance(
        value, bool | int | str | complex | torch.dtype | torch.device | torch.layout | torch.memory_format
    ):
        return repr(value)
    raise BackendError(f"the trace of the model holds a {type(value).__name__} ({value}), which has no name")
