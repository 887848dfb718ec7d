"""Old layouts mean the same as today's."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dpmodel.errors import InputError
from dpmodel.input import load_input
from dpmodel.input.legacy import convert

BASE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "input" / "sea.json").read_text())


def test_todays_layout_is_left_alone() -> None:
    assert convert(BASE) == (BASE, [])


def test_version_1() -> None:
    old = copy.deepcopy(BASE)
    training = old["training"]
    data = training.pop("training_data")
    training.update(systems=data["systems"], batch_size=[1, 1, 1], set_prefix="set", numb_test=10)
    training["stop_batch"] = training.pop("numb_steps")
    expected = copy.deepcopy(BASE)
    expected["training"]["training_data"]["batch_size"] = [1, 1, 1]
    inp = load_input(old)
    assert inp.normalised == load_input(expected).normalised
    assert inp.notes == (
        "training.systems, training.batch_size: read as keys of training.training_data, their present place",
        "training.numb_test is dropped; validation uses training.validation_data",
        'training.set_prefix is deprecated and dropped; the prefix of set folders is "set"',
    )
    assert load_input(inp.normalised).notes == ()


def test_version_0() -> None:
    old = {
        "_comment": "flat", "with_distrib": False, "use_smooth": True, "type_map": ["O", "H"], "sel_a": [46, 92],
        "rcut": 6.0, "rcut_smth": 5.8, "filter_neuron": [25, 50, 100], "filter_resnet_dt": False, "n_axis_neuron": 16,
        "n_neuron": [240, 240], "resnet_dt": True, "coord_norm": True, "type_fitting_net": False, "systems": ["../data"],
        "set_prefix": "set", "stop_batch": 1000, "batch_size": 4, "start_lr": 0.001, "decay_steps": 50, "decay_rate": 0.95,
        "start_pref_e": 0.02, "limit_pref_e": 8, "start_pref_f": 1000, "limit_pref_f": 1, "start_pref_v": 0,
        "limit_pref_v": 0, "seed": 1, "disp_file": "lcurve.out", "disp_freq": 10, "numb_test": 10, "save_freq": 100,
        "save_ckpt": "m.ckpt", "load_ckpt": "m.ckpt", "disp_training": True, "time_training": True, "profiling": False,
        "profiling_file": "timeline.json",
    }  # fmt: skip
    inp = load_input(old)
    assert inp.model.descriptor.to_dict() | {"type": "se_e2_a", "sel": [46, 92], "rcut": 6.0, "rcut_smth": 5.8, "axis_neuron": 16,
                                             "neuron": [25, 50, 100]} == inp.model.descriptor.to_dict()  # fmt: skip
    assert inp.model.fitting_net.neuron == (240, 240)
    assert inp.loss.limit_pref_e == 8
    assert (inp.learning_rate.key, inp.learning_rate.decay_rate) == ("exp", 0.95)
    assert (inp.training.numb_steps, inp.training.save_ckpt, inp.training.seed) == (1000, "m.ckpt", 1)
    assert (inp.training.training_data.systems, inp.training.training_data.batch_size) == (("../data",), 4)
    assert inp.notes[0] == (
        "the flat layout of version 0 was read as sections; dropped: with_distrib, coord_norm, type_fitting_net, load_ckpt"
    )
    with pytest.raises(InputError, match="use_smooth: the descriptor loc_frame is not available"):
        load_input({**old, "use_smooth": False})
    with pytest.raises(InputError, match=r"^rcutt: unknown key"):
        load_input({**old, "rcutt": 1})


@pytest.mark.parametrize(
    ("key", "value", "section", "name"),
    [
        ("warmup_steps", 5, "learning_rate", "warmup_steps"),
        ("warmup_ratio", 0.1, "learning_rate", "warmup_ratio"),
        ("weight_decay", 0.1, "optimizer", "weight_decay"),
        ("adam_beta2", 0.95, "optimizer", "adam_beta2"),
    ],
)
def test_moved_keys(key: str, value: Any, section: str, name: str) -> None:
    old, new = copy.deepcopy(BASE), copy.deepcopy(BASE)
    old["training"][key] = value
    new[section][name] = value
    inp = load_input(old)
    assert inp.normalised == load_input(new).normalised
    assert inp.notes == (f"training.{key} is read as {section}.{name}, its present place",)
    new["training"][key] = value
    with pytest.raises(InputError, match=rf"training\.{key}: given again as {section}\.{name}, its present place"):
        load_input(new)


def test_optimizer_type_moved() -> None:
    old = copy.deepcopy(BASE)
    del old["optimizer"]
    old["training"]["opt_type"] = "AdamW"
    assert load_input(old).optimizer.to_dict()["weight_decay"] == 0.001
    del old["training"]["opt_type"]
    assert load_input(old).optimizer.key == "Adam"


def test_places_that_exclude_each_other() -> None:
    old = copy.deepcopy(BASE)
    old["training"]["systems"] = ["a"]
    with pytest.raises(InputError, match=r"training\.systems: given beside training\.training_data; put it there"):
        load_input(old)
    old = copy.deepcopy(BASE)
    old["optimizer"] = "Adam"
    old["training"]["weight_decay"] = 0.1
    with pytest.raises(InputError, match=r"optimizer: expected a section, as training\.weight_decay belongs in it"):
        load_input(old)


def test_set_prefix_and_numb_test_below_the_data() -> None:
    old = copy.deepcopy(BASE)
    old["training"]["training_data"]["set_prefix"] = "set"
    old["training"]["validation_data"]["numb_test"] = 3
    inp = load_input(old)
    assert inp.normalised == load_input(BASE).normalised
    assert len(inp.notes) == 2
