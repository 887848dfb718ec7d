"""From an `Op` to a torch module and back. No class is written twice and none is registered.

For every `Op` class one torch class is derived at run time: `class X(X or its override, nn.Module)`.
Parameters, buffers and children come from the declared fields, so the modules are real ones: hooks,
`state_dict`, FSDP-able children. Copying and pickling go through the plain `Op`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch

from dpmodel.graph import Leaf, map_leaves
from dpmodel.models import HessianRequest
from dpmodel.op import Array, Kind, Op

__all__ = [
    "Overrides",
    "check_overrides",
    "from_torch",
    "graph_to_torch",
    "override_table",
    "structure",
    "to_torch",
    "torch_curvature",
    "torch_gradient",
]

Overrides = Mapping[type[Op], type[Op]]


def structure(module: torch.nn.Module) -> Iterator[tuple[str, type, tuple[Any, ...]]]:
    """What decides how a model computes, apart from its tensors: path, class and static fields of every part."""
    for path, part in module.named_modules():
        fields = [name for name, kind in part.fields() if kind is Kind.STATIC] if isinstance(part, Op) else []
        yield path, type(part), tuple(getattr(part, name) for name in fields)


def override_table(*tables: Mapping[type[Op], type[Op]]) -> Overrides:
    """Stack tables (later ones win) and check them. Raises TypeError for an override that is not one."""
    merged: dict[type[Op], type[Op]] = {}
    for table in tables:
        merged.update(table)
    check_overrides(merged)
    return MappingProxyType(merged)


def check_overrides(table: Mapping[type[Op], type[Op]]) -> None:
    """An override subclasses its reference and changes methods only, never state: files stay interchangeable."""
    for reference, override in table.items():
        if not issubclass(override, reference):
            raise TypeError(f"{override.__name__} does not subclass {reference.__name__}, which it overrides")
        if override.fields() != reference.fields():
            raise TypeError(f"{override.__name__} changes the fields of {reference.__name__}: only methods may change")


def to_torch(op: Op, *, device: str | torch.device | None = None, overrides: Overrides = MappingProxyType({})) -> Any:
    """The torch module of an Op tree. Arrays are copied; an Op that two parents share becomes one module."""
    done: dict[int, torch.nn.Module] = {}

    def visit(op: Op) -> torch.nn.Module:
        if id(op) not in done:
            done[id(op)] = build(op)
        return done[id(op)]

    def build(op: Op) -> torch.nn.Module:
        module = object.__new__(_torch_class(type(op), overrides))
        torch.nn.Module.__init__(module)
        object.__setattr__(module, "overrides", overrides)
        for name, kind in op.fields():
            value = getattr(op, name)
            if kind is Kind.STATIC:
                object.__setattr__(module, name, value)
            elif kind is Kind.CHILD and isinstance(value, tuple | list):
                module.add_module(name, torch.nn.ModuleList(visit(item) for item in value))
            elif kind is Kind.CHILD:
                module.add_module(name, None if value is None else visit(value))
            else:
                tensor = None if value is None else torch.tensor(np.asarray(value), device=device)
                if kind is Kind.BUFFER:
                    module.register_buffer(name, tensor)
                else:
                    parameter = None if tensor is None else torch.nn.Parameter(tensor, requires_grad=op.trainable)
                    module.register_parameter(name, parameter)
        return module

    return visit(op)


def from_torch(module: Any) -> Op:
    """The plain Op (NumPy arrays, copies) of a module that `to_torch` made."""
    done: dict[int, Op] = {}

    def visit(module: Any) -> Op:
        if id(module) not in done:
            fields: dict[str, Any] = {}
            for name, kind in module.fields():
                value = getattr(module, name)
                if kind is Kind.CHILD and isinstance(value, torch.nn.ModuleList):
                    fields[name] = tuple(visit(item) for item in value)
                elif kind is Kind.CHILD:
                    fields[name] = None if value is None else visit(value)
                elif kind is Kind.STATIC or value is None:
                    fields[name] = value
                else:
                    # NumPy sees a copy: memory that it has seen cannot be freed by whom it belongs to.
                    fields[name] = value.detach().to("cpu", copy=True).contiguous().numpy()
            done[id(module)] = module.reference(**fields)
        return done[id(module)]

    return visit(module)


def graph_to_torch(graph: Any, device: str | torch.device | None = None) -> Any:
    """A record of NumPy arrays as one of tensors; memory is shared where the device allows it."""

    def convert(leaf: Leaf) -> torch.Tensor:
        # torch takes neither read-only arrays (without a warning) nor negative strides; np.require copies only those.
        tensor = torch.as_tensor(np.require(leaf.array, requirements=("C", "W")))
        stays = device is None or not leaf.axes  # a handle of an exchange is no data: it is read on the host
        return tensor if stays else tensor.to(device)

    return map_leaves(graph, convert)


def torch_gradient(
    function: Callable[[Array], tuple[Array, dict[str, Array]]], x: Array, *, create_graph: bool = False
) -> tuple[dict[str, Array], Array]:
    """`dpmodel.models.derivatives.Gradient` by reverse mode. create_graph: the result can be differentiated again."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        scalar, outputs = function(leaf)
        if not scalar.requires_grad:  # no edges reach the energy
            return outputs, torch.zeros_like(leaf)
        (slope,) = torch.autograd.grad(scalar, leaf, create_graph=create_graph, allow_unused=True)
    return outputs, torch.zeros_like(leaf) if slope is None else slope


