"""Faster methods for torch, by the class they override."""

from __future__ import annotations

from collections.abc import Mapping

from dpmodel.descriptors import DPA1, SeA, SeR
from dpmodel.nn import Activation
from dpmodel.op import Op

from .activation import FusedActivation
from .spectral import SpectralDPA1, SpectralSeA, SpectralSeR

__all__ = ["OVERRIDES"]

OVERRIDES: Mapping[type[Op], type[Op]] = {
    Activation: FusedActivation,
    SeA: SpectralSeA,
    SeR: SpectralSeR,
    DPA1: SpectralDPA1,
}
