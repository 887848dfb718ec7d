"""Defaults of the input file, typed from the specification of the family (training.md, 1.2 to 1.8), option by option."""

from __future__ import annotations

from typing import Any

import pytest

from dpmodel import descriptors, fittings, losses
from dpmodel.config import MISSING, Config, thaw
from dpmodel.descriptors.dpa2.config import RepformerConfig, RepinitConfig
from dpmodel.descriptors.dpa3.config import RepflowConfig
from dpmodel.input import sections
from dpmodel.models.config import LinearConfig, ModelConfig, PairTableConfig, SpinConfig
from dpmodel.training import schedules

Defaults = dict[str, Any]
NEEDED = "has to be given"

SHARED: Defaults = {"precision": "default", "trainable": True, "seed": None, "exclude_types": [], "env_protection": 0.0}
SE: Defaults = {
    **SHARED, "sel": "auto", "rcut": 6.0, "rcut_smth": 0.5, "neuron": [10, 20, 40], "activation_function": "tanh",
    "resnet_dt": False, "set_davg_zero": False,
}  # fmt: skip
TYPES: Defaults = {
    "tebd_dim": 8, "tebd_input_mode": "concat", "concat_output_tebd": True, "use_econf_tebd": False,
    "use_tebd_bias": False,
}  # fmt: skip
ATTENTION: Defaults = {
    **SE, **TYPES, "axis_neuron": 4, "type_one_side": False, "attn": 128, "attn_layer": 2, "attn_dotr": True,
    "attn_mask": False, "trainable_ln": True, "ln_eps": None, "scaling_factor": 1.0, "normalize": True,
    "temperature": None, "lmax": 1,
}  # fmt: skip
DESCRIPTORS: dict[str, Defaults] = {
    "se_e2_a": {**SE, "axis_neuron": 4, "type_one_side": False},
    # DeePMD-kit's default, false, is one that it refuses itself.
    "se_e2_r": {**SE, "type_one_side": True},
    "se_e3": SE,
    "se_e3_tebd": {**SE, **TYPES, "set_davg_zero": True, "use_tebd_bias": True, "smooth": True},
    "dpa1": {**ATTENTION, "set_davg_zero": True, "smooth_type_embedding": False, "stripped_type_embedding": None},
    "se_atten_v2": {**ATTENTION, "tebd_input_mode": "strip"},
    "dpa2": {
        **SHARED, "repinit": NEEDED, "repformer": NEEDED, "concat_output_tebd": True, "smooth": True,
        "add_tebd_to_repinit_out": False, "use_econf_tebd": False, "use_tebd_bias": False,
    },
    "dpa3": {
        **SHARED, "repflow": NEEDED, "concat_output_tebd": False, "add_chg_spin_ebd": False, "default_chg_spin": None,
        "activation_function": "silu", "use_econf_tebd": False, "use_tebd_bias": False, "use_loc_mapping": True,
    },
    "hybrid": {"list": NEEDED},
}  # fmt: skip
REPINIT: Defaults = {
    "rcut": NEEDED, "rcut_smth": NEEDED, "nsel": NEEDED, "neuron": [25, 50, 100], "axis_neuron": 16, "tebd_dim": 8,
    "tebd_input_mode": "concat", "set_davg_zero": True, "activation_function": "tanh", "type_one_side": False,
    "resnet_dt": False, "use_three_body": False, "three_body_neuron": [2, 4, 8], "three_body_rcut": 4.0,
    "three_body_rcut_smth": 0.5, "three_body_sel": 40,
}  # fmt: skip
REPFORMER: Defaults = {
    "rcut": NEEDED, "rcut_smth": NEEDED, "nsel": NEEDED, "nlayers": 3, "g1_dim": 128, "g2_dim": 16, "axis_neuron": 4,
    "direct_dist": False, "update_g1_has_conv": True, "update_g1_has_drrd": True, "update_g1_has_grrg": True,
    "update_g1_has_attn": True, "update_g2_has_g1g1": True, "update_g2_has_attn": True, "use_sqrt_nnei": True,
    "g1_out_conv": True, "g1_out_mlp": True, "update_h2": False, "attn1_hidden": 64, "attn1_nhead": 4,
    "attn2_hidden": 16, "attn2_nhead": 4, "attn2_has_gate": False, "activation_function": "tanh",
    "update_style": "res_avg", "update_residual": 1e-3, "update_residual_init": "norm", "set_davg_zero": True,
    "trainable_ln": True, "ln_eps": None,
}  # fmt: skip
REPFLOW: Defaults = {
    "e_rcut": NEEDED, "e_rcut_smth": NEEDED, "e_sel": NEEDED, "a_rcut": NEEDED, "a_rcut_smth": NEEDED, "a_sel": NEEDED,
    "n_dim": 128, "e_dim": 64, "a_dim": 64, "nlayers": 6, "a_compress_rate": 0, "a_compress_e_rate": 1,
    "a_compress_use_split": False, "n_multi_edge_message": 1, "axis_neuron": 4, "fix_stat_std": 0.3, "skip_stat": False,
    "update_angle": True, "update_style": "res_residual", "update_residual": 0.1, "update_residual_init": "const",
    "optim_update": True, "smooth_edge_update": False, "edge_init_use_dist": False, "use_exp_switch": False,
    "use_dynamic_sel": False, "sel_reduce_factor": 10.0, "sequential_update": False,
}  # fmt: skip

