"""se_e2_a through Chebyshev expansions of its embedding nets.

An embedding net of se_e2_a is a function of one number s. On the interval that the neighbours of a call occupy
it is expanded as Net(s) = sum_k V[k] T_k(z(s)), with V from the net's values at K Chebyshev nodes (Trefethen,
Approximation Theory and Approximation Practice, ch. 3-4). Then

    G_i = sum_j Net(s_ij) (x) R_ij = V^T B_i,    B_i = sum_j T(z_ij) (x) R_ij          (K, 4)

so the net runs K times instead of once per neighbour, and no tensor is as wide as the net. Nets are analytic where
their activations are: the coefficients fall geometrically to rounding. K is doubled until they do; where they do not
(relu, say), the direct form of the reference is used. Gradients of the weights flow through V.

The derivatives are written out: the first with respect to s, R, V and the second as training on forces needs it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from dpmodel.descriptors import SeA
from dpmodel.nn import MLP

__all__ = ["SpectralSeA"]

ORDERS = {torch.float32: (16, 24, 32, 48, 64), torch.float64: (32, 48, 64, 96, 128)}
"""Numbers of terms to try, by precision."""
TAIL = 4
"""How many of the last coefficients must have fallen to rounding."""
MARGIN = 0.05
"""The interval is widened by this share on both sides: derivatives lose precision at its very ends."""


class SpectralSeA(SeA):
    """See the module's docstring."""

    def _embed(self, network: MLP, table: Any) -> Any:
        if table.shape[0] * table.shape[1] < 256 or table.dtype not in ORDERS:
            return super()._embed(network, table)
        s = table[:, :, 0]
        low, high = torch.stack(torch.aminmax(s.detach())).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            return super()._embed(network, table)
        pad = MARGIN * max(high - low, 1e-3)
        centre, half = 0.5 * (low + high), 0.5 * (high - low) + pad
        values = coefficients(network, centre, half, table)
        if values is None:
            return super()._embed(network, table)
        return _Moments.apply(s, table, values, centre, half)


def coefficients(network: MLP, centre: float, half: float, like: torch.Tensor) -> torch.Tensor | None:
    """(K, M) Chebyshev coefficients of the net on centre +- half; None where they do not fall to rounding."""
    small = 8 * torch.finfo(like.dtype).eps
    for order in ORDERS[like.dtype]:
        nodes, transform = _nodes(order, like.dtype, like.device)
        v = transform @ network((centre + half * nodes)[:, None])
        size = v.detach().abs()
        tail, largest = torch.stack((size[-TAIL:].max(), size.max())).tolist()
        if tail <= small * largest:
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


def _basis(s: torch.Tensor, order: int, centre: float, half: float, derivatives: int) -> list[torch.Tensor]:
    """T_k(z(s)) and its derivatives with respect to s, each (n, order, w), from the three-term recurrences.

    Stored with the order as the slowest axis, so that every step works on contiguous memory.
    """
    z = ((s - centre) / half).contiguous()
    out = [s.new_empty((order, *s.shape)) for _ in range(derivatives + 1)]
    out[0][0] = 1.0
    out[0][1] = z
    for d in range(1, derivatives + 1):
        out[d][0] = 0.0
        out[d][1] = 1.0 / half if d == 1 else 0.0
    double = 2.0 * z
    for k in range(2, order):
        for d in range(derivatives + 1):
            torch.mul(double, out[d][k - 1], out=out[d][k])
            out[d][k].sub_(out[d][k - 2])
            if d:  # (z T)' = T dz + z T', and so on
                out[d][k].add_(out[d - 1][k - 1], alpha=2.0 * d / half)
    return [b.permute(1, 0, 2) for b in out]


