"""One layer of dpa2's message passing (DPA-2, Zhang et al., npj Comput. Mater. 2024).

With g1 the features of an atom, g2 those of a pair, h2 the direction of a pair, gg those g1 of the neighbour, s the
switch function of a pair (0 where a slot is empty), n the number of slots, phi the activation, A `axis_neuron`:

    HG(g)       = c sum_j s_j h2_j (x) g_j                                   (3, width); c = n^(-1/2) or 1/n
    GRRG(H)     = 1/3 H[:, :A]^T H                                           (A * width,)
    atoms       g1, phi(self g1), 1/n sum_j s_j proj(g2_j) gg_j, phi(linear1 [GRRG(HG(g2)) | GRRG(HG(gg))]), attention
    pairs       g2, phi(linear2 g2), proj(s_j g1_i gg_j), attention
    directions  h2, attention

Each list is summed as `update_style` says. Without `smooth`, s is 1 for every neighbour, and n their number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from dpmodel.nn import Activation, LayerNorm, Linear
from dpmodel.nn.attention import Gates, gates, padded, weights
from dpmodel.nn.residual import combine
from dpmodel.op import Array, Op, child, param
from dpmodel.ops import array_namespace

__all__ = ["LocalAttention", "PairAttention", "Pairs", "RepformerLayer", "symmetrised"]


class Pairs(NamedTuple):
    """What is the same for all layers. w: slots of an atom."""

    real: Array
    """(n, w) bool: slots with a neighbour that takes part."""
    s: Array
    """(n, w): switch function; with `smooth` False, 1. 0 where not real."""
    count: Array
    """(n,): neighbours that take part."""
    empty: Array
    """(n,): slots without, of all that there are."""
    total: float
    """All slots of an atom."""


def symmetrised(g: Array, h: Array, pairs: Pairs, *, smooth: bool, root: bool) -> Array:
    """HG: (n, w, c), (n, w, 3) -> (n, 3, c)."""
    xp = array_namespace(g)
    sums = xp.matmul(xp.permute_dims(h * pairs.s[:, :, None], (0, 2, 1)), g)
    if smooth:
        return sums * (pairs.total**-0.5 if root else 1.0 / pairs.total)
    norm = 1e-4 + (_root(pairs.count) if root else pairs.count)
    return sums / norm[:, None, None]


def _root(x: Array) -> Array:
    return array_namespace(x).sqrt(x)


def _products(h: Array, axis: int) -> Array:
    """GRRG: (n, 3, c) -> (n, axis * c)."""
    xp = array_namespace(h)
    out = xp.matmul(xp.permute_dims(h[:, :, :axis], (0, 2, 1)), h) / 3.0
    return xp.reshape(out, (out.shape[0], axis * h.shape[2]))


class PairAttention(Op):
    """Weights between the pairs of an atom, and what they do to features and directions."""

    heads: int
    hidden: int
    gate: bool
    smooth: bool
    query_key: Linear = child()
    """(g2, 2 * hidden * heads): head fastest, queries first."""
    value: Linear | None = child(default=None)
    """(g2, g2 * heads), head fastest; None: features are not updated."""
    head: Linear | None = child(default=None)
    """(g2 * heads, g2)."""
    norm: LayerNorm | None = child(default=None)
    turn: Linear | None = child(default=None)
    """(heads, 1); None: directions are not updated."""

    def gates(self, h: Array, pairs: Pairs) -> Gates:
        """Of directions (n, w, 3): what layers share until directions are updated."""
        xp, real = array_namespace(h), pairs.real[:, None, None, :]
        turned = xp.matmul(h, xp.matrix_transpose(h))[:, None, :, :]
        both = None
        if self.smooth:
            both = (pairs.s[:, :, None] * pairs.s[:, None, :])[:, None, :, :]
        else:
            real = real & pairs.real[:, None, :, None]
        return gates(real, both, pairs.empty[:, None, None, None], turned, turns_logits=self.gate)

    def call(self, g: Array, h: Array, by: Gates) -> tuple[Array | None, Array | None]:
        """(n, w, g2), (n, w, 3) -> updates of both, None where there is none."""
        xp, (n, w, _) = array_namespace(g), g.shape
        qk = xp.reshape(self.query_key(g), (n, w, self.hidden, 2 * self.heads))
        qk = xp.permute_dims(qk, (0, 3, 1, 2)) / math.sqrt(math.sqrt(self.hidden))
        found = weights(qk[:, : self.heads, :, :], qk[:, self.heads :, :, :], by)
        return self._features(found, g), self._directions(found, h)

    def _features(self, found: Array, g: Array) -> Array | None:
        if self.value is None or self.head is None or self.norm is None:
            return None
        xp, (n, w, c) = array_namespace(g), g.shape
        values = xp.permute_dims(xp.reshape(self.value(g), (n, w, c, self.heads)), (0, 3, 1, 2)) / math.sqrt(3.0)
        out = xp.permute_dims(xp.matmul(found, padded(values)), (0, 2, 3, 1))
        return self.norm(self.head(xp.reshape(out, (n, w, c * self.heads))))

    def _directions(self, found: Array, h: Array) -> Array | None:
        if self.turn is None:
            return None
        xp = array_namespace(h)
        out = xp.matmul(found, padded(h / math.sqrt(3.0))[:, None, :, :])
        return self.turn(xp.permute_dims(out, (0, 2, 3, 1)))[:, :, :, 0]


class LocalAttention(Op):
    """Attention of an atom to its neighbours."""

    heads: int
    hidden: int
    smooth: bool
    query: Linear = child()
    """(g1, hidden * heads), head fastest."""
    key_value: Linear = child()
    """(g1, (hidden + g1) * heads), head fastest, keys first."""
    head: Linear = child()
    """(g1 * heads, g1), from head slowest."""

    def call(self, g: Array, gg: Array, pairs: Pairs) -> Array:
        """(n, g1), (n, w, g1) -> (n, g1)."""
        xp, (n, w, c), d = array_namespace(g), gg.shape, self.hidden
        q = xp.permute_dims(xp.reshape(self.query(g), (n, d, self.heads)), (0, 2, 1))[:, :, None, :]
        kv = xp.permute_dims(xp.reshape(self.key_value(gg), (n, w, d + c, self.heads)), (0, 3, 1, 2))
        s = pairs.s[:, None, None, :] if self.smooth else None
        by = gates(pairs.real[:, None, None, :], s, pairs.empty[:, None, None, None])
        found = weights(q / math.sqrt(d), kv[:, :, :, :d], by)
        out = xp.matmul(found, padded(kv[:, :, :, d:]))
        return self.head(xp.reshape(out, (n, self.heads * c)))


class RepformerLayer(Op):
    """See the module's docstring."""

    axis: int
    style: str
    smooth: bool
    root: bool
    """HG is divided by the root of the number of slots, not by the number."""
    activation: Activation = child()
    linear1: Linear = child()
    linear2: Linear | None = child(default=None)
    """None in the last layer, which leaves pairs and directions as they are."""
    self_mlp: Linear | None = child(default=None)
    convolution: Linear | None = child(default=None)
    """(g2, g1) where its result is an update of the atom; (g1, g2) where linear1 reads it."""
    drrd: bool
    grrg: bool
    pair_product: Linear | None = child(default=None)
    pair_attention: PairAttention | None = child(default=None)
    local_attention: LocalAttention | None = child(default=None)
    node_residual: Array | None = param(default=None)
    """(updates, g1): by position, in the order of the updates."""
    pair_residual: Array | None = param(default=None)
    """(updates, g2)."""
    direction_residual: Array | None = param(default=None)
    """(updates, 1)."""
    convolves_out: bool
    trainable: bool = True  # type: ignore[misc]  # a field of this class, a constant of the others

    def call(
        self, g1: Array, gg: Array, g2: Array, h2: Array, pairs: Pairs, by: Gates | None
    ) -> tuple[Array, Array, Array]:
        """(n, g1), (n, w, g1), (n, w, g2), (n, w, 3) -> g1, g2, h2. by: of the attention between pairs."""
        phi = self.activation
        nodes = [g1]
        inner = []
        if self.self_mlp is None:
            inner.append(g1)
        else:
            nodes.append(phi(self.self_mlp(g1)))
        if self.convolution is not None:
            found = self._convolved(gg, g2, pairs)
            (nodes if self.convolves_out else inner).append(found)
        if self.grrg:
            inner.append(_products(symmetrised(g2, h2, pairs, smooth=self.smooth, root=self.root), self.axis))
        if self.drrd:
            inner.append(_products(symmetrised(gg, h2, pairs, smooth=self.smooth, root=self.root), self.axis))
        nodes.append(phi(self.linear1(array_namespace(g1).concat(inner, axis=-1))))
        if self.local_attention is not None:
            nodes.append(self.local_attention(g1, gg, pairs))
        new = combine(nodes, self.style, self.node_residual)
        if self.linear2 is None:
            return new, g2, h2
        updates, turns = [g2, phi(self.linear2(g2))], [h2]
        if self.pair_product is not None:
            updates.append(self.pair_product(g1[:, None, :] * gg * pairs.s[:, :, None]))
        if self.pair_attention is not None:
            assert by is not None
            features, directions = self.pair_attention(g2, h2, by)
            updates += [] if features is None else [features]
            turns += [] if directions is None else [directions]
        return (
            new,
            combine(updates, self.style, self.pair_residual),
            combine(turns, self.style, self.direction_residual),
        )

    def _convolved(self, gg: Array, g2: Array, pairs: Pairs) -> Array:
        """(n, g1 or g2), from sum_j s_j g2_j (x) gg_j."""
        assert self.convolution is not None
        xp, w = array_namespace(gg), self.convolution.w[...]
        sums = xp.matmul(xp.matrix_transpose(g2 * pairs.s[:, :, None]), gg)
        sums = xp.sum(sums * w, axis=1) if self.convolves_out else xp.sum(sums * xp.matrix_transpose(w), axis=2)
        return sums / pairs.total if self.smooth else sums / (1e-4 + pairs.count)[:, None]
