"""Trees as YAML and JSON text, with arrays as nested lists that keep dtype, shape and every bit.

An array is ``{"@class": "np.ndarray", "@is_variable": true, "@version": 1, "dtype": "float64", "value": [...]}``, as
DeePMD-kit writes it; one without elements also says its ``shape``, which nested lists cannot.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dpmodel.errors import ModelFileError
from dpmodel.files.atomic import atomic_write
from dpmodel.files.hdf5 import DTYPES

__all__ = ["parse_text", "write_text"]

_Loader: Any = type("_Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
"""The safe loader (in C where possible), with YAML 1.2's floats: in YAML 1.1 a float needs a point; 1e-17 is text."""

_Dumper: Any = type("_Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {"ignore_aliases": lambda *_: True})
"""The safe dumper. It quotes text that `_Loader` would read as a float, and writes no anchors for repeated lists."""

for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def parse_text(path: Path, form: str) -> dict[str, Any]:
    """The tree in a YAML or JSON file. Raises ModelFileError naming the file, and the line where there is one."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if form == "JSON" else _load_yaml(text)
        # An element takes at least one character, unless aliases repeat it; a small file must not fill the memory.
        tree = _decode(tree, str(path), _Budget(1_000_000 + 10 * len(text)))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise ModelFileError(f"{path}: the tree is nested too deeply to be a model") from error
    except ModelFileError:
        raise
    except (ValueError, yaml.YAMLError) as error:
        raise ModelFileError(
            f"{path} is not {form} ({error}). It is damaged or another kind of file; copy it again."
        ) from error
    if not isinstance(tree, dict):
        raise ModelFileError(f"{path} should hold a dictionary with the key 'model', it holds a {type(tree).__name__}")
    return tree


def _load_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def write_text(path: Path, tree: dict[str, Any], form: str) -> None:
    """Write a tree of plain data and arrays, completely or not at all."""
    plain = _encode(tree, str(path))
    if form == "JSON":
        text = json.dumps(plain)
    else:
        text = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=200)

    def write(temporary: Path) -> None:
        with temporary.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text + "\n")

    try:
        atomic_write(path, write)
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{path}: a text in the tree is not valid Unicode ({error})") from error


class _Budget:
    """Counts elements, and refuses a file that unfolds to far more than it holds."""

    def __init__(self, elements: int) -> None:
        self.left = elements

    def spend(self, elements: int, where: str) -> None:
        self.left -= elements
        if self.left < 0:
            raise ModelFileError(f"{where}: the file unfolds to far more elements than it holds; it is not a model")


def _decode(value: Any, where: str, budget: _Budget) -> Any:
    budget.spend(1, where)
    if isinstance(value, dict):
        if value.get("@class") == "np.ndarray" and value.get("@is_variable") is True:
            return _decode_array(value, where, budget)
        return {key: _decode(item, f"{where}/{key}", budget) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item, f"{where}/{k}", budget) for k, item in enumerate(value)]
    if isinstance(value, dt.date):
        # YAML reads an unquoted time as one; the tree holds text.
        return str(value)
    return value


def _decode_array(value: dict[str, Any], where: str, budget: _Budget) -> np.ndarray | np.generic:
    name, data = value.get("dtype"), value.get("value")
    if name not in DTYPES:
        raise ModelFileError(f"{where}: the dtype of an array must be one of {', '.join(DTYPES)}, not {name!r}")
    shape, inner = [], data
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    budget.spend(math.prod(shape), where)
    try:
        raw = np.asarray(data)
    except ValueError as error:
        raise ModelFileError(
            f"{where}: the lists of an array must have equal lengths at each level ({error})"
        ) from error
    allowed = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}[np.dtype(name).kind]
    if raw.size and raw.dtype.kind not in allowed:
        raise ModelFileError(f"{where}: the values of an array do not fit its dtype {name}: they are {raw.dtype.name}")
    try:
        array = np.asarray(data, dtype=name)
        array = array.reshape(value["shape"]) if "shape" in value else array
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelFileError(
            f"{where}: the values of an array do not fit its dtype {name} or its shape ({error})"
        ) from error
    return array[()] if array.ndim == 0 else array


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _encode(item, f"{where}/{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_encode(item, f"{where}/{k}") for k, item in enumerate(value)]
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if value.dtype.type is np.void:
        raise ModelFileError(f"{where}: opaque bytes (a compiled program) cannot be written as text; write a .dp file")
    head = {"@class": "np.ndarray", "@is_variable": True, "@version": 1, "dtype": value.dtype.name}
    if value.size == 0:
        head["shape"] = list(value.shape)
    return {**head, "value": value.tolist()}
