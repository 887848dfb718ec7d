"""DeePMD-kit's PyTorch checkpoints: from a `model_params` section and a state dict to the tree of a model file.

The section says which model it is; a fresh model of that section, written as a tree, says which arrays it has; and the
state dict has the same arrays under other names, in the same places (tests/pt/test_checkpoint_files.py)::

    tree    descriptor.embeddings.networks[0].layers[1].@variables.w
    state   model.Default.atomic_model.descriptor.sea.filter_layers.networks.0.layers.1.matrix

Both names are brought to one form. Every array of the tree must be found, and every array of the state used: a layout
that is not known is an error, not another model. Only this module knows the names; a backend reads the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.codecs import write_model_tree
from dpmodel.files.heads import choose_head
from dpmodel.input import load_model
from dpmodel.models.build import build_model

__all__ = ["choose_branch", "tree_of_state", "trees_of_state"]

_SINGLE = "Default"
"""The branch of a model with one task."""

_TREE_NAMES = {
    "w": "matrix", "b": "bias", "davg": "mean", "dstd": "stddev", "fitting": "fitting_net", "embeddings": "filter_layers",
    "embeddings_strip": "filter_layers_strip", "nets": "filter_layers", "list": "descrpt_list",
    "repflow_variable": "repflows", "repflow_layers": "layers", "repformers_variable": "repformers",
    "repformer_layers": "layers", "repinit_variable": "repinit", "repinit_three_body_variable": "repinit_three_body",
}  # fmt: skip
_STATE_NAMES = {"w": "matrix", "b": "bias", "davg": "mean", "dstd": "stddev"}

_BETWEEN = {
    "@variables",
    "atomic_model",
    "sea",
    "seat",
    "se_atten",
    "se_ttebd",
    "embedding_net",
    "dpa1_attention",
    "tab",
}
"""Parts of names that hold a module and say nothing else."""

_WITHOUT_WEIGHTS = {
    "_networks", "compress_info", "compress_data", "type_embd_data", "_extra_state", "min_nbor_dist",
    "default_fparam_tensor", "spin_mask", "virtual_scale_mask",
}  # fmt: skip
"""Parts of names of what is there twice, belongs to compressed models, or follows from the section."""

_FROM_SECTION = {"scale", "constant_matrix", "vdata"}
"""Arrays that states may lack: they follow from the section, or from the table that it names."""

_TRAINING_ONLY = ("finetune_head", "resuming", "new_type_stat", "hessian_mode")
_BRIDGING = ("bridging_method", "bridging_r_inner", "bridging_r_outer")


def choose_branch(params: Mapping[str, Any], head: str | None, where: str) -> tuple[str, dict[str, Any]]:
    """(branch, its section) of a checkpoint's `model_params`.

    head: the branch of a multi-task model, by its name or an alias. Raises InputError naming the heads where there are
    several and none is named, or another one.
    """
    branches = params.get("model_dict")
    if branches is None:
        if head not in (None, _SINGLE):
            raise InputError(f"head={head!r}: {where} holds a single model, which has no heads; leave head out")
        return _SINGLE, dict(params)
    if not isinstance(branches, Mapping) or not all(isinstance(part, Mapping) for part in branches.values()):
        raise ModelFileError(f"{where}: expected a section for every head in model_dict, got {type(branches).__name__}")
    name = choose_head(
        {str(k): tuple(part.get("model_branch_alias") or ()) for k, part in branches.items()}, head, where
    )
    return name, dict(branches[name])


def trees_of_state(params: Mapping[str, Any], state: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """`tree_of_state` of every branch by name; of a single model that of ""."""
    if "model_dict" not in params:
        return {"": tree_of_state(params, state, None, where)}
    return {str(name): tree_of_state(params, state, str(name), where) for name in params["model_dict"]}


def tree_of_state(params: Mapping[str, Any], state: Mapping[str, np.ndarray], head: str | None, where: str) -> Any:
    """The tree of a model file.

    params: `model_params` of the checkpoint. state: all arrays by name, `model.<branch>.<...>`. head: see
    `choose_branch`. Raises ModelFileError where the two do not belong to one of our models, InputError for `head`.
    """
    branch, section = choose_branch(params, head, where)
    tree = _fresh_tree(section, where)
    prefix = f"model.{branch}."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not own:
        raise ModelFileError(f"{where}: the state has no arrays of {prefix[:-1]!r}; the checkpoint is damaged")
    found = _by_canonical_name(own, where)
    _fill(tree, found, where)
    if found:
        raise ModelFileError(
            f"{where}: the state has arrays that the model section does not explain: {', '.join(sorted(map('.'.join, found))[:6])}. "
            f"Convert it with `dp convert-backend` of DeePMD-kit to .dp"
        )
    out: dict[str, Any] = {"backend": "PyTorch", "model": tree, "model_def_script": section}
    shortest = own.get("min_nbor_dist")
    if shortest is not None and shortest.size == 1 and float(shortest.reshape(())) > 0:
        out["@variables"] = {"min_nbor_dist": np.asarray(float(shortest.reshape(())))}
    return out


def _fresh_tree(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tree of an untrained model of that section."""
    if str(section.get("bridging_method") or "none").lower() != "none":
        raise ModelFileError(f"{where}: bridging_method belongs to DPA4 models, which are out of scope of dpmodel")
    wanted = {key: value for key, value in section.items() if key not in (*_BRIDGING, *_TRAINING_ONLY)}
    try:
        return write_model_tree(build_model(load_model(wanted), seed=0))
    except InputError as problem:
        raise ModelFileError(f"{where}: the model section of the checkpoint: {problem}") from problem


