"""The kinds of `optimizer`: defaults, former keys, and what does not go together."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dpmodel.errors import InputError
from dpmodel.input import load_input

BASE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "input" / "sea.json").read_text())
MUON = {"momentum": 0.95, "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.001}
DEFAULTS: dict[str, dict[str, Any]] = {
    "Adam": {"adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.0},
    "AdamW": {"adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.001},
    "LKF": {
        "kf_blocksize": 5120, "kf_start_pref_e": 1.0, "kf_limit_pref_e": 1.0, "kf_start_pref_f": 1.0, "kf_limit_pref_f": 1.0,
    },
    "AdaMuon": {**MUON, "lr_adjust": 10.0, "lr_adjust_coeff": 0.2},
    "HybridMuon": {
        **MUON, "lr_adjust": 0.0, "lr_adjust_coeff": 0.18, "muon_mode": "slice", "enable_gram": True, "flash_muon": True,
        "magma_muon": True, "min_2d_dim": 1,
    },
}  # fmt: skip


def given(kind: str, **options: Any) -> dict[str, Any]:
    data = copy.deepcopy(BASE)
    data["optimizer"] = {"type": kind, **options}
    data["training"].pop("gradient_max_norm", None)
    return data


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults(kind: str) -> None:
    assert load_input(given(kind)).optimizer.to_dict() == {"type": kind, **DEFAULTS[kind]}


@pytest.mark.parametrize("kind", ["AdaMuon", "HybridMuon"])
def test_another_spelling_of_momentum(kind: str) -> None:
    assert load_input(given(kind, muon_momentum=0.5)).optimizer.to_dict()["momentum"] == 0.5


@pytest.mark.parametrize(
    ("kind", "key", "value", "says"),
    [
        ("HybridMuon", "muon_mode", "3d", 'optimizer.muon_mode: expected one of "slice", "2d", "flat", got "3d"'),
        ("HybridMuon", "momentum", 1.0, "optimizer.momentum: expected a number of at least 0 and below 1, got 1.0"),
        ("HybridMuon", "enable_gram", 1, "optimizer.enable_gram: expected true or false, got 1"),
        ("HybridMuon", "min_2d_dim", 0, "optimizer.min_2d_dim: expected a number above 0, got 0"),
        ("AdaMuon", "adam_beta2", -0.1, "optimizer.adam_beta2: expected a number of at least 0 and below 1, got -0.1"),
        ("AdaMuon", "weight_decay", -1, "optimizer.weight_decay: expected a number of at least 0, got -1"),
        ("AdaMuon", "lr_adjust_coeff", 0, "optimizer.lr_adjust_coeff: expected a number above 0, got 0"),
        ("LKF", "kf_blocksize", 0, "optimizer.kf_blocksize: expected a number above 0, got 0"),
        ("LKF", "kf_limit_pref_f", 0, "optimizer.kf_limit_pref_f: expected a number above 0, got 0"),
        ("LKF", "weight_decay", 0.1, 'optimizer.weight_decay: unknown key; "weight_decay" belongs to optimizer of sev'),
        ("Adam", "magma_muon", True, 'optimizer.magma_muon: unknown key; "magma_muon" belongs to optimizer of type'),
    ],
)  # fmt: skip
def test_bad_options(kind: str, key: str, value: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_input(given(kind, **{key: value}))
    assert str(caught.value).startswith(says)


def test_flash_muon_is_noted_where_it_is_given() -> None:
    assert load_input(given("HybridMuon")).notes == ()
    (note,) = load_input(given("HybridMuon", flash_muon=False)).notes
    assert note.startswith("optimizer.flash_muon: accepted, but it has no effect")


@pytest.mark.parametrize(("value", "mode"), [(True, "2d"), (False, "flat")])
def test_former_keys_of_muon(value: bool, mode: str) -> None:
    data = given("HybridMuon")
    data["training"] |= {"muon_2d_only": value, "min_2d_dim": 4}
    inp = load_input(data)
    found = inp.optimizer.to_dict()
    assert (found["muon_mode"], found["min_2d_dim"]) == (mode, 4)
    assert any(note.startswith(f'optimizer.muon_2d_only: read as optimizer.muon_mode "{mode}"') for note in inp.notes)
    with pytest.raises(InputError, match=r"optimizer.muon_2d_only: given again as optimizer.muon_mode"):
        load_input(given("HybridMuon", muon_2d_only=value, muon_mode=mode))
    (note,) = load_input(given("AdaMuon", muon_2d_only=value)).notes
    assert note == "optimizer.muon_2d_only: dropped; it belongs to the optimizer HybridMuon"


def test_the_filter_says_what_it_does_not_read() -> None:
    (note,) = load_input(given("LKF")).notes
    assert note.startswith(
        "optimizer.type: LKF fits energies and forces, with prefactors of its own; learning_rate and"
    )


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("training.zero_stage", 1, "training.zero_stage: expected 0 with the optimizer LKF, got 1"),
        (
            "training.gradient_max_norm",
            5.0,
            "training.gradient_max_norm: expected null with the optimizer LKF, got 5.0",
        ),
    ],
)
def test_what_does_not_go_with_the_filter(path: str, value: Any, says: str) -> None:
    data = given("LKF")
    section, key = path.split(".")
    data[section][key] = value
    with pytest.raises(InputError) as caught:
        load_input(data)
    assert str(caught.value).startswith(says)


def test_the_filter_fits_energies_and_forces_alone() -> None:
    data = given("LKF")
    data["model"]["fitting_net"] = {"type": "dos", "numb_dos": 3}
    data["loss"] = {"type": "dos", "start_pref_dos": 1.0, "limit_pref_dos": 1.0}
    with pytest.raises(InputError, match=r'loss.type: the optimizer LKF .* expected "ener", got "dos"'):
        load_input(data)
