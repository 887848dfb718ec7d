"""Inputs of several tasks for tests."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["DESCRIPTORS", "edited", "several"]

_LAYERS = {
    "e_rcut": 4.0, "e_rcut_smth": 3.5, "e_sel": 12, "a_rcut": 3.0, "a_rcut_smth": 2.5, "a_sel": 6, "n_dim": 6, "e_dim": 4,
    "a_dim": 4, "nlayers": 1, "fix_stat_std": 0.0,
}  # fmt: skip
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_e2_a": {"type": "se_e2_a", "sel": [8, 16], "rcut": 4.0, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 2},
    "se_e2_r": {"type": "se_e2_r", "sel": [8, 16], "rcut": 4.0, "rcut_smth": 1.0, "neuron": [4, 8]},
    "se_e3": {"type": "se_e3", "sel": [8, 16], "rcut": 4.0, "rcut_smth": 1.0, "neuron": [2, 4]},
    "dpa1": {"type": "dpa1", "sel": 20, "rcut": 4.0, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 2, "attn_layer": 1,
             "attn": 4, "set_davg_zero": False, "smooth_type_embedding": True},
    "se_atten_v2": {"type": "se_atten_v2", "sel": 20, "rcut": 4.0, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 2,
                    "attn_layer": 0},
    "se_e3_tebd": {"type": "se_e3_tebd", "sel": 12, "rcut": 3.0, "rcut_smth": 1.0, "neuron": [2, 4]},
    "dpa2": {"type": "dpa2", "repinit": {"rcut": 4.0, "rcut_smth": 1.0, "nsel": 20, "neuron": [4, 8], "axis_neuron": 2},
             "repformer": {"rcut": 3.0, "rcut_smth": 1.0, "nsel": 8, "nlayers": 1, "g1_dim": 6, "g2_dim": 4,
                           "attn1_hidden": 4, "attn1_nhead": 1, "attn2_hidden": 4, "attn2_nhead": 1}},
    "dpa3": {"type": "dpa3", "repflow": _LAYERS},
}  # fmt: skip


def several(
    descriptor: str | dict[str, Any] = "se_e2_a",
    *,
    levels: tuple[int, int] = (0, 0),
    share_fitting: bool = False,
    **training: Any,
) -> dict[str, Any]:
    """Tasks "water" and "ice" that share a descriptor, and on request a fitting net with a case embedding."""
    definition = DESCRIPTORS[descriptor] if isinstance(descriptor, str) else descriptor
    shared: dict[str, Any] = {"types": ["O", "H"], "own": copy.deepcopy(definition)}
    net: dict[str, Any] = {"neuron": [6], "numb_fparam": 1, "dim_case_embd": 2} if share_fitting else {"neuron": [6]}
    if share_fitting:
        shared["net"] = net
    data = {"systems": "nowhere", "batch_size": 1}
    return {
        "model": {
            "shared_dict": shared,
            "model_dict": {
                name: {
                    "type_map": "types", "descriptor": f"own:{level}" if level else "own",
                    "fitting_net": "net" if share_fitting else copy.deepcopy(net),
                }
                for name, level in zip(("water", "ice"), levels, strict=True)
            },
        },
        "learning_rate": {"start_lr": 1e-3},
        "loss_dict": {"water": {"start_pref_e": 1}, "ice": {}},
        "training": {
            "data_dict": {name: {"training_data": copy.deepcopy(data)} for name in ("water", "ice")},
            "numb_steps": 2, "seed": 3, **training,
        },
    }  # fmt: skip


def edited(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value replaced; sections on the way are made; None as a value is kept, "absent" removes the key."""
    data = copy.deepcopy(data)
    *sections, key = path.split(".")
    here = data
    for section in sections:
        here = here.setdefault(section, {})
    if value == "absent":
        del here[key]
    else:
        here[key] = value
    return data
