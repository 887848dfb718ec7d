"""Model files: `.dp` (HDF5 and JSON), `.yaml`, `.json`; read and written, DeePMD-kit's dictionaries in all of them.

A file of several tasks has, below `model`, `model_dict` with the dictionary of every task, and in `model_def_script` the
model section of its input: `model_dict`, and `shared_dict`. Every task is written out whole.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.backend import get_reader
from dpmodel.config import thaw
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.codecs import read_model_tree, write_model_tree
from dpmodel.files.container import read_tree, write_tree
from dpmodel.files.heads import choose_head
from dpmodel.files.nodes import Node
from dpmodel.input.tasks import inlined
from dpmodel.models import Model, StandardModel
from dpmodel.models.multi_task import MultiTask

logger = logging.getLogger(__name__)

__all__ = [
    "READERS",
    "ModelFile",
    "TasksFile",
    "from_tree",
    "read_heads",
    "read_model",
    "read_models",
    "to_tree",
    "write_model",
]

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TasksFile:
    """The models of several tasks, and what is stored beside them."""

    model: MultiTask
    definition: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The `model` section of the input that made them, with model_dict and shared_dict; may be empty."""
    min_nbor_dist: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    """By task, smallest distance between atoms in its training data, Å."""
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    """As of a `ModelFile`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks."""
        return self.model.names

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """By task, its further names."""
        sections = self.definition.get("model_dict") or {}
        return {name: tuple((sections.get(name) or {}).get("model_branch_alias") or ()) for name in self.names}

    def head(self, name: str | None, where: str = "the model") -> ModelFile:
        """The model of one task, by its name or an alias; None serves where there is one.

        Raises InputError listing the tasks where there is none of that name, or several and none is named.
        """
        task = choose_head(self.aliases(), name, where)
        sections = inlined(self.definition) if self.definition.get("model_dict") else {}
        return ModelFile(
            model=self.model.task(task), definition=sections.get(task, {}), min_nbor_dist=self.min_nbor_dist.get(task),
            provenance={**self.provenance, "head": task},
        )  # fmt: skip

    def heads(self) -> dict[str, ModelFile]:
        """The models of all tasks."""
        return {name: self.head(name) for name in self.names}

    def with_type_map(self, type_map: Sequence[str]) -> TasksFile:
        """As that of a `ModelFile`, of every task; what was shared in the input is written out."""
        heads = {name: file.with_type_map(type_map) for name, file in self.heads().items()}
        if all(file.model is self.model.task(name) for name, file in heads.items()):
            return self
        sections = {name: file.definition for name, file in heads.items()}
        model = MultiTask(names=self.names, tasks=tuple(file.model for file in heads.values()))
        return dataclasses.replace(self, model=model, definition={"model_dict": sections} if self.definition else {})


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


def from_tree(tree: dict[str, Any], where: str, head: str | None = None) -> ModelFile:
    """Interpret the dictionary of a file. head: the task, where there are several.

    Raises ModelFileError, and InputError for a head that the file does not have, or none where there are several.
    """
    if holds_tasks(tree):
        return _tasks_from_tree(tree, where, head).head(head, where)
    if head is not None:
        raise InputError(f"head={head!r}: {where} holds a single model, which has no heads; leave head out")
    return _single_from_tree(tree, where)


def models_from_tree(tree: dict[str, Any], where: str) -> ModelFile | TasksFile:
    """Interpret the dictionary of a file, of one task or of several. Raises ModelFileError."""
    return _tasks_from_tree(tree, where) if holds_tasks(tree) else _single_from_tree(tree, where)


def holds_tasks(tree: Mapping[str, Any]) -> bool:
    """Whether a dictionary is that of several tasks."""
    return isinstance(tree.get("model"), Mapping) and "model_dict" in tree["model"]


