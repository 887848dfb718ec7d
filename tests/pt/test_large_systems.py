"""Systems that do not fit into one call: pieces of one frame add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpmodel.input.sections import ModelConfig
from dpmodel.models.build import build_model
from dpmodel.potential import Potential

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL: dict[str, Any] = {
    "type_map": ["A", "B"],
    "descriptor": {
        "type": "se_e2_a", "rcut": 3.0, "rcut_smth": 1.0, "sel": [14, 14], "neuron": [2, 4], "axis_neuron": 2,
    },
    "fitting_net": {"neuron": [4, 4]},
}  # fmt: skip
CELL = np.diag([8.0, 8.2, 8.4])


def crystal(repeats: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """coord (n, 3), atype (n,), cell (3, 3): a jittered lattice of 40 atoms, repeated."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)[:40]
    coord = grid * 2.0 + rng.uniform(-0.3, 0.3, (40, 3))
    shifts = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 1, 3) @ CELL
    types = np.tile(np.arange(40) % 2, int(np.prod(repeats)))
    return (coord + shifts).reshape(-1, 3), types, CELL * np.array(repeats)[:, None]


def check(repeats: tuple[int, int, int]) -> None:
    """Energy and virial of the repeated cell are multiples of those of the cell, forces are the same."""
    potential = Potential.from_model(build_model(ModelConfig.from_dict(MODEL), seed=1), "pt", device="cpu")
    one = potential.evaluate(*crystal((1, 1, 1)))
    many = potential.evaluate(*crystal(repeats))
    times = int(np.prod(repeats))
    assert np.abs(one["force"]).max() > 1e-3
    np.testing.assert_allclose(many["energy"], times * one["energy"], rtol=1e-12)
    np.testing.assert_allclose(many["virial"], times * one["virial"], rtol=0, atol=1e-11 * times)
    np.testing.assert_allclose(many["force"], np.tile(one["force"], (1, times, 1)), rtol=0, atol=1e-11)


def test_five_thousand_atoms_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DP_INFER_BATCH_SIZE", "1100")
    check((5, 5, 5))


@pytest.mark.nightly
def test_a_hundred_thousand_atoms() -> None:
    check((14, 14, 13))
