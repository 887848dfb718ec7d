"""The Hessian's term of the energy loss against loops, and how labels get there."""

from __future__ import annotations

import math

import array_api_strict
import numpy as np
import pytest

from dpmodel.data.labels import HESSIAN, as_request
from dpmodel.data.system import Batch
from dpmodel.geometry import GraphBuilder
from dpmodel.graph import Graph, map_record
from dpmodel.losses import EnerLoss, EnerLossConfig
from dpmodel.training.batches import prepare

FRAMES = [[0, 1, 1], [1], [0, -1, 1, -1], [-1, -1], [0, 0, 1, 1, 0]]
WIDTH = 5
OFF = {f"{when}_pref_{term}": 0.0 for when in ("start", "limit") for term in "ef"}


def make(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Graph]:
    """Frames of different sizes; what stands in rows and columns of padding must not matter."""
    rng = np.random.default_rng(seed)
    flat = np.array([t for frame in FRAMES for t in frame])
    graph = Graph(
        atype=flat, frame=np.repeat(np.arange(len(FRAMES)), [len(frame) for frame in FRAMES]),
        natoms=np.array([sum(t >= 0 for t in frame) for frame in FRAMES]), centre=np.zeros(0, np.int64),
        neighbour=np.zeros(0, np.int64), edge_vec=np.zeros((0, 3)), edge_mask=np.zeros(0, bool),
    )  # fmt: skip
    shape = (len(flat), 3, 3 * WIDTH)
    prediction = {"energy": rng.normal(size=(len(FRAMES), 1)), "hessian": rng.normal(size=shape)}
    return prediction, {"hessian": rng.normal(size=shape)}, graph


def by_loops(prediction: np.ndarray, label: np.ndarray, power: int) -> float:
    means, start = [], 0
    for frame in FRAMES:
        real = [k for k, t in enumerate(frame) if t >= 0]
        total = 0.0
        for i in real:
            for j in real:
                block = (prediction - label)[start + i, :, 3 * j : 3 * j + 3]
                total += float(np.sum(np.abs(block) ** power))
        if real:
            means.append(total / (3 * len(real)) ** 2)
        start += len(frame)
    return sum(means) / len(means)


@pytest.mark.parametrize("kind", ["mse", "mae"])
def test_equals_loops(kind: str) -> None:
    config = EnerLossConfig(**OFF, start_pref_h=3.0, limit_pref_h=1.0, loss_func=kind)
    loss, (prediction, labels, graph) = EnerLoss(config, 1e-3), make()
    assert (loss.terms, loss.outputs) == (("h",), ("hessian",))
    total, metrics = loss(prediction, labels, {"hessian": 1.0}, graph, 0.5e-3)
    expected = by_loops(prediction["hessian"], labels["hessian"], 2 if kind == "mse" else 1)
    np.testing.assert_allclose(total, 2.0 * expected, rtol=1e-13)
    name = {"mse": "rmse_h", "mae": "mae_h"}[kind]
    assert set(metrics) == {name, "rmse"} == set(loss.metrics)
    np.testing.assert_allclose(metrics[name], math.sqrt(expected) if kind == "mse" else expected, rtol=1e-13)
    with array_api_strict.ArrayAPIStrictFlags(data_dependent_shapes=False, boolean_indexing=False):
        to = array_api_strict.asarray
        strict = [{k: to(v) for k, v in side.items()} for side in (prediction, labels)]
        again, _ = loss(*strict, {"hessian": to(1.0)}, map_record(graph, to), 0.5e-3)
    np.testing.assert_allclose(float(again), total, rtol=1e-13)


def test_wider_predictions_and_missing_labels() -> None:
    """Padding adds columns to predictions; a batch without the label has no prediction either."""
    loss, (prediction, labels, graph) = EnerLoss(EnerLossConfig(**OFF, start_pref_h=1.0), 1.0), make()
    expected, _ = loss(prediction, labels, {"hessian": 1.0}, graph, 1.0)
    wider = np.concatenate([prediction["hessian"], np.ones((len(graph.frame), 3, 6))], axis=2)
    found, _ = loss({**prediction, "hessian": wider}, labels, {"hessian": 1.0}, graph, 1.0)
    assert found == expected
    total, metrics = loss({"energy": prediction["energy"]}, labels, {"hessian": 0.0}, graph, 1.0)
    assert total == 0.0 and math.isnan(metrics["rmse_h"])


def test_labels_become_rows_of_atoms() -> None:
    (label,) = EnerLoss(EnerLossConfig(**OFF, limit_pref_h=1.0), 1.0).labels
    request = as_request(label)
    assert (request.name, request.square, request.atomic, request.required) == ("hessian", True, False, True)
    assert (request.frame_shape(4), request.file_size(4)) == (HESSIAN.frame_shape(4), 144)
    value = np.random.default_rng(1).normal(size=(2, 12, 12))
    batch = Batch(
        coord=np.arange(24.0).reshape(2, 4, 3), atype=np.zeros((2, 4), np.int64), cell=None, pbc=False, system=0,
        frames=np.arange(2), labels={"hessian": value}, found={"hessian": 1.0},
    )  # fmt: skip
    rows = prepare(batch, GraphBuilder(requests=(), ntypes=1), frozenset()).labels["hessian"]
    assert rows.shape == (8, 3, 12)
    np.testing.assert_array_equal(rows[5, 2], value[1, 5])