class _Moments(torch.autograd.Function):
    """G (n, M, 4) from s (n, w), R (n, w, 4), V (K, M)."""

    @staticmethod
    def forward(ctx: Any, s: Any, r: Any, v: Any, centre: float, half: float) -> Any:
        basis = _basis(s, v.shape[0], centre, half, 1 if ctx.needs_input_grad[0] else 0)
        moments = torch.bmm(basis[0], r)  # (n, K, 4)
        ctx.save_for_backward(s, r, v, moments, *basis)
        ctx.interval = (centre, half)
        return torch.matmul(v.t(), moments)

    @staticmethod
    def backward(ctx: Any, a: Any) -> Any:
        s, r, v, moments, *basis = ctx.saved_tensors
        ds = dr = dv = None
        if ctx.needs_input_grad[0]:
            ds, dr = _Slopes.apply(a, r.detach(), v, *basis)
            if torch.is_grad_enabled():
                zero_s, zero_r = _Curvature.apply(s, r, a.detach(), v.detach(), basis[1], *ctx.interval)
                ds, dr = ds + zero_s, dr + zero_r
        if ctx.needs_input_grad[2]:
            if torch.is_grad_enabled():
                moments = _Expansion.apply(s, r, basis[0], *ctx.interval)
            dv = _sum_outer(moments, a)
        return ds, dr, dv, None, None


class _Expansion(torch.autograd.Function):
    """B (n, K, 4) from s (n, w) and R (n, w, 4), for derivatives of the weights' gradient."""

    @staticmethod
    def forward(ctx: Any, s: Any, r: Any, t0: Any, centre: float, half: float) -> Any:
        ctx.save_for_backward(s, r, t0)
        ctx.interval = (centre, half)
        return torch.bmm(t0, r)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Any) -> Any:
        s, r, t0 = ctx.saved_tensors
        centre, half = ctx.interval
        t1 = _basis(s, t0.shape[1], centre, half, 1)[1]
        return (torch.bmm(t1.transpose(1, 2), g) * r).sum(-1), torch.bmm(t0.transpose(1, 2), g), None, None, None


class _Slopes(torch.autograd.Function):
    """The first derivatives with respect to s (n, w) and R (n, w, 4), for A = dE/dG (n, M, 4).

    With P = V A (n, K, 4): dR = T^T P and ds = sum_c (T'^T P)_c R_c. Differentiable again in A and V.
    """

    @staticmethod
    def forward(ctx: Any, a: Any, r: Any, v: Any, t0: Any, t1: Any) -> Any:
        ctx.save_for_backward(a, r, v, t0, t1)
        p = torch.matmul(v, a)
        return (torch.bmm(t1.transpose(1, 2), p) * r).sum(-1), torch.bmm(t0.transpose(1, 2), p)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gs: Any, gr: Any) -> Any:
        a, r, v, t0, t1 = ctx.saved_tensors
        gp = torch.bmm(t0, gr)
        gp += torch.bmm(t1, gs[:, :, None] * r)
        return torch.matmul(v.t(), gp), None, _sum_outer(gp, a), None, None


class _Curvature(torch.autograd.Function):
    """Zero, with the derivatives of the slopes with respect to s and R.

    A node of its own: training on forces differentiates with respect to weights alone, and then never runs it.
    """

    @staticmethod
    def forward(ctx: Any, s: Any, r: Any, a: Any, v: Any, t1: Any, centre: float, half: float) -> Any:
        ctx.save_for_backward(s, r, a, v, t1)
        ctx.interval = (centre, half)
        return s.new_zeros(()).expand(s.shape), s.new_zeros(()).expand(r.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gs: Any, gr: Any) -> Any:
        s, r, a, v, t1 = ctx.saved_tensors
        centre, half = ctx.interval
        p = torch.matmul(v, a)
        q1 = torch.bmm(t1.transpose(1, 2), p)
        q2 = torch.bmm(_basis(s, v.shape[0], centre, half, 2)[2].transpose(1, 2), p)
        ds = (q1 * gr).sum(-1) + gs * (q2 * r).sum(-1)
        return ds, gs[:, :, None] * q1, None, None, None, None, None


def _sum_outer(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(n, K, 4), (n, M, 4) -> (K, M): sum over atoms and components."""
    return x.permute(1, 0, 2).reshape(x.shape[1], -1) @ y.permute(1, 0, 2).reshape(y.shape[1], -1).t()
