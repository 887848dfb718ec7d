"""Networks: layers, chains of layers, activations, embeddings of types."""

from dpmodel.nn.activation import ACTIVATIONS, Activation, activation
from dpmodel.nn.mlp import MLP, Linear, child_seed, make_embedding_net, make_fitting_net, make_linear
from dpmodel.nn.type_embedding import TypeEmbedding, make_type_embedding

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Activation",
    "Linear",
    "TypeEmbedding",
    "activation",
    "child_seed",
    "make_embedding_net",
    "make_fitting_net",
    "make_linear",
    "make_type_embedding",
]
