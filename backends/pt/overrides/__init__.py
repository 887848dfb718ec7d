"""Faster methods for torch, by the class they override."""

from __future__ import annotations

from collections.abc import Mapping

from dpmodel.descriptors import SeA
from dpmodel.nn import Activation
from dpmodel.op import Op

from .activation import FusedActivation
from .spectral import SpectralSeA

__all__ = ["OVERRIDES"]

OVERRIDES: Mapping[type[Op], type[Op]] = {Activation: FusedActivation, SeA: SpectralSeA}
