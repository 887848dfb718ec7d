"""Reading an input file into plain data: dictionaries with string keys, lists, strings, finite numbers, null.

What standard readers let through silently is an error here: a key given twice (the last would win), NaN and
infinities, values that JSON cannot hold. YAML reads `1e-3` as a number (YAML 1.1 would make it a string).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dpmodel.errors import InputError

__all__ = ["plain", "read"]

_DEPTH = 100
"""Deeper nesting than any input has; beyond it a message is better than a RecursionError."""


class _Repeated(dict[str, Any]):
    """An object in which a key was given twice."""

    key = ""


def read(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Plain data from a path (.json, .yaml, .yml) or a mapping, which is copied. Raises InputError."""
    if isinstance(source, Mapping):
        return _section(source)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the input file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, got a byte that is not ({error.reason})") from None
    try:
        data = _yaml(text) if path.suffix.lower() in (".yaml", ".yml") else _json(text)
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    try:
        return _section(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _section(data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        kind = "nothing" if data is None else type(data).__name__
        raise InputError(f"expected an input with the sections model, training, ...; got {kind}")
    out: dict[str, Any] = plain(data)
    return out


def plain(value: Any, path: str = "", depth: int = 0) -> Any:
    """A copy of `value` made of JSON's types. Raises InputError with the path of what does not fit."""
    if depth > _DEPTH:
        raise InputError(f"{path.partition('.')[0]}: nested more than {_DEPTH} levels deep")
    if isinstance(value, _Repeated):
        raise InputError(f"{_join(path, value.key)}: the key is given twice; keep one")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{path or 'input'}: expected keys to be strings, got {key!r}")
        if "$ref" in value:
            raise InputError(
                f"{_join(path, '$ref')}: references to other files are not supported; put the text in place"
            )
        return {key: plain(item, _join(path, key), depth + 1) for key, item in value.items() if key != "$schema"}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), path, depth + 1)
    if isinstance(value, list | tuple):
        return [plain(item, f"{path}[{k}]", depth + 1) for k, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path}: expected a finite number, got {value}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{path}: expected an integer of at most 64 bits, got {str(value)[:20]}...")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"{path}: expected a value that JSON can hold, got {type(value).__name__} {value!r:.100}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) == len(pairs):
        return data
    keys = [key for key, _ in pairs]
    twice = [key for key in data if keys.count(key) > 1 and not key.startswith("_")]
    if not twice:  # comments may repeat
        return data
    repeated = _Repeated(data)
    repeated.key = twice[0]
    return repeated


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text.strip() else ""
        raise InputError(
            f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}: {line[:80]!r}"
        ) from None


def _yaml(text: str) -> Any:
    class Loader(yaml.SafeLoader):
        """Resolvers are added to this class, not to yaml's own."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        pairs = [(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value]
        try:
            return _pairs(pairs) if all(isinstance(key, str) for key, _ in pairs) else dict(pairs)
        except TypeError:  # a list or a mapping as a key
            raise InputError(f"line {node.start_mark.line + 1}: expected keys to be strings") from None

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    number = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 # a SafeLoader: no objects, no code
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}") from None
