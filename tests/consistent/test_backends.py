"""Every backend gives NumPy's energies and torch's derivatives, whatever the sizes and the order of memory."""

from __future__ import annotations

import numpy as np
import pytest

from dpmodel.geometry.padding import bucket_sizes, pad_graph
from dpmodel.graph import Graph
from dpmodel.nn import ACTIVATIONS

from .cases import each_base, each_case, model_of, single
from .runners import Backend, each_backend, each_case_and_backend, each_gradient, runner
from .systems import System, graph_of, random_system
from .tolerance import assert_close, distance

DERIVATIVES = ("force", "virial", "atom_virial")


@each_case_and_backend
def test_outputs(case: str, backend: Backend) -> None:
    model = model_of(case)
    graph = graph_of(model, random_system(model))
    ours, energies = runner(case, backend)(graph), runner(case, Backend.NUMPY)(graph)
    assert_close(ours, energies, 2e-5 if single(case) else 1e-12)
    if backend.value not in ("numpy", "numpy_readonly", "strict"):
        torch = runner(case, Backend.TORCH)(graph)
        assert ours.keys() == torch.keys() >= set(DERIVATIVES)
        assert_close(ours, {key: torch[key] for key in DERIVATIVES}, 2e-5 if single(case) else 1e-11)


@each_case
def test_the_comparison_says_something(case: str) -> None:
    model = model_of(case)
    graph = graph_of(model, random_system(model))
    outputs = runner(case, Backend.TORCH)(graph)
    shown = outputs["mask"] > 0
    assert np.ptp(outputs["atom_energy"][shown]) > 1e-3
    for key in DERIVATIVES:
        assert np.abs(outputs[key]).max() > 1e-3, key
    assert all(value.dtype == np.float64 for key, value in outputs.items() if key != "mask")
    assert (outputs["atom_energy"][~shown] == 0).all()


