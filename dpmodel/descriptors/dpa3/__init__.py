"""DPA-3: message passing on atoms, edges and angles."""

from dpmodel.descriptors.dpa3.config import DPA3Config, RepflowConfig
from dpmodel.descriptors.dpa3.descriptor import DPA3
from dpmodel.descriptors.dpa3.layer import RepflowLayer

__all__ = ["DPA3", "DPA3Config", "RepflowConfig", "RepflowLayer"]
