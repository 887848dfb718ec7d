"""From a model to an exported program of any size: trace, order, `torch.export`, and an audit of what came out.

The program takes the arrays of a graph (`dpmodel.graph.sized`) and holds parameters and buffers itself. Every
axis of data-dependent size is a symbol of its own whose range begins at 0, and nothing else is symbolic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import sympy
import torch
import torch.fx.experimental._config as fx_config
from torch.utils._sympy.numbers import int_oo as sympy_oo

from dpmodel.errors import BackendError
from dpmodel.graph import GLOBAL_AXES, Comm, Graph, Leaf, sized
from dpmodel.models import Model, builder_of

from ...pt.bridge import graph_to_torch
from ..audit import holds_for_every_size
from ..compile import Traced, model_state, sample_graph, trace
from .exchanges import Exchange, order_exchanges, read_exchanges

__all__ = ["Program", "export_program", "graph_like"]


class Program(NamedTuple):
    """An exported program and what is known about it."""

    exported: torch.export.ExportedProgram
    inputs: tuple[Leaf, ...]
    """Declarations of the inputs, in order; the arrays are those of the sample."""
    outputs: tuple[tuple[str, torch.Tensor, tuple[str, ...]], ...]
    """(name, stand-in, axes), in order."""
    exchanges: tuple[Exchange, ...]
    """In the order in which they run."""


def graph_like(model: Model, handle: int = 0) -> Graph:
    """A graph of tensors with every input that the model takes, for its structure alone."""
    extra: dict[str, Any] = {}
    if model.dim_fparam:
        extra["fparam"] = np.zeros((1, model.dim_fparam))
    if model.dim_aparam:
        extra["aparam"] = np.zeros((1, 1, model.dim_aparam))
    if model.takes_charge_spin:
        extra["charge_spin"] = np.zeros((1, 2))
    if model.spin_scales is not None:
        extra["spin"] = np.ones((1, 1, 3))
    graph = builder_of(model).build(np.zeros((1, 1, 3)), np.zeros((1, 1), np.int64), None, **extra)
    if model.message_passing:
        graph = graph.replace(comm=Comm(handle=np.array([handle])))
    tensors: Graph = graph_to_torch(graph)
    return tensors


def export_program(
    module: torch.nn.Module, like: Graph, *, derivatives: bool = True, atomic_virial: bool = False
) -> Program:
    """Outputs and derivatives of a model for graphs of the structure of `like`, of any size.

    derivatives: whether the model has any.

    Raises BackendError naming the input, the condition or the exchange where the program would not serve every size or
    every process.
    """
    traced = trace(module, like, forces=derivatives, atomic=atomic_virial)
    order_exchanges(traced.graph_module)
    inputs = sized(sample_graph(like))
    dynamic = tuple(dict.fromkeys(range(len(leaf.axes)), torch.export.Dim.DYNAMIC) or None for leaf in inputs)
    with cast(Any, fx_config).patch(backed_size_oblivious=True):
        exported = torch.export.export(
            _Held(traced, module),
            tuple(leaf.array for leaf in inputs),
            dynamic_shapes=(dynamic,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    symbols = _check_axes(exported, inputs)
    _check_conditions(exported, symbols)
    outputs = _outputs(exported, traced.names, symbols)
    return Program(exported, inputs, outputs, read_exchanges(exported.graph))


class _Held(torch.nn.Module):
    """A trace that holds its state."""

    def __init__(self, traced: Traced, module: torch.nn.Module) -> None:
        super().__init__()
        self.traced = traced.graph_module
        self.names: list[str] = []
        for name, tensor in model_state(module).items():
            self.names.append("state_" + name.replace(".", "_"))
            self.register_buffer(self.names[-1], tensor.detach())

    def forward(self, *leaves: torch.Tensor) -> Any:
        return self.traced(*(getattr(self, name) for name in self.names), *leaves)


# --- audit -------------------------------------------------------------------------------------------------


def _check_axes(exported: torch.export.ExportedProgram, inputs: tuple[Leaf, ...]) -> dict[str, str]:
    """The axis that each symbol stands for. Raises BackendError where an axis became a number or shares a symbol."""
    axis_of: dict[str, str] = {}
    for leaf, shape in zip(inputs, _input_shapes(exported), strict=True):
        for axis, size in itertools.zip_longest(leaf.axes, shape):
            if axis is None:
                if not isinstance(size, int):
                    raise BackendError(f"export: {leaf.path} has a further dynamic axis {size}")
                continue
            symbol = str(size)
            if isinstance(size, int) or not size.node.expr.is_Symbol:
                raise BackendError(
                    f"export: the axis {axis!r} of {leaf.path} became {symbol}: a layer depends on the size of its data"
                )
            if axis_of.setdefault(symbol, axis) != axis:
                raise BackendError(f"export: the axes {axis!r} and {axis_of[symbol]!r} were taken for the same")
    for symbol, bounds in exported.range_constraints.items():
        if str(symbol) in axis_of and not (bounds.lower <= 0 and bounds.upper == sympy_oo):
            raise BackendError(f"export: the axis {axis_of[str(symbol)]!r} must be in [{bounds.lower}, {bounds.upper}]")
    return axis_of


def _input_shapes(exported: torch.export.ExportedProgram) -> Iterator[tuple[Any, ...]]:
    names = set(exported.graph_signature.user_inputs)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            yield tuple(node.meta["val"].shape)


def _check_conditions(exported: torch.export.ExportedProgram, symbols: dict[str, str]) -> None:
    """Raises BackendError for a condition on sizes other than that two sizes of one axis are equal, and >= 0."""
    for node in exported.graph.nodes:
        if node.op == "get_attr":
            raise BackendError(f"export: the program holds the constant {node.target}")
        if node.op != "call_function" or "assert" not in str(node.target):
            continue
        condition = node.args[0]
        expression = condition.meta["val"].node.expr if isinstance(condition, torch.fx.Node) else condition
        if not holds_for_every_size(expression, symbols):
            raise BackendError(f"export: the program demands {expression} ({node.args[-1]}) of its sizes")


def _outputs(
    exported: torch.export.ExportedProgram, names: tuple[str, ...], symbols: dict[str, str]
) -> tuple[tuple[str, torch.Tensor, tuple[str, ...]], ...]:
    """(name, stand-in, axes). Raises BackendError where an output's size is not that of an axis."""
    results = next(node for node in exported.graph.nodes if node.op == "output").args[0]
    outputs = []
    for name, node in zip(names, results, strict=True):
        value = node.meta["val"]
        axes = tuple(_axis_of_size(size.node.expr, symbols) for size in value.shape if not isinstance(size, int))
        if None in axes or not all(isinstance(size, int) for size in value.shape[len(axes) :]):
            raise BackendError(
                f"export: the output {name!r} has the sizes {tuple(value.shape)}, not those of its inputs"
            )
        outputs.append((name, value, cast(tuple[str, ...], axes)))
    return tuple(outputs)


def _axis_of_size(size: Any, symbols: dict[str, str]) -> str | None:
    """The axis that always has this size, such as atoms for min(atoms, nodes)."""
    for axis in dict.fromkeys((*GLOBAL_AXES, *symbols.values())):
        symbol = next((s for s, name in symbols.items() if name == axis), None)
        if symbol is not None and holds_for_every_size(sympy.Eq(size, _symbol(size, symbol)), symbols):
            return axis
    return None


def _symbol(expression: Any, name: str) -> Any:
    return next((s for s in expression.free_symbols if str(s) == name), sympy.Symbol(name))
