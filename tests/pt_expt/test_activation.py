"""silu and silut by one exponential: values, slopes and curvatures of the formulas."""

from __future__ import annotations

import pytest
import torch

from dpmodel.backends.pt.bridge import to_torch
from dpmodel.backends.pt_expt.activation import SigmoidActivation
from dpmodel.nn import Activation

EDGES = (3.0, 10.0)
"""Thresholds, where both sides meet."""


def orders(name: str, x: torch.Tensor, *, overridden: bool) -> list[torch.Tensor]:
    """The activation and its first three derivatives."""
    module = to_torch(Activation(name=name), overrides={Activation: SigmoidActivation} if overridden else {})
    x = x.clone().requires_grad_(True)
    found = [module(x)]
    for _ in range(3):
        found.append(torch.autograd.grad(found[-1].sum(), x, create_graph=True)[0])
    return [value.detach() for value in found]


@pytest.mark.parametrize(
    "name", ["silu", "SiLU", "silut", "silut:3.0", "silut:10.0", "silut:0.7", "custom_silu:3.0", "tanh"]
)
def test_as_the_formula(name: str) -> None:
    near = [edge + d for edge in EDGES for d in (-1e-9, 0.0, 1e-9)]
    x = torch.cat([torch.linspace(-40.0, 40.0, 4001), torch.tensor([0.0, -300.0, 300.0, *near])]).double()
    ours, expected = (orders(name, x, overridden=which) for which in (True, False))
    for order, (one, two) in enumerate(zip(ours, expected, strict=True)):
        assert bool(torch.isfinite(one).all())
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13, msg=f"derivative {order} of {name}")


@pytest.mark.parametrize("name", ["silu", "silut:10.0"])
def test_single_precision(name: str) -> None:
    x = torch.linspace(-90.0, 90.0, 2001)
    for one, two in zip(orders(name, x, overridden=True), orders(name, x.double(), overridden=False), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)
