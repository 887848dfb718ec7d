"""What is tested: model sections of input files, and variations of them, one option at a time.

A new descriptor, fitting net or model adds an entry to `CASES`; every test of this folder then covers it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from dpmodel.input.sections import ModelConfig
from dpmodel.models import Model
from dpmodel.models.build import build_model
from dpmodel.op import Kind, Op
from dpmodel.ops import is_float

from .case import Case, Section, descriptor, fitting
from .family import FAMILY

__all__ = [
    "CASES",
    "COMBINED",
    "COMPILED",
    "NAMES",
    "Case",
    "each_base",
    "each_case",
    "each_combined",
    "model_of",
    "single",
    "truncates",
]

ACTIVATIONS = ("relu", "relu6", "gelu", "gelu_tf", "softplus", "sigmoid", "silu", "silut:0.7", "linear")


def _repflow(**options: Any) -> Section:
    return {"descriptor": {"repflow": options}}


ENER_VARIATIONS: dict[str, Section] = {
    "fitting-no_hidden": fitting(neuron=[]),
    "fitting-no_resnet_dt": fitting(resnet_dt=False),
    "fitting-widening": fitting(neuron=[5, 10, 10]),
    "fitting-silu": fitting(activation_function="silu"),
    "fitting-frozen_layers": fitting(trainable=[True, False, True]),
    "fitting-frozen": fitting(trainable=False),
    "fitting-float32": fitting(precision="float32"),
    "fparam": fitting(numb_fparam=2),
    "aparam": fitting(numb_aparam=3),
    "fparam_aparam_case": fitting(numb_fparam=1, numb_aparam=1, dim_case_embd=3),
    "default_fparam": fitting(numb_fparam=2, default_fparam=[0.3, -0.8]),
    "aparam_as_mask": fitting(numb_aparam=1, use_aparam_as_mask=True),
    "case_embd": fitting(dim_case_embd=3),
    "atom_ener": fitting(atom_ener=[-1.5, None]),
    "atom_ener-all": fitting(atom_ener=[-1.5, 0.25], numb_fparam=1),
    "atom_exclusion": {"atom_exclude_types": [1]},
    "pair_exclusion": {"pair_exclude_types": [[0, 1]]},
    "both_exclusions": {"atom_exclude_types": [0], "pair_exclude_types": [[1, 1]]},
}
"""Every option of the energy fitting and of the standard model (for two types)."""


DPA3 = Case(
    section={
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "dpa3",
            "repflow": {
                "e_rcut": 4.0, "e_rcut_smth": 2.5, "e_sel": 32, "a_rcut": 3.0, "a_rcut_smth": 2.0, "a_sel": 32,
                "n_dim": 6, "e_dim": 4, "a_dim": 4, "nlayers": 2, "axis_neuron": 2, "update_residual": 2.0,
                "smooth_edge_update": True,
            },
        },
        "fitting_net": {"type": "ener", "neuron": [8, 8]},
    },
    variations={
        "one_layer": _repflow(nlayers=1),
        "three_layers": _repflow(nlayers=3),
        "res_avg": _repflow(update_style="res_avg"),
        "res_incr": _repflow(update_style="res_incr"),
        "normal_residuals": _repflow(update_residual_init="norm"),
        "dynamic": _repflow(use_dynamic_sel=True, sel_reduce_factor=4.0),
        "compression_split": _repflow(a_compress_rate=1, a_compress_e_rate=2, a_compress_use_split=True),
        "compression_linear": _repflow(a_compress_rate=2, a_compress_e_rate=3),
        "multi_edge": _repflow(n_multi_edge_message=3),
        "multi_edge-res_avg": _repflow(n_multi_edge_message=2, update_style="res_avg"),
        "sequential": _repflow(sequential_update=True),
        "sequential-not_smooth": _repflow(sequential_update=True, smooth_edge_update=False),
        "not_smooth": _repflow(smooth_edge_update=False),
        "not_optimised": _repflow(optim_update=False),
        "edge_distance": _repflow(edge_init_use_dist=True),
        "exp_switch": _repflow(use_exp_switch=True),
        "no_angles": _repflow(update_angle=False),
        "no_angles-res_incr": _repflow(update_angle=False, update_style="res_incr", smooth_edge_update=False),
        "axis_neuron": _repflow(axis_neuron=1),
        "deviation_of_the_data": _repflow(fix_stat_std=0.0),
        "width_of_types": _repflow(n_dim=2),
        "twice_the_width_of_types": _repflow(n_dim=4),
        "e_sel-too_small": _repflow(e_sel=4, a_sel=3),
        "a_sel-too_small": _repflow(a_sel=2),
        "concat_output_tebd": descriptor(concat_output_tebd=True),
        "charge_spin": descriptor(add_chg_spin_ebd=True),
        "charge_spin-default": descriptor(add_chg_spin_ebd=True, default_chg_spin=[-1.0, 2.0], concat_output_tebd=True),
        "econf": descriptor(use_econf_tebd=True),
        "econf-bias": descriptor(use_econf_tebd=True, use_tebd_bias=True),
        "tebd_bias": descriptor(use_tebd_bias=True),
        "exclude_types": descriptor(exclude_types=[[0, 1]]),
        "env_protection": descriptor(env_protection=0.1),
        "no_loc_mapping": descriptor(use_loc_mapping=False),
        "frozen": {**descriptor(trainable=False, repflow={"update_style": "res_avg"})},
        "activation-tanh": descriptor(activation_function="tanh"),
        "activation-silut": descriptor(activation_function="silut:0.7"),
        "float32": {**descriptor(precision="float32"), **fitting(precision="float32")},
        "mixed": descriptor(precision="float32"),
        "1_type": {"type_map": ["Cu"]},
        "3_types": {"type_map": ["O", "H", "Na"], **descriptor(exclude_types=[[0, 2]])},
        "fparam_aparam_case": fitting(numb_fparam=1, numb_aparam=1, dim_case_embd=3),
        **{name: ENER_VARIATIONS[name] for name in ("atom_exclusion", "pair_exclusion", "both_exclusions")},
    },
    combinations={
        "many_options": {
            "type_map": ["O", "H", "Na"],
            "descriptor": {
                "repflow": {
                    "sequential_update": True, "use_dynamic_sel": True, "sel_reduce_factor": 5.0, "a_compress_rate": 2,
                    "a_compress_e_rate": 2, "n_multi_edge_message": 2, "edge_init_use_dist": True, "use_exp_switch": True,
                    "update_residual_init": "norm",
                },
                "add_chg_spin_ebd": True, "concat_output_tebd": True, "use_econf_tebd": True, "use_tebd_bias": True,
                "exclude_types": [[0, 2]], "env_protection": 0.1, "activation_function": "silut:0.7",
            },
            "fitting_net": {"numb_fparam": 2, "numb_aparam": 1},
            "pair_exclude_types": [[2, 2]],
        },
        "mixed_precision": {
            "descriptor": {
                "precision": "float32",
                "repflow": {
                    "smooth_edge_update": False, "update_style": "res_incr", "a_compress_rate": 1, "a_compress_e_rate": 2,
                    "a_compress_use_split": True,
                },
                "add_chg_spin_ebd": True, "default_chg_spin": [1.0, 0.0],
            },
            "atom_exclude_types": [1],
        },
    },
)  # fmt: skip


def _names(base: str, patches: Mapping[str, Section]) -> list[str]:
    return [f"{base}-{name}" for name in patches]


CASES: dict[str, Case] = {
    "se_e2_a": Case(
        section={
            "type_map": ["O", "H"],
            "descriptor": {
                "type": "se_e2_a", "rcut": 4.0, "rcut_smth": 0.8, "sel": [16, 20], "neuron": [3, 6, 6], "axis_neuron": 3
            },
            "fitting_net": {"type": "ener", "neuron": [8, 8]},
        },
        variations={
            "type_one_side": descriptor(type_one_side=True),
            "resnet_dt": descriptor(resnet_dt=True),
            **{f"activation-{name}": descriptor(activation_function=name) for name in ACTIVATIONS},
            "axis_neuron": descriptor(axis_neuron=1),
            "axis_neuron-all": descriptor(axis_neuron=6),
            "exclude_types": descriptor(exclude_types=[[0, 1]]),
            "exclude_types-one_side": descriptor(exclude_types=[[1, 1]], type_one_side=True),
            "env_protection": descriptor(env_protection=0.1),
            "set_davg_zero": descriptor(set_davg_zero=True),
            "frozen": descriptor(trainable=False),
            "one_layer": descriptor(neuron=[5], axis_neuron=2),
            "sel-too_small": descriptor(sel=[2, 3]),
            "sel-zero": descriptor(sel=[0, 20]),
            "float32": {**descriptor(precision="float32"), **fitting(precision="float32")},
            "float64": {**descriptor(precision="float64"), **fitting(precision="float64")},
            "mixed": descriptor(precision="float32"),
            "1_type": {"type_map": ["Cu"], **descriptor(sel=[30])},
            "3_types": {"type_map": ["O", "H", "Na"], **descriptor(sel=[12, 16, 12], exclude_types=[[0, 2]])},
            "3_types-one_side": {"type_map": ["O", "H", "Na"], **descriptor(sel=[12, 16, 12], type_one_side=True)},
            **ENER_VARIATIONS,
        },
        combinations={
            "many_options": {
                "type_map": ["O", "H", "Na"],
                "descriptor": {
                    "sel": [10, 12, 10], "type_one_side": True, "activation_function": "silut:0.7", "axis_neuron": 2,
                    "exclude_types": [[0, 2]], "env_protection": 0.1, "set_davg_zero": True, "trainable": False,
                },
                "fitting_net": {
                    "neuron": [5, 10, 10], "resnet_dt": False, "activation_function": "gelu", "numb_fparam": 2,
                    "numb_aparam": 1, "dim_case_embd": 3, "atom_ener": [None, 0.25], "trainable": [True, False, True, True],
                },
                "pair_exclude_types": [[2, 2]],
            },
            "mixed_precision": {
                "type_map": ["O", "H", "Na"],
                "descriptor": {"precision": "float32", "sel": [12, 16, 12], "exclude_types": [[0, 2]], "resnet_dt": True},
                "atom_exclude_types": [1],
                "fitting_net": {
                    "neuron": [], "numb_fparam": 2, "default_fparam": [0.3, -0.8], "numb_aparam": 1,
                    "use_aparam_as_mask": True,
                },
            },
        },
    ),
    "dpa3": DPA3,
    **FAMILY,
}  # fmt: skip

COMBINED: tuple[str, ...] = tuple(
    name for base, case in CASES.items() for name in (base, *_names(base, case.combinations))
)
NAMES: tuple[str, ...] = (*COMBINED, *(name for base, case in CASES.items() for name in _names(base, case.variations)))

COMPILED: tuple[str, ...] = tuple(name for name in COMBINED if name in CASES or name.startswith(("se_e2_a-", "dpa3-")))
"""Those that go through compilers every day."""

each_case = pytest.mark.parametrize("case", NAMES)
"""Every section, every variation and combination."""
each_combined = pytest.mark.parametrize("case", COMBINED)
"""Every section and every combination."""
each_base = pytest.mark.parametrize("case", list(CASES))
"""Every section as it stands."""


def _merge(section: Section, patch: Section) -> dict[str, Any]:
    merged = dict(section)
    for key, value in patch.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, Mapping) and key in merged else value
    return merged


def section_of(case: str) -> dict[str, Any]:
    """The model section of a case by name."""
    base = max((name for name in CASES if case == name or case.startswith(f"{name}-")), key=len)
    patches = {"": {}, **CASES[base].variations, **CASES[base].combinations}
    return _merge(CASES[base].section, patches[case[len(base) + 1 :]])


@functools.cache
def model_of(case: str) -> Model:
    """The model of a case, with random weights, statistics and biases."""
    config = ModelConfig.from_dict(section_of(case))
    return randomise(build_model(config, seed=1), np.random.default_rng(2))


FIXED = ("default_fparam", "configurations", "coefficients", "rows", "virtual_scale", "scale")
"""Buffers that follow from options or files."""


def randomise(op: Op, rng: np.random.Generator) -> Any:
    """Random buffers in place of neutral ones: deviations stay positive, a mean that is declared zero stays zero."""
    changes: dict[str, Any] = {}
    for name, kind in op.fields():
        value = getattr(op, name)
        if kind is Kind.CHILD and isinstance(value, Op):
            changes[name] = randomise(value, rng)
        elif kind is Kind.CHILD and value is not None:
            changes[name] = tuple(randomise(item, rng) for item in value)
        elif kind is Kind.BUFFER and value is not None and is_float(value) and name not in FIXED:
            spread = name.endswith("std")
            draw = rng.uniform(0.25, 0.5, value.shape) if spread else rng.normal(0.0, 0.3, value.shape)
            if name in ("davg", "dstd"):  # vectors have no mean and one deviation, else rotation would be broken
                draw[..., 1:] = draw[..., 1:2] if spread else 0.0
            stays_zero = name == "davg" and getattr(op.config, "set_davg_zero", False)
            changes[name] = value if stays_zero else draw.astype(value.dtype)
    return op.replace(**changes)


def single(case: str) -> bool:
    """Whether float32 takes part."""
    return any(np.asarray(value).dtype == np.float32 for value in model_of(case).state().values())


def truncates(case: str) -> bool:
    """Whether the case cuts off neighbours on purpose."""
    return "sel-" in case
