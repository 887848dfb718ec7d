"""Self-attention of the neighbours of an atom (DPA-1, Zhang et al., npj Comput. Mater. 2024)."""

from __future__ import annotations

from typing import NamedTuple

from dpmodel.nn.layer_norm import LayerNorm, make_layer_norm
from dpmodel.nn.mlp import Linear, Seed, child_seed, make_linear
from dpmodel.op import Array, Op, child
from dpmodel.ops import array_namespace, as_dtype, safe_norm, softmax, zeros

__all__ = ["Gates", "NeighbourAttention", "gates", "make_neighbour_attention", "padded", "weights"]

SHIFT = 20.0
"""Logits of pairs that the switch function hides go to minus this."""
LOWEST = -1e30
"""Below every logit."""


class Gates(NamedTuple):
    """What turns products of queries and keys into weights: softmax(product * gate + offset) * factor.

    The last column stands for nothing, or for all empty slots together; its factor is 0.
    """

    gate: Array | None
    """(..., w + 1); None: 1."""
    offset: Array
    """(..., w + 1): the lowest where a slot is hidden."""
    factor: Array
    """(..., w + 1)."""


def gates(
    real: Array, s: Array | None, empty: Array, turned: Array | None = None, *, turns_logits: bool = False
) -> Gates:
    """The gates of a softmax over slots.

    Without s over the real ones alone. With s, logits fall to -SHIFT where it vanishes, empty slots have that logit, and
    the weights are multiplied by s.

    Args:
        real: (..., w) bool, slots that take part; broadcasts to the shape of the logits.
        s: (..., w), the switch function of a slot or pair; None: not smooth.
        empty: (..., 1), how many slots do not take part.
        turned: (..., w), multiplies the weights.
        turns_logits: it multiplies the logits as well.
    """
    xp = array_namespace(empty)
    # Half of what the precision holds (float16 ends at 65504), so that a logit beside it does not overflow.
    lowest = max(LOWEST, 0.5 * float(xp.finfo(empty.dtype).min))
    if s is None:
        shown, gate = as_dtype(real, empty.dtype), None
        offset, last = (1.0 - shown) * lowest, xp.full_like(empty, 0.5 * lowest)
    else:
        shown, gate = s, s
        offset = xp.where(real, SHIFT * (s - 1.0), xp.full_like(s, lowest))
        some = empty > 0
        count = xp.log(xp.where(some, empty, xp.ones_like(empty)))
        last = xp.where(some, count - SHIFT, xp.full_like(empty, lowest))
    factor = shown
    if turned is not None:
        factor = shown * turned
        if turns_logits:
            gate = turned if gate is None else factor
    last = xp.broadcast_to(last, (*offset.shape[:-1], 1))
    return Gates(None if gate is None else _column(gate), xp.concat([offset, last], axis=-1), _column(factor))


def weights(q: Array, k: Array, by: Gates) -> Array:
    """(..., v, d), (..., w, d) -> (..., v, w + 1): of the rows of k, and of the last column of the gates."""
    xp = array_namespace(q)
    logits = xp.matmul(q, xp.matrix_transpose(padded(k)))
    return softmax((logits if by.gate is None else logits * by.gate) + by.offset) * by.factor


def padded(x: Array) -> Array:
    """(..., w, c) -> (..., w + 1, c): one row of zeros more, for the last column of the weights."""
    xp = array_namespace(x)
    return xp.concat([x, zeros((*x.shape[:-2], 1, x.shape[-1]), x)], axis=-2)


def _column(x: Array) -> Array:
    """(..., w) -> (..., w + 1), with zeros."""
    return array_namespace(x).concat([x, zeros((*x.shape[:-1], 1), x)], axis=-1)


class NeighbourAttention(Op):
    """One layer: g <- LayerNorm(g + out(softmax(q k^T) v)), gated by directions and switch functions.

    With s the switch function of a neighbour (0 where there is none) and u its direction,

        L_jk = scale q_j . k_k                       smooth: L_jk <- (L_jk + 20) s_j s_k - 20
        P_jk = softmax_k(L_jk)                       smooth: times s_j s_k; not smooth: over real neighbours alone
        P_jk <- P_jk u_j . u_k                       with `dotr`
    """

    inward: Linear = child()
    """(M, 3 H): queries, keys, values."""
    outward: Linear = child()
    """(H, M)."""
    norm: LayerNorm = child()
    scale: float
    normalise: bool
    """Divide queries, keys and values by their lengths."""
    smooth: bool
    dotr: bool

    def gates(self, real: Array, s: Array, cosine: Array, empty: Array) -> Gates:
        """What layers of one descriptor share.

        real: (n, w), neighbours that take part. s: (n, w). cosine: (n, w, w), of pairs of directions. empty: (n,), how
        many slots of an atom hold nothing that takes part.
        """
        turned, shown = cosine if self.dotr else None, real[:, None, :]
        if self.smooth:
            return gates(shown, s[:, :, None] * s[:, None, :], empty[:, None, None], turned)
        return gates(shown & real[:, :, None], None, empty[:, None, None], turned)

    def call(self, g: Array, by: Gates) -> Array:
        """(n, w, M) -> (n, w, M)."""
        h = self.outward.w.shape[0]
        qkv = self.inward(g)
        q, k, v = (self._unit(qkv[:, :, i * h : (i + 1) * h]) for i in range(3))
        return self.rest(g, array_namespace(g).matmul(weights(q * self.scale, k, by), padded(v)))

    def alone(self, g: Array) -> Array:
        """What becomes of slots that do not take part: (..., M) -> (..., M)."""
        bias = self.outward.b
        return self.norm(g if bias is None else g + bias)

    def rest(self, g: Array, update: Array) -> Array:
        """The end of the layer, from the weighted values."""
        return self.norm(g + self.outward(update))

    def _unit(self, x: Array) -> Array:
        if not self.normalise:
            return x
        xp, length = array_namespace(x), safe_norm(x, keepdims=True)
        return x / xp.where(length > 0, length, xp.ones_like(length))


def make_neighbour_attention(
    width: int, hidden: int, *, seed: Seed, dtype: str, scale: float, normalise: bool, smooth: bool, dotr: bool,
    eps: float, trainable: bool, trainable_norm: bool,
) -> NeighbourAttention:  # fmt: skip
    """With random weights."""
    return NeighbourAttention(
        inward=make_linear(width, 3 * hidden, seed=child_seed(seed, 0), dtype=dtype, trainable=trainable),
        outward=make_linear(hidden, width, seed=child_seed(seed, 1), dtype=dtype, trainable=trainable),
        norm=make_layer_norm(width, dtype=dtype, eps=eps, trainable=trainable_norm),
        scale=scale,
        normalise=normalise,
        smooth=smooth,
        dotr=dotr,
    )
