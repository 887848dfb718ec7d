"""DPA-2: an environment embedding, then message passing on atoms and pairs."""

from dpmodel.descriptors.dpa2.config import DPA2Config, RepformerConfig, RepinitConfig
from dpmodel.descriptors.dpa2.descriptor import DPA2
from dpmodel.descriptors.dpa2.layer import RepformerLayer
from dpmodel.descriptors.dpa2.repformer import Repformer

__all__ = ["DPA2", "DPA2Config", "Repformer", "RepformerConfig", "RepformerLayer", "RepinitConfig"]
