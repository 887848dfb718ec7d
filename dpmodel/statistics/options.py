"""What the numbers of a `stat_file` depend on besides the data: the entry `options` beside them.

It is JSON: {"HASH": {"env_protection": 0.1}, "bias_atom_energy": {"preset_out_bias": [...]}}, by the entry or group of
entries that was computed with them. Options at their defaults (false, 0, null, empty) are left out, so a part that is
not there, as in caches of other writers, counts as made with the defaults. null: that part is just being written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dpmodel.errors import DataError

__all__ = ["check_finite", "differing", "pack", "pairs", "plain_options", "unpack"]


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are not at their defaults, as JSON reads them back."""
    found: dict[str, Any] = json.loads(json.dumps({name: value for name, value in options.items() if value}))
    return found


def pairs(types: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Pairs of types, whichever order they were given in."""
    return [list(pair) for pair in sorted({(min(a, b), max(a, b)) for a, b in types})]


def differing(stored: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> list[str]:
    """In words, which options are not those that the statistics were made with."""
    if stored is None:
        return ["the last write was interrupted"]
    return [
        f"{name} is {json.dumps(wanted.get(name))} (was {json.dumps(stored.get(name))})"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]


def pack(parts: Mapping[str, Mapping[str, Any] | None]) -> np.ndarray:
    """The entry as an array of bytes."""
    return np.array([json.dumps(parts, sort_keys=True).encode()], dtype=np.bytes_)


def unpack(value: np.ndarray) -> dict[str, dict[str, Any] | None]:
    """The inverse of `pack`. Raises ValueError for anything else."""
    items = value.reshape(-1).tolist()
    if len(items) != 1 or not isinstance(items[0], bytes | str):
        raise ValueError(f"expected one text, got {value.dtype} {value.shape}")
    parts = json.loads(items[0])
    if not isinstance(parts, dict) or not all(item is None or isinstance(item, dict) for item in parts.values()):
        raise ValueError("expected options by part")
    return parts


def check_finite(entries: Mapping[str, np.ndarray], where: Callable[[str], str]) -> None:
    """Raise DataError for an array that is not finite. where: what to call it in the message."""
    for name, value in entries.items():
        if value.dtype.kind == "f" and not np.all(np.isfinite(value)):
            raise DataError(
                f"{where(name)}: the statistics of the data are NaN or infinite, and nothing was stored; look for atoms "
                "in the same place and for wrong labels"
            )
