"""Every way to train: three Adam steps from a golden model against DeePMD-kit 3.2.0 (its PyTorch backend in float64),
and the gradients of compiled steps against eager ones."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._functorch.aot_autograd import aot_compile_joint_with_descriptors

from dpmodel.backend import get_trainer
from dpmodel.backends.pt.bridge import graph_to_torch, override_table, to_torch, torch_gradient
from dpmodel.backends.pt.training import TorchStepper
from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.backends.pt_expt.compile import CompiledStep
from dpmodel.files.model_file import read_model
from dpmodel.graph import Graph
from dpmodel.input import schema
from dpmodel.input.sections import AdamConfig, InputFile
from dpmodel.losses import LossConfig, TermLoss, build_loss
from dpmodel.models import Model, builder_of, predict
from dpmodel.training.batches import Prepared
from dpmodel.training.stepper import StepOptions

from .cases import COMBINED, model_of, single
from .systems import graph_of, random_system

DATA = Path(__file__).parents[1] / "data"
CASES = sorted(path.stem for path in (DATA / "training").glob("*.json"))


def load(case: str) -> tuple[dict[str, Any], Any, TermLoss, Graph, dict[str, np.ndarray], np.ndarray]:
    about = json.loads((DATA / "training" / f"{case}.json").read_text())
    arrays = np.load(DATA / "training" / f"{case}.npz")
    model = read_model(DATA / "golden" / about["model"]).model
    builder = builder_of(model)
    coord, atype = arrays["in/coord"], arrays["in/atype"]
    extra = {name: arrays[f"in/{name}"] for name in ("fparam", "aparam", "spin") if f"in/{name}" in arrays}
    graph = builder.build(coord, atype, arrays["in/box"].reshape(-1, 3, 3), **extra)
    loss = build_loss(loss_section(about["loss"]), about["start_lr"], model.output()).bound(model)
    atomic = {label.name: label.shape for label in loss.labels if label.atomic}
    labels = {}
    for key in arrays:
        name = key.removeprefix("label/").replace("polar", "polarizability")
        if key.startswith("label/"):
            value = arrays[key]
            labels[name] = value.reshape(-1, *atomic[name]) if name in atomic else value
    return about, model, loss, graph, labels, arrays["loss"]


OF_THE_MODEL = ("numb_dos", "tensor_name", "tensor_size", "label_name", "task_dim", "var_name", "intensive")
"""What the golden files tell the loss, and here the model does."""


def loss_section(section: dict[str, Any]) -> LossConfig:
    """Through the same door as an input file."""
    section = {key: value for key, value in section.items() if key not in OF_THE_MODEL}
    section |= {"type": "ener_spin"} if section["type"] == "spin" else {}
    data = {
        "model": {"type_map": ["A"], "descriptor": {"type": "se_e2_a", "sel": [1]}, "fitting_net": {}},
        "learning_rate": {"start_lr": 0.001}, "training": {"training_data": {}, "numb_steps": 1}, "loss": section,
    }  # fmt: skip
    normalised, _ = schema.normalise(InputFile, data)
    config = schema.build(InputFile, normalised).loss
    assert isinstance(config, LossConfig)
    return config


def test_the_cases_are_there() -> None:
    assert len(CASES) == 19


def reference(model: Model, loss: Any) -> Any:
    """PyTorch without any override."""
    return TorchStepper(
        model, {"": loss}, AdamConfig(), device=torch.device("cpu"), overrides=override_table(), options=StepOptions()
    )


def backend(model: Model, loss: Any, *, name: str, compile: bool = False) -> Any:
    return get_trainer(name).stepper(
        model, {"": loss}, AdamConfig(), device="cpu", options=StepOptions(compile=compile)
    )


TRAINERS = {
    "reference": reference,
    "pt": functools.partial(backend, name="pt"),
    "pt_expt": functools.partial(backend, name="pt_expt"),
    "pt_expt_traced": functools.partial(backend, name="pt_expt", compile=True),
    "jax": functools.partial(backend, name="jax"),
}
"""What pt_expt compiles runs as it was traced; Inductor takes minutes per model (see tests/pt_expt)."""
COMPILERS = {"pt_expt_traced": (), "jax": ("ener_mse__se_e2_a", "ener_mse__dpa3_official", "spin_mae__spin_sea")}
"""What takes many seconds per case, and the cases that are not left to the night."""


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "compile_joint", aot_compile_joint_with_descriptors)


@pytest.mark.filterwarnings("ignore::dpmodel.geometry.build.TruncationWarning")  # these cases cut off neighbours
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("case", "trainer"),
    [
        pytest.param(
            case, name, id=f"{case}-{name}", marks=[pytest.mark.nightly] * (case not in COMPILERS.get(name, CASES))
        )
        for case in CASES
        for name in TRAINERS
    ],
)
def test_three_steps(case: str, trainer: str) -> None:
    about, model, loss, graph, labels, losses = load(case)
    stepper = TRAINERS[trainer](model, loss)
    found = dict.fromkeys(labels, 1.0)
    shown = about["metrics_at_step_1"]
    for k in range(3):
        metrics = stepper.step([Prepared(graph, labels, found)], about["lr"])()
        if about["loss"]["type"] != "property":  # the displayed rmse is the root of the loss, in every other kind
            np.testing.assert_allclose(metrics["rmse"] ** 2, losses[k], rtol=1e-10)
        if k == 0:
            assert metrics.keys() == set(loss.metrics) >= {name for name in shown if not name.startswith("l2_")}
            for name in metrics.keys() & shown.keys():
                np.testing.assert_allclose(metrics[name], shown[name], rtol=1e-9, err_msg=name)
    after = read_model(DATA / "training" / f"{case}.after.dp").model.state()
    before, own = model.state(), stepper.model().state()
    assert own.keys() == after.keys()
    moved = 0
    for name, value in after.items():
        np.testing.assert_allclose(own[name], value, rtol=0, atol=1e-8, err_msg=name)
        moved += not np.array_equal(value, before[name])
    assert moved > 12


@pytest.mark.nightly
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("case", COMBINED)
def test_gradients_of_traced_steps(case: str) -> None:
    """Of a loss that looks at every number of every output."""
    module = to_torch(model_of(case))
    wanted = ("energy", "atom_energy", "force", "virial")
    step = CompiledStep(module, frozenset(wanted), derivatives=True)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for frames, atoms in ((2, 7), (1, 1)):
        system = random_system(model_of(case), frames=frames, atoms=atoms, virtual=int(atoms > 1))
        graph = graph_to_torch(graph_of(model_of(case), system))
        slopes = []
        for outputs in (step(graph), predict(module, graph, functools.partial(torch_gradient, create_graph=True))):
            generator = torch.Generator().manual_seed(1)
            weights = [torch.randn(outputs[k].shape, generator=generator, dtype=outputs[k].dtype) for k in wanted]
            loss = sum((w * outputs[k] + outputs[k] ** 2).sum() for w, k in zip(weights, wanted, strict=True))
            slopes.append(torch.autograd.grad(loss, list(trained.values()), allow_unused=True))
        largest = max(float(g.abs().max()) for g in slopes[1] if g is not None and g.numel())
        bound = (2e-5 if single(case) else 1e-10) * largest
        for name, ours, expected in zip(trained, *slopes, strict=True):
            assert (ours is None) == (expected is None), name
            if expected is not None:
                torch.testing.assert_close(ours, expected, rtol=0, atol=bound, msg=name)
    assert step.compilations() == 1
