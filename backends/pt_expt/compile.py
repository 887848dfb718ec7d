"""Compiled `forward_lower`: outputs and derivatives of a model as one graph with dynamic sizes.

The function (parameters, buffers, graph) -> outputs is traced once by `make_fx` on fake tensors, with every
size of the input graph a symbol, forces included (they are plain nodes of the trace), and handed to Inductor
directly: no guards, no recompilation between sizes, 0 and 1 included. Parameters and buffers are inputs,
so they may change without a new compilation.

Inductor's entry point is private: this is the only file that touches it (torch 2.11 to 2.13).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.fx.experimental._config as fx_config
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dpmodel.errors import BackendError
from dpmodel.graph import Graph, Record, Slots, TypeGroups
from dpmodel.models import predict

from ..pt.bridge import torch_gradient

__all__ = ["CompiledLower", "flatten", "sample_graph"]


def flatten(record: Any) -> tuple[list[torch.Tensor], Callable[[list[torch.Tensor]], Any]]:
    """The tensors of a record in a fixed order, and the function that puts others in their places."""
    leaves: list[torch.Tensor] = []

    def visit(value: Any) -> Callable[[list[torch.Tensor]], Any]:
        if value is None:
            return _nothing
        if isinstance(value, tuple):
            parts = [visit(item) for item in value]
            return lambda flat: tuple(part(flat) for part in parts)
        if isinstance(value, Record):
            names = [f.name for f in dataclasses.fields(cast(Any, value))]
            makers = {name: visit(getattr(value, name)) for name in names}
            return lambda flat: value.replace(**{name: make(flat) for name, make in makers.items()})
        leaves.append(value)
        place = len(leaves) - 1
        return lambda flat: flat[place]

    return leaves, visit(record)


def sample_graph(like: Graph) -> Graph:
    """A small graph of the structure of `like` whose sizes are distinct primes, so that no two symbols coincide."""
    n, m, e, f = 11, 13, 29, 5
    widths = iter((17, 19, 23, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97))
    sizes = {"frame": n, "atype": m, "owner": m, "natoms": f, "fparam": f, "charge_spin": f, "aparam": n, "spin": n}
    sizes.update(centre=e, neighbour=e, edge_vec=e, edge_mask=e)

    def blank(x: torch.Tensor, *shape: int) -> torch.Tensor:
        return x.new_zeros((*shape, *x.shape[len(shape) :]))

    def view(v: Any) -> Any:
        if isinstance(v, Slots):
            w = next(widths)
            return Slots(edge=blank(v.edge, n, w), mask=blank(v.mask, n, w))
        return tuple(view(item) for item in v)

    changes: dict[str, Any] = {
        name: blank(getattr(like, name), size) for name, size in sizes.items() if getattr(like, name) is not None
    }
    changes["views"] = view(like.views)
    if like.types is not None:
        rows = tuple(blank(r, next(widths)) for r in like.types.rows)
        changes["types"] = TypeGroups(rows=rows, place=blank(like.types.place, n))
    return like.replace(**changes)


def _nothing(_flat: list[torch.Tensor]) -> None:
    """Stands for an absent optional field."""


class CompiledLower:
    """Compiles on the first call of each structure (which optional inputs, which outputs) and serves all sizes."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, graph: Graph, *, forces: bool, atomic: bool) -> dict[str, torch.Tensor]:
        """As `dpmodel.models.predict`."""
        leaves, _ = flatten(graph)
        key = (forces, atomic, self._structure(graph))
        if key not in self._compiled:
            self._compiled[key] = self._compile(graph, forces, atomic)
        names, run = cast(Any, self._compiled[key])
        state = [t.detach() for t in self._state().values()]
        return dict(zip(names, run(*state, *(x.contiguous() for x in leaves)), strict=True))

    def compilations(self) -> int:
        """How many structures have been compiled so far."""
        return len(self._compiled)

    def _state(self) -> dict[str, torch.Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    @staticmethod
    def _structure(graph: Graph) -> tuple[Any, ...]:
        present = tuple(f.name for f in dataclasses.fields(cast(Any, graph)) if getattr(graph, f.name) is not None)
        leaves, _ = flatten(graph)
        return present, tuple((x.dtype, x.device, x.ndim, tuple(x.shape[2:])) for x in leaves)

    def _compile(self, graph: Graph, forces: bool, atomic: bool) -> Any:
        state = self._state()
        names, count = list(state), len(state)
        whole_sample = sample_graph(graph)
        sample, rebuild = flatten(whole_sample)
        keys: list[str] = []

        def lower(*flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
            whole = rebuild(list(flat[count:]))

            def model(g: Graph) -> Any:
                return functional_call(self.module, dict(zip(names, flat[:count], strict=True)), (g,))

            outputs = predict(model, whole, torch_gradient if forces else None, atomic_virial=atomic)
            keys[:] = list(outputs)
            return tuple(value.detach() for value in outputs.values())

        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
        with cast(Any, fx_config).patch(backed_size_oblivious=True):
            fakes: list[torch.Tensor] = [
                mode.from_tensor(t.detach().clone(), static_shapes=True) for t in state.values()
            ]
            tables = {id(x) for x in flatten(whole_sample.views)[0]}
            fakes += [self._fake(mode, x, k, axes=2 if id(x) in tables else 1) for k, x in enumerate(sample)]
            with mode:
                traced = make_fx(lower, tracing_mode="real")(*fakes)
        baked = [str(node.target) for node in traced.graph.nodes if node.op == "get_attr"]
        if baked:
            raise BackendError(
                f"the trace of the model holds constants {baked}: a layer made a tensor from Python data in call()"
            )
        with tracing(TracingContext(mode)):
            compiled = compile_fx(traced, fakes)
        return keys, compiled

    @staticmethod
    def _fake(mode: FakeTensorMode, x: torch.Tensor, k: int, axes: int) -> torch.Tensor:
        """A stand-in whose first `axes` sizes are symbols; the others belong to the model."""
        dynamic = [DimDynamic.DYNAMIC if d < axes else DimDynamic.STATIC for d in range(x.ndim)]
        context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic)
        return mode.from_tensor(x, source=ConstantSource(f"graph_{k}"), symbolic_context=context)
