"""Descriptors: what an atom sees, as numbers that rotation, translation and permutation leave alone."""

from dpmodel.config import Config
from dpmodel.descriptors.base import Descriptor, Features
from dpmodel.descriptors.dpa1 import DPA1, DPA1Config, SeAttenV2Config
from dpmodel.descriptors.dpa2 import DPA2, DPA2Config
from dpmodel.descriptors.dpa3 import DPA3, DPA3Config
from dpmodel.descriptors.hybrid import Hybrid, HybridConfig
from dpmodel.descriptors.kinds import SINGLE
from dpmodel.descriptors.se_a import SeA, SeAConfig
from dpmodel.descriptors.se_r import SeR, SeRConfig
from dpmodel.descriptors.se_t import SeT, SeTConfig
from dpmodel.descriptors.se_t_tebd import SeTTebd, SeTTebdConfig

__all__ = [
    "CONFIGS",
    "DPA1",
    "DPA2",
    "DPA3",
    "DPA1Config",
    "DPA2Config",
    "DPA3Config",
    "Descriptor",
    "Features",
    "Hybrid",
    "HybridConfig",
    "SeA",
    "SeAConfig",
    "SeAttenV2Config",
    "SeR",
    "SeRConfig",
    "SeT",
    "SeTConfig",
    "SeTTebd",
    "SeTTebdConfig",
]  # fmt: skip

CONFIGS: tuple[type[Config], ...] = (*SINGLE, HybridConfig)
"""Every descriptor of the input file's `model.descriptor`."""
