"""Reading one dictionary of a model file with checks: every access knows its path and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dpmodel.errors import ModelFileError

__all__ = ["Node", "Upgrade"]

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""From version k of a dictionary to version k + 1; pure."""

_REQUIRED: Any = object()


class Node:
    """A dictionary inside a model file, with its path for messages."""

    def __init__(self, data: Any, path: str) -> None:
        if not isinstance(data, Mapping):
            raise ModelFileError(
                f"{path}: expected a dictionary, got {type(data).__name__}; the file is damaged or not a model"
            )
        self.data: dict[str, Any] = dict(data)
        self.path = path

    def fail(self, message: str) -> ModelFileError:
        """An error that names this place."""
        return ModelFileError(f"{self.path}: {message}")

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of a key; without a default the key must exist."""
        if key in self.data:
            return self.data[key]
        if default is _REQUIRED:
            raise self.fail(f"the key {key!r} is missing; found {sorted(map(str, self.data))}")
        return default

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false under a key."""
        value = self.get(key, default)
        if not isinstance(value, bool | np.bool_):
            raise self.fail(f"{key!r} should be true or false, got {value!r}")
        return bool(value)

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        """A whole number, not negative, under a key."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise self.fail(f"{key!r} should be a whole number from 0 on, got {value!r}")
        return int(value)

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number under a key."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
            raise self.fail(f"{key!r} should be a finite number, got {value!r}")
        return float(value)

    def items(self, key: str) -> list[Any]:
        """The list under a key."""
        value = self.get(key)
        if not isinstance(value, list | tuple):
            raise self.fail(f"{key!r} should be a list, got {type(value).__name__}")
        return list(value)

    def node(self, key: str) -> Node:
        """The dictionary under a key."""
        return Node(self.get(key), f"{self.path}.{key}")

    def nodes(self, key: str) -> list[Node]:
        """The dictionaries in the list under a key."""
        return [Node(item, f"{self.path}.{key}[{k}]") for k, item in enumerate(self.items(key))]

    def array(
        self, key: str, shape: tuple[int, ...] | None = None, *, optional: bool = False, dtype: Any = None
    ) -> Any:
        """The array under "@variables", of that dtype; None only if `optional`. `shape` is checked, NaN refused."""
        variables = self.node("@variables") if self.get("@variables", None) is not None else Node({}, self.path)
        value = variables.get(key, None)
        if value is None:
            if optional:
                return None
            raise self.fail(f"the array {key!r} is missing")
        try:
            array = np.asarray(value)
        except ValueError as problem:
            raise self.fail(f"{key!r} is not an array ({problem})") from problem
        if array.dtype.kind not in "fiu":
            raise self.fail(f"the array {key!r} has dtype {array.dtype}, expected numbers")
        if shape is not None and array.shape != shape:
            raise self.fail(f"the array {key!r} has shape {array.shape}, expected {shape}")
        if not np.all(np.isfinite(array)):
            raise self.fail(f"the array {key!r} holds NaN or infinite numbers")
        return array if dtype is None else array.astype(dtype, copy=False)

    def upgraded(self, newest: int, upgrades: Mapping[int, Upgrade] | None = None) -> Node:
        """This dictionary at version `newest`. Raises ModelFileError where it is newer than that.

        A dictionary that does not say its version is of the first. Every step that nobody registered changes nothing.
        """
        version, name = self.integer("@version", 1), self.data.get("type", self.data.get("@class"))
        if version > newest:
            raise self.fail(
                f"version {version} of {name!r} is not known here (1 to {newest} are); "
                "the file was written by a newer program: update dpmodel"
            )
        if version < 1:
            raise self.fail(f"{name!r} has no version {version}; versions count from 1")
        data = dict(self.data)
        for step in range(version, newest):
            data = (upgrades or {}).get(step, dict)(data)
        data["@version"] = newest
        return Node(data, self.path)
