"""Networks: layers, chains of layers, activations."""

from dpmodel.nn.activation import ACTIVATIONS, activation
from dpmodel.nn.mlp import MLP, Linear, child_seed, make_embedding_net, make_fitting_net

__all__ = ["ACTIVATIONS", "MLP", "Linear", "activation", "child_seed", "make_embedding_net", "make_fitting_net"]
