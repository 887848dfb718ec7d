"""The energy loss under jit: found flags and the learning rate are traced, one compilation serves all."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dpmodel.graph import Graph
from dpmodel.losses import EnerLoss, EnerLossConfig

OPTIONS = {
    "mse": {"start_pref_v": 1.0, "start_pref_ae": 3.0, "start_pref_pf": 2.0, "use_default_pf": True, "relative_f": 0.5},
    "huber": {"start_pref_v": 1.0, "use_huber": True, "huber_delta": 0.4, "f_use_norm": True},
    "mae": {"start_pref_v": 1.0, "loss_func": "mae", "enable_atom_ener_coeff": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_jit_equals_numpy(name: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {"energy": (3, 1), "force": (5, 3), "virial": (3, 9), "atom_energy": (5, 1)}
    prediction = {key: rng.normal(size=shape) for key, shape in shapes.items()}
    shapes = {"energy": (3, 1), "force": (5, 3), "virial": (3, 9), "atom_ener": (5, 1), "atom_pref": (5, 3)}
    labels = {key: rng.normal(size=shape) ** 2 for key, shape in {**shapes, "atom_ener_coeff": (5, 1)}.items()}
    arrays = (np.array([0, 1, -1, 1, -1]), np.array([0, 0, 0, 1, 2]), np.array([2, 1, 0]))
    loss = EnerLoss(EnerLossConfig(**OPTIONS[name]), 1.0)
    traces = []

    def run(prediction, labels, found, arrays, lr):  # type: ignore[no-untyped-def]  # jitted below
        traces.append(1)
        atype, frame, natoms = arrays
        none = atype[:0]
        graph = Graph(
            atype=atype, frame=frame, natoms=natoms, centre=none, neighbour=none, edge_vec=none[:, None] * 1.0,
            edge_mask=none > 0,
        )  # fmt: skip
        return loss(prediction, labels, found, graph, lr)

    with jax.enable_x64(True):
        jitted = jax.jit(jax.value_and_grad(run, has_aux=True))
        for flag, lr in ((1.0, 0.5), (0.0, 0.1)):
            found = {**dict.fromkeys(labels, 1.0), "virial": flag, "atom_pref": flag, "atom_ener_coeff": flag}
            (total, metrics), slope = jitted(prediction, labels, found, arrays, lr)
            count = len(traces)
            expected, shown = run(prediction, labels, found, arrays, lr)
            del traces[count:]
            np.testing.assert_allclose(total, expected, rtol=1e-13)
            assert metrics.keys() == shown.keys()
            for key in shown:
                np.testing.assert_allclose(metrics[key], shown[key], rtol=1e-13)
            assert all(np.isfinite(value).all() for value in slope.values())
    assert len(traces) == 1
