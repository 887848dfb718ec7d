"""The compiled trainer against the eager one: updates, state, terms of the loss; once with Inductor and a narrow model."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from torch._dynamo.utils import counters

from dpmodel.backend import get_trainer
from dpmodel.backends.pt.bridge import graph_to_torch, to_torch
from dpmodel.backends.pt.training import TorchStepper
from dpmodel.backends.pt_expt import OVERRIDES
from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.backends.pt_expt.compile import CompiledStep
from dpmodel.backends.pt_expt.training import CompiledStepper
from dpmodel.errors import BackendError
from dpmodel.input.sections import AdamConfig
from dpmodel.losses import EnerLossConfig, build_loss
from dpmodel.models import Model
from dpmodel.training.stepper import StepOptions

from .steps import MODELS, SIZES, WANTED, assert_same, batch_of, eager, se_a

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = se_a(types=("A",))


def stepper_of(model: Model, *, backend: str = "pt_expt", compile: bool = False, **options: Any) -> Any:
    loss = {"start_pref_v": 0.5, "start_pref_ae": 3.0, **options}
    return get_trainer(backend).stepper(
        model,
        {"": build_loss(EnerLossConfig(**loss), 0.01)},
        AdamConfig(),
        device="cpu",
        options=StepOptions(compile=compile),
    )


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("name", MODELS)
def test_adam_steps(name: str) -> None:
    """Compiled against the eager step of pt with its overrides, each batch of another size."""
    model = MODELS[name]()
    steppers = [stepper_of(model, compile=True), stepper_of(model), stepper_of(model, backend="pt")]
    assert [type(stepper) for stepper in steppers] == [CompiledStepper, TorchStepper, TorchStepper]
    for k, sizes in enumerate([(9, 4), (3,), (12, 7, 1), (1, 0)]):
        batch = batch_of(model, sizes, seed=k)
        shown = [stepper.step([batch], 0.01)() for stepper in steppers]
        for other in shown[1:]:
            assert shown[0] == pytest.approx(other, rel=1e-10)
    check = batch_of(model, (6, 2), seed=9)
    measured = [stepper.measure(check, 0.01) for stepper in steppers]
    for other in measured[1:]:
        assert measured[0] == pytest.approx(other, rel=1e-9)
    states = [stepper.model().state() for stepper in steppers]
    slots = [stepper.optimizer_state() for stepper in steppers]
    for other, slot in zip(states[1:], slots[1:], strict=True):
        assert other.keys() == states[0].keys()
        for path, value in other.items():
            np.testing.assert_allclose(states[0][path], value, rtol=0, atol=1e-8, err_msg=path)
        assert slot["step"] == slots[0]["step"]
    moved = [path for path, value in model.state().items() if not np.array_equal(value, states[0][path])]
    assert len(moved) > 10
    assert steppers[0].compiled[""].compilations() == 1
    shown = []
    for stepper in steppers:
        with stepper.evaluating() as evaluator:
            shown.append(evaluator(check.graph, forces=True, atomic=False)["force"])
    np.testing.assert_allclose(shown[0], shown[1], rtol=1e-12)
    np.testing.assert_allclose(shown[0], shown[2], rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"start_pref_f": 0.0, "limit_pref_f": 0.0, "start_pref_v": 0.0, "start_pref_ae": 0.0}, {"energy"}),
        ({"start_pref_e": 0.0, "limit_pref_e": 0.0, "start_pref_v": 0.0, "start_pref_ae": 0.0}, {"energy", "force"}),
    ],
    ids=["energy_alone", "force_alone"],
)
def test_terms_of_the_loss(options: dict[str, float], wanted: set[str]) -> None:
    model = se_a(trainable=False, types=("A",))
    one, two = (stepper_of(model, compile=compiled, **options) for compiled in (True, False))
    batch = batch_of(model, (4, 3))
    for _ in range(3):
        assert one.step([batch], 0.01)() == pytest.approx(two.step([batch], 0.01)(), rel=1e-10)
    assert one.compiled[""].wanted == wanted
    before, after, expected = (op.state() for op in (model, one.model(), two.model()))
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-8, err_msg=name)
        assert np.array_equal(after[name], before[name]) or not name.startswith("descriptor"), name


def test_backends_that_do_not_compile_say_so() -> None:
    with pytest.raises(BackendError, match="compiled training step needs the backend pt_expt"):
        stepper_of(PLAIN, backend="pt", compile=True)


def test_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What users run. One type, one layer: Inductor takes its time for every kernel."""
    model = se_a(types=("A",))
    compiled, plain = stepper_of(model, compile=True), stepper_of(model)
    for k, sizes in enumerate([(9, 4), (1,), (12, 7, 1)]):
        batch = batch_of(model, sizes, seed=k)
        graph = graph_to_torch(batch.graph)
        assert_same(compiled.module, compiled.compiled[""](graph), eager(compiled.module, graph))
        assert compiled.step([batch], 0.01)() == pytest.approx(plain.step([batch], 0.01)(), rel=1e-9)
    for name, value in plain.model().state().items():
        np.testing.assert_allclose(compiled.model().state()[name], value, rtol=0, atol=1e-8, err_msg=name)
    assert compiled.compiled[""].compilations() == 1
    monkeypatch.setattr(compilation, "_SHARED", weakref.WeakValueDictionary())  # as another process
    hits = counters["inductor"]["fxgraph_cache_hit"]
    again = stepper_of(model, compile=True)
    assert_same(again.module, again.compiled[""](graph), eager(again.module, graph))
    assert counters["inductor"]["fxgraph_cache_hit"] - hits == 2  # forward and backward


@pytest.mark.nightly
def test_dpa3_by_inductor() -> None:
    """At all sizes, one of them far from the sample's: what the compiler took for a fact about sizes would show."""
    model = MODELS["dpa3"]()
    module = to_torch(model, overrides=OVERRIDES)
    step = CompiledStep(module, WANTED, derivatives=True)
    for sizes in [*SIZES, (27,) * 40]:
        graph = graph_to_torch(batch_of(model, sizes).graph)
        assert_same(module, step(graph), eager(module, graph))
    assert graph.frame.shape[0] > 1000
    assert step.compilations() == 1
