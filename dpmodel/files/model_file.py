"""Model files: `.dp` (HDF5 and JSON), `.yaml`, `.json`; read and written, DeePMD-kit's dictionaries in all of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.backend import get_reader
from dpmodel.config import thaw
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.codecs import read_model_tree, write_model_tree
from dpmodel.files.container import read_tree, write_tree
from dpmodel.files.nodes import Node
from dpmodel.models import Model, StandardModel

logger = logging.getLogger(__name__)

__all__ = ["READERS", "ModelFile", "read_model", "write_model"]

READERS = {".pt": "pt"}
"""By suffix, the backend that reads what only its framework can."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model and what is stored beside it."""

    model: Model
    definition: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The `model` section of the input that made it; may be empty."""
    min_nbor_dist: float | None = None
    """Smallest distance between atoms in the training data, Å."""
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    """software, version, time and the like, as found; kept when the model is saved again."""

    def with_type_map(self, type_map: Sequence[str]) -> ModelFile:
        """For other types, see `dpmodel.type_map`; new ones are said in the log, as they mean nothing yet.

        Raises InputError for types that the model cannot have.
        """
        model = self.model.with_type_map(type_map)
        if model is self.model:
            return self
        if added := [name for name in model.type_map if name not in self.model.type_map]:
            logger.warning(
                "types %s are new to the model: their embedding is random and their statistics are neutral; train it before "
                "you use it for them", ", ".join(added),
            )  # fmt: skip
        return dataclasses.replace(self, model=model, definition=_renamed(self.definition, model))


def _renamed(definition: dict[str, Any], model: Model) -> dict[str, Any]:
    """The section of a model whose types have changed. Of models of several parts only the types are kept."""
    if not definition or not isinstance(model, StandardModel):
        return {"type_map": list(model.type_map)}
    preset = model.preset_out_bias
    return {
        **definition,
        "type_map": list(model.type_map),
        "descriptor": model.descriptor.config.to_dict(),
        "fitting_net": model.fitting.config.to_dict(),
        "atom_exclude_types": list(model.atom_exclude_types),
        "pair_exclude_types": [list(pair) for pair in model.pair_exclude_types],
        "preset_out_bias": None if preset is None else {name: thaw(row) for name, row in preset.items()},
    }


def from_tree(tree: dict[str, Any], where: str) -> ModelFile:
    """Interpret the dictionary of a file. Raises ModelFileError."""
    if "model" not in tree:
        raise ModelFileError(f"{where} holds no model: expected the key 'model', found {sorted(tree)}")
    try:
        model = read_model_tree(tree["model"])
        shortest = _min_distance(tree)
    except ModelFileError as problem:
        raise ModelFileError(f"{where}: {problem}") from problem
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as problem:
        raise ModelFileError(
            f"{where}: the dictionary of the model is damaged ({type(problem).__name__}: {problem})"
        ) from problem
    definition = tree.get("model_def_script") or {}
    if not isinstance(definition, dict):
        raise ModelFileError(f"{where}: 'model_def_script' should be a dictionary, got {type(definition).__name__}")
    own = ("model", "model_def_script", "@variables", "min_nbor_dist", "constants")
    kept = {key: value for key, value in tree.items() if key not in own}
    return ModelFile(model=model, definition=definition, min_nbor_dist=shortest, provenance=kept)


def _min_distance(tree: dict[str, Any]) -> float | None:
    """Three writers put it in three places (spec of the files, 7.1)."""
    for place in (tree.get("@variables"), tree, tree.get("constants")):
        value = Node(place, "the file").get("min_nbor_dist", None) if place is not None else None
        if value is not None:
            number = np.asarray(value)
            if number.size != 1 or number.dtype.kind not in "fiu":
                raise ModelFileError(f"'min_nbor_dist' should be one number, got {value!r}")
            return float(number.reshape(()))
    return None


def to_tree(file: ModelFile) -> dict[str, Any]:
    """The inverse of `from_tree`."""
    tree: dict[str, Any] = {
        **file.provenance,
        "model": write_model_tree(file.model),
        "model_def_script": file.definition,
    }
    tree.setdefault("backend", "dpmodel")
    if file.min_nbor_dist is not None:
        tree["@variables"] = {"min_nbor_dist": np.asarray(file.min_nbor_dist)}
        tree["min_nbor_dist"] = float(file.min_nbor_dist)
    return tree


def read_model(path: str | Path, head: str | None = None) -> ModelFile:
    """Read a model file, or a checkpoint of DeePMD-kit's PyTorch (`.pt`, which needs torch).

    head: the branch of a multi-task model, which only checkpoints hold. Raises ModelFileError naming the file and the
    place in it, InputError for a head that the file does not have, BackendError where the package is missing that reads
    it.
    """
    path = Path(path)
    if path.suffix.lower() in READERS:
        return from_tree(get_reader(READERS[path.suffix.lower()]).read_checkpoint(path, head), str(path))
    if head is not None:
        raise InputError(f"head={head!r}: {path} holds a single model, which has no heads; leave head out")
    return from_tree(read_tree(path), str(path))


def write_model(path: str | Path, file: ModelFile, *, provenance: dict[str, Any] | None = None) -> None:
    """Write a model file, atomically; the suffix chooses the format."""
    write_tree(path, to_tree(file), provenance=provenance)
