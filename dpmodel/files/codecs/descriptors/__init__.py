"""Descriptors, as DeePMD-kit's files hold them: one module for each family."""

from __future__ import annotations

from dpmodel.files.codecs.base import Codec
from dpmodel.files.codecs.descriptors.dpa2 import DPA2_CODEC
from dpmodel.files.codecs.descriptors.dpa3 import DPA3_CODEC
from dpmodel.files.codecs.descriptors.hybrid import hybrid_codec
from dpmodel.files.codecs.descriptors.mixed import MIXED_CODECS
from dpmodel.files.codecs.descriptors.typed import SE_A_CODEC, SE_R_CODEC, SE_T_CODEC

__all__ = ["DESCRIPTORS"]

_SINGLE = (SE_A_CODEC, SE_R_CODEC, SE_T_CODEC, *MIXED_CODECS, DPA2_CODEC, DPA3_CODEC)
DESCRIPTORS: tuple[Codec, ...] = (*_SINGLE, hybrid_codec(_SINGLE))
