"""Artefacts of every kind of model give what the model gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.backends.pt.bridge import to_torch
from dpmodel.backends.pt_expt.export.archive import read_entries
from dpmodel.backends.pt_expt.export.metadata import describe_model, parse_metadata
from dpmodel.backends.pt_expt.export.program import export_program, graph_like
from dpmodel.models import Model
from dpmodel.potential import Potential

from .family import KINDS

DAILY = ("spin_hybrid", "dos")
"""The others take minutes to compile."""
CELL = np.array([[6.9, 0.0, 0.0], [1.1, 6.6, 0.0], [-0.7, 0.9, 6.8]])

SCHEDULES: dict[str, list[tuple[str, int]]] = {
    "dpa2": [("forward", 6)] * 2 + [("reverse", 6)] * 2,
    "hybrid": [("forward", 6)] * 4 + [("reverse", 6)] * 3,
    "zbl": [("forward", 6)] * 2 + [("reverse", 6)],
    "spin_dpa2": [("forward", 6)] * 2 + [("reverse", 6)] * 2,
    "spin_dpa3": [("forward", 6)] * 2 + [("reverse", 6)],
    "spin_hybrid": [("forward", 6)] * 2 + [("reverse", 6)],
    "dipole_dpa3": ([("forward", 6)] * 2 + [("reverse", 6)]) * 3,
}
"""In one order, whichever descriptors and components exchanges belong to; the first features of dpa3 have no derivative."""


def arguments(model: Model, periodic: bool) -> dict[str, Any]:
    """Two frames of 27 atoms, one of them padding."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) / 3
    coord = (grid + rng.uniform(-0.05, 0.05, (2, 27, 3))) @ CELL
    atype = np.broadcast_to(np.arange(27) % 2, (2, 27)).copy()
    atype[1, 5] = -1
    given: dict[str, Any] = {"coord": coord, "atype": atype, "box": CELL if periodic else None}
    return given if model.spin_scales is None else {**given, "spin": rng.normal(size=(2, 27, 3))}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.nightly] * (k not in DAILY)) for k in KINDS])
def test_artefact_equals_model(artefact: Callable[..., Path], models: SimpleNamespace, kind: str) -> None:
    model = models.small(kind)
    path = artefact(kind, model, atomic_virial=True)
    frozen, plain = dpmodel.load(path), Potential.from_model(model, "pt", device="cpu")
    assert set(frozen.outputs) == set(plain.outputs) - ({"atom_virial"} if not model.output().differentiable else set())
    for periodic in (True, False):
        given = arguments(model, periodic)
        found, expected = (each.evaluate(**given, atomic=True) for each in (frozen, plain))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].shape == value.shape and found[key].dtype == value.dtype, key
            largest = np.abs(found[key] - value).max() / max(1.0, np.abs(value).max())
            assert largest <= 1e-10, (key, largest)
        without = frozen.evaluate(**given, forces=False, atomic=True)
        assert without.keys() == found.keys() - {"force", "virial", "atom_virial", "force_mag"}
    metadata = parse_metadata(read_entries(path)[0], str(path))
    assert {key: metadata[key] for key in describe_model(model)} == describe_model(model)
    assert [(each["op"], each["width"]) for each in metadata["exchanges"]] == SCHEDULES.get(kind, [])


def test_arrays_of_spins(models: SimpleNamespace) -> None:
    """Forces have rows of ghosts, what is of atoms alone has none."""
    model = models.small("spin_se_a")
    program = export_program(to_torch(model).requires_grad_(False), graph_like(model), atomic_virial=True)
    axes = {name: axes for name, _, axes in program.outputs}
    assert {axes[name] for name in ("force", "force_mag", "atom_virial")} == {("virtual.pairs",)}
    assert {axes[name] for name in ("atom_energy", "mask", "mask_mag")} == {("virtual.owned",)}
    assert axes["energy"] == axes["virial"] == ("frames",)
    assert describe_model(model)["spin_scales"] == [0.0, 0.35] and describe_model(model)["graph_types"] == 4
    assert len(describe_model(model)["pair_exclude_types"]) == 4