def _tasks_from_tree(tree: dict[str, Any], where: str, head: str | None = None) -> TasksFile:
    """head: the only task that is wanted, so that only its arrays are looked at."""
    trees, definition = tree["model"]["model_dict"], tree.get("model_def_script") or {}
    if not isinstance(trees, Mapping) or not trees or not all(isinstance(part, Mapping) for part in trees.values()):
        raise ModelFileError(
            f"{where}: expected a model for every task in model/model_dict, got {type(trees).__name__}"
        )
    sections = definition.get("model_dict") if isinstance(definition, Mapping) else None
    if not isinstance(definition, dict) or (sections is not None and not isinstance(sections, Mapping)):
        raise ModelFileError(f"{where}: 'model_def_script' should be a dictionary with model_dict")
    if sections is not None and (lost := sorted(trees.keys() - sections.keys())):
        raise ModelFileError(f"{where}: 'model_def_script' lacks the sections of the tasks {', '.join(lost)}")
    names = {name: _aliases(sections, name) for name in trees}
    if head is not None or len(trees) == 1:
        names = {choose_head(names, head, where): ()}
    shortest = tree.get("min_nbor_dist") or {}
    if not isinstance(shortest, Mapping):
        raise ModelFileError(f"{where}: 'min_nbor_dist' should have a number for every task, got {shortest!r}")
    single = {name: _single_from_tree({"model": trees[name]}, f"{where}, task {name}") for name in names}
    own = ("model", "model_def_script", "@variables", "min_nbor_dist", "constants")
    return TasksFile(
        model=MultiTask(names=tuple(single), tasks=tuple(file.model for file in single.values())),
        definition=definition,
        min_nbor_dist={name: _number(shortest.get(name)) for name in single},
        provenance={key: value for key, value in tree.items() if key not in own},
    )


def _aliases(sections: Mapping[str, Any] | None, name: str) -> tuple[str, ...]:
    section = (sections or {}).get(name)
    found = section.get("model_branch_alias") if isinstance(section, Mapping) else None
    return tuple(found) if isinstance(found, list | tuple) else ()


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "fiu":
        raise ModelFileError(f"'min_nbor_dist' should be one number, got {value!r}")
    return float(number.reshape(()))


def _single_from_tree(tree: dict[str, Any], where: str) -> ModelFile:
    """Of one task. Raises ModelFileError."""
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
            return _number(value)
    return None


def to_tree(file: ModelFile | TasksFile) -> dict[str, Any]:
    """The inverse of `models_from_tree`."""
    if isinstance(file, TasksFile):
        trees = {name: write_model_tree(model) for name, model in file.model.models().items()}
        distances = {name: value for name, value in file.min_nbor_dist.items() if value is not None}
        whole: dict[str, Any] = {
            **file.provenance,
            "model": {"model_dict": trees},
            "model_def_script": file.definition,
        }
        whole.setdefault("backend", "dpmodel")
        return {**whole, **({"min_nbor_dist": distances} if distances else {})}
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
    """Read the model of one task: a model file, or a checkpoint of DeePMD-kit's PyTorch (`.pt`, which needs torch).

    head: the task, or an alias of it, where the file holds several. Raises ModelFileError naming the file and the place in
    it; InputError for a head that the file does not have, and without one where there are several; BackendError where the
    package is missing that reads it.
    """
    path = Path(path)
    if path.suffix.lower() in READERS:
        return from_tree(get_reader(READERS[path.suffix.lower()]).read_checkpoint(path, head), str(path))
    return from_tree(read_tree(path), str(path), head)


def read_models(path: str | Path) -> ModelFile | TasksFile:
    """Read a model file of one task or of several, whole. Raises as `read_model`."""
    path = Path(path)
    if path.suffix.lower() not in READERS:
        return models_from_tree(read_tree(path), str(path))
    trees = get_reader(READERS[path.suffix.lower()]).read_heads(path)
    if list(trees) == [""]:
        return _single_from_tree(trees[""], str(path))
    files = {name: _single_from_tree(tree, f"{path}, task {name}") for name, tree in trees.items()}
    return TasksFile(
        model=MultiTask(names=tuple(files), tasks=tuple(file.model for file in files.values())),
        definition={"model_dict": {name: file.definition for name, file in files.items()}},
        min_nbor_dist={name: file.min_nbor_dist for name, file in files.items()},
        provenance=next(iter(files.values())).provenance,
    )


def read_heads(path: str | Path) -> dict[str, ModelFile]:
    """The models of all tasks by name; of a file of one task that of "". Raises as `read_model`."""
    file = read_models(path)
    return file.heads() if isinstance(file, TasksFile) else {"": file}


def write_model(path: str | Path, file: ModelFile | TasksFile, *, provenance: dict[str, Any] | None = None) -> None:
    """Write a model file, atomically; the suffix chooses the format."""
    write_tree(path, to_tree(file), provenance=provenance)
