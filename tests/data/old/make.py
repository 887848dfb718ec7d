"""Writes the files of this folder (see README.md). Run it from here, and only when a format changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.files.container import write_tree
from dpmodel.files.model_file import ModelFile, to_tree
from dpmodel.input.sections import ModelConfig
from dpmodel.models.build import build_model

HERE = Path(__file__).parent
SECTION: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "se_e2_a", "rcut": 3.5, "rcut_smth": 0.75, "sel": [3, 4], "neuron": [2, 4], "axis_neuron": 2,
        "resnet_dt": True, "activation_function": "silu",
    },
    "fitting_net": {"type": "ener", "neuron": [3, 3], "numb_fparam": 1, "activation_function": "gelu"},
}  # fmt: skip


def current() -> dict[str, Any]:
    """A tree of the newest versions, with random statistics, and with the values that older versions imply."""
    rng = np.random.default_rng(3)
    model = build_model(ModelConfig.from_dict(SECTION), seed=1)
    state = {
        path: rng.uniform(0.2, 0.6, value.shape)
        for path, value in model.state().items()
        if path.endswith(("davg", "dstd", "out_bias", "out_std", "fparam_avg", "fparam_inv_std"))
    }
    return to_tree(ModelFile(model=model.with_state(state, strict=False), definition=SECTION))


def dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary of a tree."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from dictionaries(item)


def older(kind: str, version: int | None, *missing: str) -> Callable[[dict[str, Any]], None]:
    """Turn every dictionary of that class into one of that version, without the keys that came later."""

    def edit(tree: dict[str, Any]) -> None:
        for item in dictionaries(tree["model"]):
            if item.get("@class") == kind:
                item.pop("@version")
                if version is not None:
                    item["@version"] = version
                for key in missing:
                    del item[key]

    return edit


FITTING_LATER = ("type_map", "dim_case_embd", "default_fparam")
OLD: dict[str, tuple[Callable[[dict[str, Any]], None], ...]] = {
    "layer_1.json": (older("Layer", 1, "trainable"),),
    "layer_without_version.json": (older("Layer", None, "trainable"),),
    "embedding_1.yaml": (older("EmbeddingNetwork", 1, "bias"),),
    "se_e2_a_1.yaml": (older("Descriptor", 1, "type_map", "env_protection"),),
    "se_e2_a_3.json": (older("Descriptor", 3),),
    "fitting_1.json": (older("Fitting", 1, *FITTING_LATER),),
    "fitting_2.yaml": (older("Fitting", 2, *FITTING_LATER[1:]),),
    "fitting_3.json": (older("Fitting", 3, *FITTING_LATER[2:]),),
    "model_1.json": (older("Model", 1, "atom_exclude_types", "pair_exclude_types"),),
    "all_1.yaml": (
        older("Layer", 1, "trainable"),
        older("EmbeddingNetwork", 1, "bias"),
        older("Descriptor", 1, "type_map", "env_protection"),
        older("Fitting", 1, *FITTING_LATER),
        older("Model", 1, "atom_exclude_types", "pair_exclude_types"),
    ),
}

if __name__ == "__main__":
    tree = current()
    write_tree(HERE / "current.json", tree)
    for name, edits in OLD.items():
        changed = copy.deepcopy(tree)
        for edit in edits:
            edit(changed)
        write_tree(HERE / name, changed)
