"""Descriptors, as DeePMD-kit's files hold them: one module each."""

from __future__ import annotations

from dpmodel.files.codecs.base import Codec
from dpmodel.files.codecs.descriptors.dpa3 import DPA3_CODEC
from dpmodel.files.codecs.descriptors.se_a import SE_A_CODEC

__all__ = ["DESCRIPTORS"]

DESCRIPTORS: tuple[Codec, ...] = (SE_A_CODEC, DPA3_CODEC)
