"""From an `Op` to a JAX pytree and back: the very same classes (or their overrides) are pytrees.

Params, buffers and children are leaves, static fields are static data. `jax.grad` of a model is a
model-shaped object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from dpmodel.graph import map_record, record_types
from dpmodel.models import HessianRequest
from dpmodel.op import Array, Kind, Op

__all__ = ["double_precision", "from_jax", "graph_to_jax", "jax_curvature", "jax_gradient", "to_jax"]


def double_precision() -> Any:
    """Context in which JAX computes in float64. The user's own setting outside is left alone."""
    return jax.enable_x64(True)


_REGISTERED: set[type[Any]] = set()
_CLASSES: dict[Any, type[Op]] = {}
"""Derived classes by reference and table."""


def _register(cls: type[Op]) -> None:
    if cls in _REGISTERED:
        return
    _REGISTERED.add(cls)
    dynamic = tuple(name for name, kind in cls.fields() if kind is not Kind.STATIC)
    static = tuple(name for name, kind in cls.fields() if kind is Kind.STATIC)

    def flatten(op: Op) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        leaves = tuple((jax.tree_util.GetAttrKey(name), getattr(op, name)) for name in dynamic)
        return leaves, tuple(getattr(op, name) for name in static)

    def unflatten(aux: tuple[Any, ...], leaves: Iterable[Any]) -> Op:
        op = object.__new__(cls)
        op.__dict__.update(zip(static, aux, strict=True))
        op.__dict__.update(zip(dynamic, leaves, strict=True))
        return op

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)


def _register_records() -> None:
    for cls in record_types:
        if cls not in _REGISTERED:
            _REGISTERED.add(cls)
            names = [f.name for f in dataclasses.fields(cast(Any, cls))]
            jax.tree_util.register_dataclass(cast(Any, cls), data_fields=names, meta_fields=[])


def _jax_class(cls: type[Op], overrides: Mapping[type[Op], type[Op]]) -> type[Op]:
    key = (cls, tuple(overrides.items()))
    if key not in _CLASSES:
        _CLASSES[key] = _derive(cls, overrides)
    return _CLASSES[key]


def _derive(cls: type[Op], overrides: Mapping[type[Op], type[Op]]) -> type[Op]:
    found = [overrides[base] for base in cls.__mro__ if base in overrides]
    made: Any = cls
    if found:
        bases = found if cls in overrides else [cls, *found]
        made = type(cls.__name__, tuple(bases), {"derived": True, "reference": cls, "__module__": __name__})
    _register(made)
    return made


def to_jax(op: Op, *, device: Any = None, overrides: Mapping[type[Op], type[Op]] = MappingProxyType({})) -> Any:
    """The pytree of an Op tree, its arrays on the device. An Op that two parents share stays one, until JAX flattens it."""
    _register_records()
    done: dict[int, Op] = {}

    def visit(op: Op) -> Op:
        if id(op) in done:
            return done[id(op)]
        new = done[id(op)] = object.__new__(_jax_class(type(op), overrides))
        for name, kind in op.fields():
            value = getattr(op, name)
            if kind is Kind.CHILD and isinstance(value, tuple | list):
                value = tuple(visit(item) for item in value)
            elif kind is Kind.CHILD and value is not None:
                value = visit(value)
            elif kind is not Kind.STATIC and value is not None:
                value = jax.device_put(jnp.asarray(value), device)
            new.__dict__[name] = value
        return new

    return visit(op)


def from_jax(op: Op) -> Op:
    """The same tree with NumPy arrays, of the plain classes. An Op that two parents share stays one."""
    done: dict[int, Op] = {}

    def visit(op: Op) -> Op:
        if id(op) in done:
            return done[id(op)]
        new = done[id(op)] = object.__new__(type(op).__dict__.get("reference", type(op)))
        for name, kind in op.fields():
            value = getattr(op, name)
            if kind is Kind.CHILD and isinstance(value, tuple):
                value = tuple(visit(item) for item in value)
            elif kind is Kind.CHILD and value is not None:
                value = visit(value)
            elif kind is not Kind.STATIC and value is not None:
                value = np.array(value)
            new.__dict__[name] = value
        return new

    return visit(op)


def graph_to_jax(graph: Any, device: Any = None) -> Any:
    """A record of NumPy arrays as one of JAX arrays."""
    _register_records()
    return map_record(graph, lambda x: jax.device_put(jnp.asarray(x), device))


def jax_gradient(
    function: Callable[[Array], tuple[Array, dict[str, Array]]], x: Array
) -> tuple[dict[str, Array], Array]:
    """`dpmodel.models.derivatives.Gradient` by reverse mode."""
    slope, outputs = jax.grad(function, has_aux=True)(x)
    return outputs, slope


def jax_curvature(
    function: Callable[[Array], tuple[Array, dict[str, Array]]],
    x: Array,
    direction: Callable[[Array], Array],
    collect: Callable[[Array], Array],
    request: HessianRequest,
) -> tuple[dict[str, Array], Array, Array]:
    """`dpmodel.models.curvature.Curvature`: reverse mode twice, the second time over `request.columns` at once."""
    slope, pull, outputs = jax.vjp(jax.grad(function, has_aux=True), x, has_aux=True)

    def column(k: Array) -> Array:
        (w,) = pull(direction(k[None])[:, 0])
        return collect(w[:, None])[:, 0]

    columns = jax.lax.map(column, jnp.arange(3 * request.atoms), batch_size=request.columns)
    return outputs, slope, jnp.moveaxis(columns, 0, 1)
