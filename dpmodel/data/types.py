"""Types of a data system: from its own map to the model's, by symbol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpmodel.data.system import Integers
from dpmodel.errors import DataError

__all__ = ["apply_table", "check_mixed", "translation"]


def translation(
    own: Sequence[str] | None, type_map: Sequence[str] | None, where: Any
) -> tuple[Integers | None, tuple[str, ...] | None]:
    """(index in the model's map by type of the system or None, symbols that the result counts in or None).

    own: the system's symbols, type_map: the model's; where either is missing, numbers are kept. where: what has the
    system's map, for messages. Raises DataError for symbols that come twice or that the model does not know.
    """
    names = None if type_map is None else tuple(type_map)
    if own is None:
        return None, names
    own = tuple(own)
    twice = sorted({name for name in own if own.count(name) > 1})
    if twice or not own:
        raise DataError(
            f"{where}: expected symbols, none twice; found {', '.join(twice) + ' twice' if twice else 'none'}"
        )
    if names is None:
        return np.arange(len(own)), own
    unknown = [name for name in own if name not in names]
    if unknown:
        raise DataError(
            f"{where}: the model has no type {', '.join(unknown)}; its type_map is {list(names)}. "
            f"Add the symbol to the model's type_map, or take the system out"
        )
    return np.array([names.index(name) for name in own], np.int64), names


def apply_table(kinds: Integers, table: Integers | None, names: Sequence[str] | None, where: Any) -> Integers:
    """Translated types. Raises DataError for types that a map does not have."""
    ntypes = len(table) if table is not None else None if names is None else len(names)
    if kinds.min() < 0 or (ntypes is not None and kinds.max() >= ntypes):
        bad = int(kinds.min() if kinds.min() < 0 else kinds.max())
        has = "type_map.raw" if table is not None else "the model's type_map (the system has no type_map.raw)"
        legal = "0 or more" if ntypes is None else f"0 to {ntypes - 1}, the places in {has}"
        raise DataError(f"{where}: expected types {legal}; found {bad}")
    return kinds if table is None else table[kinds]


def check_mixed(values: np.ndarray[Any, Any], ntypes: int, where: str, start: int = 0) -> None:
    """Raise DataError unless the rows (frames) are types -1 to ntypes - 1, at least one of them real in each.

    start: number of the first row, for messages.
    """
    kinds = values.astype(np.int64)
    if not np.array_equal(kinds, values):
        raise DataError(f"{where}: expected integers, found dtype {values.dtype} with fractions")
    if kinds.min() < -1 or kinds.max() >= ntypes:
        bad = int(kinds.min() if kinds.min() < -1 else kinds.max())
        raise DataError(f"{where}: expected types -1 (padding) to {ntypes - 1} of type_map.raw; found {bad}")
    empty = np.flatnonzero(np.all(kinds < 0, axis=1))
    if len(empty):
        raise DataError(
            f"{where}: expected at least one real atom per frame, found none in frame {start + int(empty[0])}"
        )
