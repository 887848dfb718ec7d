"""The optimizers of an input on torch.

Parameters may be `DTensor`s (sharded). State of a parameter is tensors of its shape, sharded alike, or scalars;
`SLOTS` names them, so that one path saves and restores the state of every optimizer. Every optimizer leaves a parameter
without a gradient alone, its state and decay included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from .ada_muon import AdaMuon
from .hybrid_muon import HybridMuon
from .kalman import LKF, Observation, kalman_step

__all__ = ["LKF", "SLOTS", "AdaMuon", "HybridMuon", "Named", "Observation", "kalman_step", "make_optimizer"]

Named = Sequence[tuple[str, torch.nn.Parameter]]
"""Parameters and their paths in the model."""

SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Adam": ("exp_avg", "exp_avg_sq", "step"),
        "AdamW": ("exp_avg", "exp_avg_sq", "step"),
        "AdaMuon": ("momentum_buffer", "v_buffer", "exp_avg", "exp_avg_sq", "step"),
        "HybridMuon": ("momentum_buffer", "magma_score", "exp_avg", "exp_avg_sq", "step"),
        "LKF": (),
    }
)
"""State of a parameter by key of the optimizer; not every parameter has all of them. They are restored with the
types that they were saved with: moments are float32 beside float64 parameters. LKF has none: its state is by block
(`LKF.filter_state`)."""


def make_optimizer(
    config: Any, named: Named, *, start_lr: float, num_steps: int, seed: Sequence[int] = (0,)
) -> torch.optim.Optimizer:
    """The optimizer of an `optimizer` section.

    Args:
        config: one of `dpmodel.input.optimizers.OPTIMIZERS`.
        named: the trained parameters of the model (or of this rank, for stage 1) with their paths, which decide on how a
            parameter is treated.
        start_lr: learning rate at the start; the caller sets `group["lr"]` before each step.
        num_steps: length of the run.
        seed: of what is drawn; the same on all ranks.
    """
    return _MAKERS[config.key](config, named, start_lr, num_steps, seed)


def _adam(config: Any, named: Named, start_lr: float, *_: Any) -> torch.optim.Optimizer:
    """Kingma and Ba 2015; Loshchilov and Hutter 2019."""
    kinds: dict[str, type[torch.optim.Adam]] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    betas = (config.adam_beta1, config.adam_beta2)
    parameters = [p for _, p in named]
    return kinds[config.key](
        parameters, lr=start_lr, betas=betas, eps=1e-8, weight_decay=config.weight_decay, fused=True
    )


def _ada_muon(config: Any, named: Named, start_lr: float, *_: Any) -> torch.optim.Optimizer:
    return AdaMuon(
        named, lr=start_lr, momentum=config.momentum, betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay, lr_adjust=config.lr_adjust, lr_adjust_coeff=config.lr_adjust_coeff,
    )  # fmt: skip


def _hybrid_muon(config: Any, named: Named, start_lr: float, *_: Any) -> torch.optim.Optimizer:
    # flash_muon chooses a kernel elsewhere; it has no part here.
    return HybridMuon(
        named, lr=start_lr, momentum=config.momentum, betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay, lr_adjust=config.lr_adjust, lr_adjust_coeff=config.lr_adjust_coeff,
        mode=config.muon_mode, gram=config.enable_gram, magma=config.magma_muon, min_side=config.min_2d_dim,
    )  # fmt: skip


def _kalman(config: Any, named: Named, start_lr: float, num_steps: int, seed: Sequence[int]) -> torch.optim.Optimizer:
    return LKF(
        named, lr=start_lr, blocksize=config.kf_blocksize, num_steps=num_steps, seed=seed,
        pref_e=(config.kf_start_pref_e, config.kf_limit_pref_e), pref_f=(config.kf_start_pref_f, config.kf_limit_pref_f),
    )  # fmt: skip


_MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": _adam,
    "AdamW": _adam,
    "AdaMuon": _ada_muon,
    "HybridMuon": _hybrid_muon,
    "LKF": _kalman,
}
