"""Compiled `forward_lower`: outputs and derivatives of a model as one graph with dynamic sizes.

The function (parameters, buffers, graph) -> outputs is traced once by `make_fx` on fake tensors, with every
size of the input graph a symbol, forces included (they are plain nodes of the trace), and handed to Inductor
directly: no guards, no recompilation between sizes, 0 and 1 included. Parameters and buffers are inputs,
so they may change without a new compilation.

Inductor's entry point is private: this is the only file that touches it (torch 2.11 to 2.13).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.fx.experimental._config as fx_config
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dpmodel.errors import BackendError
from dpmodel.graph import Graph, Leaf, check, map_leaves, map_record, sized
from dpmodel.models import predict

from ..pt.bridge import torch_gradient

__all__ = ["CompiledLower", "Traced", "model_state", "sample_graph", "trace"]


class Traced(NamedTuple):
    """What `trace` makes: the function (state, leaves of the graph) -> outputs."""

    names: tuple[str, ...]
    """Keys of the outputs, in order."""
    graph_module: torch.fx.GraphModule
    """Its inputs: the tensors of `model_state`, then those of `sized(graph)`."""
    fakes: list[torch.Tensor]
    """A fake tensor for every input. Sizes of data-dependent axes are symbols, one for each axis."""


def model_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, then buffers, by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def sample_graph(like: Graph) -> Graph:
    """A small graph of the structure of `like` whose sizes are distinct primes, so that no two symbols coincide.

    There are more nodes than owned atoms: the first n of m rows are min(n, m) rows, and where the tracer must know
    which, it asks the sample. With m < n every sum of such rows with n others would be refused.
    """
    free = _primes(11)
    sizes = {axis: next(free) for axis in ("atoms", "nodes", "edges", "frames")}

    def blank(leaf: Leaf) -> torch.Tensor:
        tensor: torch.Tensor = leaf.array
        if not leaf.axes:  # a handle, not data: exchanges read it
            return tensor
        shape = [sizes.get(axis) or sizes.setdefault(axis, next(free)) for axis in leaf.axes]
        return tensor.new_zeros((*shape, *leaf.static))

    sample: Graph = map_leaves(like, blank)
    return sample


def _primes(start: int) -> Iterator[int]:
    return (k for k in itertools.count(start) if all(k % d for d in range(2, k)))


def trace(module: torch.nn.Module, like: Graph, *, forces: bool, atomic: bool) -> Traced:
    """Trace outputs and derivatives of a model for graphs of the structure of `like`, of any size.

    Raises BackendError where the trace would hold constants.
    """
    state = model_state(module)
    sample = sample_graph(like)
    names: list[str] = []

    def lower(*flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = iter(flat[len(state) :])
        graph: Graph = map_record(sample, lambda _: next(leaves))

        def model(g: Graph) -> Any:
            return functional_call(module, dict(zip(state, flat, strict=False)), (g,))

        outputs = predict(model, graph, torch_gradient if forces else None, atomic_virial=atomic)
        names[:] = list(outputs)
        return tuple(value.detach() for value in outputs.values())

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
    with cast(Any, fx_config).patch(backed_size_oblivious=True):
        fakes: list[torch.Tensor] = [mode.from_tensor(t.detach().clone(), static_shapes=True) for t in state.values()]
        fakes += [_fake(mode, leaf) for leaf in sized(sample)]
        with mode:
            traced = make_fx(lower, tracing_mode="real")(*fakes)
    baked = [str(node.target) for node in traced.graph.nodes if node.op == "get_attr"]
    if baked:
        raise BackendError(
            f"the trace of the model holds constants {baked}: a layer made a tensor from Python data in call()"
        )
    return Traced(tuple(names), traced, fakes)


def _fake(mode: FakeTensorMode, leaf: Leaf) -> torch.Tensor:
    """A stand-in whose data-dependent sizes are symbols; the others belong to the model."""
    dynamic = [DimDynamic.DYNAMIC if d < len(leaf.axes) else DimDynamic.STATIC for d in range(leaf.array.ndim)]
    context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic)
    # Generated code names symbols s0, s1, ...: no input may be called so.
    source = ConstantSource(f"graph_{leaf.path.replace('.', '_')}")
    return mode.from_tensor(leaf.array, source=source, symbolic_context=context)


class CompiledLower:
    """Compiles on the first call of each structure (which optional inputs, which outputs) and serves all sizes."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self._compiled: dict[Any, tuple[tuple[str, ...], Callable[..., Any]]] = {}

    def __call__(self, graph: Graph, *, forces: bool, atomic: bool) -> dict[str, torch.Tensor]:
        """As `dpmodel.models.predict`. Raises ValueError for a graph whose arrays disagree: compiled code looks at nothing."""
        check(graph)
        leaves = sized(graph)
        key = (forces, atomic, tuple(_structure(leaf) for leaf in leaves))
        if key not in self._compiled:
            traced = trace(self.module, graph, forces=forces, atomic=atomic)
            mode = cast(FakeTensor, traced.fakes[-1]).fake_mode
            with tracing(TracingContext(mode)):
                self._compiled[key] = traced.names, cast(Any, compile_fx)(traced.graph_module, traced.fakes)
        names, run = self._compiled[key]
        state = [t.detach() for t in model_state(self.module).values()]
        return dict(zip(names, run(*state, *(leaf.array.contiguous() for leaf in leaves)), strict=True))

    def compilations(self) -> int:
        """How many structures have been compiled so far."""
        return len(self._compiled)


_DTYPES = (torch.bool, torch.int64, torch.float32, torch.float64)


def _structure(leaf: Leaf) -> tuple[Any, ...]:
    """Everything about an input that the compiled code takes for granted."""
    x: torch.Tensor = leaf.array
    if x.dtype not in _DTYPES or (leaf.points is not None and x.dtype is not torch.int64):
        raise ValueError(f"{leaf.path} has dtype {x.dtype}; integers are int64, all else is bool, float32 or float64")
    return leaf.path, leaf.axes, leaf.static, x.dtype, x.device
