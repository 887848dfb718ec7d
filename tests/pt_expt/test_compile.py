"""Compiled evaluation equals the eager one at every size, and compiles once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from dpmodel.backend import Evaluator, get_backend
from dpmodel.backends.pt.bridge import graph_to_torch, to_torch
from dpmodel.backends.pt_expt.compile import CompiledLower, sample_graph, use_own_cache
from dpmodel.descriptors import SeAConfig
from dpmodel.errors import BackendError
from dpmodel.fittings import EnerFittingConfig
from dpmodel.graph import Graph
from dpmodel.models import Model, StandardModel, builder_of
from dpmodel.op import Op


def build(neuron: tuple[int, ...] = (4,)) -> Model:
    """The smallest model that there is: Inductor takes its time for every kernel."""
    section = SeAConfig(
        sel=(30,), rcut=4.0, rcut_smth=0.5, neuron=neuron, axis_neuron=2, type_one_side=True, resnet_dt=False
    )
    descriptor = section.build(1, ("Cu",), seed=0)
    fitting = EnerFittingConfig(neuron=(5,)).build(1, descriptor.dim_out, False, seed=1)
    rng = np.random.default_rng(0)
    descriptor = descriptor.replace(davg=rng.normal(size=(1, 4)), dstd=rng.uniform(0.3, 0.5, (1, 4)))
    return StandardModel.assemble(descriptor, fitting, ("Cu",))


def graph_of(model: Model, atoms: int, frames: int = 1) -> Graph:
    rng = np.random.default_rng(atoms)
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 3), axis=-1).reshape(-1, 3)[:atoms]
    coord = 1.9 * grid + rng.uniform(0, 0.4, (frames, atoms, 3))
    builder = builder_of(model)
    return builder.build(coord, np.zeros((frames, atoms), np.int64), None)


@pytest.fixture(scope="module")
def model() -> Model:
    return build()


@pytest.fixture(scope="module")
def evaluators(model: Model) -> Iterator[tuple[Evaluator, Evaluator]]:
    backend = get_backend("pt_expt")
    compiled = backend.evaluator(model, device="cpu", compile=True)
    compiled(graph_of(model, 9), forces=True, atomic=True)
    yield backend.evaluator(model, device="cpu"), compiled
    assert compiled.compilations() == 1  # type: ignore[attr-defined]  # the compiled one counts


SIZES = [(9, 1), (0, 1), (1, 1), (2, 1), (3, 2), (0, 0), (40, 1), (25, 4), (1, 3)]


@pytest.mark.parametrize(("atoms", "frames"), SIZES)
def test_compiled_equals_eager(model: Model, evaluators: tuple[Evaluator, Evaluator], atoms: int, frames: int) -> None:
    graph = graph_of(model, atoms, frames)
    eager, compiled = (run(graph, forces=True, atomic=True) for run in evaluators)
    assert eager.keys() == compiled.keys()
    for key, value in eager.items():
        assert compiled[key].dtype == value.dtype
        assert compiled[key].shape == value.shape
        np.testing.assert_allclose(compiled[key], value, rtol=0, atol=1e-10 * max(1.0, np.abs(value).max(initial=0)))


def test_compiled_weights_may_change(model: Model, evaluators: tuple[Evaluator, Evaluator]) -> None:
    """Parameters are inputs of what was compiled."""
    compiled: Any = evaluators[1]
    graph = graph_of(model, 9)
    before = compiled(graph, forces=True, atomic=True)["energy"]
    bias = compiled.module.out_bias
    bias += 1.0
    after = compiled(graph, forces=True, atomic=True)["energy"]
    bias -= 1.0
    np.testing.assert_allclose(after, before + 9.0, rtol=1e-12)


def test_a_constant_in_the_trace_is_refused() -> None:
    """A tensor made from Python data would be stuck to one device and hide from the state."""

    class Baked(Op):
        def call(self, graph: Graph) -> dict[str, torch.Tensor]:
            scale = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
            return {"energy": (graph.edge_vec * scale).sum()[None, None]}

    graph = graph_to_torch(graph_of(build(), 3))
    with pytest.raises(BackendError, match="holds constants"):
        CompiledLower(to_torch(Baked()))(graph, forces=False, atomic=False)


def test_sizes_of_the_sample_are_distinct() -> None:
    model = build()
    plain = graph_to_torch(graph_of(model, 3))
    whole = plain.replace(
        owner=plain.frame, fparam=torch.ones(1, 2), aparam=torch.ones(3, 1), charge_spin=torch.ones(1, 2)
    )
    sample = sample_graph(whole)
    n, m, e, f = (x.shape[0] for x in (sample.frame, sample.atype, sample.edge_vec, sample.natoms))
    widths = [slots.edge.shape[1] for slots in sample.views[0]]
    groups = [] if sample.types is None else [rows.shape[0] for rows in sample.types.rows]
    assert len({n, m, e, f, *widths, *groups}) == 4 + len(widths) + len(groups)
    assert (sample.aparam.shape[0], sample.fparam.shape[0], sample.owner.shape[0]) == (n, f, m)


@pytest.mark.parametrize(
    ("before", "after"), [(None, "own/inductor"), (default_cache_dir(), "own/inductor"), ("/named", "/named")]
)
def test_the_folder_of_compiled_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str | None, after: str
) -> None:
    """Ours, unless the user named one. torch writes its own choice into the environment when it is imported."""
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before or "")
    if before is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_own_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / after)
