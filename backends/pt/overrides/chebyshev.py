"""Expansions of functions of one number in Chebyshev polynomials, and sums over neighbours against them.

On an interval that is centre +- half, f(s) = sum_k V[k] T_k(z), z = (s - centre) / half, with V from the values at K
Chebyshev nodes (Trefethen, Approximation Theory and Approximation Practice, ch. 3-4). Where f is analytic the
coefficients fall geometrically to rounding, which their tail shows.

`moments` is all that neighbours enter: B_i[c, k] = sum_j R_ij[c] T_k(z_ij). T_k' is a combination of the polynomials
below k, T' = D T: derivatives with respect to s need no other array than T, for they can be moved to what it is
contracted with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["ORDERS", "Interval", "basis", "coefficients", "interval_of", "moments"]

ORDERS = {torch.float32: (16, 24, 32, 48, 64), torch.float64: (32, 48, 64, 96, 128)}
"""Numbers of terms to try, by precision."""
TAIL = 4
"""How many of the last coefficients must have fallen to rounding."""
MARGIN = 0.05
"""The interval is widened by this share on both sides: derivatives lose precision at its very ends."""
FEWEST = 256
"""Fewer neighbour slots are computed directly."""


class Interval(NamedTuple):
    """Where a function is expanded."""

    centre: float
    half: float


def interval_of(s: torch.Tensor) -> Interval | None:
    """What all numbers of s lie in; None where an expansion does not pay, or they are not finite."""
    if s.numel() < FEWEST or s.dtype not in ORDERS:
        return None
    low, high = torch.stack(torch.aminmax(s.detach())).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return Interval(0.5 * (low + high), 0.5 * (high - low) + MARGIN * max(high - low, 1e-3))


def coefficients(
    function: Callable[[torch.Tensor], torch.Tensor], where: Interval, like: torch.Tensor
) -> torch.Tensor | None:
    """(..., K, M) coefficients of a function (K, 1) -> (..., K, M); None where some do not fall to rounding.

    Leading axes are functions of their own: each must fall, relative to its largest coefficient.
    """
    small = 8 * torch.finfo(like.dtype).eps
    for order in ORDERS[like.dtype]:
        nodes, transform = _nodes(order, like.dtype, like.device)
        v = transform @ function((where.centre + where.half * nodes)[:, None])
        size = v.detach().abs().amax(dim=-1)
        if bool((size[..., -TAIL:].amax(dim=-1) <= small * size.amax(dim=-1)).all()):
            return v
    return None


@functools.cache
def _nodes(order: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Chebyshev nodes (order,) and the matrix (order, order) from values there to coefficients.

    The angle k (2 j + 1) pi / (2 order) is reduced to one turn in integers: large arguments would cost the cosine
    digits that the test of the tail needs.
    """
    j, k = np.arange(order), np.arange(order)[:, None]
    transform = 2.0 / order * np.cos(np.pi * ((k * (2 * j + 1)) % (4 * order)) / (2 * order))
    transform[0] *= 0.5
    nodes = np.cos(np.pi * (2 * j + 1) / (2 * order))
    return torch.as_tensor(nodes, dtype=dtype, device=device), torch.as_tensor(transform, dtype=dtype, device=device)


def _slopes(half: float, t: torch.Tensor) -> torch.Tensor:
    """D (order, order) for polynomials t (order, n, w) on an interval: dT_k/ds = sum_j D[k, j] T_j."""
    return _unit_slopes(t.shape[0], t.dtype, t.device) / half


