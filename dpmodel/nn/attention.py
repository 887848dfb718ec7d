"""Self-attention of the neighbours of an atom (DPA-1, Zhang et al., npj Comput. Mater. 2024)."""

from __future__ import annotations

from dpmodel.nn.layer_norm import LayerNorm, make_layer_norm
from dpmodel.nn.mlp import Linear, Seed, child_seed, make_linear
from dpmodel.op import Array, Op, child
from dpmodel.ops import array_namespace, safe_norm

__all__ = ["SHIFT", "NeighbourAttention", "make_neighbour_attention", "masked_softmax"]

SHIFT = 20.0
"""Logits of pairs that the switch function hides go to minus this."""


def masked_softmax(logits: Array, mask: Array, empty: Array | None = None) -> Array:
    """Softmax over the last axis of what is shown; 0 elsewhere, also where nothing is shown.

    mask: broadcasts to logits. empty: (..., 1), how many entries with the logit -SHIFT there are besides.
    """
    xp = array_namespace(logits)
    hidden = xp.full_like(logits, _LOWEST)
    shown = xp.where(mask, logits, hidden)
    # A column more: the axis may have no entry at all, and the largest logit is never that of a hidden one.
    last = xp.full_like(xp.sum(logits, axis=-1, keepdims=True), _LOWEST if empty is None else -SHIFT)
    top = xp.max(xp.concat([shown, last], axis=-1), axis=-1, keepdims=True)
    weights = xp.exp(shown - top)
    weights = xp.where(mask, weights, xp.zeros_like(weights))
    total = xp.sum(weights, axis=-1, keepdims=True)
    if empty is not None:
        total = total + empty * xp.exp(-SHIFT - top)
    return weights / xp.where(total > 0, total, xp.ones_like(total))


_LOWEST = -1e30
"""Below every logit, and finite in every precision."""


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

    def call(self, g: Array, real: Array, s: Array, cosine: Array, empty: Array) -> Array:
        """(n, w, M) -> (n, w, M).

        real: (n, w), neighbours that take part. s: (n, w). cosine: (n, w, w), of pairs of directions. empty: (n,), how
        many slots of an atom hold nothing that takes part.
        """
        xp, h = array_namespace(g), self.outward.w.shape[0]
        qkv = self.inward(g)
        q, k, v = (self._unit(qkv[:, :, i * h : (i + 1) * h]) for i in range(3))
        logits = xp.matmul(q * self.scale, xp.permute_dims(k, (0, 2, 1)))
        if self.smooth:
            both = s[:, :, None] * s[:, None, :]
            weights = masked_softmax((logits + SHIFT) * both - SHIFT, real[:, None, :], empty[:, None, None]) * both
        else:
            weights = masked_softmax(logits, real[:, None, :])
            weights = xp.where(real[:, :, None], weights, xp.zeros_like(weights))
        if self.dotr:
            weights = weights * cosine
        return self.rest(g, xp.matmul(weights, v))

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
