"""The dictionaries of dpa3: what they hold, older forms, and bad ones."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.errors import ModelFileError
from dpmodel.files.codecs import read_model_tree, write_model_tree
from dpmodel.files.model_file import ModelFile, from_tree, read_model, to_tree, write_model
from dpmodel.input.sections import ModelConfig
from dpmodel.models import Model
from dpmodel.models.build import build_model

Place = tuple[str | int, ...]
DELETE: Any = object()

SECTION: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "dpa3",
        "repflow": {
            "e_rcut": 3.5, "e_rcut_smth": 1.25, "e_sel": 6, "a_rcut": 2.5, "a_rcut_smth": 0.5, "a_sel": 4, "n_dim": 6,
            "e_dim": 4, "a_dim": 4, "nlayers": 2, "a_compress_rate": 2, "a_compress_e_rate": 3, "n_multi_edge_message": 2,
            "axis_neuron": 2, "update_residual": 0.25, "update_residual_init": "norm", "fix_stat_std": 0.5,
            "optim_update": False, "smooth_edge_update": True, "edge_init_use_dist": True, "use_exp_switch": True,
            "use_dynamic_sel": True, "sel_reduce_factor": 2.0, "sequential_update": True,
        },
        "concat_output_tebd": True, "activation_function": "tanh", "precision": "float64", "exclude_types": [[0, 0]],
        "env_protection": 0.25, "trainable": False, "use_econf_tebd": True, "use_tebd_bias": True,
        "use_loc_mapping": False, "add_chg_spin_ebd": True, "default_chg_spin": [-1.0, 2.0],
    },
    "fitting_net": {"type": "ener", "neuron": [4]},
}  # fmt: skip
"""No option of dpa3 has its default, except update_style and update_angle, which go with sequential_update, and the split
form of the compression."""


def make(patch: dict[str, Any] | None = None, **flow: Any) -> Model:
    section = copy.deepcopy(SECTION)
    section["descriptor"].update(patch or {})
    section["descriptor"]["repflow"].update(flow)
    return build_model(ModelConfig.from_dict(section), seed=1)


MODEL = make()
TREE = to_tree(ModelFile(model=MODEL))
NODE = TREE["model"]["descriptor"]


def edited(value: Any, path: Place, new: Any) -> Any:
    """A copy with one place changed or deleted."""
    if not path:
        return new
    out = copy.copy(value)
    if len(path) == 1 and new is DELETE:
        del out[path[0]]
    else:
        out[path[0]] = edited(value[path[0]], path[1:], new) if len(path) > 1 else new
    return out


def changed(path: Place, new: Any) -> dict[str, Any]:
    return edited(TREE["model"], ("descriptor", *path), new)


def same(a: Model, b: Model) -> bool:
    left, right = a.state(), b.state()
    return left.keys() == right.keys() and all(
        np.array_equal(value, right[path]) and value.dtype == right[path].dtype for path, value in left.items()
    )


@pytest.mark.parametrize("suffix", ["dp", "yaml", "json"])
def test_round_trip_of_every_option(suffix: str, tmp_path: Path) -> None:
    write_model(tmp_path / f"m.{suffix}", ModelFile(model=MODEL))
    found = read_model(tmp_path / f"m.{suffix}").model
    assert repr(found.descriptor.config) == repr(MODEL.descriptor.config)  # type: ignore[attr-defined]  # a standard model
    assert same(found, MODEL)


@pytest.mark.parametrize(
    ("patch", "flow"),
    [
        ({"add_chg_spin_ebd": False, "use_econf_tebd": False}, {"sequential_update": False, "a_compress_rate": 0}),
        ({}, {"a_compress_use_split": True, "a_compress_rate": 1, "a_compress_e_rate": 2, "a_dim": 2}),
        ({}, {"sequential_update": False, "update_angle": False}),
        ({"precision": "default", "use_tebd_bias": False}, {"sequential_update": False, "update_style": "res_avg"}),
        ({"precision": "float32"}, {"sequential_update": False, "update_style": "res_incr", "update_angle": False}),
    ],
)
def test_round_trip_of_other_shapes(patch: dict[str, Any], flow: dict[str, Any], tmp_path: Path) -> None:
    model = make(patch, **flow)
    write_model(tmp_path / "m.dp", ModelFile(model=model))
    found = read_model(tmp_path / "m.dp").model
    assert found.descriptor.config == model.descriptor.config  # type: ignore[attr-defined]  # a standard model
    assert same(found, model)


def test_what_is_written() -> None:
    assert "skip_stat" not in NODE["repflow_args"]
    assert set(NODE["repflow_args"]) == set(MODEL.descriptor.config.repflow.options()) - {"skip_stat"}  # type: ignore[attr-defined]
    assert NODE["repflow_variable"]["env_mat"] == {
        "rcut": 3.5, "rcut_smth": 1.25, "protection": 0.0, "use_exp_switch": False,
    }  # fmt: skip
    layer = NODE["repflow_variable"]["repflow_layers"][0]
    assert (layer["e_sel"], layer["a_sel"], layer["ntypes"]) == ([6], 4, 2)
    assert [len(layer["@variables"][key]) for key in ("n_residual", "e_residual", "a_residual")] == [4, 2, 1]
    assert NODE["type_embedding"]["type_map"] == ["O", "H"]
    assert (NODE["chg_embedding"]["ntypes"], NODE["spin_embedding"]["ntypes"]) == (200, 100)
    assert NODE["repflow_variable"]["@variables"]["dstd"].shape == (2, 6, 4)
    without = write_model_tree(make(update_angle=False, sequential_update=False))["descriptor"]
    layer = without["repflow_variable"]["repflow_layers"][0]
    assert layer["@variables"]["a_residual"] == []
    assert not {"edge_angle_linear1", "angle_self_linear", "a_compress_n_linear"} & set(layer)
    assert write_model_tree(make({"precision": "default"}))["descriptor"]["precision"] == "default"


def test_the_former_name_of_a_fixed_deviation() -> None:
    model = make(skip_stat=True)
    tree = write_model_tree(model)
    assert tree["descriptor"]["repflow_args"]["fix_stat_std"] == 0.3
    assert same(read_model_tree(tree), model)


# --- older forms ------------------------------------------------------------------------------------------


def test_missing_options_have_the_defaults_of_the_format() -> None:
    plain = {
        "concat_output_tebd": False, "activation_function": "silu", "exclude_types": [], "env_protection": 0.0,
        "trainable": True, "use_econf_tebd": False, "use_tebd_bias": False, "use_loc_mapping": True,
        "add_chg_spin_ebd": False, "default_chg_spin": None,
    }  # fmt: skip
    flow = {
        "a_compress_rate": 0, "a_compress_e_rate": 1, "n_multi_edge_message": 1, "fix_stat_std": 0.3, "optim_update": True,
        "edge_init_use_dist": False, "use_exp_switch": False, "use_dynamic_sel": False, "sel_reduce_factor": 10.0,
        "sequential_update": False, "smooth_edge_update": False, "update_residual": 0.1, "update_residual_init": "const",
    }  # fmt: skip
    model = make(plain, **flow)
    tree = write_model_tree(model)
    node = tree["descriptor"]
    assert {key: node[key] for key in plain} == plain
    for key in (*plain, "precision"):
        del node[key]
    for key in (*flow, "a_compress_use_split", "update_angle", "update_style"):
        del node["repflow_args"][key]
    for layer in node["repflow_variable"]["repflow_layers"]:
        layer["@version"] = 1
        for key in (*flow, "update_angle", "update_style", "activation_function", "a_compress_use_split"):
            layer.pop(key, None)
    found = read_model_tree(tree)
    assert found.descriptor.config == model.descriptor.config.replace(precision="float64")  # type: ignore[attr-defined]
    assert same(found, model)


def test_residuals_beside_the_variables() -> None:
    tree = copy.deepcopy(TREE["model"])
    for layer in tree["descriptor"]["repflow_variable"]["repflow_layers"]:
        layer.update(layer.pop("@variables"))
    assert same(read_model_tree(tree), MODEL)


def test_type_embeddings_without_a_word_on_the_bias_have_one() -> None:
    tree = edited(changed(("type_embedding", "@version"), 1), ("descriptor", "type_embedding", "use_tebd_bias"), DELETE)
    assert same(read_model_tree(tree), MODEL)
    other = write_model_tree(make({"use_tebd_bias": False}))
    other["descriptor"]["type_embedding"]["@version"] = 1
    del other["descriptor"]["type_embedding"]["use_tebd_bias"]
    with pytest.raises(ModelFileError, match=r"type_embedding: 'use_tebd_bias' is True, but the section implies False"):
        read_model_tree(other)


def test_a_layer_has_its_own_activation() -> None:
    path = ("repflow_variable", "repflow_layers", 1, "activation_function")
    model = read_model_tree(changed(path, "silu"))
    layers = model.descriptor.layers  # type: ignore[attr-defined]  # a standard model
    assert [layer.activation.name for layer in layers] == ["tanh", "silu"]
    again = write_model_tree(model)["descriptor"]["repflow_variable"]["repflow_layers"]
    assert [layer["activation_function"] for layer in again] == ["tanh", "silu"]


# --- bad dictionaries -------------------------------------------------------------------------------------

LAYER = ("repflow_variable", "repflow_layers", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("repflow_args",), DELETE, r"descriptor: the key 'repflow_args' is missing"),
        (("repflow_args", "e_rcut"), DELETE, r"descriptor\.repflow_args: the key 'e_rcut' is missing"),
        (("repflow_args", "e_sel"), "auto", r"repflow_args: 'e_sel' should be a number, not \"auto\""),
        (("repflow_args", "e_sel"), 7.5, r"'e_sel' should be an integer above 0"),
        (("repflow_args", "a_sel"), 7, r"a_sel = 7 must not exceed e_sel = 6"),
        (("repflow_args", "e_sel"), 7, r"'davg' has shape \(2, 6, 4\)|'e_sel' is \[6\], but that of the section is 7"),
        (("repflow_args", "n_dim"), 7, r"'neuron' is \[6\], but the section implies \[7\]"),
        (("repflow_args", "update_style"), "res_sum", r"'update_style' should be one of"),
        (("repflow_args", "nlayers"), 3, r"'repflow_layers' has 2 layers, but 'nlayers' is 3"),
        (("repflow_args", "smooth_edge_update"), False, r"use_dynamic_sel needs smooth_edge_update"),
        (("ntypes",), 3, r"'ntypes' is 2, but the section implies 3"),
        (("exclude_types",), [[0, 2]], r"expected types from 0 to 1"),
        (("default_chg_spin",), [0.0], r"'default_chg_spin' should be a list of 2 numbers or null"),
        (("default_chg_spin",), [200.0, 0.0], r"expected charges from -100 to 100"),
        (("type_embedding", "padding"), False, r"type_embedding: 'padding' is False"),
        (("type_embedding", "use_econf_tebd"), False, r"'use_econf_tebd' is False, but the section implies True"),
        (("type_embedding", "type_map"), ["O"], r"'type_map' has 1 types, expected 2"),
        (("type_embedding", "type_map"), ["O", "X"], r"type_embedding: use_econf_tebd needs the symbols of elements"),
        (("type_embedding", "embedding", "layers"), [], r"expected one layer of 118 by 6 with bias"),
        (("chg_embedding", "ntypes"), 201, r"chg_embedding: 'ntypes' is 201, but the section implies 200"),
        (("spin_embedding",), DELETE, r"'spin_embedding' is missing"),
        (("mix_cs_mlp", "@variables", "w"), np.ones((6, 6)), r"mix_cs_mlp: the array 'w' has shape \(6, 6\)"),
        (("repflow_variable", "edge_embd", "resnet"), True, r"edge_embd: expected a linear layer with bias, without"),
        (("repflow_variable", "angle_embd", "activation_function"), "tanh", r"angle_embd: expected a linear layer"),
        ((*LAYER, "n_dim"), 8, r"repflow_layers\[0\]: 'n_dim' is 8, but that of the section is 6"),
        ((*LAYER, "update_style"), "res_avg", r"repflow_layers\[0\]: 'update_style' is 'res_avg'"),
        ((*LAYER, "activation_function"), "tan", r"repflow_layers\[0\]: 'activation_function': unknown activation"),
        ((*LAYER, "activation_function"), 3, r"repflow_layers\[0\]: 'activation_function'"),
        ((*LAYER, "node_sym_linear"), DELETE, r"repflow_layers\[0\]: the key 'node_sym_linear' is missing"),
        ((*LAYER, "a_compress_n_linear", "@variables", "w"), np.ones((6, 3)), r"a_compress_n_linear: the array 'w'"),
        ((*LAYER, "@variables", "n_residual"), [np.ones(6)], r"'n_residual' has 1 vectors, but the section implies 4"),
        ((*LAYER, "@variables", "e_residual", 1), np.ones(5), r"e_residual\[1\]: the array .* has shape \(5,\)"),
        ((*LAYER, "@variables", "e_residual", 1), np.full(4, np.nan), r"e_residual\[1\]: .* NaN"),
        ((*LAYER, "@variables", "a_residual"), DELETE, r"'a_residual' is missing"),
        ((*LAYER, "@variables"), 3, r"expected a dictionary"),
        ((*LAYER, "@version"), 3, r"update dpmodel"),
        (("@version",), 3, r"update dpmodel"),
        (("repflow_variable", "@variables", "dstd"), np.zeros((2, 6, 4)), r"deviations divide"),
        (("repflow_variable", "@variables", "davg"), np.ones((2, 4)), r"has shape"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(path: Place, value: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as error:
        from_tree(edited(TREE, ("model", "descriptor", *path), value), "m.dp")
    assert str(error.value).startswith("m.dp: model.descriptor")


def test_statistics_along_the_slots_are_refused() -> None:
    davg = NODE["repflow_variable"]["@variables"]["davg"].copy()
    davg[1, 3, 0] = 1e-9
    with pytest.raises(ModelFileError, match=r"repflow_variable: 'davg' varies along the neighbour axis"):
        read_model_tree(changed(("repflow_variable", "@variables", "davg"), davg))


def leaves(value: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    if path:
        yield path, value
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))


def test_any_damaged_array_or_junk_is_refused_or_harmless() -> None:
    """Every place of the dictionary in turn; no error but ModelFileError, and no other model without one."""
    refused, turn = 0, itertools.cycle([None, "junk", {}, [], 1j, float("nan"), [None]])
    for path, value in leaves(NODE):
        if path[:3] == (*LAYER[:2], 1):  # as the first
            continue
        arrays = (value[..., :-1], value.astype(str)) if isinstance(value, np.ndarray) else (next(turn),)
        for junk in (*arrays, next(turn)):
            try:
                found = read_model_tree(changed(path, junk))
            except ModelFileError:
                refused += 1
            else:
                harmless = "trainable" in path or junk in ([], None, [None]) or same(found, MODEL)
                assert not isinstance(value, np.ndarray), path
                assert harmless, (path, junk)
    assert refused > 250


def test_unknown_keys_are_named(caplog: pytest.LogCaptureFixture) -> None:
    tree = edited(changed(("colour",), 1), ("descriptor", "repflow_args", "shape"), 2)
    read_model_tree(tree)
    assert [record.getMessage() for record in caplog.records] == [
        "model.descriptor: not known here, and without effect: colour",
        "model.descriptor.repflow_args: not known here, and without effect: shape",
    ]
