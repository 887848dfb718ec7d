"""From an `Op` to a JAX pytree and back: the very same classes (or their overrides) are pytrees.

Params, buffers and children are leaves, static fields are static data. `jax.grad` of a model is a
model-shaped object.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from dpmodel.graph import map_record, record_types
from dpmodel.op import Array, Kind, Op

__all__ = ["double_precision", "from_jax", "graph_to_jax", "jax_gradient", "to_jax"]


def double_precision() -> Any:
    """Context in which JAX computes in float64. The user's own setting outside is left alone."""
    return jax.enable_x64(True)


@functools.cache
def _register(cls: type[Op]) -> None:
    dynamic = tuple(name for name, kind in cls.fields() if kind is not Kind.STATIC)
    static = tuple(name for name, kind in cls.fields() if kind is Kind.STATIC)

    def flatten(op: Op) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        leaves = tuple((jax.tree_util.GetAttrKey(name), getattr(op, name)) for name in dynamic)
        return leaves, tuple(getattr(op, name) for name in static)

    def unflatten(aux: tuple[Any, ...], leaves: tuple[Any, ...]) -> Op:
        op = object.__new__(cls)
        op.__dict__.update(zip(static, aux, strict=True))
        op.__dict__.update(zip(dynamic, leaves, strict=True))
        return op

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)


@functools.cache
def _register_record(cls: type[Any]) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])


@functools.cache
def _jax_class(cls: type[Op], table: tuple[tuple[type[Op], type[Op]], ...]) -> type[Op]:
    overrides = dict(table)
    found = [overrides[base] for base in cls.__mro__ if base in overrides]
    if not found:
        made = cls
    elif cls in overrides and len(found) == 1:
        made = found[0]
    else:
        bases = found if cls in overrides else [cls, *found]
        made = cast(Any, type(cls.__name__, tuple(bases), {"derived": True, "__module__": __name__}))
    _register(made)
    return made


def to_jax(op: Op, *, device: Any = None, overrides: Mapping[type[Op], type[Op]] = MappingProxyType({})) -> Any:
    """The pytree of an Op tree, its arrays on the device."""
    for record in record_types:
        _register_record(record)

    def visit(op: Op) -> Op:
        new = object.__new__(_jax_class(type(op), tuple(overrides.items())))
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
    """The same tree with NumPy arrays, of the plain classes."""

    def plain(cls: type[Op]) -> type[Op]:
        return next(base for base in cls.__mro__ if not base.__dict__.get("derived", False) and "overrides" not in base.__module__)

    def visit(op: Op) -> Op:
        new = object.__new__(plain(type(op)))
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
    for record in record_types:
        _register_record(record)
    return map_record(graph, lambda x: jax.device_put(jnp.asarray(x), device))


def jax_gradient(
    function: Callable[[Array], tuple[Array, dict[str, Array]]], x: Array
) -> tuple[dict[str, Array], Array]:
    """`dpmodel.models.derivatives.Gradient` by reverse mode."""
    slope, outputs = jax.grad(function, has_aux=True)(x)
    return outputs, slope