NET: Defaults = {
    "numb_fparam": 0, "numb_aparam": 0, "default_fparam": None, "dim_case_embd": 0, "neuron": [120, 120, 120],
    "activation_function": "tanh", "precision": "default", "resnet_dt": True, "trainable": True, "rcond": None,
    "seed": None, "layer_name": None, "use_aparam_as_mask": False,
}  # fmt: skip
FITTINGS: dict[str, Defaults] = {
    "ener": {**NET, "atom_ener": []},
    "dos": {**NET, "precision": "float64", "numb_dos": 300},
    "property": {**NET, "property_name": NEEDED, "task_dim": 1, "intensive": False, "distinguish_types": True},
    "polar": {**NET, "fit_diag": True, "scale": 1.0, "shift_diag": True, "sel_type": None},
    "dipole": {**NET, "sel_type": None},
}


def _prefactors(**values: tuple[float, float]) -> Defaults:
    return {f"{when}_pref_{k}": v[i] for k, v in values.items() for i, when in enumerate(("start", "limit"))}


ENERGIES: Defaults = {
    "relative_f": None, "enable_atom_ener_coeff": False, "loss_func": "mse", "intensive_ener_virial": False,
    **_prefactors(e=(0.02, 1), v=(0, 0), ae=(0, 0), pf=(0, 0)),
}  # fmt: skip
LOSSES: dict[str, Defaults] = {
    "ener": {
        **ENERGIES, **_prefactors(f=(1000, 1), h=(0, 0), gf=(0, 0)), "use_default_pf": False,
        "numb_generalized_coord": 0, "use_huber": False, "f_use_norm": False, "huber_delta": 0.01,
    },
    "ener_spin": {**ENERGIES, **_prefactors(fr=(1000, 1), fm=(10000, 10))},
    "dos": _prefactors(dos=(0, 0), cdf=(0, 0), ados=(1, 1), acdf=(0, 0)),
    "tensor": {"pref": NEEDED, "pref_atomic": NEEDED, "enable_atomic_weight": False},
    "property": {"loss_func": "smooth_mae", "metric": ["mae"], "beta": 1.0},
}  # fmt: skip

