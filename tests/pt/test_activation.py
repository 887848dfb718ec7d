"""The written-out derivatives of silu and silut."""

import pytest
import torch

from dpmodel.backends.pt.overrides.activation import FusedActivation
from dpmodel.nn import Activation


def _values(x, name, kind):
    """y, y', y'', y''' of an activation, by automatic differentiation of sums."""
    x = x.clone().requires_grad_(True)
    found = [kind(name=name)(x)]
    for _ in range(3):
        (slope,) = torch.autograd.grad(found[-1].sum(), x, create_graph=True)
        found.append(slope)
    return [value.detach() for value in found]


@pytest.mark.parametrize("name", ["silu", "silut:10.0", "custom_silu:10.0", "silut:0.5", "SiLU"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_three_derivatives(name, dtype):
    x = torch.linspace(-30.0, 9.0, 400, dtype=dtype)
    for order, (ours, theirs) in enumerate(
        zip(_values(x, name, FusedActivation), _values(x, name, Activation), strict=True)
    ):
        error = float((ours - theirs).abs().max())
        assert error <= (1e-13 if dtype is torch.float64 else 1e-5), f"derivative {order}: {error}"


@pytest.mark.parametrize("name", ["silu", "silut:10.0"])
def test_gradients_of_gradients(name):
    x = torch.linspace(-3.0, 4.0, 12, dtype=torch.float64).reshape(3, 4).requires_grad_(True)
    function = FusedActivation(name=name)
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_beyond_the_threshold_silut_is_no_silu():
    x = torch.tensor([1.0, 12.0], dtype=torch.float64)
    assert torch.equal(FusedActivation(name="silut:10.0")(x), Activation(name="silut:10.0")(x))
    assert abs(float(FusedActivation(name="silut:10.0")(x)[1] - FusedActivation(name="silu")(x)[1])) > 0.1


def test_what_it_is_made_for_takes_the_short_way(monkeypatch):
    def refuse(self, x):
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(Activation, "call", refuse)
    x = torch.zeros(3, dtype=torch.float64)
    FusedActivation(name="silut:10.0")(x)
    with pytest.raises(AssertionError, match="the reference was asked"):
        FusedActivation(name="tanh")(x)


def test_no_elements():
    x = torch.zeros((0, 3), dtype=torch.float64, requires_grad=True)
    y = FusedActivation(name="silut:3.0")(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == slope.shape == (0, 3)
