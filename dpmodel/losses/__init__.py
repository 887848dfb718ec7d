"""Losses: what training minimises, as pure functions of predictions, labels and the learning rate."""

from typing import Any

from dpmodel.config import Config
from dpmodel.errors import InputError
from dpmodel.fittings.base import Output
from dpmodel.losses.base import Label, LossConfig, TermLoss
from dpmodel.losses.dos import DOSLoss, DOSLossConfig
from dpmodel.losses.ener import EnerLoss, EnerLossConfig
from dpmodel.losses.ener_spin import EnerSpinLoss, EnerSpinLossConfig
from dpmodel.losses.property import PropertyLoss, PropertyLossConfig
from dpmodel.losses.tensor import TensorLoss, TensorLossConfig

__all__ = [
    "CONFIGS", "DOSLoss", "DOSLossConfig", "EnerLoss", "EnerLossConfig", "EnerSpinLoss", "EnerSpinLossConfig", "Label",
    "LossConfig", "PropertyLoss", "PropertyLossConfig", "TensorLoss", "TensorLossConfig", "TermLoss", "build_loss",
]  # fmt: skip

CONFIGS: tuple[type[Config], ...] = (
    EnerLossConfig, EnerSpinLossConfig, DOSLossConfig, TensorLossConfig, PropertyLossConfig,
)  # fmt: skip
"""Every loss of the input file's `loss`."""


def build_loss(config: Config, start_lr: float, output: Output | None = None) -> TermLoss:
    """The loss that a section describes.

    `start_lr`: the configured start of the learning rate, to which the prefactors refer. `output`: what the model
    predicts; None: energies.
    Raises InputError for options that do not go together or are not available.
    """
    given: Any = output
    if isinstance(config, EnerLossConfig):
        return EnerLoss(config, start_lr)
    if isinstance(config, EnerSpinLossConfig):
        return EnerSpinLoss(config, start_lr)
    if isinstance(config, DOSLossConfig):
        return DOSLoss(config, start_lr, given.shape[0])
    if isinstance(config, TensorLossConfig):
        return TensorLoss(config, start_lr, given)
    if isinstance(config, PropertyLossConfig):
        return PropertyLoss(config, start_lr, given)
    raise InputError(f"no loss is known for {type(config).__name__}; known are {[c.__name__ for c in CONFIGS]}")
