"""The model file: a tree of plain data and arrays, as DeePMD-kit v3 writes it.

=================  ===========================================================================================
suffix             form
=================  ===========================================================================================
``.dp``            HDF5. The root attribute ``json`` is the tree; an array is the name of a dataset there
``.hlo``           the same, with a compiled program (see `dpmodel.files.program`)
``.yaml``, ``.yml``  the tree; an array is ``{"@class": "np.ndarray", "@is_variable": true, "dtype", "value"}``
``.json``          the same as YAML, in JSON
=================  ===========================================================================================

Arrays are the leaves below a key ``@variables``, at any depth. All numbers survive a round trip bit for bit. No code
is executed: no pickles, no YAML tags, no links out of the file. ::

    tree = read_tree("model.dp")
    write_tree("model.yaml", tree)
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpmodel import __version__
from dpmodel.errors import ModelFileError
from dpmodel.files.hdf5 import MAGIC, check_dtype, open_hdf5, read_dataset, text_attribute, write_hdf5
from dpmodel.files.text import parse_text, write_text

__all__ = ["SUFFIXES", "load_tree", "read_tree", "store_tree", "with_provenance", "write_tree"]

SUFFIXES = {".dp": "HDF5", ".hlo": "HDF5", ".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}

FOREIGN = {
    ".pt": "a PyTorch training checkpoint",
    ".pth": "a frozen TorchScript model",
    ".pt2": "an exported PyTorch model",
    ".pte": "an exported PyTorch model",
    ".pb": "a TensorFlow graph",
    ".pd": "a Paddle checkpoint",
    ".jax": "an Orbax folder",
    ".savedmodel": "a TensorFlow SavedModel folder",
    ".savedmodeltf": "a TensorFlow SavedModel folder",
}


def read_tree(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tree in a model file: dictionaries, lists, text, numbers, None, and below ``@variables`` NumPy arrays.

    Arrays without dimensions come as NumPy scalars. The form follows from the suffix, and the content is checked.

    Raises ModelFileError saying what was expected, what came and what to do.
    """
    path = Path(path)
    form = _checked_form(path)
    if form == "HDF5":
        with open_hdf5(path) as file:
            tree = load_tree(file, path)
    else:
        tree = _arrays_only(parse_text(path, form), str(path))
    if "model" not in tree:
        raise ModelFileError(f"{path}: {_without_model(tree)}")
    return tree


def write_tree(
    path: str | os.PathLike[str], tree: Mapping[str, Any], *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a tree as `read_tree` returns it, completely or not at all; the suffix chooses the form.

    `software`, `version` and `time` that the tree already has are kept. What this library adds about itself
    (its version, the time, and `provenance`, such as the input) goes below the key ``dpmodel``.

    Raises ModelFileError for a tree or a suffix that cannot be written, OSError when the disk refuses.
    """
    path = Path(path)
    form = _known_form(path)
    if path.suffix.lower() == ".hlo":
        raise ModelFileError(
            f"{path}: .hlo files hold compiled programs, which `dpmodel freeze -o {path.name}` makes; a "
            "model alone goes into a .dp file"
        )
    tree = with_provenance(tree, provenance)
    if form == "HDF5":
        write_hdf5(path, lambda file: store_tree(file, tree, str(path)))
    else:
        write_text(path, _arrays_only(tree, str(path)), form)


def with_provenance(tree: Mapping[str, Any], provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A copy that says who wrote it and when. Raises ModelFileError for a tree without ``model``."""
    if "model" not in tree:
        raise ModelFileError("a model file is a dictionary with the key 'model'; this tree has none")
    now = str(dt.datetime.now(dt.UTC))
    former = tree.get("dpmodel")
    kept = former if isinstance(former, Mapping) else {}
    own = {**kept, "version": __version__, "time": now, **(provenance or {})}
    return {"software": "dpmodel", "version": __version__, "time": now, **tree, "dpmodel": own}


# --- HDF5 -------------------------------------------------------------------------------------------------


def store_tree(file: h5py.File, tree: Mapping[str, Any], where: str) -> None:
    """Put a tree into an open HDF5 file: datasets ``variable_0000`` ... in depth-first order, the rest as JSON."""
    count = 0

    def put(array: np.ndarray | np.generic) -> str:
        nonlocal count
        name = f"variable_{count:04d}"
        count += 1
        file.create_dataset(name, data=array)
        return "/" + name

    plain = _map_variables(_arrays_only(tree, where), put)
    file.attrs["json"] = json.dumps(plain, separators=(",", ":"))


def load_tree(file: h5py.File, path: Path) -> dict[str, Any]:
    """The inverse of `store_tree`. Raises ModelFileError naming the file and the place in the tree."""
    text = text_attribute(file, "json")
    if text is None:
        found = ", ".join(sorted(file)[:5]) or "nothing"
        raise ModelFileError(
            f"{path} is an HDF5 file but no model: its root has no text attribute 'json' (it contains {found}). "
            "Data systems go into 'systems' of the input; a model file is made by `dpmodel freeze` or `dpmodel.save`."
        )
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: the attribute 'json' is not JSON ({error}); copy or convert the file again"
        ) from error
    if not isinstance(plain, dict):
        raise ModelFileError(f"{path}: the attribute 'json' should be a dictionary, it is a {type(plain).__name__}")

    def get(leaf: Any) -> np.ndarray | np.generic:
        if not isinstance(leaf, str):
            raise ModelFileError(f"{path}: below '@variables' the name of a dataset was expected, not {leaf!r}")
        return read_dataset(file, leaf, str(path))

    try:
        return _map_variables(plain, get)
    except RecursionError as error:
        raise ModelFileError(f"{path}: the tree is nested too deeply to be a model") from error


