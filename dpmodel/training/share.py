"""What the chief has read or made, given to the other processes of a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from dpmodel.op import Kind, Op, children
from dpmodel.training.world import World

__all__ = ["empty_types", "listening", "shared", "shared_weights", "with_empty_types"]

_ARRAY = "@array"

_log = logging.getLogger("dpmodel")


def shared(world: World, value: Any) -> Any:
    """Plain data of rank 0 with arrays anywhere in it; other ranks give anything. Tuples come as lists. Collective."""
    if world.size == 1:
        return value
    own: dict[str, np.ndarray] = {}

    def take(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            name = str(len(own))
            own[name] = item
            return {_ARRAY: name}
        if isinstance(item, Mapping):
            return {key: take(each) for key, each in item.items()}
        return [take(each) for each in item] if isinstance(item, list | tuple) else item

    def put(item: Any) -> Any:
        if isinstance(item, dict):
            return found[item[_ARRAY]] if _ARRAY in item else {key: put(each) for key, each in item.items()}
        return [put(each) for each in item] if isinstance(item, list) else item

    plain = take(value) if world.chief else None
    kinds = {name: (str(array.dtype), array.shape) for name, array in own.items()}
    plain, kinds = world.plain([plain, kinds])
    found = world.arrays(
        own if world.chief else {name: np.zeros(shape, dtype) for name, (dtype, shape) in kinds.items()}
    )
    return put(plain)


def shared_weights(world: World, model: Any) -> Any:
    """The model of this rank, with the numbers of rank 0's of the same structure. Collective."""
    if world.size == 1:
        return model
    empty = world.plain(empty_types(model))
    state = {name: np.asarray(value) for name, value in model.state().items()}
    return with_empty_types(model.with_state(world.arrays(state)), empty)


def empty_types(model: Op) -> dict[str, Any]:
    """By path, the types that empty slots count as, of the parts that have such."""
    return {path: part.empty_type for path, part in _parts(model) if hasattr(part, "empty_type")}


def with_empty_types(model: Any, types: Mapping[str, Any]) -> Any:
    """A copy of the model with those types."""
    # A part that several tasks share has several paths and one value.
    paths = {id(part): path for path, part in _parts(model) if path in types}

    def change(part: Op, copy: Op) -> Op:
        return copy.replace(empty_type=types[paths[id(part)]]) if id(part) in paths else copy

    return model.map_ops(change)


def _parts(model: Op, path: str = "") -> Iterator[tuple[str, Op]]:
    yield path, model
    for name, kind in model.fields():
        if kind is Kind.CHILD:
            for suffix, item in children(getattr(model, name)):
                yield from _parts(item, f"{path}.{name}{suffix}".lstrip("."))


@contextmanager
def listening(world: World, *, everyone: bool = False) -> Iterator[None]:
    """Within the block only the chief says how the run goes; other processes warn, with their rank before the text.

    everyone: all processes say everything.
    """
    if world.size == 1:
        yield
        return
    former, factory = _log.level, logging.getLogRecordFactory()

    def named(*args: Any, **options: Any) -> logging.LogRecord:
        record = factory(*args, **options)
        if re.match(r"dpmodel(\.|$)", record.name):
            record.msg = f"rank {world.rank}: {record.msg}"
        return record

    if not world.chief:
        logging.setLogRecordFactory(named)
        if not everyone:
            _log.setLevel(max(logging.WARNING, _log.getEffectiveLevel()))
    try:
        yield
    finally:
        _log.setLevel(former)
        logging.setLogRecordFactory(factory)
