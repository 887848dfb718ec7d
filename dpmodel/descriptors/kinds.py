"""The sections of all descriptors but those that are made of others."""

from dpmodel.config import Config
from dpmodel.descriptors.dpa1 import DPA1Config, SeAttenV2Config
from dpmodel.descriptors.dpa2 import DPA2Config
from dpmodel.descriptors.dpa3 import DPA3Config
from dpmodel.descriptors.se_a import SeAConfig
from dpmodel.descriptors.se_r import SeRConfig
from dpmodel.descriptors.se_t import SeTConfig
from dpmodel.descriptors.se_t_tebd import SeTTebdConfig

__all__ = ["SINGLE"]

SINGLE: tuple[type[Config], ...] = (
    SeAConfig, SeRConfig, SeTConfig, SeTTebdConfig, DPA1Config, SeAttenV2Config, DPA2Config, DPA3Config,
)  # fmt: skip
