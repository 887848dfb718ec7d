"""Old layouts of the input file, rewritten to today's before anything is checked.

    v0  flat: no sections, keys such as filter_neuron, sel_a, stop_batch
    v1  sections, but the data's keys (systems, batch_size, set_prefix, ...) directly in `training`
    v2  today's: training.training_data, learning_rate.warmup_*, optimizer.*

Every key that moved is in a table. A key that is present in its old and its new place is an error.
"""

from __future__ import annotations

import copy
from typing import Any

from dpmodel.errors import InputError

__all__ = ["convert"]

_MOVED: dict[str, tuple[str, str]] = {
    **{key: ("learning_rate", key) for key in ("warmup_steps", "warmup_ratio", "warmup_start_factor")},
    **{
        key: ("optimizer", key)
        for key in (
            "kf_blocksize", "kf_start_pref_e", "kf_limit_pref_e", "kf_start_pref_f", "kf_limit_pref_f",
            "weight_decay", "momentum", "muon_momentum", "adam_beta1", "adam_beta2", "lr_adjust", "lr_adjust_coeff",
            "muon_2d_only", "min_2d_dim",
        )
    },
    "opt_type": ("optimizer", "type"),
}  # fmt: skip
"""Keys of `training` that live elsewhere now: section and name."""

_DATA = ("systems", "batch_size", "auto_prob", "auto_prob_style", "sys_probs", "sys_weights")
"""Keys of v1's `training` that belong to training.training_data."""

_V0: dict[str, tuple[str, str]] = {
    "type_map": ("model", "type_map"),
    "sel_a": ("model.descriptor", "sel"),
    "rcut": ("model.descriptor", "rcut"),
    "rcut_smth": ("model.descriptor", "rcut_smth"),
    "filter_neuron": ("model.descriptor", "neuron"),
    "filter_resnet_dt": ("model.descriptor", "resnet_dt"),
    "axis_neuron": ("model.descriptor", "axis_neuron"),
    "n_axis_neuron": ("model.descriptor", "axis_neuron"),
    "fitting_neuron": ("model.fitting_net", "neuron"),
    "n_neuron": ("model.fitting_net", "neuron"),
    "resnet_dt": ("model.fitting_net", "resnet_dt"),
    "fitting_resnet_dt": ("model.fitting_net", "resnet_dt"),
    "start_lr": ("learning_rate", "start_lr"),
    "decay_steps": ("learning_rate", "decay_steps"),
    "decay_rate": ("learning_rate", "decay_rate"),
    **{
        f"{when}_pref_{what}": ("loss", f"{when}_pref_{what}")
        for when in ("start", "limit")
        for what in ("e", "f", "v", "ae", "pf")
    },
    **{
        key: ("training", key)
        for key in (
            *_DATA, "set_prefix", "numb_test", "stop_batch", "seed", "disp_file", "disp_freq", "save_freq", "save_ckpt",
            "disp_training", "time_training", "profiling", "profiling_file",
        )
    },
}  # fmt: skip

_V0_DROPPED = ("with_distrib", "coord_norm", "type_fitting_net", "load_ckpt", "restart", "init_model", "num_threads")


def convert(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the input in today's layout, notes on what was rewritten). `data` is not changed. Raises InputError."""
    data = copy.deepcopy(data)
    notes: list[str] = []
    if "model" not in data and ("sel_a" in data or "filter_neuron" in data):
        data = _from_v0(data, notes)
    training = data.get("training")
    if isinstance(training, dict):
        _data_keys(training, notes)
        for key, (name, new) in _MOVED.items():
            if key in training:
                notes.append(f"training.{key} is read as {name}.{new}, its present place")
                _put(data, name, new, training.pop(key), f"training.{key}")
        for name in ("training", "training.training_data", "training.validation_data"):
            _drop(data, name, notes)
    _muon_mode(data, notes)
    return data, notes


def _muon_mode(data: dict[str, Any], notes: list[str]) -> None:
    """`muon_2d_only` became a mode."""
    optimizer = data.get("optimizer")
    if isinstance(optimizer, dict) and isinstance(only := optimizer.get("muon_2d_only"), bool):
        del optimizer["muon_2d_only"]
        if optimizer.get("type") == "HybridMuon":
            mode = "2d" if only else "flat"
            _put(data, "optimizer", "muon_mode", mode, "optimizer.muon_2d_only")
            notes.append(f'optimizer.muon_2d_only: read as optimizer.muon_mode "{mode}", its present form')
        else:
            notes.append("optimizer.muon_2d_only: dropped; it belongs to the optimizer HybridMuon")


def _section(data: dict[str, Any], path: str) -> dict[str, Any] | None:
    """The section at `path`, made if it is absent; None where something else is in its place."""
    here: Any = data
    for part in path.split("."):
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            return None
    return here


def _put(data: dict[str, Any], path: str, key: str, value: Any, source: str) -> None:
    target = _section(data, path)
    if target is None:
        raise InputError(f"{path}: expected a section, as {source} belongs in it")
    if key in target:
        raise InputError(f"{source}: given again as {path}.{key}, its present place; keep that one")
    target[key] = value


def _data_keys(training: dict[str, Any], notes: list[str]) -> None:
    old = [key for key in _DATA if key in training]
    if not old:
        return
    if "training_data" in training:
        raise InputError(
            f"training.{old[0]}: given beside training.training_data; put it there as training_data.{old[0]}"
        )
    training["training_data"] = {key: training.pop(key) for key in old}
    notes.append(f"training.{', training.'.join(old)}: read as keys of training.training_data, their present place")


def _drop(data: dict[str, Any], path: str, notes: list[str]) -> None:
    section: Any = data
    for part in path.split("."):
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        return
    if "numb_test" in section:
        del section["numb_test"]
        notes.append(f"{path}.numb_test is dropped; validation uses training.validation_data")
    if "set_prefix" in section:
        del section["set_prefix"]
        notes.append(f'{path}.set_prefix is deprecated and dropped; the prefix of set folders is "set"')


def _from_v0(data: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    if data.get("use_smooth") is False:
        raise InputError(
            "use_smooth: the descriptor loc_frame is not available; use a se_e2_a descriptor (use_smooth: true)"
        )
    out: dict[str, Any] = {
        "model": {"descriptor": {"type": "se_e2_a"}, "fitting_net": {}},
        "learning_rate": {"type": "exp"},
    }
    for key, value in data.items():
        if key.startswith("_") or key in ("use_smooth", *_V0_DROPPED):
            continue
        path, name = _V0.get(key, ("", key))
        if path:
            _put(out, path, name, value, key)
        else:
            out[key] = value
    dropped = [key for key in _V0_DROPPED if key in data]
    notes.append(
        "the flat layout of version 0 was read as sections" + (f"; dropped: {', '.join(dropped)}" if dropped else "")
    )
    return out
