"""Models on JAX are pytrees; one compilation serves systems of similar size; the user's settings stay."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpmodel
from dpmodel.backends.jax.bridge import double_precision, graph_to_jax, to_jax
from dpmodel.files.model_file import read_model
from dpmodel.models import Model, builder_of

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(GOLDEN / "se_e2_a.dp").model


def system(atoms: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)[:atoms]
    return 1.9 * grid + rng.uniform(0, 0.4, (atoms, 3)), rng.integers(0, 2, atoms)


def test_tree_map(model: Model) -> None:
    with double_precision():
        tree = to_jax(model)
        double = jax.tree.map(lambda x: 2 * x, tree)
    assert type(double) is type(tree)
    assert double.type_map == model.type_map
    np.testing.assert_array_equal(double.fitting.networks[0].layers[0].w, 2 * model.fitting.networks[0].layers[0].w)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    assert set(names) == set(model.state())


def test_gradients_are_models(model: Model) -> None:
    coord, atype = system(5)
    graph = builder_of(model).build(coord[None], atype[None], None)
    with double_precision():
        tree, inputs = to_jax(model), graph_to_jax(graph)
        energy = jax.jit(lambda tree: tree(inputs)["energy"].sum())
        before, slope = jax.jit(jax.value_and_grad(energy))(tree)
        assert type(slope) is type(tree)
        assert jax.tree.structure(slope) == jax.tree.structure(tree)
        assert energy(jax.tree.map(lambda x, g: x - 1e-3 * g, tree, slope)) < before
        np.testing.assert_array_equal(slope.out_bias[:, 0], np.bincount(atype, minlength=2))


def test_compilations(model: Model) -> None:
    """A trajectory and systems of similar size share one compilation; much larger ones add few."""
    potential = dpmodel.Potential.from_model(model, "jax")
    evaluator = potential._evaluator
    coord, atype = system(30)
    potential.evaluate(coord, atype)
    assert evaluator.compilations() == 1
    for seed in range(1, 5):
        potential.evaluate(system(30, seed)[0], atype)
    for atoms in (29, 28, 27):
        potential.evaluate(*system(atoms))
    assert evaluator.compilations() <= 2


@pytest.mark.parametrize("setting", [False, True])
def test_the_setting_of_the_user_stays(model: Model, setting: bool) -> None:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", setting)
    try:
        dtype = jnp.ones(1).dtype
        result = dpmodel.Potential.from_model(model, "jax").evaluate(*system(4))
        assert result["force"].dtype == np.float64
        assert jax.config.jax_enable_x64 is setting
        assert jnp.ones(1).dtype == dtype == (jnp.float64 if setting else jnp.float32)
        reference = dpmodel.Potential.from_model(model, "numpy").evaluate(*system(4))
        np.testing.assert_allclose(result["energy"], reference["energy"], rtol=1e-12)
    finally:
        jax.config.update("jax_enable_x64", before)


def test_results_can_be_written_to(model: Model) -> None:
    result = dpmodel.Potential.from_model(model, "jax").evaluate(*system(4), atomic=True)
    assert all(value.flags.writeable for value in result.values())
