"""Pair tables on every backend where atoms are nearer than the table begins: continuous, and forces are its slopes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel import Potential
from dpmodel.input import load_model
from dpmodel.models import Model
from dpmodel.models.build import build_model
from dpmodel.models.tables import read_pair_table

from .cases import CASES, randomise
from .tolerance import distance

RMIN, STEP = 0.5, 0.05
R = np.array([0.02, 0.11, 0.2, 0.3, 0.41, 0.47, 0.4999, 0.5001, 0.52, 0.56, 0.9])
"""Å: below the beginning, above it, and beside it."""
JOINTS = (RMIN, RMIN - STEP)
"""Å: where the second derivative jumps, and nothing else."""
KINDS = ("table", "linear", "zbl")
BACKENDS = ("numpy", "pt", "pt_expt", "jax")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Energies of 1/r and less, for two types, from 0.5 Å to 4 Å."""
    path, r = tmp_path_factory.mktemp("table") / "late.txt", RMIN + STEP * np.arange(71)
    decay = (1 / r - 0.25) * (r < 4.0 - STEP / 2)
    np.savetxt(path, np.stack([r, 3 * decay, 2 * decay, decay * np.exp(-r)], axis=1))
    return path


def model_of(kind: str, file: Path) -> Model:
    types = ("O", "H")
    if kind == "table":
        return read_pair_table(file, types, rcut=3.9, sel=10, name="a table")
    net = {key: value for key, value in CASES["se_e2_r"].section.items() if key != "type_map"}
    section: dict[str, Any] = {"type_map": list(types), **net, "use_srtab": str(file), "sw_rmin": 0.6, "sw_rmax": 1.5}
    if kind == "linear":
        table = {"type": "pairtab", "tab_file": str(file), "rcut": 3.9, "sel": 10}
        section = {"type": "linear_ener", "type_map": list(types), "models": [net, table], "weights": "sum"}
    model: Model = randomise(build_model(load_model(section), seed=1), np.random.default_rng(2))
    return model


def pairs(potential: Potential, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies of atoms at some distances, and the derivatives from forces (none on NumPy)."""
    coord = np.zeros((len(r), 2, 3))
    coord[:, 1, 1] = r
    out = potential.evaluate(coord, np.array([0, 1]), None)
    return out["energy"][:, 0], -out["force"][:, 1, 1] if "force" in out else np.zeros(len(r))


@pytest.mark.parametrize("kind", KINDS)
def test_forces_below_the_table_are_slopes(kind: str, file: Path) -> None:
    """Central differences on NumPy, of every backend's forces; the difference of two sides says that nothing jumps."""
    model = model_of(kind, file)
    reference = Potential.from_model(model, "numpy")
    energy, _ = pairs(reference, R)
    h = 1e-5
    slopes = (pairs(reference, R + h)[0] - pairs(reference, R - h)[0]) / (2 * h)
    for backend in BACKENDS[1:]:
        found, derivative = pairs(Potential.from_model(model, backend, device="cpu"), R)
        assert distance(found, energy) <= 1e-12
        assert distance(derivative, slopes) <= 1e-6, backend
    for place in JOINTS:
        left, right = (
            pairs(Potential.from_model(model, "pt", device="cpu"), np.array([place + x])) for x in (-1e-9, 1e-9)
        )
        assert distance(left[0], right[0]) <= 1e-6 and distance(left[1], right[1]) <= 1e-6


def test_the_line(file: Path) -> None:
    """Repulsion goes on with the slope of the first interval."""
    rows = np.loadtxt(file)
    slope = (rows[1, 2] - rows[0, 2]) / STEP
    far = RMIN - STEP - np.array([0.0, 0.1, 0.2, 0.4])
    for backend in BACKENDS:
        energy, derivative = pairs(Potential.from_model(model_of("table", file), backend, device="cpu"), far)
        np.testing.assert_allclose(energy, rows[0, 2] + slope * (far - RMIN + STEP / 2), rtol=1e-12)
        assert backend == "numpy" or distance(derivative, np.full(4, slope)) <= 1e-11


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["linear", "zbl"])
def test_frozen(kind: str, file: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "model.dp", tmp_path / "model.pt2"
    dpmodel.save(Potential.from_model(model_of(kind, file), "pt", device="cpu"), source)
    dpmodel.freeze(source, target)
    expected = pairs(dpmodel.load(source, "pt", device="cpu"), R)
    for ours, value in zip(pairs(dpmodel.load(target), R), expected, strict=True):
        assert distance(ours, value) <= 1e-10
