"""Every override in every table against its reference: values, gradients of the weights, second derivatives.

The tests parametrise themselves over the tables: an override cannot exist without being compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest
import torch

import dpmodel.backends.jax
import dpmodel.backends.pt
import dpmodel.backends.pt_expt
from dpmodel.backends.jax.bridge import double_precision, graph_to_jax, jax_gradient, to_jax
from dpmodel.backends.pt.bridge import check_overrides, graph_to_torch, override_table, to_torch, torch_gradient
from dpmodel.graph import Graph
from dpmodel.models import Model, predict
from dpmodel.nn import Linear
from dpmodel.op import Kind, Op, buffer, children, walk

from .cases import NAMES, model_of, single
from .systems import graph_of, random_system
from .tolerance import distance

Table = Mapping[type[Op], type[Op]]
TABLES: dict[str, Table] = {
    "pt": dpmodel.backends.pt.OVERRIDES,
    "pt_expt": dpmodel.backends.pt_expt.OVERRIDES,
    "jax": dpmodel.backends.jax.OVERRIDES,
}


def ops(op: Op) -> Iterator[Op]:
    yield op
    for name, _ in op.fields():
        value = getattr(op, name)
        if isinstance(value, Op) or (isinstance(value, tuple) and any(isinstance(item, Op) for item in value)):
            for _, item in children(value):
                yield from ops(item)


def uses(case: str, reference: type[Op]) -> bool:
    return any(isinstance(op, reference) for op in ops(model_of(case)))


COMPILED = {"se_e2_a", "se_e2_a-activation-relu", "se_e2_r", "dpa1-no_attention-smooth-strip"}
"""Cases that are compiled for JAX, third derivatives and all, in every run; the others nightly."""


def marks(backend: str, case: str) -> tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.nightly,) if backend == "jax" and case not in COMPILED else ()


ENTRIES = [
    pytest.param(
        backend, reference, override, case, id=f"{backend}-{override.__name__}-{case}", marks=marks(backend, case)
    )
    for backend, table in TABLES.items()
    for reference, override in table.items()
    for case in NAMES
    if uses(case, reference)
]


def crowd(model: Model) -> Graph:
    """Enough atoms for overrides that act on large tables alone."""
    return graph_of(model, random_system(model, frames=3, atoms=25, virtual=1))


def torch_results(model: Model, graph: Graph, overrides: Table) -> dict[str, np.ndarray]:
    """Outputs; d(loss)/d(weights) of a loss with forces; H v for the Hessian H of the energy in the displacements."""
    module = to_torch(model, overrides=override_table(overrides))
    inputs = graph_to_torch(graph)
    rng = np.random.default_rng(0)
    weights = {key: torch.tensor(rng.normal(size=shape)) for key, shape in shapes(graph).items()}

    def gradient(function: Any, x: Any) -> Any:
        return torch_gradient(function, x, create_graph=True)

    outputs = predict(module, inputs, gradient, atomic_virial=True)
    loss = sum((weights[key] * outputs[key]).sum() for key in weights)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(loss, list(trained.values()), allow_unused=True) if trained else ()

    vec = inputs.edge_vec.clone().requires_grad_(True)
    energy = module(inputs.replace(edge_vec=vec))["energy"].sum()
    (first,) = torch.autograd.grad(energy, vec, create_graph=True)
    along = torch.tensor(rng.normal(size=vec.shape))
    (second,) = torch.autograd.grad((first * along).sum(), vec)
    return {
        **{key: value.detach().numpy() for key, value in outputs.items()},
        **{f"d/d {k}": (torch.zeros(1) if g is None else g).numpy() for k, g in zip(trained, slopes, strict=True)},
        "hessian": second.numpy(),
    }


def jax_results(model: Model, graph: Graph, overrides: Table) -> dict[str, np.ndarray]:
    """The same on JAX."""
    rng = np.random.default_rng(0)
    weights = {key: rng.normal(size=shape) for key, shape in shapes(graph).items()}
    with double_precision():
        tree, inputs = to_jax(model, overrides=overrides), graph_to_jax(graph)

        def run(tree: Any, inputs: Graph, along: Any) -> Any:
            def loss(tree: Any) -> Any:
                outputs = predict(tree, inputs, jax_gradient, atomic_virial=True)
                return sum((weights[key] * outputs[key]).sum() for key in weights), outputs

            def energy(vec: Any) -> Any:
                return tree(inputs.replace(edge_vec=vec))["energy"].sum()

            slopes, outputs = jax.grad(loss, has_aux=True)(tree)
            return outputs, slopes, jax.jvp(jax.grad(energy), (inputs.edge_vec,), (along,))[1]

        along = rng.normal(size=graph.edge_vec.shape)
        # The mathematics is compared, not XLA: without its optimisations it compiles in half the time. Of some functions
        # (of dpa2, with JAX 0.10.2) it then makes NaN, which they do not give operation by operation, nor with them.
        for options in ({"xla_backend_optimization_level": 0}, {}):
            outputs, slopes, second = jax.jit(run, compiler_options=options)(tree, inputs, along)
            if all(bool(jax.numpy.isfinite(x).all()) for x in jax.tree.leaves((outputs, slopes, second))):
                break
        named = jax.tree_util.tree_flatten_with_path(slopes)[0]
        # What is trained: statistics are constants, and their slopes in float32 are sums that cancel.
        constant = tuple(f".{path.rsplit('.', 1)[-1]}" for path, kind, _, _ in walk(model) if kind is Kind.BUFFER)
        keys = [(jax.tree_util.keystr(path), value) for path, value in named]
        gradients = {f"d/d {key}": np.asarray(value) for key, value in keys if not key.endswith(constant)}
        assert gradients
        return {**{k: np.asarray(v) for k, v in outputs.items()}, **gradients, "hessian": np.asarray(second)}


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    n, f = len(graph.frame), len(graph.natoms)
    return {"energy": (f, 1), "force": (n, 3), "virial": (f, 9), "atom_virial": (n, 9)}


RESULTS = {"pt": torch_results, "pt_expt": torch_results, "jax": jax_results}


def compare(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert ours[key].dtype == value.dtype, key
        assert distance(ours[key], value) <= tolerance, f"{key}: {distance(ours[key], value):.1e} of {tolerance:.0e}"


@pytest.mark.parametrize(("backend", "reference", "override", "case"), ENTRIES)
def test_override(backend: str, reference: type[Op], override: type[Op], case: str) -> None:
    model = model_of(case)
    graph = crowd(model)
    expected, ours = (RESULTS[backend](model, graph, table) for table in ({}, {reference: override}))
    if single(case):  # where Hessians are asked for, the reference methods give them
        del ours["hessian"], expected["hessian"]
    compare(ours, expected, 2e-5 if single(case) else 1e-10)


@pytest.mark.parametrize(("backend", "reference"), [(b, r) for b, table in TABLES.items() for r in table])
def test_every_override_has_a_case(backend: str, reference: type[Op]) -> None:
    assert any(uses(case, reference) for case in NAMES), f"{reference.__name__}: no case in cases.py contains it"


# --- the comparison itself, and what the tables refuse --------------------------------------------------


class Same(Linear):
    """A right override."""

    def _affine(self, x: Any) -> Any:
        return x @ self.w + (0.0 if self.b is None else self.b)


class Wrong(Linear):
    """A wrong one."""

    def _affine(self, x: Any) -> Any:
        return super()._affine(x) * (1 + 1e-8)


@pytest.mark.parametrize(
    "backend", ["pt", pytest.param("jax", marks=pytest.mark.nightly)]
)  # compiles third derivatives
def test_the_comparison_finds_faults(backend: str) -> None:
    model = model_of("se_e2_a-1_type")
    graph = crowd(model)
    expected, same, wrong = (RESULTS[backend](model, graph, t) for t in ({}, {Linear: Same}, {Linear: Wrong}))
    compare(same, expected, 1e-10)
    with pytest.raises(AssertionError, match=" of 1e-10"):
        compare(wrong, expected, 1e-10)


def test_an_override_that_adds_state_is_refused() -> None:
    class Stateful(Linear):
        cache: Any = buffer(default=None)

    with pytest.raises(TypeError, match=r"Stateful changes the fields of Linear: only methods may change"):
        check_overrides({Linear: Stateful})
    with pytest.raises(TypeError, match=r"Stateful"):
        override_table({Linear: Stateful})


def test_an_override_of_another_class_is_refused() -> None:
    with pytest.raises(TypeError, match="does not subclass"):
        check_overrides({Linear: type(model_of("se_e2_a").fitting)})
