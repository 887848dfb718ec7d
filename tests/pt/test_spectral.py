"""The spectral forms of embedding nets: derivatives of every order that is used, the choice of terms, fall-back."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.bridge import override_table, to_torch
from dpmodel.backends.pt.overrides import OVERRIDES
from dpmodel.backends.pt.overrides.chebyshev import ORDERS, Interval, basis, coefficients, moments
from dpmodel.backends.pt.overrides.spectral import SpectralDPA1
from dpmodel.descriptors import DPA1
from dpmodel.descriptors.dpa1 import DPA1Config
from dpmodel.nn.mlp import make_embedding_net


def net(dtype: str = "float64", activation: str = "tanh", width: tuple[int, ...] = (5, 10, 20)):
    return to_torch(make_embedding_net(1, width, seed=3, dtype=dtype, activation=activation, resnet_dt=False))


def test_derivatives_of_the_moments_in_every_order() -> None:
    rng = np.random.default_rng(0)
    s, r = (torch.tensor(rng.uniform(-1, 1, size=shape), requires_grad=True) for shape in ((2, 3), (2, 3, 4)))
    assert torch.autograd.gradcheck(lambda *x: moments(*x, 6, Interval(0.1, 1.3)), (s, r))
    assert torch.autograd.gradgradcheck(lambda *x: moments(*x, 6, Interval(0.1, 1.3)), (s, r))


def test_nothing_is_kept_of_an_interval() -> None:
    """Positions of every step of a simulation have another one."""

    def slopes(half: float) -> int:
        s, r = (torch.ones(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2, 3, 4)))
        torch.autograd.grad(moments(s, r, 6, Interval(0.1, half)).sum(), (s, r))
        del s, r
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    before = slopes(1.3)
    assert [slopes(1.3 + 0.1 * k) for k in range(3)] == [before] * 3


@pytest.mark.parametrize(("dtype", "most"), [("float64", 48), ("float32", 32)])
def test_few_terms_give_the_net_to_rounding(dtype: str, most: int) -> None:
    module = net(dtype, width=(25, 50, 100))
    like = torch.zeros(1, dtype=getattr(torch, dtype))
    where = Interval(4.0, 4.6)
    found = coefficients(module, where, like)
    assert found is not None and found.shape[0] <= most
    s = torch.linspace(-0.4, 8.4, 1001, dtype=like.dtype)
    difference = (basis(s, found.shape[0], where).t() @ found - module(s[:, None])).abs().max() / found.abs().max()
    assert float(difference.detach()) < 20 * torch.finfo(like.dtype).eps


def test_nets_that_are_not_smooth_have_no_expansion() -> None:
    assert coefficients(net(activation="relu"), Interval(0.0, 2.0), torch.zeros(1, dtype=torch.float64)) is None


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


@pytest.mark.parametrize("strip", [True, False], ids=["strip", "concat"])
@pytest.mark.parametrize(
    ("options", "centres"),
    [
        ({}, 3),
        ({"type_one_side": True}, 1),
        ({"smooth_type_embedding": True}, 3),
        ({"smooth_type_embedding": True, "type_one_side": True}, 1),
        ({"attn_layer": 1}, 0),
        ({"activation_function": "relu"}, 0),
    ],
)
def test_neighbours_of_dpa1(
    strip: bool, options: dict[str, Any], centres: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    original = SpectralDPA1._blocks
    monkeypatch.setattr(SpectralDPA1, "_blocks", lambda self, *x: made.append(original(self, *x)) or made[-1])
    section = {"sel": 40, "attn_layer": 0, "neuron": (4, 8), "axis_neuron": 2, "seed": 1, "precision": "float64"}
    mode = {"tebd_input_mode": "strip" if strip else "concat"}
    module = to_torch(
        DPA1Config(**{**section, **mode, **options}).build(9, tuple("ABCDEFGHI")), overrides=override_table(OVERRIDES)
    )
    rng = np.random.default_rng(1)
    table = module.type_embedding.table()
    for kinds, used in ((3, bool(centres)), (9, False)):  # more types take more columns than the nets are wide
        centre, neighbour = (torch.tensor(np.resize(np.arange(kinds) * (1 if kinds > 3 else 2), n)) for n in (60, 1200))
        rows, s = torch.tensor(rng.normal(size=(60, 20, 4))), torch.tensor(rng.uniform(size=(60, 20)))
        real = torch.tensor(rng.uniform(size=(60, 20)) < 0.8)
        inputs = (rows * real[:, :, None], neighbour.reshape(60, 20), centre, real, s * real, table)
        made.clear()
        fast, plain = module._gather(*inputs), DPA1._gather(module, *inputs)
        assert (made[-1:] != [None] and bool(made)) is used
        assert float((fast - plain).detach().abs().max()) < 1e-11 * float(plain.detach().abs().max())
        if used:
            blocks = 3 + (strip and bool(options.get("smooth_type_embedding")))
            assert made[0].u.shape[:2] == (centres, blocks) and made[0].weights.shape[2] == blocks
