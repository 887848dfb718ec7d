"""Fitting nets: from an atom's features to its contribution."""

from dpmodel.config import Config
from dpmodel.fittings.base import Fitting, Output
from dpmodel.fittings.ener import EnerFittingConfig, EnergyFitting

__all__ = ["CONFIGS", "EnerFittingConfig", "EnergyFitting", "Fitting", "Output"]

CONFIGS: tuple[type[Config], ...] = (EnerFittingConfig,)
"""Every fitting net of the input file's `model.fitting_net`."""
