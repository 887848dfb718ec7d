"""silu and silut by one exponential each.

Their formulas take a hyperbolic tangent, and silut a second one for arguments above its threshold. Compiled code
computes both sides of every choice, and keeps what each needs for its derivatives; these are the largest arrays of
message-passing models. With s the logistic function and a, v the slope and value of silu at the threshold T,

    silut(x) = x s(u)             u = x             x < T
               2 s(u) - 1 + v     u = 2 a (x - T)   x >= T     (as tanh(z) = 2 s(2 z) - 1)

so one choice before it and one after it leave one exponential.
"""

from __future__ import annotations

from typing import Any

import torch

from dpmodel.nn import Activation
from dpmodel.nn.activation import silut_numbers, silut_threshold

__all__ = ["SigmoidActivation"]


class SigmoidActivation(Activation):
    """See the module's docstring. Other activations are computed as they are."""

    def call(self, x: Any) -> Any:
        name = self.name.lower()
        if name == "silu":
            return x * torch.sigmoid(x)
        threshold = silut_threshold(name)
        if threshold is None:
            return super().call(x)
        slope, value = silut_numbers(threshold)
        below = x < threshold
        logistic = torch.sigmoid(torch.where(below, x, (2.0 * slope) * (x - threshold)))
        return torch.where(below, x * logistic, 2.0 * logistic + (value - 1.0))
