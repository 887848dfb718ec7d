"""Model files that hold a compiled program too (`.hlo`): the tree of a model file, and in it

=================================  =======================================================================
place in the tree                  what
=================================  =======================================================================
``@variables/stablehlo``           the program: what `jax.export` writes, StableHLO in portable bytes
``constants``                      what the file says about the program, as JSON; every key is required
``model``, ``model_def_script`` .. the model that it was made from
=================================  =======================================================================

DeePMD-kit's `.hlo` files have the same places and other constants; here they are read as model files alone. Converting
to a model file drops program and constants.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpmodel import __version__
from dpmodel.errors import ModelFileError
from dpmodel.files.container import read_tree, store_tree, with_provenance
from dpmodel.files.hdf5 import write_hdf5
from dpmodel.files.model_file import ModelFile, from_tree, to_tree

__all__ = ["FORMAT", "FORMAT_VERSION", "Program", "holds_program", "read_program", "write_program"]

FORMAT: Final = "dpmodel.hlo"
FORMAT_VERSION: Final = 1

_KINDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "format_version": (int,),
    "dpmodel_version": (str,),
    "jax_version": (str,),
    "platforms": (list,),
    "precision": (str,),
    "inputs": (list,),
    "outputs": (list,),
    "compared": (list,),
    "program_hash": (str,),
    "model_hash": (str,),
}
"""Every key and the JSON types that it may have."""

_ARRAY: dict[str, tuple[type, ...]] = {"name": (str,), "dtype": (str,), "axes": (list,), "static": (list,)}


@dataclasses.dataclass(frozen=True)
class Program:
    """What a file holds."""

    file: ModelFile
    code: bytes
    metadata: dict[str, Any]


def holds_program(path: str | Path) -> bool:
    """Whether a `.hlo` file is one of ours. Raises ModelFileError where it cannot be read."""
    constants = read_tree(path).get("constants")
    return isinstance(constants, Mapping) and constants.get("format") == FORMAT


def write_program(path: str | Path, file: ModelFile, code: bytes, about: Mapping[str, Any]) -> None:
    """Write a model and its program, completely or not at all. about: the metadata without versions and hashes."""
    tree = to_tree(file)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dpmodel_version": __version__,
        **about,
        "program_hash": hashlib.sha256(code).hexdigest(),
        "model_hash": _hash_of(tree["model"]),
    }
    variables = {**(tree.get("@variables") or {}), "stablehlo": np.void(code)}
    tree = with_provenance({**tree, "@variables": variables, "constants": metadata})
    write_hdf5(path, lambda image: store_tree(image, tree, str(path)))


def read_program(path: str | Path) -> Program:
    """The model, the program and its metadata, checked. Raises ModelFileError for damage and other versions."""
    tree = read_tree(path)
    metadata = _checked(tree.get("constants"), str(path))
    code = tree.get("@variables", {}).get("stablehlo")
    if not isinstance(code, np.void):
        raise ModelFileError(f"{path}: the program is missing; freeze the model anew")
    program = code.tobytes()
    if hashlib.sha256(program).hexdigest() != metadata["program_hash"]:
        raise ModelFileError(f"{path}: the program is damaged or was changed; freeze the model anew")
    if _hash_of(tree["model"]) != metadata["model_hash"]:
        raise ModelFileError(f"{path}: the model inside is not the one that was compiled; freeze the model anew")
    return Program(from_tree(tree, str(path)), program, metadata)


def _checked(found: Any, where: str) -> dict[str, Any]:
    """The metadata. Raises ModelFileError naming the key that is wrong."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ModelFileError(f"{where} holds no program of `dpmodel freeze`: its constants have no format {FORMAT!r}")
    if (version := found.get("format_version")) != FORMAT_VERSION:
        raise ModelFileError(
            f"{where} has the format version {version!r}, this program reads {FORMAT_VERSION}: freeze the model anew with "
            "this version of dpmodel, or use the version that froze it"
        )
    _check_keys(found, _KINDS, f"{where}: constants")
    for key in ("inputs", "outputs"):
        for k, item in enumerate(found[key]):
            _check_keys(item, _ARRAY, f"{where}: constants: {key}[{k}]")
    return found


def _check_keys(found: Any, kinds: dict[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(found, dict):
        raise ModelFileError(f"{where}: expected a dictionary, got {type(found).__name__}")
    missing, unknown = sorted(kinds.keys() - found.keys()), sorted(found.keys() - kinds.keys())
    if missing or unknown:
        raise ModelFileError(f"{where}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    for key, allowed in kinds.items():
        if not isinstance(found[key], allowed) or isinstance(found[key], bool):
            words = " or ".join(kind.__name__ for kind in allowed)
            raise ModelFileError(f"{where}: {key} should be {words}, got {found[key]!r}")


def _hash_of(tree: Any) -> str:
    """SHA-256 of a tree of plain data and arrays, the same before it was written and after it was read."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, np.ndarray) and value.ndim:
            content = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False)).tobytes()
            return [value.dtype.name, list(value.shape), hashlib.sha256(content).hexdigest()]
        return value.item() if isinstance(value, np.ndarray | np.generic) else value

    return hashlib.sha256(json.dumps(plain(tree), sort_keys=True).encode()).hexdigest()
