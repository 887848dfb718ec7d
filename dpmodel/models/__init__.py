"""Models: from a graph to named outputs, and the derivatives of those."""

from dpmodel.models.builder import builder_of
from dpmodel.models.derivatives import predict
from dpmodel.models.standard import Model, StandardModel

__all__ = ["Model", "StandardModel", "builder_of", "predict"]
