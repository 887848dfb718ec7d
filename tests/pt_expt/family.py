"""Small models of the whole family: two types, a cutoff of 4 Å, forces worth comparing."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.input.sections import ModelConfig
from dpmodel.models import LinearModel, Model, PairTable, SpinModel, ZBLModel
from dpmodel.models.build import build_model

__all__ = ["KINDS", "SPINS", "small"]

DPA3: dict[str, Any] = {
    "type": "dpa3", "repflow": {
        "n_dim": 6, "e_dim": 5, "a_dim": 4, "nlayers": 2, "e_rcut": 4.0, "e_rcut_smth": 3.0, "e_sel": 90, "a_rcut": 3.0,
        "a_rcut_smth": 2.0, "a_sel": 30, "axis_neuron": 2, "smooth_edge_update": True,
    },
}  # fmt: skip
DPA2: dict[str, Any] = {
    "type": "dpa2",
    "repinit": {"rcut": 4.0, "rcut_smth": 0.5, "nsel": 90, "neuron": [3, 6], "axis_neuron": 2, "tebd_dim": 4},
    "repformer": {
        "rcut": 3.5, "rcut_smth": 0.5, "nsel": 70, "nlayers": 2, "g1_dim": 6, "g2_dim": 4, "axis_neuron": 2, "attn1_hidden": 4,
        "attn1_nhead": 2, "attn2_hidden": 3, "attn2_nhead": 2,
    },
}  # fmt: skip
SE_A = {"type": "se_e2_a", "rcut": 4.0, "rcut_smth": 0.5, "sel": [60, 60], "neuron": [4, 4], "axis_neuron": 2}
DPA1 = {
    "type": "dpa1", "rcut": 4.0, "rcut_smth": 0.5, "sel": 90, "neuron": [3, 6], "axis_neuron": 2, "tebd_dim": 4, "attn": 5,
    "attn_layer": 1,
}  # fmt: skip
HYBRID = {"type": "hybrid", "list": [DPA2, DPA3]}
FLAT = {
    "type": "hybrid",
    "list": [
        {
            **DPA2, "repformer": {
                **DPA2["repformer"], "nlayers": 1, "update_g1_has_attn": False, "update_g1_has_drrd": False,
                "update_g2_has_attn": False,
            },
        },
        {**DPA3, "repflow": {**DPA3["repflow"], "nlayers": 1, "update_angle": False}},
    ],
}  # fmt: skip
"""Of one layer each, with few updates: sooner compiled."""
PRECISE = {"precision": "float64"}


def _standard(descriptor: dict[str, Any], types: tuple[str, ...] = ("O", "H"), **options: Any) -> Any:
    section = {
        "type_map": list(types), "descriptor": descriptor, "fitting_net": {"type": "ener", "neuron": [5], **PRECISE}, **options,
    }  # fmt: skip
    # Larger weights than fresh ones, and environments as large as trained models have them.
    model = build_model(ModelConfig.from_dict(section), seed=1).map_arrays(lambda x: 1.5 * x)
    if descriptor["type"] not in ("se_e2_a", "dpa1"):
        return model
    return model.replace(descriptor=model.descriptor.replace(dstd=0.2 * model.descriptor.dstd))


def _whole() -> dict[str, Any]:
    return {"type_map": ("O", "H"), "out_bias": np.array([[-3.0], [1.5]]), "out_std": np.ones((2, 1))}


def _table() -> PairTable:
    coefficients = np.random.default_rng(2).normal(size=(2, 2, 8, 4)) * 0.1
    return PairTable(
        **_whole(), rmin=0.0, step=0.5, cutoff=3.5, sel=60, rmax=3.5, coefficients=coefficients, rows=np.zeros((9, 4))
    )


def _spin(descriptor: dict[str, Any], use_spin: tuple[bool, bool] = (False, True)) -> SpinModel:
    """Virtual atoms of types without spin are nobody's neighbours."""
    excluded = [[2 + kind, k] for kind, used in enumerate(use_spin) if not used for k in range(4)]

    def doubled(section: dict[str, Any]) -> dict[str, Any]:
        if section["type"] == "hybrid":
            return {**section, "list": [doubled(part) for part in section["list"]]}
        sel = {"sel": 2 * section["sel"]} if section["type"] == "se_e2_a" else {}
        return {**section, **sel, "exclude_types": excluded}

    backbone = _standard(
        doubled(descriptor), ("O", "H", "O_spin", "H_spin"), atom_exclude_types=[2, 3],
        pair_exclude_types=excluded,
    )  # fmt: skip
    return SpinModel(type_map=("O", "H"), backbone=backbone, use_spin=use_spin, virtual_scale=np.array([0.3, 0.35]))


KINDS = (
    "dpa1", "dpa2", "hybrid", "spin_se_a", "spin_dpa3", "spin_dpa2", "spin_hybrid", "spin_all", "zbl", "linear", "dipole_dpa3", "dos",
    "property", "polar",
)  # fmt: skip
SPINS = frozenset(kind for kind in KINDS if kind.startswith("spin"))


def small(kind: str) -> Model:
    """The model of that name."""
    if kind == "spin_all":
        return _spin(SE_A, (True, True))
    if kind in SPINS:
        return _spin({"se_a": SE_A, "dpa3": DPA3, "dpa2": DPA2, "hybrid": FLAT}[kind.removeprefix("spin_")])
    if kind == "zbl":
        parts = (_standard(DPA3), _table())
        return ZBLModel(**_whole(), parts=parts, sw_rmin=1.5, sw_rmax=2.8, smin_alpha=0.3)
    if kind == "linear":
        return LinearModel(**_whole(), parts=(_standard(SE_A), _standard(DPA1), _table()), weights=(0.5, -0.7, 1.2))
    if kind == "charged":
        return _standard({**DPA3, "add_chg_spin_ebd": True})  # type: ignore[no-any-return]  # parts are replaced by name
    fittings: dict[str, dict[str, Any]] = {
        "dipole_dpa3": {"type": "dipole"},
        "dos": {"type": "dos", "numb_dos": 7},
        "property": {"type": "property", "property_name": "foo", "task_dim": 2, "intensive": True},
        "polar": {"type": "polar"},
    }
    if kind in fittings:
        return _standard(
            DPA3 if kind == "dipole_dpa3" else SE_A, fitting_net={"neuron": [5], **PRECISE, **fittings[kind]}
        )  # type: ignore[no-any-return]
    return _standard({"dpa1": DPA1, "dpa2": DPA2, "hybrid": HYBRID}[kind])  # type: ignore[no-any-return]