def torch_curvature(
    function: Callable[[Array], tuple[Array, dict[str, Array]]],
    x: Array,
    direction: Callable[[Array], Array],
    collect: Callable[[Array], Array],
    request: HessianRequest,
    *,
    create_graph: bool = False,
) -> tuple[dict[str, Array], Array, Array]:
    """`dpmodel.models.curvature.Curvature`: reverse mode twice, the second time over `request.columns` at once.

    The function must hold operations of torch alone: those that are written in Python do not see several columns.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        scalar, outputs = function(leaf)
        slope = None
        if scalar.requires_grad:
            (slope,) = torch.autograd.grad(scalar, leaf, create_graph=True, allow_unused=True)
        slope = torch.zeros_like(leaf) if slope is None else slope
        parts = []
        for first in range(0, max(1, 3 * request.atoms), request.columns):
            last = min(first + request.columns, 3 * request.atoms)
            u = direction(torch.arange(first, last, device=x.device)).permute(1, 0, 2)
            w = None
            if slope.requires_grad and last > first:
                (w,) = torch.autograd.grad(
                    slope, leaf, u, is_grads_batched=True, retain_graph=True, create_graph=create_graph,
                    allow_unused=True,
                )  # fmt: skip
            parts.append(collect((torch.zeros_like(u) if w is None else w).permute(1, 0, 2)))
    return outputs, slope if create_graph else slope.detach(), torch.cat(parts, dim=1)


_CLASSES: dict[Any, Any] = {}
"""Derived classes by reference and table: one class per pair, however many modules."""


def _torch_class(cls: type[Op], overrides: Overrides) -> Any:
    key = (cls, tuple(overrides.items()))
    if key not in _CLASSES:
        _CLASSES[key] = _derive(cls, overrides)
    return _CLASSES[key]


def _derive(cls: type[Op], overrides: Overrides) -> Any:
    found = [overrides[base] for base in cls.__mro__ if base in overrides]
    bases = found if cls in overrides else [cls, *found]
    namespace = {
        "derived": True,
        "reference": cls,
        "__module__": __name__,
        "__call__": torch.nn.Module.__call__,
        "__repr__": torch.nn.Module.__repr__,
        "forward": lambda self, *args, **options: self.call(*args, **options),
        "__reduce__": _reduce,
        "__deepcopy__": _deepcopy,
    }
    return type(cls.__name__, (*bases, torch.nn.Module), namespace)


def _reduce(module: Any) -> tuple[Any, ...]:
    frozen = tuple(name for name, p in module.named_parameters() if not p.requires_grad)
    device = next((str(t.device) for t in [*module.parameters(), *module.buffers()]), "cpu")
    return _rebuild, (from_torch(module), dict(module.overrides), device, module.training, frozen)


def _rebuild(op: Op, overrides: dict[type[Op], type[Op]], device: str, training: bool, frozen: tuple[str, ...]) -> Any:
    module = to_torch(op, device=device, overrides=override_table(overrides))
    for name, p in module.named_parameters():
        p.requires_grad_(name not in frozen)
    return module.train(training)


def _deepcopy(module: Any, memo: dict[int, Any]) -> Any:
    if id(module) not in memo:
        rebuild, args = _reduce(module)
        memo[id(module)] = rebuild(*args)
    return cast(Any, memo[id(module)])
