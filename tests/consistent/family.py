"""The cases of the descriptors beside se_e2_a and dpa3: sections, and variations of them, one option at a time."""

from __future__ import annotations

from typing import Any

from .case import Case, Section, descriptor, fitting

__all__ = ["FAMILY"]

SINGLE = {**descriptor(precision="float32"), **fitting(precision="float32")}
EXCLUSIONS: dict[str, Section] = {"both_exclusions": {"atom_exclude_types": [0], "pair_exclude_types": [[1, 1]]}}
ENER: dict[str, Any] = {"type": "ener", "neuron": [8, 8]}
THREE = {"type_map": ["O", "H", "Na"]}


def _repinit(**options: Any) -> Section:
    return {"descriptor": {"repinit": options}}


def _repformer(**options: Any) -> Section:
    return {"descriptor": {"repformer": options}}


TYPED: dict[str, Section] = {
    "resnet_dt": descriptor(resnet_dt=True),
    "activation-silu": descriptor(activation_function="silu"),
    "exclude_types": descriptor(exclude_types=[[0, 1]]),
    "env_protection": descriptor(env_protection=0.1),
    "set_davg_zero": descriptor(set_davg_zero=True),
    "frozen": descriptor(trainable=False),
    "one_layer": descriptor(neuron=[5]),
    "sel-too_small": descriptor(sel=[2, 3]),
    "float32": SINGLE,
    "mixed": descriptor(precision="float32"),
    "1_type": {"type_map": ["Cu"], **descriptor(sel=[30])},
    "3_types": {**THREE, **descriptor(sel=[12, 16, 12], exclude_types=[[0, 2]])},
    **EXCLUSIONS,
}
MIXED: dict[str, Section] = {
    "strip": descriptor(tebd_input_mode="strip"),
    "tebd_dim": descriptor(tebd_dim=2),
    "no_output_tebd": descriptor(concat_output_tebd=False),
    "econf": descriptor(use_econf_tebd=True),
    "tebd_bias": descriptor(use_tebd_bias=True),
    "no_tebd_bias": descriptor(use_tebd_bias=False),
    "skip_in_the_first_layer": descriptor(neuron=[7, 7], tebd_dim=3),
    **{name: TYPED[name] for name in ("resnet_dt", "exclude_types", "env_protection", "frozen", "float32", "mixed")},
    "sel-too_small": descriptor(sel=4),
    "1_type": {"type_map": ["Cu"]},
    "3_types": {**THREE, **descriptor(exclude_types=[[0, 2]])},
    **EXCLUSIONS,
}
ATTENTION: dict[str, Section] = {
    "no_attention": descriptor(attn_layer=0),
    "no_attention-smooth-strip": descriptor(attn_layer=0, smooth_type_embedding=True, tebd_input_mode="strip"),
    "two_layers": descriptor(attn_layer=2),
    "not_smooth": descriptor(smooth_type_embedding=False),
    "strip-not_smooth": descriptor(tebd_input_mode="strip", smooth_type_embedding=False),
    "type_one_side": descriptor(type_one_side=True),
    "type_one_side-strip": descriptor(type_one_side=True, tebd_input_mode="strip"),
    "no_dotr": descriptor(attn_dotr=False),
    "no_normalize": descriptor(normalize=False),
    "temperature": descriptor(temperature=2.5),
    "scaling_factor": descriptor(scaling_factor=0.3),
    "ln": descriptor(trainable_ln=False, ln_eps=1e-3),
    "lmax-2": descriptor(lmax=2),
    "lmax-4": descriptor(lmax=4, env_protection=0.1),
    "stripped_type_embedding": descriptor(stripped_type_embedding=True),
    "mean": descriptor(set_davg_zero=False),
    "mean-exclude_types": descriptor(set_davg_zero=False, exclude_types=[[0, 1]]),
}

