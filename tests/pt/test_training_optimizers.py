"""Models trained with every optimizer: they learn, and go on from what was saved as if nothing had been."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.bridge import override_table
from dpmodel.backends.pt.overrides import OVERRIDES
from dpmodel.backends.pt.training import TorchStepper
from dpmodel.input import load_model
from dpmodel.input.optimizers import AdaMuonConfig, AdamWConfig, HybridMuonConfig, LKFConfig
from dpmodel.losses import EnerLossConfig, build_loss
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.training.batches import Prepared
from dpmodel.training.stepper import StepOptions

pytestmark = pytest.mark.usefixtures("one_thread")
CASES: dict[str, tuple[Any, float]] = {
    "AdamW": (AdamWConfig(), 0.02),
    "AdaMuon": (AdaMuonConfig(), 0.05),
    "HybridMuon": (HybridMuonConfig(), 0.05),
    "LKF": (LKFConfig(), 1.0),
    "LKF of small blocks": (LKFConfig(kf_blocksize=16, kf_limit_pref_e=2.0, kf_limit_pref_f=0.5), 1.0),
}
"""Section and learning rate."""


def tiny_model(seed: int, precision: str) -> Any:
    section = {
        "type_map": ["A", "B"],
        "descriptor": {"type": "se_e2_a", "sel": [30, 30], "rcut": 4.0, "neuron": [3, 6], "axis_neuron": 2, "seed": seed,
                       "precision": precision},
        "fitting_net": {"neuron": [4, 4], "seed": seed, "precision": precision},
    }  # fmt: skip
    model = build_model(load_model(section))
    state = model.state()
    # Forces of the order of 0.1 eV/Å: inputs of the networks as statistics would scale them.
    return model.with_state(state | {path: value * 0.02 for path, value in state.items() if path.endswith("dstd")})


def stepper_of(model: Any, config: Any) -> TorchStepper:
    loss = build_loss(EnerLossConfig(), 0.05)
    return TorchStepper(
        model, {"": loss}, config, device=torch.device("cpu"), overrides=override_table(OVERRIDES),
        options=StepOptions(num_steps=12),
    )  # fmt: skip


def batches(precision: str) -> list[Prepared]:
    """Frames of 7 and 9 atoms, labelled by another model."""
    teacher = tiny_model(99, precision)
    stepper, builder, rng = stepper_of(teacher, AdamWConfig()), builder_of(teacher), np.random.default_rng(0)
    found = []
    for _ in range(3):
        atype = np.where(np.arange(9) < np.array([7, 9])[:, None], rng.integers(0, 2, (2, 9)), -1)
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:9] * 2.2
        graph = builder.build(grid + rng.uniform(0, 0.8, (2, 9, 3)), atype, np.tile(np.eye(3) * 6.6, (2, 1, 1)))
        zero = {"energy": np.zeros((2, 1)), "force": np.zeros((18, 3))}
        outputs = stepper._observed(Prepared(graph, zero, dict.fromkeys(zero, 1.0)), "").predict(True)
        labels = {name: outputs[name].detach().double().numpy() for name in zero}
        found.append(Prepared(graph, labels, dict.fromkeys(labels, 1.0)))
    return found


def go(stepper: TorchStepper, data: list[Prepared], steps: range, lr: float) -> list[float]:
    return [stepper.step([data[k % len(data)]], lr * 0.9**k)()["rmse_f"] for k in steps]


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("case", list(CASES))
def test_models_learn_and_restart_exactly(case: str, precision: str) -> None:
    config, lr = CASES[case]
    data = batches(precision)
    through = stepper_of(tiny_model(1, precision), config)
    losses = go(through, data, range(12), lr)
    assert np.mean(losses[-3:]) < 0.7 * losses[0]
    first = stepper_of(tiny_model(1, precision), config)
    assert go(first, data, range(5), lr) == losses[:5]
    model, state = first.model(), first.optimizer_state()
    go(first, data, range(5, 7), lr)  # what was saved does not change with it
    second = stepper_of(model, config)
    second.load_optimizer_state(state)
    assert go(second, data, range(5, 12), lr) == losses[5:]
    expected = through.model().state()
    for path, value in second.model().state().items():
        assert np.array_equal(value, expected[path]), path
    for slot, values in through.optimizer_state().items():
        for path, value in values.items():
            own = second.optimizer_state()[slot][path]
            assert own.dtype == value.dtype and np.array_equal(own, value), (slot, path)


@pytest.mark.parametrize("case", ["AdaMuon", "HybridMuon", "LKF"])
def test_two_batches_of_a_step(case: str) -> None:
    """A step with two batches is one step: state counts it once, metrics are means."""
    config, lr = CASES[case]
    data = batches("float64")
    stepper = stepper_of(tiny_model(1, "float64"), config)
    each = [stepper.measure(batch, lr)["rmse_f"] for batch in data[:2]]
    assert stepper.step(data[:2], lr)()["rmse_f"] == pytest.approx(np.mean(each), rel=1e-12)
    state = stepper.optimizer_state()
    steps = [state["filter"]["steps"]] if case == "LKF" else list(state["step"].values())
    assert steps and all(float(value) == 1.0 for value in steps)
