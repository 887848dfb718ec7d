"""Models: from a graph to named outputs, and the derivatives of those."""

from dpmodel.models.derivatives import predict
from dpmodel.models.standard import Model, StandardModel

__all__ = ["Model", "StandardModel", "predict"]
