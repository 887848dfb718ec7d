"""Type embeddings, as DeePMD-kit's files hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.files.networks import read_network, write_network
from dpmodel.files.nodes import Node
from dpmodel.nn.type_embedding import TypeEmbedding, electron_configurations
from dpmodel.precision import dtype_name

__all__ = ["read_type_embedding", "write_type_embedding"]


def _1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says whether there is a bias; before, there always was one."""
    return {"use_tebd_bias": True, **data}


def read_type_embedding(
    node: Node, ntypes: int, width: int, dtype: str, *, econf: bool = False, bias: bool = False
) -> TypeEmbedding:
    """The embedding of `ntypes` types in `width` columns, its arrays in that dtype.

    econf, bias: what the dictionary around it says of electron configurations and of a bias.
    Raises ModelFileError where the dictionary says otherwise.
    """
    node = node.upgraded(2, {1: _1_to_2})
    expected = {"ntypes": ntypes, "neuron": [width], "padding": True, "use_econf_tebd": econf, "use_tebd_bias": bias}
    for key, value in expected.items():
        if (found := node.get(key)) != value:
            raise node.fail(f"{key!r} is {found!r}, but the section implies {value!r}")
    embedding = read_network(node.node("embedding"), "EmbeddingNetwork", dtype)
    table = _configurations(node, ntypes, dtype) if econf else None
    n_in = ntypes if table is None else table.shape[1]
    widths = [layer.w.shape for layer in embedding.layers]
    if widths != [(n_in, width)] or (embedding.layers[0].b is not None) != bias:
        raise node.fail(
            f"expected one layer of {n_in} by {width} {'with' if bias else 'without'} bias, found {widths} "
            f"{'with' if embedding.layers and embedding.layers[0].b is not None else 'without'}"
        )
    return TypeEmbedding(ntypes=ntypes, embedding=embedding, configurations=table)


def _configurations(node: Node, ntypes: int, dtype: str) -> np.ndarray:
    names = tuple(map(str, node.items("type_map")))
    if len(names) != ntypes:
        raise node.fail(f"'type_map' has {len(names)} types, expected {ntypes}")
    try:
        return electron_configurations(names).astype(dtype)
    except InputError as problem:
        raise node.fail(str(problem)) from problem


def write_type_embedding(op: TypeEmbedding, precision: str, type_map: tuple[str, ...] | None) -> dict[str, Any]:
    """The inverse of `read_type_embedding`. precision: as the section has it."""
    layer = op.embedding.layers[0]
    return {
        "@class": "TypeEmbedNet",
        "@version": 2,
        "ntypes": op.ntypes,
        "neuron": [op.dim_out],
        "resnet_dt": layer.idt is not None,
        "precision": precision,
        "activation_function": layer.activation,
        "trainable": layer.trainable,
        "padding": True,
        "use_econf_tebd": op.configurations is not None,
        "use_tebd_bias": layer.b is not None,
        "type_map": None if type_map is None else list(type_map),
        "embedding": write_network(
            op.embedding, "EmbeddingNetwork", layer.idt is not None, dtype_name(precision), layer.activation
        ),
    }
