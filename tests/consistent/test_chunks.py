"""Evaluation in pieces, over frames and within one, equals evaluation at once, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpmodel.potential import Potential

from .cases import COMBINED, model_of, single
from .systems import System, random_system

BACKENDS = ("numpy", "pt", "pt_expt", "jax")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_case_and_backend = pytest.mark.parametrize(
    ("case", "backend"),
    [
        # JAX compiles for seconds per shape.
        pytest.param(case, name, marks=[pytest.mark.nightly] * (name == "jax" and case not in ("se_e2_a", "dpa3")))
        for case in COMBINED
        for name in BACKENDS
    ],
)


def evaluate(potential: Potential, system: System) -> dict[str, np.ndarray]:
    inputs: dict[str, Any] = {**vars(system), "box": system.cell}
    del inputs["cell"]
    return potential.evaluate(**inputs, atomic=True)


@pytest.mark.filterwarnings("ignore::dpmodel.geometry.TruncationWarning")
@each_case_and_backend
def test_pieces_equal_the_whole(case: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(case)
    potential = Potential.from_model(model, backend, device="cpu")
    system = random_system(model, frames=1 if backend == "jax" else 3, atoms=8)
    monkeypatch.delenv("DP_INFER_BATCH_SIZE", raising=False)
    whole = evaluate(potential, system)
    assert set(whole) == set(potential.outputs)
    tolerance = 2e-5 if single(case) else 1e-12
    # An uneven pair of pieces per frame; two frames at a time, then one; three pieces per frame.
    for size in (7,) if backend == "jax" else (7, 16, 3):
        monkeypatch.setenv("DP_INFER_BATCH_SIZE", str(size))
        for key, value in evaluate(potential, system).items():
            assert value.dtype == (np.int32 if key == "mask" else np.float64)
            scale = max(1.0, np.abs(whole[key]).max())
            np.testing.assert_allclose(value, whole[key], rtol=0, atol=tolerance * scale, err_msg=f"{key} {size}")


@each_backend
def test_no_atoms(backend: str) -> None:
    potential = Potential.from_model(model_of("se_e2_a"), backend, device="cpu")
    found = potential.evaluate(np.zeros((2, 0, 3)), [], np.eye(3), atomic=True)
    shapes = {
        "energy": (2, 1),
        "atom_energy": (2, 0, 1),
        "mask": (2, 0),
        "force": (2, 0, 3),
        "virial": (2, 9),
        "atom_virial": (2, 0, 9),
    }
    assert {key: value.shape for key, value in found.items()} == {key: shapes[key] for key in potential.outputs}
    assert not found["energy"].any()
