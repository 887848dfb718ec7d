"""The spectral form of se_e2_a: derivatives of every order that is used, the choice of terms, fall-back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.bridge import override_table, to_torch
from dpmodel.backends.pt.overrides import OVERRIDES
from dpmodel.backends.pt.overrides.spectral import ORDERS, _basis, _Moments, coefficients
from dpmodel.nn.mlp import make_embedding_net


def net(dtype: str = "float64", activation: str = "tanh", width: tuple[int, ...] = (5, 10, 20)):
    return to_torch(make_embedding_net(1, width, seed=3, dtype=dtype, activation=activation, resnet_dt=False))


def test_derivatives_of_the_moments_in_every_order() -> None:
    rng = np.random.default_rng(0)
    s, r, v = (
        torch.tensor(rng.uniform(-1, 1, size=shape), requires_grad=True) for shape in ((2, 3), (2, 3, 4), (6, 5))
    )
    assert torch.autograd.gradcheck(lambda *x: _Moments.apply(*x, 0.1, 1.3), (s, r, v))
    assert torch.autograd.gradgradcheck(lambda *x: _Moments.apply(*x, 0.1, 1.3), (s, r, v))


@pytest.mark.parametrize(("dtype", "most"), [("float64", 48), ("float32", 32)])
def test_few_terms_give_the_net_to_rounding(dtype: str, most: int) -> None:
    module = net(dtype, width=(25, 50, 100))
    like = torch.zeros(1, dtype=getattr(torch, dtype))
    centre, half = 4.0, 4.6
    found = coefficients(module, centre, half, like)
    assert found is not None and found.shape[0] <= most
    s = torch.linspace(-0.4, 8.4, 1001, dtype=like.dtype)
    basis = _basis(s[None], found.shape[0], centre, half, 0)[0][0]  # (K, w)
    difference = (basis.t() @ found - module(s[:, None])).abs().max() / found.abs().max()
    assert float(difference.detach()) < 20 * torch.finfo(like.dtype).eps


def test_nets_that_are_not_smooth_have_no_expansion() -> None:
    assert coefficients(net(activation="relu"), 0.0, 2.0, torch.zeros(1, dtype=torch.float64)) is None


def test_the_expansion_is_used_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpmodel.backends.pt.overrides import spectral
    from dpmodel.descriptors import SeA, SeAConfig

    calls = []
    original = spectral.coefficients
    monkeypatch.setattr(spectral, "coefficients", lambda *x: calls.append(x) or original(*x))
    descriptor = SeAConfig(sel=(60,), type_one_side=True, seed=1, precision="float64").build(1, ("X",))
    module = to_torch(descriptor, overrides=override_table(OVERRIDES))
    assert isinstance(module, SeA)
    rng = np.random.default_rng(1)
    for atoms, used in ((4, False), (16, True)):
        table = torch.tensor(rng.normal(size=(atoms, 20, 4)))
        calls.clear()
        fast = module._embed(module.networks[0], table)
        plain = SeA._embed(module, module.networks[0], table)
        assert bool(calls) is used
        assert float((fast - plain).detach().abs().max()) < 1e-12
    bad = torch.full((16, 20, 4), float("nan"), dtype=torch.float64)
    assert module._embed(module.networks[0], bad).isnan().all()


def test_orders_grow() -> None:
    assert all(list(orders) == sorted(set(orders)) for orders in ORDERS.values())
