"""The spectral forms of embedding nets on JAX: derivatives of the polynomials, both forms, and which one is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpmodel.backends.jax.bridge import double_precision, to_jax
from dpmodel.backends.jax.overrides import OVERRIDES, spectral
from dpmodel.descriptors import DPA1, SeA, SeAConfig
from dpmodel.descriptors.dpa1 import DPA1Config


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with double_precision():
        yield


def test_derivatives_of_the_polynomials() -> None:
    z = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 3))
    for d in range(3):
        found = spectral.basis(jnp.asarray(z), 7, d)
        expected = [
            np.polynomial.Chebyshev.basis(k).deriv(d)(z) if d else np.polynomial.Chebyshev.basis(k)(z) for k in range(7)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        _, slope = jax.jvp(lambda x, d=d: spectral.basis(x, 7, d), (jnp.asarray(z),), (jnp.ones((2, 3)),))
        np.testing.assert_allclose(slope, spectral.basis(jnp.asarray(z), 7, d + 1), atol=1e-12)


def results(function: Any, model: Any, *inputs: Any) -> Any:
    """Values, and the gradient of a slope of them: of the weights and of the first input."""

    def slope(model: Any, x: Any) -> Any:
        first = jax.grad(lambda x: jnp.sum(jnp.sin(function(model, x, *inputs[1:]))))(x)
        return jnp.sum(first * jnp.cos(jnp.arange(first.size)).reshape(first.shape))

    return function(model, *inputs), jax.jit(jax.grad(slope, argnums=(0, 1)))(model, inputs[0])


def compare(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * max(1.0, float(np.abs(b).max(initial=0.0))))


@pytest.mark.parametrize(("activation", "expands"), [("tanh", True), ("relu", False)])
def test_both_forms_agree(activation: str, expands: bool) -> None:
    config = SeAConfig(
        sel=(60,), type_one_side=True, seed=1, precision="float64", neuron=(4, 8), activation_function=activation
    )
    module = to_jax(config.build(1, ("X",)), overrides=OVERRIDES)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(16, 20, 4)))
    _, nodes = spectral.scaled(table[:, :, 0])
    assert bool(spectral.coefficients(module.networks[0], nodes)[1]) is expands
    compare(
        results(lambda m, x: m._embed(m.networks[0], x), module, table),
        results(lambda m, x: SeA._embed(m, m.networks[0], x), module, table),
    )
    assert not spectral.pays(table[:12])


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"tebd_input_mode": "concat"}, (2, 2)),
        ({"tebd_input_mode": "concat", "type_one_side": True}, (1, 2)),
        ({"tebd_input_mode": "strip"}, (2, 2)),
        ({"tebd_input_mode": "strip", "smooth_type_embedding": True}, (2, 3)),
    ],
)
def test_neighbours_of_dpa1(options: dict[str, Any], blocks: tuple[int, int]) -> None:
    config = DPA1Config(sel=40, attn_layer=0, neuron=(4, 8), axis_neuron=2, seed=1, precision="float64", **options)
    module = to_jax(config.build(2, ("A", "B")), overrides=OVERRIDES)
    rng = np.random.default_rng(1)
    real = rng.uniform(size=(16, 20)) < 0.8
    rows, s = rng.normal(size=(16, 20, 4)) * real[:, :, None], rng.uniform(size=(16, 20)) * real
    kind, centre = rng.integers(0, 2, (16, 20)), rng.integers(0, 2, 16)
    table = module.type_embedding.table()
    u, falls = module._nets(spectral.scaled(jnp.asarray(rows[:, :, 0]))[1], table)
    assert bool(falls) and u.shape[:2] == blocks
    inputs = [jnp.asarray(x) for x in (rows, kind, centre, real, s)]
    one, other = (
        results(lambda m, *x, f=f: f(m, *x, m.type_embedding.table()), module, *inputs)
        for f in (type(module)._gather, DPA1._gather)
    )
    compare(one, other)
