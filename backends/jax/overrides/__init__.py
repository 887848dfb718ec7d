"""Faster methods for JAX, by the class they override."""

from __future__ import annotations

from collections.abc import Mapping

from dpmodel.descriptors import DPA1, SeA, SeR
from dpmodel.op import Op

from .spectral import SpectralDPA1, SpectralSeA, SpectralSeR

__all__ = ["OVERRIDES"]

OVERRIDES: Mapping[type[Op], type[Op]] = {SeA: SpectralSeA, SeR: SpectralSeR, DPA1: SpectralDPA1}
