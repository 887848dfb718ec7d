"""Descriptors: what an atom sees, as numbers that rotation, translation and permutation leave alone."""

from dpmodel.config import Config
from dpmodel.descriptors.base import Descriptor, Features
from dpmodel.descriptors.dpa3 import DPA3, DPA3Config
from dpmodel.descriptors.se_a import SeA, SeAConfig

__all__ = ["CONFIGS", "DPA3", "DPA3Config", "Descriptor", "Features", "SeA", "SeAConfig"]

CONFIGS: tuple[type[Config], ...] = (SeAConfig, DPA3Config)
"""Every descriptor of the input file's `model.descriptor`."""
