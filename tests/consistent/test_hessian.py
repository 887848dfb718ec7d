"""Hessians are the derivatives of forces, the same on every backend, for every descriptor and composite."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pytest

from dpmodel.errors import BackendError
from dpmodel.files.model_file import ModelFile
from dpmodel.input.sections import ModelConfig
from dpmodel.models import HessianRequest, LinearModel, Model, PairTable, SpinModel, ZBLModel
from dpmodel.models.build import build_model
from dpmodel.potential import Potential

from .cases import CASES, each_base, model_of, randomise
from .systems import System, graph_of, random_system, with_ghosts
from .tolerance import distance

STEP = 2e-5


def zeros(model: Model) -> dict[str, Any]:
    return {"type_map": model.type_map, "out_bias": np.zeros((2, 1)), "out_std": np.ones((2, 1))}


@functools.cache
def composite(name: str) -> Model:
    """A linear, a ZBL or a spin model."""
    one, other = model_of("se_e2_a"), model_of("dpa3")
    rng = np.random.default_rng(1)
    table = PairTable(
        **zeros(one), rmin=0.0, step=0.5, cutoff=3.5, sel=40, rmax=3.5, coefficients=rng.normal(size=(2, 2, 8, 4)) * 0.1,
        rows=np.zeros((9, 4)),
    )  # fmt: skip
    if name == "linear":
        return LinearModel(**zeros(one), parts=(one, other, table), weights=(0.5, -0.7, 1.2))
    if name == "zbl":
        return ZBLModel(**zeros(one), parts=(one, table), sw_rmin=1.0, sw_rmax=2.5, smin_alpha=0.3)
    section = {**CASES[name.removeprefix("spin-")].section, "type_map": ["O", "H", "O_spin", "H_spin"]}
    section |= {"atom_exclude_types": [2, 3], "pair_exclude_types": [[k, 3] for k in range(4)]}
    if name == "spin-se_e2_a":
        section["descriptor"] = {**section["descriptor"], "sel": [16, 20, 16, 20]}
    backbone = randomise(build_model(ModelConfig.from_dict(section), seed=1), rng)
    return SpinModel(
        type_map=("O", "H"), backbone=backbone, use_spin=(True, False), virtual_scale=np.array([0.35, 0.0])
    )


def arguments(model: Model, system: System) -> dict[str, Any]:
    given = {**vars(system), "box": system.cell}
    del given["cell"]
    if model.spin_scales is not None:
        given["spin"] = np.random.default_rng(2).normal(size=system.coord.shape)
    return given


def check(model: Model, backend: str) -> dict[str, np.ndarray]:
    """The outputs of two frames; the Hessian is symmetric, 0 for padded atoms, and the slope of the forces."""
    potential, system = Potential.from_model(model, backend), random_system(model, frames=2, atoms=6)
    given = arguments(model, system)
    outputs = potential.evaluate(**given, hessian=True)
    found, na = outputs["hessian"], system.atype.shape[1]
    assert found.shape == (2, 3 * na, 3 * na) and found.dtype == np.float64
    assert distance(found, found.swapaxes(1, 2)) <= 1e-12
    padded = np.repeat(system.atype < 0, 3, axis=1)
    assert padded.any() and not found[padded].any()
    plain = potential.evaluate(**given)
    assert set(outputs) == {*plain, "hessian"}
    assert all(distance(outputs[key], plain[key]) <= 1e-12 for key in plain)
    for k in (0, 7, 3 * na - 1):
        move = STEP * np.eye(3 * na)[k].reshape(na, 3)
        plus, minus = (
            potential.evaluate(**{**given, "coord": system.coord + sign * move})["force"].reshape(2, -1)
            for sign in (1, -1)
        )
        assert distance(found[:, :, k], (minus - plus) / (2 * STEP)) <= 1e-6
    return outputs


@each_base
def test_slopes_of_forces(case: str) -> None:
    check(model_of(case), "pt")


@pytest.mark.parametrize("name", ["linear", "zbl", "spin-se_e2_a", "spin-dpa3"])
def test_composites(name: str) -> None:
    check(composite(name), "pt")


def test_jax() -> None:
    """Compilations take seconds; what is special to JAX are padding and the order of loops, not the model."""
    compare_with_jax(model_of("se_e2_a"))


@pytest.mark.nightly
@each_base
def test_jax_all(case: str) -> None:
    compare_with_jax(model_of(case))


@pytest.mark.parametrize("backend", ["pt", "jax"])
def test_overrides_take_no_part(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second derivatives of expansions lose digits in float32: forces have them, Hessians do not."""
    spectral = importlib.import_module(f"dpmodel.backends.{backend}.overrides.spectral")

    def fails(*_args: Any, **_options: Any) -> Any:
        raise AssertionError("an override was called")

    model = model_of("se_e2_a")
    given = arguments(model, random_system(model, frames=2, atoms=6))
    monkeypatch.setattr(spectral.SpectralSeA, "_embed", fails)
    potential = Potential.from_model(model, backend)
    assert potential.evaluate(**given, hessian=True)["hessian"].any()
    with pytest.raises(AssertionError, match="an override was called"):
        potential.evaluate(**given)


