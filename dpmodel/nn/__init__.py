"""Networks: layers, chains of layers, activations, embeddings of types."""

from dpmodel.nn.activation import ACTIVATIONS, Activation, activation
from dpmodel.nn.joint import joint_net, pair_table
from dpmodel.nn.layer_norm import LayerNorm, make_layer_norm
from dpmodel.nn.mlp import MLP, Linear, child_seed, make_embedding_net, make_fitting_net, make_linear
from dpmodel.nn.type_embedding import TypeEmbedding, make_type_embedding

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Activation",
    "LayerNorm",
    "Linear",
    "TypeEmbedding",
    "activation",
    "child_seed",
    "joint_net",
    "make_embedding_net",
    "make_fitting_net",
    "make_layer_norm",
    "make_linear",
    "make_type_embedding",
    "pair_table",
]