@functools.cache
def _unit_slopes(order: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """D for half = 1, from T_k' = 2 k (T_(k-1) + T_(k-3) + ...), T_0 halved. Intervals are many: none is kept."""
    k, j = np.arange(order)[:, None], np.arange(order)
    matrix = np.where((j < k) & ((k - j) % 2 == 1), 2.0 * k, 0.0)
    matrix[:, 0] *= 0.5
    return torch.as_tensor(matrix, dtype=dtype, device=device)


def basis(s: torch.Tensor, order: int, where: Interval) -> torch.Tensor:
    """T_k(z(s)) as (order, n, w): every step of the three-term recurrence works on contiguous memory."""
    out = s.new_empty((order, *s.shape))
    z = torch.sub(s, where.centre).div_(where.half)
    out[0] = 1.0
    out[1] = z
    z = z.mul_(2.0)
    for k in range(2, order):
        torch.mul(z, out[k - 1], out=out[k])
        out[k].sub_(out[k - 2])
    return out


def moments(s: torch.Tensor, r: torch.Tensor, order: int, where: Interval) -> torch.Tensor:
    """B (n, c, K) from s (n, w) and R (n, w, c)."""
    found: torch.Tensor = _Moments.apply(s, r, order, where)
    return found


class _Moments(torch.autograd.Function):
    """See `moments`."""

    @staticmethod
    def forward(ctx: Any, s: Any, r: Any, order: int, where: Interval) -> Any:
        t = basis(s, order, where)
        ctx.save_for_backward(s, r, t)
        ctx.where = where
        return torch.bmm(r.transpose(1, 2), t.permute(1, 2, 0))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,), (s, r, t) = gradients, ctx.saved_tensors
        ds, dr = _Slopes.apply(g, r.detach(), t, ctx.where)
        if torch.is_grad_enabled():
            zero_s, zero_r = _Curvature.apply(s, r, g.detach(), t, ctx.where)
            ds, dr = ds + zero_s, dr + zero_r
        return ds, dr, None, None


def _both(g: torch.Tensor, t: torch.Tensor, half: float, orders: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """sum_k g[n, c, k] T_k^(d), for every d of `orders`: (n, c, w) each, in one product."""
    d = _slopes(half, t)
    parts = [g]
    for _ in range(max(orders)):
        parts.append(parts[-1] @ d)
    chosen = [parts[k] for k in orders]
    return torch.bmm(torch.cat(chosen, dim=1), t.permute(1, 0, 2)).split(g.shape[1], dim=1)


class _Slopes(torch.autograd.Function):
    """The gradients of s (n, w) and R (n, w, c), from that of B (n, c, K).

    dR = T^T g and ds = sum_c (T'^T g)_c R_c. Differentiable again in g alone.
    """

    @staticmethod
    def forward(ctx: Any, g: Any, r: Any, t: Any, where: Interval) -> Any:
        ctx.save_for_backward(r, t)
        ctx.where = where
        dr, bend = _both(g, t, where.half, (0, 1))
        return (bend * r.transpose(1, 2)).sum(1), dr.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gs: Any, gr: Any) -> Any:
        r, t = ctx.saved_tensors
        columns = torch.cat((gr, gs[:, :, None] * r), dim=2)
        plain, bent = torch.bmm(columns.transpose(1, 2), t.permute(1, 2, 0)).split(r.shape[2], dim=1)
        d = _slopes(ctx.where.half, t)
        return plain + bent @ d.t(), None, None, None


class _Curvature(torch.autograd.Function):
    """Zero, with the derivatives of the slopes with respect to s and R.

    A node of its own: training on forces differentiates with respect to weights alone, and then never runs it.
    """

    @staticmethod
    def forward(ctx: Any, s: Any, r: Any, g: Any, t: Any, where: Interval) -> Any:
        ctx.save_for_backward(r, g, t)
        ctx.where = where
        return s.new_zeros(()).expand(s.shape), s.new_zeros(()).expand(r.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gs: Any, gr: Any) -> Any:
        r, g, t = ctx.saved_tensors
        first, second = _both(g, t, ctx.where.half, (1, 2))
        ds = (first * gr.transpose(1, 2)).sum(1) + gs * (second * r.transpose(1, 2)).sum(1)
        return ds, gs[:, :, None] * first.transpose(1, 2), None, None, None
