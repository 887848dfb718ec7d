"""`Op`: the base of everything that owns numbers.

State is declared as class-level fields, each with a kind, and nothing else is state::

    class Linear(Op):
        w: Array = param()                 # trained
        b: Array | None = param(default=None)
        scale: Array = buffer()            # stored, never trained
        inner: Linear | None = child(default=None)
        activation: str = "tanh"           # static: plain Python data

Everything that treats models generically derives from this declaration: conversion of arrays to
another library, the torch module (parameters, buffers, children), the JAX pytree (leaves and static
data), and the names of the state (`descriptor.networks.0.layers.1.w`, equal on every backend).

An `Op` is not changed after it was built: `op.replace(...)` and `op.with_state(...)` return new ones.
(The torch modules derived from it are mutable, as torch expects.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform

import numpy as np

__all__ = ["Array", "Kind", "Op", "buffer", "child", "given_of", "param", "paths_of", "walk"]

Array = Any
"""An array of any library that follows the array API standard."""

T = TypeVar("T", bound="Op")


class Kind(Enum):
    """What a field of an `Op` is."""

    PARAM = "param"
    BUFFER = "buffer"
    CHILD = "child"
    STATIC = "static"


def param(**options: Any) -> Any:
    """Declare a trained array (or None)."""
    return dataclasses.field(metadata={"kind": Kind.PARAM}, **options)


def buffer(*, given: bool = False, **options: Any) -> Any:
    """Declare an array that is stored with the model and never trained (or None).

    given: an option of an input that is kept as an array (`given_of`). Weights and statistics of another model leave it.
    """
    return dataclasses.field(metadata={"kind": Kind.BUFFER, "given": given}, **options)


def child(**options: Any) -> Any:
    """Declare an `Op`, a tuple of `Op`s, or None."""
    return dataclasses.field(metadata={"kind": Kind.CHILD}, **options)


@dataclass_transform(field_specifiers=(param, buffer, child, dataclasses.field), kw_only_default=True)
class Op:
    """Base class: a keyword-only dataclass whose fields carry a `Kind`.

    Subclasses implement `call`. Callers write `op(...)`, never `op.call(...)`: on torch the hooks of
    `nn.Module` live in `__call__`.

    A subclass may declare a static field `trainable`: False freezes the parameters that the Op itself owns, not those
    of its children.
    """

    trainable: ClassVar[bool] = True

    derived: ClassVar[bool] = False
    """True on classes that a bridge makes at run time; they add no state."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__dict__.get("derived", False):
            return
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
        # A default that stays behind as a class attribute would hide torch's registered parameter of that name.
        for field in dataclasses.fields(cast(Any, cls)):
            if field.metadata.get("kind", Kind.STATIC) is not Kind.STATIC and field.name in cls.__dict__:
                delattr(cls, field.name)

    @classmethod
    def fields(cls) -> tuple[tuple[str, Kind], ...]:
        """(name, kind) of every field, in the order of declaration."""
        return tuple((f.name, f.metadata.get("kind", Kind.STATIC)) for f in dataclasses.fields(cast(Any, cls)))

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.call(*args, **options)

    def call(self, *args: Any, **options: Any) -> Any:
        """Compute. Implemented by every subclass that can be called."""
        raise NotImplementedError(f"{type(self).__name__} does not define call()")

    def __repr__(self) -> str:
        parts = [f"{n}={getattr(self, n)!r}" for n, kind in self.fields() if kind is Kind.STATIC]
        return f"{type(self).__name__}({', '.join(parts)})"

    # --- derived from the declaration -----------------------------------------------------------------

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields replaced. Everything else is shared, not copied."""
        names = {name for name, _ in self.fields()}
        unknown = sorted(changes.keys() - names)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {unknown}; its fields are {sorted(names)}")
        new = object.__new__(type(self))
        new.__dict__.update({name: changes.get(name, getattr(self, name)) for name in names})
        return new

    def map_ops(self: T, change: Callable[[Op, Op], Op]) -> T:
        """A copy of the tree, each part being `change(part, copy of it with changed children)`.

        Every part is visited once and children come first; an Op that several parents share stays one.
        """
        done: dict[int, Op] = {}

        def visit(op: Op) -> Op:
            if id(op) not in done:
                parts = {n: _map_children(getattr(op, n), visit) for n, kind in op.fields() if kind is Kind.CHILD}
                done[id(op)] = change(op, op.replace(**parts) if parts else op)
            return done[id(op)]

        return cast(T, visit(self))

    def map_arrays(self: T, convert: Callable[[Array], Array]) -> T:
        """A copy of the tree with `convert` applied to every param and buffer. Shared children stay shared."""

        def change(_: Op, copy: Op) -> Op:
            own = {name: getattr(copy, name) for name, kind in copy.fields() if kind in (Kind.PARAM, Kind.BUFFER)}
            return copy.replace(**{name: convert(value) for name, value in own.items() if value is not None})

        return self.map_ops(change)

    def state(self) -> dict[str, Array]:
        """Every param and buffer that is not None, by path. Paths equal those of the torch state dict.

        An array of an Op that several parents share is there under each of its paths.
        """
        return {path: value for path, _, value, _ in walk(self)}

    def with_state(self: T, state: Mapping[str, Array], *, strict: bool = True) -> T:
        """A copy with arrays taken from `state`. Shared children stay shared: one of their paths is enough.

        Raises ValueError naming the path when a shape differs, when arrays for two paths of a shared child differ, and
        (if `strict`) when names are missing or unknown.
        """
        places = paths_of(self)
        given = {key: [path for path in paths if path in state] for key, (_, paths) in places.items()}
        missing = sorted(paths[0] for key, (_, paths) in places.items() if not given[key])
        unknown = sorted(state.keys() - {path for _, paths in places.values() for path in paths})
        if strict and (missing or unknown):
            raise ValueError(
                f"the state does not fit this {type(self).__name__}: missing {missing or 'nothing'}, "
                f"unknown {unknown or 'nothing'}. Was it made from another model section?"
            )
        found = {}
        for key, (value, _) in places.items():
            for path in given[key]:
                first, shape = given[key][0], tuple(np.shape(state[path]))
                if shape != tuple(value.shape):
                    raise ValueError(f"{path}: expected shape {tuple(value.shape)}, got {shape}")
                if not _same(state[path], state[first]):
                    raise ValueError(f"{first} and {path} are one array here, and the state has two different ones")
                found[key] = state[first]

        def change(op: Op, copy: Op) -> Op:
            own = {name: found[id(op), name] for name, _ in op.fields() if (id(op), name) in found}
            return copy.replace(**own)

        return self.map_ops(change)


def paths_of(op: Op) -> dict[tuple[int, str], tuple[Array, tuple[str, ...]]]:
    """By (identity of the part, field), every array of the tree and all its paths, the first one first."""
    found: dict[tuple[int, str], tuple[Array, tuple[str, ...]]] = {}

    def visit(part: Op, prefix: str) -> None:
        for name, kind in part.fields():
            value = getattr(part, name)
            if kind is Kind.CHILD:
                for suffix, item in children(value):
                    visit(item, f"{prefix}{name}{suffix}.")
            elif kind is not Kind.STATIC and value is not None:
                array, paths = found.get((id(part), name), (value, ()))
                found[id(part), name] = array, (*paths, prefix + name)

    visit(op, "")
    return found


def given_of(op: Op) -> dict[str, Array]:
    """By path, the arrays of the tree that are options of an input (`buffer(given=True)`)."""
    names = {f.name for f in dataclasses.fields(cast(Any, op)) if f.metadata.get("given", False)}
    found = {name: getattr(op, name) for name in names if getattr(op, name) is not None}
    for name, kind in op.fields():
        for suffix, item in children(getattr(op, name)) if kind is Kind.CHILD else ():
            found |= {f"{name}{suffix}.{path}": value for path, value in given_of(item).items()}
    return found


def _same(a: Array, b: Array) -> bool:
    return a is b or np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f")


def children(value: Any) -> Iterator[tuple[str, Op]]:
    """(suffix, op) of a child field's value: ("", op) for one, (".0", op) ... for several."""
    if value is None:
        return
    if isinstance(value, Op):
        yield "", value
        return
    for k, item in enumerate(value):
        if item is not None:
            yield f".{k}", item


def _map_children(value: Any, visit: Callable[[Op], Op]) -> Any:
    if value is None:
        return None
    if isinstance(value, Op):
        return visit(value)
    return tuple(None if item is None else visit(item) for item in value)


def walk(op: Op, prefix: str = "") -> Iterator[tuple[str, Kind, Array, bool]]:
    """(path, kind, array, trainable) of every array in the tree that is not None, depth first."""
    for name, kind in op.fields():
        value = getattr(op, name)
        if kind is Kind.CHILD:
            for suffix, item in children(value):
                yield from walk(item, f"{prefix}{name}{suffix}.")
        elif kind is not Kind.STATIC and value is not None:
            yield prefix + name, kind, value, kind is Kind.PARAM and op.trainable
