"""Reading good inputs: values, defaults, notes, formats, and that normalising again changes nothing."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.config import Config, freeze
from dpmodel.errors import InputError
from dpmodel.input import load_input, load_model
from dpmodel.models.build import build_model

SEA = Path(__file__).parents[1] / "data" / "input" / "sea.json"
BASE: dict[str, Any] = json.loads(SEA.read_text())
ROOT = Path(__file__).parents[2]


def changed(path: str, value: Any) -> dict[str, Any]:
    """sea.json with one value replaced."""
    data = copy.deepcopy(BASE)
    *sections, key = path.split(".")
    here = data
    for section in sections:
        here = here.setdefault(section, {})
    here[key] = value
    return data


def test_a_real_input_is_understood() -> None:
    inp = load_input(SEA)
    assert inp.notes == ()
    assert inp.model.type_map == ("O", "H")
    assert (inp.model.descriptor.key, inp.model.fitting_net.key) == ("se_e2_a", "ener")
    assert inp.model.descriptor.sel == (46, 92)
    assert inp.learning_rate.key == "exp"
    assert inp.learning_rate.stop_lr == 3e-05
    assert inp.optimizer.to_dict() == {"type": "Adam", "adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.0}
    assert inp.loss.limit_pref_e == 20
    assert inp.training.training_data.systems == (
        "../data/water/data_0",
        "../data/water/data_1",
        "../data/water/data_2",
    )
    assert inp.training.validation_data is not None
    assert (inp.training.validation_data.batch_size, inp.training.validation_data.numb_btch) == (1, 1)
    assert (inp.training.numb_steps, inp.training.seed, inp.training.disp_freq) == (100, 10, 25)
    assert inp.training.save_ckpt == "model.ckpt"
    hash(inp.model)


def test_defaults_of_the_specification() -> None:
    data = {
        "model": {"type_map": ["H"], "descriptor": {"type": "se_a"}, "fitting_net": {}},
        "learning_rate": {"start_lr": 1},
        "training": {"training_data": {}, "stop_batch": 1},
    }
    out = load_input(data).normalised
    assert (out["model"]["type"], out["model"]["descriptor"]["type"], out["loss"]["type"]) == (
        "standard",
        "se_e2_a",
        "ener",
    )
    assert (
        out["model"]["descriptor"] | {"sel": "auto", "rcut": 6.0, "rcut_smth": 0.5, "neuron": [10, 20, 40]}
        == out["model"]["descriptor"]
    )
    assert out["model"]["fitting_net"]["neuron"] == [120, 120, 120]
    assert out["model"]["fitting_net"]["resnet_dt"] is True
    assert (out["model"]["data_stat_nbatch"], out["model"]["data_stat_protect"]) == (10, 0.01)
    assert out["optimizer"]["type"] == "Adam"
    assert out["training"]["training_data"] == {
        "systems": ".", "rglob_patterns": None, "label_names": {}, "batch_size": "auto", "auto_prob": "prob_sys_size", "sys_probs": None,
        "min_pair_dist": 0.0,
    }  # fmt: skip
    assert out["training"]["validation_data"] is None
    assert out["training"]["numb_steps"] == 1
    assert (out["training"]["save_freq"], out["training"]["max_ckpt_keep"]) == (1000, 5)
    assert out["validating"]["validation_metric"] == "E:MAE"
    assert isinstance(out["learning_rate"]["start_lr"], float)


def test_the_argument_is_not_changed() -> None:
    data = copy.deepcopy(BASE)
    load_input(data)
    assert data == BASE


@pytest.mark.parametrize(
    "path", ["_comment", "model.descriptor._note", "training.training_data._x", "$schema", "training.$schema"]
)
def test_comments_and_schema_links_are_dropped(path: str) -> None:
    value: Any = "x" if "$" in path else {"anything": [1, {"goes": None}]}
    assert load_input(changed(path, value)) == load_input(BASE)


@pytest.mark.parametrize(
    ("path", "alias"),
    [
        ("model.descriptor.axis_neuron", "n_axis_neuron"),
        ("model.fitting_net.neuron", "n_neuron"),
        ("training.numb_steps", "stop_batch"),
        ("training.numb_steps", "num_steps"),
    ],
)
def test_aliases(path: str, alias: str) -> None:
    data = copy.deepcopy(BASE)
    *sections, key = path.split(".")
    here = data
    for section in sections:
        here = here[section]
    here[alias] = here.pop(key)
    assert load_input(data) == load_input(BASE)


@pytest.mark.parametrize(
    ("path", "value", "note"),
    [
        ("training.disp_training", False, "training.disp_training: accepted, but it has no effect"),
        ("model.fitting_net.rcond", 1e-3, "model.fitting_net.rcond: accepted, but it has no effect"),
        ("model.data_bias_nsample", 3, "model.data_bias_nsample: accepted, but it has no effect"),
        ("nvnmd", {"enable": False}, "nvnmd: accepted, but it has no effect"),
        (
            "validating.validation_freq",
            10,
            "validating.validation_freq: has no effect without validating.full_validation: true",
        ),
        ("optimizer.type", "AdamW", "optimizer.weight_decay: not given; AdamW's default 0.001 is used"),
        ("loss.huber_delta", 0.1, "loss.huber_delta: has no effect without use_huber: true"),
        ("loss.huber_delta", 0.01, ""),
        ("loss", {"loss_func": "mae", "use_huber": True}, "loss.use_huber: has no effect without loss_func: mse"),
        (
            "loss",
            {"loss_func": "mae", "intensive_ener_virial": True},
            "loss.intensive_ener_virial: has no effect without",
        ),
        (
            "loss",
            {"use_huber": True, "intensive_ener_virial": True},
            "loss.intensive_ener_virial: has no effect without loss_func: mse and use_huber: false",
        ),
        ("loss.numb_generalized_coord", 2, "loss.numb_generalized_coord: has no effect without start_pref_gf or"),
        ("loss.use_default_pf", True, "loss.use_default_pf: has no effect without start_pref_pf or limit_pref_pf"),
        ("training.ema_decay", 0.9, "training.ema_decay: has no effect without training.enable_ema: true"),
        (
            "training.profiling_file",
            "x.json",
            "training.profiling_file: has no effect without training.profiling: true",
        ),
        ("validating.tf32_infer", True, "validating.tf32_infer: accepted, but it has no effect"),
        ("training.ckpt_keep_ratio", None, ""),
        ("training.acc_freq", 4, ""),
        ("training.zero_stage", 2, ""),
        ("training.enable_ema", True, ""),
        ("training.tensorboard", True, ""),
        ("training.data_dict", {}, ""),
        ("model.spin", None, ""),
        ("validating.full_validation", False, ""),
    ],
)
def test_one_note_for_keys_without_effect_and_none_for_their_defaults(path: str, value: Any, note: str) -> None:
    notes = load_input(changed(path, value)).notes
    assert len(notes) == (1 if note else 0)
    assert all(text.startswith(note) for text in notes)


def test_yaml_reads_like_json(tmp_path: Path) -> None:
    path = tmp_path / "input.yaml"
    path.write_text(json.dumps(BASE))  # JSON is YAML
    assert load_input(path) == load_input(BASE)
    path.write_text(json.dumps(BASE).replace('"stop_lr": 3e-05', '"stop_lr": 3e-5, "_c": [1e3, -2E-1]'))
    assert load_input(path) == load_input(BASE)
    path.write_text("a: &x {rcut: 6}\nb: {<<: *x, sel: auto}\n")
    with pytest.raises(InputError, match=r"input\.yaml|unknown key"):
        load_input(path)


def test_python_values_become_plain_data() -> None:
    data = changed("model.descriptor.sel", (np.int64(46), 92))
    data["model"]["descriptor"]["neuron"] = np.array([25, 50, 100])
    data["training"]["training_data"]["systems"] = tuple(Path(s) for s in BASE["training"]["training_data"]["systems"])
    assert load_input(data) == load_input(BASE)


@pytest.mark.parametrize("sel", ["auto", "auto:1.5", [0, 4]])
def test_sel_is_kept_for_later(sel: Any) -> None:
    assert load_input(changed("model.descriptor.sel", sel)).model.descriptor.sel == freeze(sel)


def test_null_trains_all_layers() -> None:
    config = load_input(changed("model.fitting_net.trainable", None)).model.fitting_net
    assert config.layer_trainable() == (True,) * (len(config.neuron) + 1)
    layers = build_model(load_model(changed("model.fitting_net.trainable", None)["model"])).fitting.networks[0].layers
    assert all(layer.trainable for layer in layers)


def test_a_model_of_float16_is_evaluated_and_not_trained() -> None:
    for place in ("descriptor", "fitting_net"):
        data = changed(f"model.{place}.precision", "half")
        assert getattr(load_model(data["model"]), place).precision == "half"
        with pytest.raises(InputError, match=rf"^model\.{place}\.precision: .* not trained.*got float16; train with"):
            load_input(data)
    hybrid = {
        "type": "hybrid",
        "list": [BASE["model"]["descriptor"], {**BASE["model"]["descriptor"], "precision": "float16"}],
    }
    with pytest.raises(InputError, match=r"^model\.descriptor\.list\.1\.precision: "):
        load_input(changed("model.descriptor", hybrid))


def test_a_model_alone() -> None:
    assert load_model(BASE["model"]) == load_input(BASE).model
    with pytest.raises(InputError, match=r"^model\.descriptor\.rcut: expected a number above 0, got -1$"):
        load_model(changed("model.descriptor.rcut", -1)["model"])


VALID: dict[str, st.SearchStrategy[Any]] = {
    "model.descriptor.rcut": st.floats(1, 20),
    "model.descriptor.sel": st.one_of(st.just("auto"), st.lists(st.integers(1, 200), min_size=2, max_size=2)),
    "model.descriptor.exclude_types": st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=2), max_size=3),
    "model.fitting_net.neuron": st.lists(st.integers(1, 300), min_size=1, max_size=4),
    "model.fitting_net.atom_ener": st.lists(st.one_of(st.none(), st.integers(-9, 9)), min_size=2, max_size=2),
    "model.preset_out_bias": st.dictionaries(
        st.just("energy"), st.lists(st.one_of(st.none(), st.floats(-5, 5), st.integers(-3, 3)), min_size=2, max_size=2)
    ),
    "model.info": st.dictionaries(
        st.text("abc", min_size=1), st.one_of(st.none(), st.text(), st.lists(st.integers(0, 3)))
    ),
    "learning_rate": st.one_of(
        st.fixed_dictionaries({"type": st.sampled_from(["exp", "cosine", "wsd"]), "start_lr": st.floats(1e-6, 1e-1)}),
        st.fixed_dictionaries(
            {"start_lr": st.just(1), "stop_lr_ratio": st.floats(1e-3, 1), "warmup_steps": st.integers(0, 9)}
        ),
    ),
    "optimizer": st.fixed_dictionaries({"type": st.sampled_from(["Adam", "AdamW"]), "weight_decay": st.integers(0, 1)}),
    "loss.start_pref_e": st.integers(0, 1000),
    "training.seed": st.one_of(st.none(), st.integers(0, 2**31), st.lists(st.integers(0, 9))),
    "training.training_data.batch_size": st.one_of(st.integers(1, 9), st.sampled_from(["auto", "auto:64", "max:3"])),
    "training.acc_freq": st.integers(1, 3),
    "training.gradient_max_norm": st.one_of(st.none(), st.integers(0, 5), st.floats(0, 5)),
    "validating": st.just({}),
}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_normalising_twice_changes_nothing(data: st.DataObject) -> None:
    raw = copy.deepcopy(BASE)
    for path in data.draw(st.sets(st.sampled_from(sorted(VALID)), min_size=1)):
        *sections, key = path.split(".")
        here = raw
        for section in sections:
            here = here.setdefault(section, {})
        here[key] = data.draw(VALID[path], label=path)
    first = load_input(raw)
    text = json.dumps(first.normalised, allow_nan=False)
    second = load_input(json.loads(text))
    assert json.dumps(second.normalised) == text
    assert [getattr(second, s) for s in raw if s != "nvnmd"] == [getattr(first, s) for s in raw if s != "nvnmd"]
    hash(second.model)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6),
              st.sampled_from(["auto", "auto:", "se_a", "exp", "Adam", "_x", "type"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["type", "a", "energy", "_c", "rcut"]), inner)),
    max_leaves=4,
)  # fmt: skip


def _paths(data: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return (
        [path] + [p for key, item in data.items() for p in _paths(item, (*path, key))]
        if isinstance(data, dict)
        else [path]
    )


FULL = load_input(BASE).normalised


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(_paths(FULL)[1:]), JSON)
def test_any_value_anywhere_is_accepted_or_an_input_error(path: tuple[str, ...], value: Any) -> None:
    data = copy.deepcopy(FULL)
    here = data
    for section in path[:-1]:
        here = here[section]
    here[path[-1]] = value
    inp, says = None, ""
    try:
        inp = load_input(data)
    except InputError as error:
        says = str(error)
    if inp is None:
        assert path[0] in says
    else:
        assert load_input(inp.normalised).normalised == inp.normalised


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, dpmodel, dpmodel.input\n"
        "print(sorted({'dargs', 'yaml', 'torch', 'jax', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_frozen_values() -> None:
    value = freeze({"a": [1, {"b": 2}]})
    assert value == {"a": (1, {"b": 2})}
    assert hash(value) == hash(freeze({"a": [1, {"b": 2}]}))
    assert copy.deepcopy(value) == value
    with pytest.raises(TypeError, match="cannot be changed"):
        value["a"] = 3
    with pytest.raises(TypeError, match="cannot be changed"):
        value.update(a=3)


def test_config_from_dict_nests() -> None:
    inp = load_input(SEA)
    rebuilt: Config = type(inp.model).from_dict(json.loads(json.dumps(inp.normalised["model"])))
    assert rebuilt == inp.model
    with pytest.raises(ValueError, match="descriptor: expected type to be one of"):
        type(inp.model).from_dict({**inp.normalised["model"], "descriptor": {"type": "nothing"}})


NORMALISED = Path(__file__).parents[1] / "data" / "input" / "normalised.json"


@pytest.mark.parametrize("name", sorted(json.loads(NORMALISED.read_text())))
def test_inputs_that_deepmd_kit_has_normalised(name: str) -> None:
    """DeePMD-kit's `out.json` says every key of its schema: those of what is not offered here are at their defaults."""
    inp = load_input(json.loads(NORMALISED.read_text())[name])
    assert not [note for note in inp.notes if "bridging" in note]
    assert inp.training.numb_steps == 3


def test_nets_of_se_e2_r_are_of_neighbour_types_whatever_the_input_says() -> None:
    """DeePMD-kit's default is false, which means nothing there either; its files say true."""
    descriptor = {"type": "se_e2_r", "rcut": 4.0, "sel": [4, 6], "neuron": [2, 4], "type_one_side": False}
    data = changed("model.descriptor", descriptor)
    assert [note for note in load_input(data).notes if "model.descriptor.type_one_side: accepted" in note]
    model = build_model(load_input(data).model, seed=1)
    assert model.descriptor.config.type_one_side
    assert len(model.descriptor.networks) == 2
