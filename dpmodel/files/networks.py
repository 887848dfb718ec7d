"""Layers, networks and collections of networks, as DeePMD-kit's files hold them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpmodel.files.nodes import Node, Upgrade
from dpmodel.nn import MLP, LayerNorm, Linear
from dpmodel.nn.activation import activation

__all__ = [
    "read_collection",
    "read_layer",
    "read_layer_norm",
    "read_linear",
    "read_network",
    "write_collection",
    "write_layer",
    "write_layer_norm",
    "write_network",
]


def _layer_1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says whether a layer is trained; before, every layer was."""
    return {"trainable": True, **data}


def _embedding_1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says whether the layers have biases; before, all had."""
    return {"bias": True, **data}


LAYER_VERSION, LAYER_UPGRADES = 2, {1: _layer_1_to_2}
NETWORKS: dict[str, tuple[int, Mapping[int, Upgrade]]] = {
    "EmbeddingNetwork": (2, {1: _embedding_1_to_2}),
    "FittingNetwork": (1, {}),
}
"""By "@class": newest version, upgrades."""

COLLECTION_TYPES = {"embedding_network": "EmbeddingNetwork", "fitting_network": "FittingNetwork"}


def read_layer(node: Node, dtype: str) -> Linear:
    """One layer, its arrays in that dtype. `b` and `idt` may come with extra unit axes."""
    node = node.upgraded(LAYER_VERSION, LAYER_UPGRADES)
    w = node.array("w", dtype=dtype)
    if w.ndim != 2 or 0 in w.shape:
        raise node.fail(f"the array 'w' has shape {w.shape}, expected 2 axes (in, out)")
    vectors = {}
    for name, flag in (("b", "bias"), ("idt", "use_timestep")):
        vector = node.array(name, optional=not node.flag(flag), dtype=dtype)
        if vector is not None:
            vector = vector.reshape(-1)
            if vector.shape != (w.shape[1],):
                raise node.fail(f"the array {name!r} has {vector.size} numbers, expected {w.shape[1]}")
        vectors[name] = vector
    name = node.get("activation_function")
    try:
        activation(name if isinstance(name, str) else f"{name!r}, which is no text")
    except ValueError as problem:
        raise node.fail(str(problem)) from problem
    return Linear(w=w, **vectors, activation=name, resnet=node.flag("resnet"), trainable=node.flag("trainable", True))


def write_layer(layer: Linear) -> dict[str, Any]:
    """The inverse of `read_layer`."""
    return {
        "@class": "Layer",
        "@version": LAYER_VERSION,
        "bias": layer.b is not None,
        "use_timestep": layer.idt is not None,
        "activation_function": "none" if layer.activation == "linear" else layer.activation,
        "resnet": layer.resnet,
        "precision": np.asarray(layer.w).dtype.name,
        "trainable": layer.trainable,
        "@variables": {"w": layer.w, "b": layer.b, "idt": layer.idt},
    }


def read_linear(node: Node, n_in: int, n_out: int, dtype: str, *, bias: bool = True) -> Linear:
    """A layer that must be x w + b of these widths, without skip connection. Raises ModelFileError for any other."""
    layer = read_layer(node, dtype)
    if layer.w.shape != (n_in, n_out):
        raise node.fail(f"the array 'w' has shape {layer.w.shape}, but the section implies {(n_in, n_out)}")
    found = (layer.activation.lower() in ("none", "linear"), not layer.resnet, layer.idt is None)
    if not all(found) or (layer.b is not None) != bias:
        raise node.fail(
            f"expected a linear layer {'with' if bias else 'without'} bias, without activation, skip connection or time step"
        )
    return layer


def read_layer_norm(node: Node, width: int, dtype: str) -> LayerNorm:
    """A layer normalisation of that width."""
    node = node.upgraded(1)
    w, b = (node.array(name, (width,), dtype=dtype) for name in ("w", "b"))
    return LayerNorm(w=w, b=b, eps=node.number("eps"), trainable=node.flag("trainable", True))


def write_layer_norm(norm: LayerNorm, precision: str) -> dict[str, Any]:
    """The inverse of `read_layer_norm`. precision: as the section has it."""
    return {
        "@class": "LayerNorm",
        "@version": 1,
        "eps": norm.eps,
        "trainable": norm.trainable,
        "precision": precision,
        "@variables": {"w": norm.w, "b": norm.b},
    }


def read_network(node: Node, cls: str, dtype: str) -> MLP:
    """A chain of layers, their arrays in that dtype. Raises ModelFileError where widths do not fit each other."""
    if node.get("@class", cls) != cls:
        raise node.fail(f"expected a {cls}, found {node.get('@class')!r}")
    version, upgrades = NETWORKS[cls]
    layers = tuple(read_layer(layer, dtype) for layer in node.upgraded(version, upgrades).nodes("layers"))
    for k, (left, right) in enumerate(itertools.pairwise(layers)):
        if left.w.shape[1] != right.w.shape[0]:
            raise node.fail(f"layer {k} is {left.w.shape[1]} wide, but layer {k + 1} takes {right.w.shape[0]}")
    return MLP(layers=layers)


def read_collection(
    node: Node, kind: str, ndim: int, ntypes: int, *, widths: Sequence[int], dtype: str
) -> tuple[MLP, ...]:
    """Networks by flat index (first key component fastest), their arrays in that dtype.

    widths: of the input and of every layer, as the section implies them.
    Raises ModelFileError for another kind, count or width.
    """
    node = node.upgraded(1)
    found = node.get("network_type")
    if found != kind:
        raise node.fail(f"expected networks of type {kind!r}, found {found!r}")
    count, items = ntypes**ndim, node.nodes("networks")
    if node.integer("ndim") != ndim or len(items) != count:
        raise node.fail(f"expected {count} networks ({ndim} keys), found {len(items)} ({node.integer('ndim')} keys)")
    networks = tuple(read_network(item, COLLECTION_TYPES[kind], dtype) for item in items)
    for item, network in zip(items, networks, strict=True):
        own = [*(layer.w.shape[0] for layer in network.layers[:1]), *(layer.w.shape[1] for layer in network.layers)]
        if own != list(widths):
            raise item.fail(f"the widths (input, layers) are {own}, but the section implies {list(widths)}")
    return networks


def write_collection(
    networks: Sequence[MLP], kind: str, ndim: int, ntypes: int, *, resnet_dt: bool, precision: str, activation: str
) -> dict[str, Any]:
    """The inverse of `read_collection`. `precision` as the kind stores it (see `write_network`)."""
    return {
        "@class": "NetworkCollection",
        "@version": 1,
        "ndim": ndim,
        "ntypes": ntypes,
        "network_type": kind,
        "networks": [write_network(net, COLLECTION_TYPES[kind], resnet_dt, precision, activation) for net in networks],
    }


def write_network(network: MLP, cls: str, resnet_dt: bool, precision: str, activation: str) -> dict[str, Any]:
    """The inverse of `read_network`. `precision`: normalised in embedding networks, as given in fitting networks."""
    layers = network.layers
    fitting = cls == "FittingNetwork"
    widths = [int(layer.w.shape[1]) for layer in layers]
    out: dict[str, Any] = {"@class": cls, "@version": NETWORKS[cls][0], "in_dim": int(layers[0].w.shape[0])}
    if fitting:
        out["out_dim"] = widths.pop()
    out.update(neuron=widths, activation_function=activation, resnet_dt=resnet_dt, precision=precision)
    if fitting:
        out["bias_out"] = layers[-1].b is not None
    else:
        out["bias"] = layers[0].b is not None
    out["layers"] = [write_layer(layer) for layer in layers]
    return out
