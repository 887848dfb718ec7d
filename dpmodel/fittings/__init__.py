"""Fitting nets: from an atom's features to its contribution."""

from dpmodel.config import Config
from dpmodel.fittings.base import Fitting, Output
from dpmodel.fittings.dipole import DipoleFitting, DipoleFittingConfig
from dpmodel.fittings.dos import DOSFitting, DOSFittingConfig
from dpmodel.fittings.ener import EnerFittingConfig, EnergyFitting
from dpmodel.fittings.polar import PolarFitting, PolarFittingConfig
from dpmodel.fittings.property import PropertyFitting, PropertyFittingConfig

__all__ = [
    "CONFIGS",
    "DOSFitting",
    "DOSFittingConfig",
    "DipoleFitting",
    "DipoleFittingConfig",
    "EnerFittingConfig",
    "EnergyFitting",
    "Fitting",
    "Output",
    "PolarFitting",
    "PolarFittingConfig",
    "PropertyFitting",
    "PropertyFittingConfig",
]

CONFIGS: tuple[type[Config], ...] = (
    EnerFittingConfig, DOSFittingConfig, PropertyFittingConfig, DipoleFittingConfig, PolarFittingConfig,
)  # fmt: skip
"""Every fitting net of the input file's `model.fitting_net`."""
