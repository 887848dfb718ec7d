"""Models: from a graph to named outputs, and the derivatives of those."""

from dpmodel.models.base import Model
from dpmodel.models.builder import builder_of
from dpmodel.models.curvature import HessianRequest
from dpmodel.models.derivatives import predict
from dpmodel.models.linear import LinearModel, ZBLModel
from dpmodel.models.pair_table import PairTable
from dpmodel.models.spin import SpinModel
from dpmodel.models.standard import StandardModel

__all__ = [
    "HessianRequest",
    "LinearModel",
    "Model",
    "PairTable",
    "SpinModel",
    "StandardModel",
    "ZBLModel",
    "builder_of",
    "predict",
]
