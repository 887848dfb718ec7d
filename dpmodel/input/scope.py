"""What the input format knows and this version does not offer, with what to use instead.

Single keys are declared where they belong (`effect="refused"`); here are the kinds: values of `type`, and keys
that only such kinds have.
"""

from __future__ import annotations

from typing import Any

from dpmodel.errors import InputError

__all__ = ["FOREIGN_KEYS", "instead_of", "refuse_multi_task"]

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


def refuse_multi_task(data: dict[str, Any]) -> None:
    """Raise InputError if the input asks for several tasks."""
    model, training = data.get("model"), data.get("training")
    found = None
    if isinstance(model, dict) and "model_dict" in model:
        found = "model.model_dict"
    elif data.get("loss_dict"):
        found = "loss_dict"
    elif isinstance(training, dict):
        found = next(
            (f"training.{key}" for key in ("data_dict", "model_prob", "num_epoch_dict") if training.get(key)), None
        )
    if found:
        raise InputError(
            f"{found}: multi-task training is not available in this version; write one input per task, with "
            "model.descriptor, model.fitting_net, loss and training.training_data"
        )
