"""Forces, virials and per-atom virials are the derivatives of NumPy's energy, found by central differences."""

from __future__ import annotations

import numpy as np
import pytest

from dpmodel.graph import Graph
from dpmodel.models import Model, predict

from .cases import NAMES, model_of, single, truncates
from .runners import Backend, runner
from .systems import System, graph_of, random_system
from .tolerance import distance

STEP = 2e-5
each_double = pytest.mark.parametrize("case", [name for name in NAMES if "float32" not in name and "mixed" not in name])
"""Differences of float32 energies say nothing; those cases are compared with torch's derivatives elsewhere."""


def energies(model: Model, system: System) -> np.ndarray:
    return predict(model, graph_of(model, system), None)["energy"][:, 0]


def repeated(system: System, count: int) -> System:
    """The only frame of a system, many times."""
    return system.frames(np.zeros(count, np.int64))


@each_double
def test_forces_and_virial(case: str) -> None:
    model = model_of(case)
    assert not single(case)
    system = random_system(model, frames=1)
    outputs = runner(case, Backend.TORCH)(graph_of(model, system))
    na = system.atype.shape[1]
    moves = STEP * np.eye(3 * na).reshape(3 * na, na, 3)
    moved = [system.coord + sign * moves for sign in (1, -1)]
    plus, minus = (energies(model, repeated(system, 3 * na).replace(coord=coord)) for coord in moved)
    assert distance(outputs["force"], (minus - plus).reshape(na, 3) / (2 * STEP)) <= 1e-6

    strains = [np.eye(3) + sign * STEP * np.eye(9).reshape(9, 3, 3) for sign in (1, -1)]  # x[a] += e[a, b] x[b]
    plus, minus = (
        energies(
            model,
            repeated(system, 9).replace(
                coord=np.einsum("kab,kib->kia", e, repeated(system, 9).coord),
                cell=np.einsum("kab,kib->kia", e, repeated(system, 9).cell),
            ),
        )
        for e in strains
    )
    if not truncates(case):  # a strain may change which neighbours are kept
        assert distance(outputs["virial"], (minus - plus)[None] / (2 * STEP)) <= 1e-6


@each_double
def test_atom_virial_belongs_to_the_neighbour(case: str) -> None:
    """The slopes of single edges, and the sums over edges written as loops."""
    model = model_of(case)
    graph = graph_of(model, random_system(model, frames=1, atoms=4, virtual=0, periodic=False))
    outputs = runner(case, Backend.TORCH)(graph)

    def energy(vec: np.ndarray) -> float:
        moved: Graph = graph.replace(edge_vec=vec)
        return float(predict(model, moved, None)["energy"][0, 0])

    force, virial = np.zeros((4, 3)), np.zeros((4, 3, 3))
    for e, (i, j) in enumerate(zip(graph.centre, graph.neighbour, strict=True)):
        slope = np.zeros(3)
        for a in range(3):
            step = np.zeros_like(graph.edge_vec)
            step[e, a] = STEP
            slope[a] = (energy(graph.edge_vec + step) - energy(graph.edge_vec - step)) / (2 * STEP)
        force[i] += slope
        force[j] -= slope
        virial[j] -= np.outer(slope, graph.edge_vec[e])
    assert distance(outputs["force"], force) <= 1e-6
    assert distance(outputs["atom_virial"], virial.reshape(4, 9)) <= 1e-6
    assert distance(outputs["virial"], virial.sum(axis=0).reshape(1, 9)) <= 1e-6