SE_R = Case(
    section={
        "type_map": ["O", "H"],
        "descriptor": {"type": "se_e2_r", "rcut": 4.0, "rcut_smth": 0.8, "sel": [16, 20], "neuron": [3, 6, 6]},
        "fitting_net": ENER,
    },
    variations={  # atoms of one type that see those of the other alone have nearly equal energies
        **{name: patch for name, patch in TYPED.items() if name not in EXCLUSIONS},
        "pair_exclusion": {"pair_exclude_types": [[0, 1]]},
    },
    combinations={
        "many_options": {
            **THREE,
            "descriptor": {
                "sel": [10, 12, 10], "activation_function": "silut:0.7", "exclude_types": [[0, 2]], "env_protection": 0.1,
                "resnet_dt": True,
            },
            "pair_exclude_types": [[2, 2]],
        }
    },
)  # fmt: skip
SE_T = Case(
    section={
        "type_map": ["O", "H"],
        "descriptor": {"type": "se_e3", "rcut": 4.0, "rcut_smth": 0.8, "sel": [16, 20], "neuron": [2, 4]},
        "fitting_net": ENER,
    },
    variations=TYPED,
    combinations=SE_R.combinations,
)
SE_T_TEBD = Case(
    section={
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_e3_tebd", "rcut": 4.0, "rcut_smth": 0.8, "sel": 32, "neuron": [2, 4], "tebd_dim": 3,
        },
        "fitting_net": ENER,
    },
    variations={**MIXED, "strip-not_smooth": descriptor(tebd_input_mode="strip", smooth=False)},
    combinations={
        "many_options": {
            **THREE,
            "descriptor": {
                "tebd_input_mode": "strip", "activation_function": "silut:0.7", "exclude_types": [[0, 2]],
                "env_protection": 0.1, "use_econf_tebd": True, "concat_output_tebd": False,
            },
            "pair_exclude_types": [[2, 2]],
        }
    },
)  # fmt: skip
DPA1 = Case(
    section={
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "dpa1", "rcut": 4.0, "rcut_smth": 0.8, "sel": 32, "neuron": [3, 6, 6], "axis_neuron": 3, "tebd_dim": 4,
            "attn": 5, "attn_layer": 1, "smooth_type_embedding": True,
        },
        "fitting_net": ENER,
    },
    variations={**MIXED, **ATTENTION, "exclude_types": descriptor(exclude_types=[[0, 0]])},
    combinations={
        "many_options": {
            **THREE,
            "descriptor": {
                "tebd_input_mode": "strip", "type_one_side": True, "attn_layer": 2, "temperature": 2.0, "lmax": 3,
                "exclude_types": [[0, 2]], "env_protection": 0.1, "use_econf_tebd": True, "set_davg_zero": False,
                "activation_function": "silut:0.7",
            },
            "pair_exclude_types": [[2, 2]],
        },
        "mixed_precision": {
            **THREE,
            "descriptor": {
                "precision": "float32", "smooth_type_embedding": False, "attn_dotr": False, "normalize": False,
                "concat_output_tebd": False, "set_davg_zero": False, "resnet_dt": True,
            },
            "atom_exclude_types": [1],
        },
    },
)  # fmt: skip
SE_ATTEN_V2 = Case(
    section={
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_atten_v2", "rcut": 4.0, "rcut_smth": 0.8, "sel": 32, "neuron": [3, 6, 6], "axis_neuron": 3,
            "tebd_dim": 4, "attn": 5, "attn_layer": 1,
        },
        "fitting_net": ENER,
    },
    variations={
        **{name: ATTENTION[name] for name in ("no_attention", "two_layers", "type_one_side", "lmax-2", "no_dotr")},
        "no_mean": descriptor(set_davg_zero=True),
        "exclude_types": descriptor(exclude_types=[[0, 1]]),
    },
    combinations={"many_options": DPA1.combinations["many_options"]},
)  # fmt: skip
DPA2 = Case(
    section={
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "dpa2",
            "repinit": {
                "rcut": 4.0, "rcut_smth": 0.8, "nsel": 32, "neuron": [3, 6], "axis_neuron": 2, "tebd_dim": 3,
                "three_body_sel": 16, "three_body_rcut": 3.0, "three_body_neuron": [2, 4],
            },
            "repformer": {
                "rcut": 3.0, "rcut_smth": 0.8, "nsel": 20, "nlayers": 2, "g1_dim": 6, "g2_dim": 4, "axis_neuron": 2,
                "attn1_hidden": 3, "attn1_nhead": 2, "attn2_hidden": 3, "attn2_nhead": 2, "update_residual": 0.5,
            },
        },
        "fitting_net": ENER,
    },
    variations={
        "one_layer": _repformer(nlayers=1),
        "three_layers": _repformer(nlayers=3),
        "three_body": _repinit(use_three_body=True),
        "three_body-strip": _repinit(use_three_body=True, tebd_input_mode="strip"),
        "strip": _repinit(tebd_input_mode="strip", type_one_side=True),
        "mean": _repinit(set_davg_zero=False),
        "repinit-resnet_dt": _repinit(resnet_dt=True, activation_function="silu"),
        "direct_dist": _repformer(direct_dist=True),
        "no_conv": _repformer(update_g1_has_conv=False),
        "no_drrd": _repformer(update_g1_has_drrd=False),
        "no_grrg": _repformer(update_g1_has_grrg=False),
        "no_local_attention": _repformer(update_g1_has_attn=False),
        "no_products": _repformer(update_g2_has_g1g1=False),
        "no_pair_attention": _repformer(update_g2_has_attn=False),
        "directions": _repformer(update_h2=True),
        "directions-alone": _repformer(update_h2=True, update_g2_has_attn=False),
        "gate": _repformer(attn2_has_gate=True),
        "res_incr": _repformer(update_style="res_incr"),
        "res_residual": _repformer(update_style="res_residual", update_h2=True),
        "res_residual-const": _repformer(update_style="res_residual", update_residual_init="const"),
        "inner_conv": _repformer(g1_out_conv=False, g1_out_mlp=False),
        "no_root": _repformer(use_sqrt_nnei=False),
        "repformer-mean": _repformer(set_davg_zero=False),
        "ln": _repformer(trainable_ln=False, ln_eps=1e-3),
        "activation-silut": _repformer(activation_function="silut:0.7"),
        "same_width": {"descriptor": {"repinit": {"neuron": [3, 3]}, "repformer": {"g1_dim": 6}}},
        "not_smooth": descriptor(smooth=False),
        "not_smooth-no_root": descriptor(smooth=False, repformer={"use_sqrt_nnei": False, "g1_out_conv": False}),
        "add_tebd": descriptor(add_tebd_to_repinit_out=True),
        "no_output_tebd": descriptor(concat_output_tebd=False),
        "econf": descriptor(use_econf_tebd=True),
        "tebd_bias": descriptor(use_tebd_bias=True),
        "exclude_types": descriptor(exclude_types=[[0, 1]]),
        "env_protection": descriptor(env_protection=0.1),
        "frozen": descriptor(trainable=False),
        "nsel-too_small": {"descriptor": {"repinit": {"nsel": 6}, "repformer": {"nsel": 4}}},
        "float32": SINGLE,
        "mixed": descriptor(precision="float32"),
        "1_type": {"type_map": ["Cu"]},
        "3_types": {**THREE, **descriptor(exclude_types=[[0, 2]])},
        **EXCLUSIONS,
    },
    combinations={
        "many_options": {
            **THREE,
            "descriptor": {
                "repinit": {"use_three_body": True, "tebd_input_mode": "strip", "set_davg_zero": False},
                "repformer": {
                    "nlayers": 3, "update_h2": True, "attn2_has_gate": True, "update_style": "res_residual",
                    "g1_out_conv": False, "g1_out_mlp": False, "use_sqrt_nnei": False, "set_davg_zero": False,
                },
                "add_tebd_to_repinit_out": True, "use_econf_tebd": True, "exclude_types": [[0, 2]], "env_protection": 0.1,
            },
            "pair_exclude_types": [[2, 2]],
        },
        "mixed_precision": {
            "descriptor": {"precision": "float32", "smooth": False, "concat_output_tebd": False},
            "atom_exclude_types": [1],
        },
    },
)  # fmt: skip
HYBRID = Case(
    section={
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "hybrid",
            "list": [
                {**SE_R.section["descriptor"]},
                {"type": "se_e2_a", "rcut": 3.0, "rcut_smth": 0.8, "sel": [10, 14], "neuron": [2, 4], "axis_neuron": 2},
            ],
        },
        "fitting_net": ENER,
    },
    variations={},
    combinations={
        "mixed_types": descriptor(list=[DPA1.section["descriptor"], SE_R.section["descriptor"]]),
        "message_passing": descriptor(list=[DPA2.section["descriptor"], DPA1.section["descriptor"]]),
    },
)

FAMILY: dict[str, Case] = {
    "se_e2_r": SE_R,
    "se_e3": SE_T,
    "se_e3_tebd": SE_T_TEBD,
    "dpa1": DPA1,
    "se_atten_v2": SE_ATTEN_V2,
    "dpa2": DPA2,
    "hybrid": HYBRID,
}
