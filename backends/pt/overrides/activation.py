"""silu and silut with written-out first and second derivatives.

Automatic differentiation of their formulas passes over the features a dozen times per order, and these are the
largest arrays of message-passing models. Here each order is a few passes, in place where nothing is recorded; every order can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch

from dpmodel.nn import Activation
from dpmodel.nn.activation import silut_threshold

__all__ = ["FusedActivation"]


class FusedActivation(Activation):
    """See the module's docstring. Other activations, and silut where an argument reaches its threshold, go the usual way."""

    def call(self, x: Any) -> Any:
        key = self.name.lower()
        if key == "silu":
            return _Silu.apply(x)
        threshold = silut_threshold(key)
        # Asking a device for the largest number would make the host wait for it.
        if threshold is None or not x.numel() or x.device.type != "cpu" or float(x.detach().max()) >= threshold:
            return super().call(x)
        return _Silu.apply(x)


class _Silu(torch.autograd.Function):
    """x s(x)."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return _SiluSlope.apply(x, gradients[0])


class _SiluSlope(torch.autograd.Function):
    """g y'(x)."""

    @staticmethod
    def forward(ctx: Any, x: Any, g: Any) -> Any:
        ctx.save_for_backward(x, g)
        return torch.ops.aten.silu_backward(g, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, g = ctx.saved_tensors
        (gg,) = gradients
        of_g = _SiluSlope.apply(x, gg) if ctx.needs_input_grad[1] else None
        return (_curvature(x, g, gg) if ctx.needs_input_grad[0] else None), of_g


def _curvature(x: Any, g: Any, gg: Any) -> Any:
    """g gg y''(x), with y'' = s (1 - s) (2 + x (1 - 2 s)) and s the logistic function."""
    s = torch.sigmoid(x)
    if torch.is_grad_enabled() and any(each.requires_grad for each in (x, g, gg)):
        return s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s)) * g * gg
    bend = torch.rsub(s, 1.0, alpha=2.0).mul_(x).add_(2.0).mul_(g).mul_(gg)
    return torch.ops.aten.sigmoid_backward(bend, s)
