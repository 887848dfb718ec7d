"""Training on Hessians: gradients against differences of the loss, what is refused, and that JAX agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backend import get_trainer
from dpmodel.descriptors import SeAConfig
from dpmodel.errors import InputError
from dpmodel.fittings import EnerFittingConfig
from dpmodel.input.sections import AdamConfig
from dpmodel.losses import EnerLoss, EnerLossConfig
from dpmodel.models import Model, StandardModel, builder_of
from dpmodel.training.batches import Prepared
from dpmodel.training.stepper import StepOptions

LOSS = EnerLoss(EnerLossConfig(start_pref_e=0.5, start_pref_f=2.0, start_pref_h=3.0, limit_pref_h=1.0), 1e-3)
LR = 1e-3
RNG = np.random.default_rng(8)
NF, NA = 2, 4


def make_model() -> Model:
    descriptor = SeAConfig(sel=(4, 4), rcut=4.0, rcut_smth=1.0, neuron=(3, 6), axis_neuron=2, seed=1)
    built = descriptor.build(2, ("O", "H"))
    fitting = EnerFittingConfig(neuron=(5, 5), seed=2).build(2, built.dim_out, mixed_types=False)
    return StandardModel.assemble(built, fitting, ("O", "H"))


def make_batch(model: Model) -> tuple[Any, dict[str, np.ndarray], dict[str, float]]:
    """Two frames, one of which has padding."""
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[:NA] * 1.6
    coord = grid + RNG.uniform(-0.3, 0.3, (NF, NA, 3))
    graph = builder_of(model).build(coord, np.array([[0, 1, 1, 0], [1, 0, 1, -1]]), None)
    labels = {
        "energy": RNG.normal(size=(NF, 1)), "force": RNG.normal(size=(NF * NA, 3)),
        "hessian": RNG.normal(size=(NF * NA, 3, 3 * NA)),
    }  # fmt: skip
    return graph, labels, dict.fromkeys(labels, 1.0)


def stepper(model: Model, name: str = "pt", loss: Any = LOSS, **options: Any) -> Any:
    return get_trainer(name).stepper(model, {"": loss}, AdamConfig(), device="cpu", options=StepOptions(**options))


def value(model: Model, batch: Any) -> float:
    return stepper(model).measure(Prepared(*batch), LR)["rmse"] ** 2


@pytest.mark.parametrize("backend", ["pt", "pt_expt"])
def test_gradients_are_those_of_the_loss(backend: str) -> None:
    model = make_model()
    graph, labels, found = make_batch(model)
    ours = stepper(model, backend)
    loss, metrics = ours._loss(graph, labels, found, LR, create_graph=True)
    assert set(metrics) == {"rmse", "rmse_e", "rmse_f", "rmse_h"} and float(metrics["rmse_h"]) > 0.1
    names = list(ours._trained)
    slopes = torch.autograd.grad(loss, [ours._trained[name] for name in names], allow_unused=True)
    rng, step, state = np.random.default_rng(1), 1e-5, model.state()
    move = {name: rng.normal(size=state[name].shape) for name in names}
    plus, minus = (
        value(
            model.with_state({**state, **{k: state[k] + sign * step * v for k, v in move.items()}}),
            (graph, labels, found),
        )
        for sign in (1, -1)
    )
    expected = sum(float(np.sum(s.numpy() * move[k])) for k, s in zip(names, slopes, strict=True) if s is not None)
    np.testing.assert_allclose((plus - minus) / (2 * step), expected, rtol=1e-6)


def test_the_hessian_is_computed_only_where_there_is_a_label() -> None:
    model = make_model()
    graph, labels, found = make_batch(model)
    metrics = stepper(model).measure(Prepared(graph, labels, {**found, "hessian": 0.0}), LR)
    assert np.isnan(metrics["rmse_h"]) and np.isfinite(metrics["rmse_f"])


def test_training_lowers_the_loss() -> None:
    """Towards an energy without curvature."""
    model = make_model()
    graph, labels, found = make_batch(model)
    off = {f"{when}_pref_{term}": 0.0 for when in ("start", "limit") for term in "ef"}
    ours = stepper(model, loss=EnerLoss(EnerLossConfig(**off, start_pref_h=1.0), 1e-2))
    flat = {**labels, "hessian": 0.0 * labels["hessian"]}
    values = [ours.step([Prepared(graph, flat, found)], 1e-2)()["rmse_h"] for _ in range(20)]
    assert values[-1] < 0.5 * values[0]


def test_compiled_steps_are_refused() -> None:
    message = "loss: start_pref_h and limit_pref_h do not go with training.enable_compile"
    with pytest.raises(InputError, match=message):
        stepper(make_model(), "pt_expt", compile=True)


@pytest.mark.nightly
def test_jax_takes_the_same_steps() -> None:
    """Third derivatives take JAX a minute to compile."""
    model = make_model()
    batch = make_batch(model)
    ours, theirs = stepper(model), stepper(model, "jax")
    for _ in range(3):
        one, other = (each.step([Prepared(*batch)], LR)() for each in (ours, theirs))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-9)
    expected, found = ours.model().state(), theirs.model().state()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-9, err_msg=name)