def _map_variables(value: Any, convert: Any, variables: bool = False) -> Any:
    """A copy of a tree with `convert` applied to the leaves below ``@variables`` that are not None."""
    if isinstance(value, dict):
        return {key: _map_variables(item, convert, variables or key == "@variables") for key, item in value.items()}
    if isinstance(value, list):
        return [_map_variables(item, convert, variables) for item in value]
    return convert(value) if variables and value is not None else value


# --- both forms -------------------------------------------------------------------------------------------


def _arrays_only(value: Any, where: str, variables: bool = False) -> Any:
    """A copy in which tuples are lists and every leaf is plain, or below ``@variables`` a NumPy array or scalar.

    Raises ModelFileError naming the place of anything that a model file cannot hold.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ModelFileError(f"{where}: keys must be text, not {key!r} ({type(key).__name__})")
        return {
            key: _arrays_only(item, f"{where}/{key}", variables or key == "@variables") for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_arrays_only(item, f"{where}/{k}", variables) for k, item in enumerate(value)]
    if value is None:
        return None
    if variables:
        if isinstance(value, str):
            raise ModelFileError(
                f"{where}: below '@variables' only numbers and arrays are stored, not the text {value!r}"
            )
        if isinstance(value, bytes):
            value = np.void(value)
        array = check_dtype(value, where)
        return array[()] if isinstance(array, np.ndarray) and array.ndim == 0 else array
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float | str):
        return value
    raise ModelFileError(
        f"{where}: a {type(value).__name__} cannot be stored here; "
        "plain text, numbers, lists and dictionaries can, and arrays below a key '@variables'"
    )


# --- which file is it -------------------------------------------------------------------------------------


def _known_form(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    what = f", it is {FOREIGN[suffix]}" if suffix in FOREIGN else ""
    raise ModelFileError(
        f"{path}: model files end in {', '.join(SUFFIXES)}{what}. `dpmodel convert` reads what this library knows; "
        "for other kinds, DeePMD-kit's `dp convert-backend` makes a .dp file."
    )


def _checked_form(path: Path) -> str:
    """HDF5, YAML or JSON, after a look at the first bytes. Raises ModelFileError when they disagree with the name."""
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; a model file ending in {', '.join(SUFFIXES)} was expected")
    if not path.exists():
        raise ModelFileError(f"{path}: there is no such file (in {path.absolute().parent})")
    form = _known_form(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise ModelFileError(f"{path} is empty; copy it again from its source")
    if head == MAGIC:
        found = "HDF5"
    elif head.startswith(b"PK\x03\x04"):
        found = "a zip archive, as PyTorch writes (.pt, .pth, .pt2)"
    elif head.startswith(b"\x80") and head[1:2] <= b"\x05":
        found = "a pickle, which is never loaded because it could run code"
    elif form == "HDF5":
        found = "not HDF5 (truncated at the start, or another kind of file)"
    else:
        found = form
    if found != form:
        raise ModelFileError(
            f"{path} should be {form} by its name, but it is {found}. Give it the suffix of its kind and convert it "
            "with `dpmodel convert`, or copy it again."
        )
    return form


def _without_model(tree: Mapping[str, Any]) -> str:
    if "base_code" in tree or "program" in tree:
        return (
            "this is a Paddle program, not a model tree. Convert it with DeePMD-kit: `dp convert-backend model.json "
            "model.dp`; .json files of this library hold the same tree as .yaml ones."
        )
    found = ", ".join(repr(key) for key in list(tree)[:6]) or "nothing"
    return f"a model file has the key 'model'; this one has {found}. Is it a model file?"
