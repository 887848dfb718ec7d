"""Models of float16, on every backend, against the same weights in float64."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from dpmodel.backend import get_backend
from dpmodel.fittings import CONFIGS as FITTINGS
from dpmodel.input.sections import ModelConfig
from dpmodel.models import Model
from dpmodel.models.build import build_model

from .cases import CASES, randomise
from .runners import COMPILERS, Backend, Outputs, make_runner
from .systems import graph_of, random_system
from .tolerance import assert_close

TOLERANCE = 1e-2
"""Ten roundings of float16 (1e-3 each): what goes through half a dozen layers and sums, and their derivatives, collects."""
FIELDS = {
    "ener": {"atom_ener": [-1.5, 0.25], "numb_fparam": 1, "numb_aparam": 1},
    "dos": {"numb_dos": 3},
    "property": {"property_name": "gap", "task_dim": 2},
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "dpa1-not_smooth": {"smooth_type_embedding": False},
    "dpa1-strip": {"tebd_input_mode": "strip", "lmax": 2, "normalize": False},
    "dpa2-not_smooth": {"smooth": False},
}
CHANGED = {base: base.partition("-")[0] for base in (*CASES, *VARIATIONS)}
BACKENDS = [backend for backend in Backend if backend not in (Backend.STRICT, Backend.JAX)]
"""The standard, and its strict library, know nothing of float16; without jit, JAX takes seconds for every size."""
DAILY = ("dpa1", "dpa2-not_smooth")
"""Of the models whose compilation takes seconds."""


def section_of(name: str, precision: str) -> dict[str, Any]:
    """The section of a case by name, or that of se_e2_a with another fitting net."""
    base = CASES[CHANGED.get(name, "se_e2_a")].section
    given = {**base["descriptor"], **VARIATIONS.get(name, {}), "precision": precision}
    if parts := given.get("list"):
        given.pop("precision")
        given["list"] = [{**part, "precision": precision} for part in parts]
    net = {**base["fitting_net"], "precision": precision}
    if name not in CHANGED:
        net = {"type": name, "neuron": net["neuron"], **FIELDS.get(name, {}), "precision": precision}
    return {**base, "descriptor": given, "fitting_net": net}


@functools.cache
def model_of(name: str, precision: str) -> Model:
    built = build_model(ModelConfig.from_dict(section_of(name, precision)), seed=1)
    model: Model = randomise(built, np.random.default_rng(2))
    return model


def outputs(model: Model, backend: Backend) -> Outputs:
    """On random atoms, with derivatives where there are any."""
    graph = graph_of(model, random_system(model))
    names = {Backend.TORCH: "pt", Backend.TORCH_TRACED: "pt_expt", Backend.JAX_JIT: "jax"}
    if backend not in names or model.output().differentiable:
        return make_runner(backend, model)(graph)
    evaluator = get_backend(names[backend]).evaluator(model, device="cpu", compile=False)
    found: Outputs = evaluator(graph, forces=False, atomic=True)
    return found


@functools.cache
def expected_of(name: str) -> Outputs:
    return outputs(model_of(name, "float64"), Backend.TORCH)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, id=f"{name}-{backend.value}", marks=[pytest.mark.nightly] * slow)
        for name in (*CHANGED, *(kind.key for kind in FITTINGS))
        for backend in BACKENDS
        for slow in [backend in COMPILERS and name not in DAILY]
    ],
)
def test_half_precision(name: str, backend: Backend) -> None:
    model = model_of(name, "float16")
    assert np.dtype("float16") in {np.asarray(value).dtype for value in model.state().values()}
    found, expected = outputs(model, backend), expected_of(name)
    hidden = expected.keys() - found.keys()
    assert not hidden or backend in (Backend.NUMPY, Backend.NUMPY_READONLY)
    assert_close(found, {key: value for key, value in expected.items() if key not in hidden}, TOLERANCE)
