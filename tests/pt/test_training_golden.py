"""Three Adam steps from a golden model, against DeePMD-kit 3.2.0 (its PyTorch backend in float64)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.bridge import override_table
from dpmodel.backends.pt.overrides import OVERRIDES
from dpmodel.backends.pt.training import TorchStepper
from dpmodel.files.model_file import read_model
from dpmodel.geometry.build import GraphBuilder
from dpmodel.graph import Graph
from dpmodel.input import schema
from dpmodel.input.sections import AdamConfig, InputFile
from dpmodel.losses import EnerLoss, EnerLossConfig, build_loss

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = Path(__file__).parents[1] / "data"
CASES = sorted(path.stem for path in (DATA / "training").glob("*.json"))


def load(case: str) -> tuple[dict[str, Any], Any, EnerLoss, Graph, dict[str, np.ndarray], np.ndarray]:
    about = json.loads((DATA / "training" / f"{case}.json").read_text())
    arrays = np.load(DATA / "training" / f"{case}.npz")
    model = read_model(DATA / "golden" / about["model"]).model
    builder = GraphBuilder(
        requests=model.requests(), ntypes=model.ntypes, exclude_pairs=model.pair_exclude_types,
        group_by_type=model.groups_types(),
    )  # fmt: skip
    coord, atype = arrays["in/coord"], arrays["in/atype"]
    extra = {name: arrays[f"in/{name}"] for name in ("fparam", "aparam") if f"in/{name}" in arrays}
    graph = builder.build(coord, atype, arrays["in/box"].reshape(-1, 3, 3), **extra)
    loss = build_loss(loss_section(about["loss"]), about["start_lr"])
    atomic = {label.name: label.shape for label in loss.labels if label.atomic}
    labels = {}
    for key in arrays:
        name = key.removeprefix("label/")
        if name != key:
            value = arrays[key]
            labels[name] = value.reshape(-1, *atomic[name]) if name in atomic else value
    return about, model, loss, graph, labels, arrays["loss"]


def loss_section(section: dict[str, Any]) -> EnerLossConfig:
    """Through the same door as an input file."""
    data = {
        "model": {"type_map": ["A"], "descriptor": {"type": "se_e2_a", "sel": [1]}, "fitting_net": {}},
        "learning_rate": {"start_lr": 0.001}, "training": {"training_data": {}, "numb_steps": 1}, "loss": section,
    }  # fmt: skip
    normalised, _ = schema.normalise(InputFile, data)
    config = schema.build(InputFile, normalised).loss
    assert isinstance(config, EnerLossConfig)
    return config


def test_the_cases_are_there() -> None:
    assert len(CASES) == 7


@pytest.mark.filterwarnings("ignore::dpmodel.geometry.build.TruncationWarning")  # these cases cut off neighbours
@pytest.mark.parametrize("overrides", [{}, OVERRIDES], ids=["reference", "overrides"])
@pytest.mark.parametrize("case", CASES)
def test_three_steps(case: str, overrides: Any) -> None:
    about, model, loss, graph, labels, losses = load(case)
    stepper = TorchStepper(
        model, loss, AdamConfig(), device=torch.device("cpu"), overrides=override_table(overrides),
        gradient_max_norm=None,
    )  # fmt: skip
    found = dict.fromkeys(labels, 1.0)
    for k in range(3):
        metrics = stepper.step(graph, labels, found, about["lr"])()
        # The displayed rmse is the root of the loss, in every kind of loss.
        np.testing.assert_allclose(metrics["rmse"] ** 2, losses[k], rtol=1e-10)
        if k == 0:
            for name in loss.metrics:
                np.testing.assert_allclose(metrics[name], about["metrics_at_step_1"][name], rtol=1e-9, err_msg=name)
    after = read_model(DATA / "training" / f"{case}.after.dp").model.state()
    before, own = model.state(), stepper.model().state()
    assert own.keys() == after.keys()
    moved = 0
    for name, value in after.items():
        np.testing.assert_allclose(own[name], value, rtol=0, atol=1e-8, err_msg=name)
        moved += not np.array_equal(value, before[name])
    assert moved > 20