def compare_with_jax(model: Model) -> None:
    given = arguments(model, random_system(model, frames=2, atoms=6))
    found, expected = (Potential.from_model(model, name).evaluate(**given, hessian=True) for name in ("jax", "pt"))
    assert set(found) == set(expected)
    assert all(distance(found[key], expected[key]) <= 1e-11 for key in found)


@pytest.mark.parametrize("backend", ["pt", "pt_expt"])
def test_columns_in_parts_and_ghosts(backend: str) -> None:
    model = model_of("dpa3")
    system = random_system(model, frames=2, atoms=6)
    graph = graph_of(model, system)
    evaluator = Potential.from_model(model, backend)._evaluator
    whole = HessianRequest.of(graph)
    assert whole == HessianRequest(6, 18)
    assert HessianRequest.of(graph, atoms_per_call=50) == HessianRequest(6, 4)
    expected = evaluator(graph, forces=True, atomic=False, hessian=whole)["hessian"]
    assert expected.shape == (12, 3, 18)
    for columns in (1, 5):
        found = evaluator(graph, forces=True, atomic=False, hessian=HessianRequest(6, columns))["hessian"]
        assert distance(found, expected) <= 1e-13
    ghosts = evaluator(with_ghosts(graph, system), forces=True, atomic=False, hessian=whole)["hessian"]
    assert distance(ghosts, expected) <= 1e-12


def test_forces_may_be_left_out() -> None:
    model = model_of("se_e2_a")
    given = arguments(model, random_system(model))
    found = Potential.from_model(model, "pt").evaluate(**given, forces=False, hessian=True)
    assert set(found) == {"energy", "hessian"}


@pytest.mark.parametrize(("backend", "periodic"), [("pt", True), ("pt", False), ("jax", False)])
def test_atoms_without_neighbours(backend: str, periodic: bool) -> None:
    """Nothing depends on positions: zeros, not an error of the framework."""
    box = np.eye(3) * 30.0 if periodic else None
    found = Potential.from_model(model_of("se_e2_a"), backend).evaluate(np.zeros((1, 3)), [0], box, hessian=True)
    assert np.array_equal(found["hessian"], np.zeros((1, 3, 3)))


def test_compiled_code_refuses() -> None:
    model = model_of("se_e2_a")
    given = arguments(model, random_system(model))
    compiled = Potential.from_model(model, "pt_expt", compile=True)
    frozen: Any = Potential(ModelFile(model=model), compiled.backend, None, without=("hessian",))
    for potential in (compiled, frozen):
        assert not potential.has_hessian
        with pytest.raises(BackendError, match="compiled code has no Hessian; load the model file, without compile"):
            potential.evaluate(**given, hessian=True)
    with pytest.raises(BackendError, match="compile=True has no Hessian"):
        compiled._evaluator(
            graph_of(model, random_system(model)), forces=True, atomic=False, hessian=HessianRequest(7, 1)
        )
