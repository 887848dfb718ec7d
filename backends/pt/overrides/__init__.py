"""Faster methods for torch, by the class they override."""

from __future__ import annotations

from collections.abc import Mapping

from dpmodel.descriptors import SeA
from dpmodel.op import Op

from .spectral import SpectralSeA

__all__ = ["OVERRIDES"]

OVERRIDES: Mapping[type[Op], type[Op]] = {SeA: SpectralSeA}
