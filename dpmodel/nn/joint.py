"""Embedding nets of a number and of the types of atoms, without arrays of their joint inputs.

A net of [x, t_1, ..., t_k], with x one number per pair and t_m a row of a table by type, begins with

    x w_0 + sum_m t_m W_m + b,

so the tables are multiplied once, and rows of the products are gathered. Only a first layer with a skip connection needs
the joint input itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpmodel.nn.mlp import MLP
from dpmodel.op import Array
from dpmodel.ops import array_namespace, take_rows

__all__ = ["joint_net", "pair_table"]


def joint_net(net: MLP, x: Array, table: Array, types: Sequence[Array]) -> Array:
    """Net([x, table[types[0]], table[types[1]], ...]): (..., 1) -> (..., M).

    table: (rows, d). types: integers of shapes that broadcast to that of x without its last axis.
    """
    first, width = net.layers[0], table.shape[1]
    joint = None
    if first.skips:
        xp = array_namespace(x)
        rows = [take_rows(table, index) for index in types]
        joint = xp.concat([x, *(xp.broadcast_to(row, (*x.shape[:-1], width)) for row in rows)], axis=-1)
    y = x * first.w[:1, :]
    for m, index in enumerate(types):
        y = y + take_rows(table @ first.w[1 + m * width : 1 + (m + 1) * width, :], index)
    y = y if first.b is None else y + first.b
    y = first.finish(y, joint)
    for layer in net.layers[1:]:
        y = layer(y)
    return y


def pair_table(net: MLP, table: Array) -> Array:
    """Net([table[b], table[a]]) of all pairs, at a * rows + b: (rows^2, M)."""
    xp, (rows, width) = array_namespace(table), table.shape
    one = xp.broadcast_to(table[None, :, :], (rows, rows, width))
    other = xp.broadcast_to(table[:, None, :], (rows, rows, width))
    return net(xp.reshape(xp.concat([one, other], axis=-1), (rows * rows, 2 * width)))
