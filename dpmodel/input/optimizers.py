"""The kinds of an input's `optimizer`.

Muon family: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024,
kellerjordan.github.io/posts/muon); its scale by shape that makes learning rates those of AdamW: Liu et al., "Muon is
scalable for LLM training" (Moonlight, arXiv 2502.16982, 2025); AdaMuon: Si et al. (arXiv 2507.11005, 2025). Layer-wise
extended Kalman filter: Hu et al., "RLEKF: an optimizer for deep potential with ab initio accuracy" (AAAI 2023, arXiv
2212.06989). Formulas and coefficients are in `dpmodel.backends.pt.optimizers`. No parity with other programs is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpmodel.config import Config, at_least, option, positive
from dpmodel.errors import InputError

__all__ = [
    "OPTIMIZERS",
    "AdaMuonConfig",
    "AdamConfig",
    "AdamWConfig",
    "HybridMuonConfig",
    "LKFConfig",
    "check_optimizer",
    "optimizer_notes",
]


def _decay(value: float) -> str | None:
    return None if 0 <= value < 1 else "a number of at least 0 and below 1"


def _beta(default: float, what: str) -> Any:
    return option(default, f"Decay of the mean of {what}.", check=_decay)


def _pref(when: str, what: str) -> Any:
    return option(1.0, f"Times the {what} residual at the {when} of the run; geometric between.", check=positive)


_DECOUPLED = "Parameters are multiplied by 1 - (learning rate) * (this) in each step"


class AdamConfig(Config, key="Adam"):
    """Adam (Kingma and Ba, ICLR 2015)."""

    adam_beta1: float = _beta(0.9, "the gradient")
    adam_beta2: float = _beta(0.999, "its square")
    weight_decay: float = option(0.0, "Times the parameter, added to the gradient.", check=at_least(0))


class AdamWConfig(Config, key="AdamW"):
    """Adam with decoupled decay of the parameters (Loshchilov and Hutter, ICLR 2019)."""

    adam_beta1: float = _beta(0.9, "the gradient")
    adam_beta2: float = _beta(0.999, "its square")
    weight_decay: float = option(0.001, f"{_DECOUPLED}.", check=at_least(0))


class AdaMuonConfig(Config, key="AdaMuon"):
    """Muon of the sign of the momentum, with element-wise second moments (Si et al. 2025); Adam for vectors."""

    momentum: float = option(0.95, "Decay of the momentum, and of the second moments of matrices.",
        aliases=("muon_momentum",), check=_decay)  # fmt: skip
    adam_beta1: float = _beta(0.9, "the gradient of vectors")
    adam_beta2: float = _beta(0.95, "its square")
    weight_decay: float = option(0.001, f"{_DECOUPLED}; matrices only.", check=at_least(0))
    lr_adjust: float = option(
        10.0,
        "Above 0: vectors have the learning rate divided by this, and the step of a matrix (m, n) is scaled by "
        "sqrt(max(1, m / n)). Else: vectors have the learning rate, and matrices are scaled by lr_adjust_coeff.",
    )
    lr_adjust_coeff: float = option(
        0.2, "The step of a matrix (m, n) is scaled by this times sqrt(max(m, n)) if lr_adjust is not above 0.",
        check=positive,
    )  # fmt: skip


class HybridMuonConfig(Config, key="HybridMuon"):
    """Muon (Jordan et al. 2024) for matrices, Adam for vectors, AdamW for what is neither; routed by parameter name."""

    momentum: float = option(0.95, "Decay of the momentum.", aliases=("muon_momentum",), check=_decay)
    adam_beta1: float = _beta(0.9, "the gradient of what is not a matrix")
    adam_beta2: float = _beta(0.95, "its square")
    weight_decay: float = option(0.001, f"{_DECOUPLED}; not vectors.", check=at_least(0))
    lr_adjust: float = option(
        0.0,
        "Above 0: Adam has the learning rate divided by this, and the step of a matrix (m, n) is scaled by "
        "sqrt(max(1, m / n)). Else: Adam has the learning rate, and matrices are scaled by lr_adjust_coeff.",
    )
    lr_adjust_coeff: float = option(
        0.18, "The step of a matrix (m, n) is scaled by this times sqrt(max(m, n)) if lr_adjust is not above 0.",
        check=positive,
    )  # fmt: skip
    muon_mode: str = option(
        "slice",
        "Arrays of more than two axes: slice (matrices of the last two axes), flat (one matrix, all axes but the last "
        "joined), 2d (AdamW). Axes of size 1 do not count.",
        choices=("slice", "2d", "flat"),
    )
    enable_gram: bool = option(
        True, "Orthogonalise matrices that are not square by their Gram matrix: fewer operations, in float16."
    )
    magma_muon: bool = option(
        True, "Damp the step of a matrix by how well gradient and momentum agree (Joo et al., arXiv 2602.15322)."
    )
    min_2d_dim: int = option(
        1, "Matrices whose smaller side is below this go by AdamW (of former inputs).", check=positive
    )
    flash_muon: bool = option(
        True, "Chooses a kernel elsewhere, not the numbers; products of matrices are torch's here.", effect="ignored"
    )


class LKFConfig(Config, key="LKF"):
    """Layer-wise extended Kalman filter (Hu et al., AAAI 2023): five updates per step, without a learning rate."""

    kf_blocksize: int = option(
        5120, "Parameters per block; each block has a covariance of this size squared.", check=positive
    )
    kf_start_pref_e: float = _pref("start", "energy")
    kf_limit_pref_e: float = _pref("end", "energy")
    kf_start_pref_f: float = _pref("start", "force")
    kf_limit_pref_f: float = _pref("end", "force")


OPTIMIZERS: tuple[type[Config], ...] = (AdamConfig, AdamWConfig, AdaMuonConfig, HybridMuonConfig, LKFConfig)
"""Every optimizer of the input file's `optimizer`."""


def check_optimizer(optimizer: Config, losses: Mapping[str, Config], training: Any) -> None:
    """Raise InputError where the optimizer does not go with the losses (by task) or with `training`."""
    if not isinstance(optimizer, LKFConfig):
        return
    for task, loss in losses.items():
        if loss.key != "ener":
            where = f"loss_dict.{task}.type" if task else "loss.type"
            raise InputError(
                f'{where}: the optimizer LKF fits energies and forces: expected "ener", got "{loss.key}"; use '
                "optimizer.type AdamW or HybridMuon"
            )
    if training.zero_stage:
        raise InputError(
            f"training.zero_stage: expected 0 with the optimizer LKF, got {training.zero_stage}: the covariance of a block "
            "couples all its parameters, and each rank holds all of them; use optimizer.type AdamW or HybridMuon"
        )
    if training.enable_bf16:
        raise InputError(
            "training.enable_bf16: expected false with the optimizer LKF, whose residuals are differences of predictions "
            "and labels that bfloat16 does not resolve; remove the key, or use optimizer.type AdamW or HybridMuon"
        )
    norm = training.gradient_max_norm
    if norm is not None and norm > 0:
        raise InputError(
            f"training.gradient_max_norm: expected null with the optimizer LKF, got {norm}: its updates are those of a "
            "filter, which scales them itself; remove the key"
        )


def optimizer_notes(optimizer: Config) -> list[str]:
    """What the log should say of options that the optimizer does not read."""
    text = (
        "optimizer.type: LKF fits energies and forces, with prefactors of its own; learning_rate and the prefactors of the "
        "loss have no effect on it, only on the loss that is shown"
    )
    return [text] if isinstance(optimizer, LKFConfig) else []
