"""The energy loss on torch: the same numbers, right gradients, second derivatives, no NaN behind padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.graph import Graph
from dpmodel.losses import EnerLoss, EnerLossConfig

OPTIONS: dict[str, dict[str, Any]] = {
    "mse": {
        "start_pref_v": 1.0, "start_pref_ae": 3.0, "start_pref_pf": 2.0, "start_pref_gf": 0.7,
        "numb_generalized_coord": 2, "relative_f": 0.5, "enable_atom_ener_coeff": True,
    },
    "huber": {"start_pref_v": 1.0, "start_pref_ae": 3.0, "use_huber": True, "huber_delta": (0.2, 0.5, 0.3)},
    "huber_norm": {"start_pref_v": 1.0, "use_huber": True, "huber_delta": 0.9, "f_use_norm": True},
    "mae_norm": {"start_pref_v": 1.0, "start_pref_pf": 1.0, "loss_func": "mae", "f_use_norm": True},
}  # fmt: skip
LABELS = {
    "energy": "f1", "force": "n3", "virial": "f9", "atom_ener": "n1", "atom_pref": "n3", "atom_ener_coeff": "n1",
}  # fmt: skip
FOUND = dict.fromkeys([*LABELS, "drdq"], 1.0)


def make(atypes: list[list[int]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Graph]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    flat = torch.tensor([t for frame in atypes for t in frame], dtype=torch.int64)
    sizes = {"n": len(flat), "f": len(atypes)}
    shapes = {"energy": "f1", "force": "n3", "virial": "f9", "atom_energy": "n1"}
    prediction = {name: normal(sizes[s[0]], int(s[1])) for name, s in shapes.items()}
    labels = {name: normal(sizes[s[0]], int(s[1])) for name, s in LABELS.items()}
    labels["drdq"], labels["atom_pref"] = normal(len(flat), 3, 2), labels["atom_pref"].abs()
    nothing = torch.zeros(0, dtype=torch.int64)
    graph = Graph(
        atype=flat,
        frame=torch.tensor([f for f, frame in enumerate(atypes) for _ in frame], dtype=torch.int64),
        natoms=torch.tensor([sum(t >= 0 for t in frame) for frame in atypes]),
        centre=nothing, neighbour=nothing, edge_vec=torch.zeros(0, 3, dtype=torch.float64), edge_mask=nothing > 0,
    )  # fmt: skip
    return prediction, labels, graph


FRAMES = [[0, 1, 1], [0, -1, 1], [-1], [1]]


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_and_second_derivatives(name: str) -> None:
    prediction, labels, graph = make(FRAMES)
    loss, keys = EnerLoss(EnerLossConfig(**OPTIONS[name]), 1.0), list(prediction)
    lr = torch.tensor(0.4, dtype=torch.float64)

    def total(*values: torch.Tensor) -> torch.Tensor:
        return loss(dict(zip(keys, values, strict=True)), labels, FOUND, graph, lr)[0]

    leaves = tuple(prediction[key].clone().requires_grad_() for key in keys)
    assert torch.autograd.gradcheck(total, leaves)
    assert torch.autograd.gradgradcheck(total, leaves)


@pytest.mark.parametrize("name", OPTIONS)
def test_same_numbers_as_numpy(name: str) -> None:
    prediction, labels, graph = make(FRAMES)
    loss = EnerLoss(EnerLossConfig(**OPTIONS[name]), 1.0)
    total, metrics = loss(prediction, labels, FOUND, graph, 0.4)
    in_numpy = graph.replace(**{key: getattr(graph, key).numpy() for key in ("atype", "frame", "natoms")})
    expected, shown = loss(
        {k: v.numpy() for k, v in prediction.items()}, {k: v.numpy() for k, v in labels.items()}, FOUND, in_numpy, 0.4
    )
    np.testing.assert_allclose(total.item(), expected, rtol=1e-13)
    assert metrics.keys() == shown.keys()
    for key, value in metrics.items():
        np.testing.assert_allclose(value.item(), shown[key], rtol=1e-13)


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
@pytest.mark.parametrize("name", OPTIONS)
def test_padding_and_perfect_predictions_have_finite_gradients(name: str, garbage: float) -> None:
    prediction, labels, graph = make(FRAMES)
    virtual, empty = graph.atype < 0, graph.natoms == 0
    for key, value in labels.items():
        value[empty if key in ("energy", "virial") else virtual] = garbage
    for key in ("energy", "force", "virial"):  # zero residuals: the kinks of |x| and of norms
        prediction[key] = torch.nan_to_num(labels[key], nan=0.0, posinf=0.0).clone()
    leaves = {key: value.requires_grad_() for key, value in prediction.items()}
    EnerLoss(EnerLossConfig(**OPTIONS[name]), 1.0)(leaves, labels, FOUND, graph, 1.0)[0].backward()
    for key, leaf in leaves.items():
        if leaf.grad is not None:
            assert torch.isfinite(leaf.grad).all(), key
            assert (leaf.grad[empty if key in ("energy", "virial") else virtual] == 0).all(), key


def test_a_batch_without_labels_has_a_zero_gradient() -> None:
    prediction, _, graph = make([[0, 1]])
    energy = prediction["energy"].requires_grad_()
    total, metrics = EnerLoss(EnerLossConfig(), 1.0)(prediction, {}, {}, graph, 1.0)
    total.backward()
    assert total.item() == 0.0 and (energy.grad == 0).all()
    assert math.isnan(metrics["rmse_e"].item()) and math.isnan(metrics["rmse_f"].item()) and metrics["rmse"].item() == 0


def test_float32_forces_are_compared_in_float64() -> None:
    prediction, labels, graph = make([[0, 1]])
    prediction["force"] = prediction["force"].float()
    total, _ = EnerLoss(EnerLossConfig(), 1.0)(prediction, labels, FOUND, graph, np.float64(0.3))
    assert total.dtype == torch.float64
