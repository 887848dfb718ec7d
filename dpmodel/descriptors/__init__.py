"""Descriptors: what an atom sees, as numbers that rotation, translation and permutation leave alone."""

from dpmodel.config import Config
from dpmodel.descriptors.base import Descriptor, Features
from dpmodel.descriptors.se_a import SeA, SeAConfig

__all__ = ["CONFIGS", "Descriptor", "Features", "SeA", "SeAConfig"]

CONFIGS: tuple[type[Config], ...] = (SeAConfig,)
"""Every descriptor of the input file's `model.descriptor`."""
