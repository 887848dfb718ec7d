"""What the input format knows and this version does not offer, with what to use instead.

Single keys are declared where they belong (`effect="refused"`); here are the kinds: values of `type`, and keys
that only such kinds have.
"""

from __future__ import annotations

from typing import Any

from dpmodel.errors import InputError

__all__ = ["FOREIGN_KEYS", "check_sections", "instead_of"]

_DPA4 = "DPA4 (SeZM) is out of scope; use another descriptor of the list"
_TF = "it is TensorFlow's alone; use "

_KINDS: dict[str, dict[str, str]] = {
    "model.descriptor": {
        **dict.fromkeys(("dpa4", "DPA4", "SeZM", "sezm"), _DPA4),
        **dict.fromkeys(("se_a_tpe", "se_a_ebd", "se_a_ebd_v2", "se_a_mask", "loc_frame"), _TF + "se_e2_a"),
    },
    "model.fitting_net": {
        **dict.fromkeys(("dpa4_ener", "sezm_ener"), "DPA4 (SeZM) is out of scope; use ener"),
        "population": "charge populations are out of scope; use ener for energies",
    },
    "model": {
        "pairtab": 'a pair table is a part of a model of type "linear_ener", or the use_srtab of a standard one',
        **dict.fromkeys(("dpa4", "DPA4", "SeZM", "sezm"), "DPA4 (SeZM) is out of scope; use a standard model"),
        "frozen": "a frozen model cannot be part of an input; load it with dpmodel.load, or train a standard model",
        "pairwise_dprc": _TF + "a standard model",
    },
    "loss": {
        "dens": "denoising is out of scope; use ener",
        "denoise": "denoising is out of scope; use ener",
        "population": "charge populations are out of scope; use ener for energies",
    },
}  # fmt: skip

FOREIGN_KEYS: dict[str, str] = {
    **dict.fromkeys(("lora", "use_compile"), "DPA4 models (out of scope)"),
    "model_file": "frozen models (out of scope)",
}  # fmt: skip
"""Keys that only kinds have which this version does not offer, and what they belong to."""


def instead_of(path: str, kind: str) -> str | None:
    """Why the kind `kind` of section `path` is not offered ("" if there is no more to say); None if it is unknown."""
    return _KINDS.get(path, {}).get(kind)


def check_sections(data: dict[str, Any]) -> bool:
    """Whether the input has several tasks. Raises InputError where it has sections of the other kind of input."""
    model, training = data.get("model"), data.get("training")
    several = isinstance(model, dict) and "model_dict" in model
    run = training if isinstance(training, dict) else {}
    if not several:
        by_task = ["model.shared_dict"] if isinstance(model, dict) and _is_shared(model) else []
        by_task += ["loss_dict"] if data.get("loss_dict") else []
        by_task += [f"training.{key}" for key in ("data_dict", "model_prob", "num_epoch_dict") if run.get(key)]
        if by_task:
            raise InputError(f"{by_task[0]}: it belongs to inputs of several tasks, which have model.model_dict")
        return False
    if "loss" in data:
        raise InputError("loss: an input of several tasks has loss_dict, with a section for each; move it there")
    for key in ("training_data", "validation_data", "stat_file", "stat_file_mode"):
        if key in run:
            raise InputError(
                f"training.{key}: an input of several tasks has training.data_dict.<task>.{key}; move it there"
            )
    for key in ("numb_epoch", "num_epoch", "num_epochs", "numb_epochs"):
        if run.get(key) is not None:
            raise InputError(
                f"training.{key}: it is of one task; with several give num_epoch_dict, a number for each task"
            )
    return True


def _is_shared(model: dict[str, Any]) -> bool:
    return bool(model.get("shared_dict")) and model.get("type") != "linear_ener"
