"""Every backend as one function: a graph of NumPy arrays in, outputs as NumPy arrays out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import Enum
from unittest import mock

import array_api_strict
import numpy as np
import pytest

from dpmodel.backend import get_backend
from dpmodel.backends.jax.bridge import double_precision, graph_to_jax, jax_gradient, to_jax
from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.graph import Graph, map_record
from dpmodel.models import Model, predict
from dpmodel.op import Array

from .cases import CASES, COMPILED, NAMES, model_of

__all__ = ["Backend", "each_base_and_backend", "each_case_and_backend", "each_gradient", "make_runner", "runner"]

Outputs = dict[str, np.ndarray]
Runner = Callable[[Graph], Outputs]


class Backend(Enum):
    """What the bodies of this folder run on."""

    NUMPY = "numpy"
    NUMPY_READONLY = "numpy_readonly"
    """Arrays that cannot be written to."""
    STRICT = "strict"
    """Nothing but the standard, without shapes that depend on data."""
    TORCH = "torch"
    TORCH_TRACED = "torch_traced"
    """The graph that pt_expt compiles, run as it is (Inductor takes a minute per model: see tests/pt_expt)."""
    JAX = "jax"
    JAX_JIT = "jax_jit"


COMPILERS = (Backend.TORCH_TRACED, Backend.JAX, Backend.JAX_JIT)
"""Seconds for every new model; without jit, JAX compiles every operation for every shape."""
GRADIENTS = (Backend.TORCH, Backend.TORCH_TRACED, Backend.JAX_JIT)
"""Backends with derivatives that take any size as it comes."""

each_gradient = pytest.mark.parametrize("backend", GRADIENTS, ids=lambda b: b.value)
each_base_and_backend = pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, id=f"{case}-{backend.value}", marks=[pytest.mark.nightly] * slow)
        for case in CASES
        for backend in Backend
        for slow in [backend is Backend.JAX and case != "se_e2_a"]
    ],
)
"""Every section as it stands; without jit, large models take minutes on JAX."""
each_case_and_backend = pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, id=f"{case}-{backend.value}", marks=[pytest.mark.nightly] * nightly)
        for case in NAMES
        for backend in Backend
        if backend is not Backend.JAX or case in CASES
        for nightly in [backend in COMPILERS and case not in (("se_e2_a",) if backend is Backend.JAX else COMPILED)]
    ],
)
"""Every pair, JAX without jit for the sections as they stand; what is slow and covered by the combinations is nightly."""


def _read_only(x: Array) -> Array:
    x = np.array(x)
    x.flags.writeable = False
    return x


def _strict(model: Model, graph: Graph) -> Outputs:
    with array_api_strict.ArrayAPIStrictFlags(data_dependent_shapes=False, boolean_indexing=False):
        strict = map_record(graph, array_api_strict.asarray)
        outputs = predict(model.map_arrays(array_api_strict.asarray), strict, None)
    return {key: np.asarray(value) for key, value in outputs.items()}


def _jax(model: Model) -> Runner:
    with double_precision():
        tree = to_jax(model)

    def run(graph: Graph) -> Outputs:
        with double_precision():
            outputs = predict(tree, graph_to_jax(graph), jax_gradient, atomic_virial=True)
            return {key: np.array(value) for key, value in outputs.items()}

    return run


def _evaluator(name: str, model: Model, *, compile: bool = False) -> Runner:
    evaluator = get_backend(name).evaluator(model, device="cpu", compile=compile)
    return functools.partial(evaluator, forces=True, atomic=True)


def _traced(model: Model) -> Runner:
    run = _evaluator("pt_expt", model, compile=True)

    def traced(graph: Graph) -> Outputs:
        with mock.patch.object(compilation, "compile_fx", lambda graph_module, inputs, **_: graph_module):
            return run(graph)

    return traced


def make_runner(backend: Backend, model: Model) -> Runner:
    """The model on a backend."""
    match backend:
        case Backend.NUMPY:
            return lambda graph: predict(model, graph, None)
        case Backend.NUMPY_READONLY:
            frozen = model.map_arrays(_read_only)
            return lambda graph: predict(frozen, map_record(graph, _read_only), None)
        case Backend.STRICT:
            return functools.partial(_strict, model)
        case Backend.TORCH:
            return _evaluator("pt", model)
        case Backend.TORCH_TRACED:
            return _traced(model)
        case Backend.JAX:
            return _jax(model)
        case Backend.JAX_JIT:
            return _evaluator("jax", model)


@functools.cache
def runner(case: str, backend: Backend) -> Runner:
    """The model of a case on a backend, made once."""
    return make_runner(backend, model_of(case))