def _by_canonical_name(state: Mapping[str, np.ndarray], where: str) -> dict[tuple[str, ...], np.ndarray]:
    found: dict[tuple[str, ...], np.ndarray] = {}
    for name, value in state.items():
        parts = name.split(".")
        if not _WITHOUT_WEIGHTS.isdisjoint(parts):
            if "compress_data" in parts and value.size:
                raise ModelFileError(
                    f"{where}: reading compressed tables is out of scope; use the model before compression"
                )
            continue
        key = tuple(_STATE_NAMES.get(part, part) for part in parts if part not in _BETWEEN)
        if key in found:
            raise ModelFileError(f"{where}: two arrays of the state are {'.'.join(key)!r}; this layout is not known")
        found[key] = value
    return found


def _leaves(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """(container, key, path) of every array."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        path = (*place, str(key))
        if isinstance(value, np.ndarray | np.generic):
            yield tree, key, path
        else:
            yield from _leaves(value, path)


def _fill(tree: dict[str, Any], found: dict[tuple[str, ...], np.ndarray], where: str) -> None:
    """Put the arrays of the state into the tree, taking them out of `found`."""
    for holder, key, path in list(_leaves(tree)):
        name = _canonical(path)
        if name not in found and name[-1] in _FROM_SECTION:
            continue
        if name not in found:
            raise ModelFileError(
                f"{where}: the model section needs the array {'.'.join(name)!r}, which the state does not have; "
                f"the checkpoint is damaged, or of a layout that is not known here"
            )
        value, expected = found.pop(name), np.shape(holder[key])
        flat = name[-1] == "tab_data" and len(expected) == 1
        if np.size(value) != np.size(holder[key]) or not (flat or _long(np.shape(value)) == _long(expected)):
            raise ModelFileError(
                f"{where}: the array {'.'.join(name)!r} has shape {np.shape(value)}, the model section implies {expected}"
            )
        holder[key] = np.reshape(value, expected)


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes longer than 1: some arrays have others as well."""
    return tuple(n for n in shape if n != 1)


def _canonical(path: tuple[str, ...]) -> tuple[str, ...]:
    """The name in the state dict, without what `_BETWEEN` drops."""
    parts = [_TREE_NAMES.get(part, part) for part in path if part not in _BETWEEN]
    # The list of attention layers is inside a module of its own, which the tree calls by the same name.
    once = [part for k, part in enumerate(parts) if not (part == "attention_layers" and parts[k - 1 : k] == [part])]
    return tuple(once)
