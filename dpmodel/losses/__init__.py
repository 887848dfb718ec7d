"""Losses: what training minimises, as pure functions of predictions, labels and the learning rate."""

from dpmodel.config import Config
from dpmodel.errors import InputError
from dpmodel.losses.base import Label
from dpmodel.losses.ener import EnerLoss, EnerLossConfig

__all__ = ["CONFIGS", "EnerLoss", "EnerLossConfig", "Label", "build_loss"]

CONFIGS: tuple[type[Config], ...] = (EnerLossConfig,)
"""Every loss of the input file's `loss`."""


def build_loss(config: Config, start_lr: float) -> EnerLoss:
    """The loss that a section describes.

    `start_lr`: the configured start of the learning rate, to which the prefactors refer.
    Raises InputError for options that do not go together or are not available.
    """
    if isinstance(config, EnerLossConfig):
        return EnerLoss(config, start_lr)
    raise InputError(f"no loss is known for {type(config).__name__}; known are {[c.__name__ for c in CONFIGS]}")