OPTIMIZERS: dict[str, Defaults] = {
    "Adam": {"adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.0},
    "AdamW": {"adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.001},
    "AdaMuon": {
        "momentum": 0.95, "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.001, "lr_adjust": 10.0,
        "lr_adjust_coeff": 0.2,
    },
    "HybridMuon": {
        "momentum": 0.95, "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.001, "lr_adjust": 0.0,
        "lr_adjust_coeff": 0.18, "muon_mode": "slice", "enable_gram": True, "flash_muon": True, "magma_muon": True,
        "min_2d_dim": 1,  # of former inputs
    },
    "LKF": {
        "kf_blocksize": 5120, "kf_start_pref_e": 1.0, "kf_limit_pref_e": 1.0, "kf_start_pref_f": 1.0,
        "kf_limit_pref_f": 1.0,
    },
}  # fmt: skip
RATE: Defaults = {
    "start_lr": NEEDED, "stop_lr": None, "stop_lr_ratio": None, "warmup_steps": 0, "warmup_ratio": None,
    # "linear" in DeePMD-kit, where it has no effect; here it acts, so that it has to be asked for.
    "warmup_start_factor": 0.0, "scale_by_worker": None,
}  # fmt: skip
RATES: dict[str, Defaults] = {
    "exp": {**RATE, "decay_steps": 5000, "decay_rate": None, "smooth": False},
    "cosine": RATE,
    "wsd": {**RATE, "decay_phase_ratio": 0.1, "decay_type": "inverse_linear"},
}

DATA: Defaults = {
    "systems": ".", "rglob_patterns": None, "label_names": {}, "batch_size": "auto", "auto_prob": "prob_sys_size", "sys_probs": None,
}  # fmt: skip
RUN: Defaults = {
    "numb_steps": None, "seed": None, "disp_file": "lcurve.out", "disp_freq": 1000, "disp_training": True,
    "time_training": True, "disp_avg": False, "save_freq": 1000, "save_ckpt": "model.ckpt", "save_dir": None,
    "max_ckpt_keep": 5, "ckpt_keep_ratio": None, "enable_ema": False, "ema_decay": 0.999, "ema_ckpt_keep": None,
    "change_bias_after_training": False, "profiling": False, "profiling_file": "timeline.json",
    "enable_profiler": False, "tensorboard": False, "tensorboard_log_dir": "log", "tensorboard_freq": 1,
    "gradient_max_norm": None, "acc_freq": 1, "zero_stage": 0, "enable_compile": False, "compile_options": None,
    "neighbor_graph_method": "auto", "mixed_precision": None,
    "enable_tf32": False,  # not in the table of the specification; DeePMD-kit writes it into its out.json
    "enable_bf16": False, "freeze_parameters": [], "metrics_file": None,  # ours
}  # fmt: skip
TASK_DATA: Defaults = {
    "training_data": NEEDED, "validation_data": None, "stat_file": None, "stat_file_mode": "update",
}  # fmt: skip
TRAINING: Defaults = {
    **RUN, **TASK_DATA, "numb_epoch": None, "num_epoch_dict": {}, "model_prob": {}, "data_dict": {},
}  # fmt: skip
TRAINING_OF_TASKS: Defaults = {
    **RUN, "numb_epoch": None, "num_epoch_dict": {}, "model_prob": {}, "data_dict": NEEDED,
}  # fmt: skip
VALIDATING: Defaults = {
    "full_validation": False, "ema_full_validation": False, "validation_freq": 5000, "save_best": True,
    "save_best_dir": None, "max_best_ckpt": 1, "validation_metric": "E:MAE", "full_val_file": "val.log",
    "full_val_start": 0.5, "compiled_infer": False, "tf32_infer": False, "amp_infer": False,
    "early_stop_patience": None,  # ours
}  # fmt: skip

MODEL: Defaults = {
    # Not required by the specification, but "in practice".
    "type_map": NEEDED, "data_stat_nbatch": 10, "data_stat_protect": 0.01, "data_bias_nsample": 10,
    "pair_exclude_types": [], "atom_exclude_types": [], "preset_out_bias": None, "srtab_add_bias": True,
    "modifier": None, "type_embedding": None, "compress": None, "finetune_head": None, "model_branch_alias": [],
    "info": {}, "bridging_method": "None", "bridging_r_inner": 0.5, "bridging_r_outer": 0.8,
}  # fmt: skip
MODELS: list[tuple[type[Config], Defaults]] = [
    (
        ModelConfig,
        {
            **MODEL, "descriptor": NEEDED, "fitting_net": NEEDED, "spin": None, "use_srtab": None, "smin_alpha": None,
            "sw_rmin": None, "sw_rmax": None,
        },
    ),
    (LinearConfig, {**MODEL, "models": NEEDED, "weights": "mean", "shared_dict": {}}),
    (
        PairTableConfig,
        {
            "tab_file": NEEDED, "rcut": NEEDED, "sel": NEEDED, "type_map": [], "data_stat_nbatch": 10,
            "data_stat_protect": 0.01, "data_bias_nsample": 10, "srtab_add_bias": True, "pair_exclude_types": [],
            "atom_exclude_types": [], "preset_out_bias": None,
        },
    ),
    (
        SpinConfig,
        {
            "use_spin": NEEDED, "virtual_scale": NEEDED, "scheme": "deepspin", "allow_missing_label": False,
            "spin_norm": [], "virtual_len": [],
        },
    ),
]  # fmt: skip


def _by_key(kinds: tuple[type[Config], ...], table: dict[str, Defaults]) -> list[tuple[type[Config], Defaults]]:
    assert {kind.key for kind in kinds} == table.keys()
    return [(kind, table[kind.key]) for kind in kinds]


SECTIONS: list[tuple[type[Config], Defaults]] = [
    *_by_key(descriptors.CONFIGS, DESCRIPTORS), *_by_key(fittings.CONFIGS, FITTINGS), *_by_key(losses.CONFIGS, LOSSES),
    *_by_key(sections.OPTIMIZERS, OPTIMIZERS), *_by_key(schedules.CONFIGS, RATES), *MODELS,
    (RepinitConfig, REPINIT), (RepformerConfig, REPFORMER), (RepflowConfig, REPFLOW),
    (sections.TrainingConfig, TRAINING), (sections.MultiTrainingConfig, TRAINING_OF_TASKS),
    (sections.TaskDataConfig, TASK_DATA), (sections.ValidatingConfig, VALIDATING),
    (sections.TrainingDataConfig, {**DATA, "min_pair_dist": 0.0}), (sections.ValidationDataConfig, {**DATA, "numb_btch": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "table"), SECTIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_defaults(kind: type[Config], table: Defaults) -> None:
    """Every option, so that a new one needs its line above."""
    found = {name: NEEDED if f.default is MISSING else thaw(f.default) for name, f in kind.options().items()}
    assert found == table
    for name, value in table.items():
        assert type(found[name]) is type(value) or isinstance(value, int), f"{name}: {found[name]!r} for {value!r}"
