"""Models, batches and a comparison for tests of compiled training steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dpmodel.backends.pt.bridge import torch_gradient
from dpmodel.descriptors import DPA3Config, SeAConfig
from dpmodel.descriptors.dpa3 import RepflowConfig
from dpmodel.fittings import EnerFittingConfig
from dpmodel.models import Model, StandardModel, builder_of, predict
from dpmodel.training.batches import Prepared

WANTED = frozenset(("energy", "atom_energy", "force", "virial"))
SIZES = [(4, 3), (5, 12), (27, 20, 1), (0,), (1,), (1, 1), (2,), (0, 3)]
"""Atoms of every frame: among them no atom, and atoms without edges."""


def se_a(*, trainable: bool = True, types: tuple[str, ...] = ("A", "B"), **fitting: Any) -> Model:
    section = SeAConfig(
        sel=(30,) * len(types), rcut=4.0, rcut_smth=0.5, neuron=(3,), axis_neuron=2, trainable=trainable, seed=1
    )
    descriptor = section.build(len(types), types, seed=0)
    rng = np.random.default_rng(0)
    shape = (len(types), 4)
    descriptor = descriptor.replace(davg=rng.normal(size=shape), dstd=rng.uniform(0.3, 0.5, shape))
    net = EnerFittingConfig(neuron=(4, 4), **fitting).build(len(types), descriptor.dim_out, False, seed=1)
    model = StandardModel.assemble(descriptor, net, types)
    return model.replace(out_bias=rng.normal(size=model.out_bias.shape))


def batch_of(model: Model, sizes: tuple[int, ...], *, seed: int = 0, frames_without_cell: bool = False) -> Prepared:
    """Frames of different sizes: padded with virtual atoms to the largest."""
    rng = np.random.default_rng(seed)
    f, n = len(sizes), max(sizes)
    atype = np.where(np.arange(n) < np.array(sizes)[:, None], rng.integers(0, model.ntypes, (f, n)), -1)
    builder = builder_of(model)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n] * 2.2
    cell = None if frames_without_cell else np.tile(np.eye(3) * 6.6, (f, 1, 1))
    more = {"fparam": rng.normal(size=(f, model.dim_fparam)), "aparam": rng.normal(size=(f, n, model.dim_aparam))}
    given = {name: value for name, value in more.items() if value.shape[-1]}
    graph = builder.build(grid + rng.uniform(0, 0.8, (f, n, 3)), atype, cell, **given)
    labels = {"force": rng.normal(size=(f * n, 3)), "atom_ener": rng.normal(size=(f * n, 1))}
    labels |= {"energy": rng.normal(size=(f, 1)), "virial": rng.normal(size=(f, 9))}
    return Prepared(graph, labels, dict.fromkeys(labels, 1.0))


Outputs = dict[str, torch.Tensor]


def eager(module: Any, graph: Any) -> Outputs:
    return predict(module, graph, functools.partial(torch_gradient, create_graph=True))


def slopes(module: Any, outputs: Outputs) -> dict[str, torch.Tensor | None]:
    """Gradients of a loss that looks at every number of every output."""
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for name in sorted(WANTED & outputs.keys()):
        value = outputs[name]
        weight = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        loss = loss + (weight * value + value**2).sum()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return dict(zip(trained, found, strict=True))


def assert_same(module: Any, found: Outputs, expected: Outputs, *, bound: float = 1e-10) -> None:
    """Outputs, and gradients for the parameters."""
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=bound, atol=bound, msg=name)
    one, two = slopes(module, found), slopes(module, expected)
    # A gradient that is not there equals one of zeros, except that an optimizer passes it over.
    assert [name for name in one if one[name] is None] == [name for name in two if two[name] is None]
    largest = max(float(g.abs().max()) for g in two.values() if g is not None and g.numel())
    for name, value in two.items():
        if value is not None:
            torch.testing.assert_close(one[name], value, rtol=0, atol=bound * max(largest, 1e-10), msg=name)


def dpa3() -> Model:
    """Two layers, so that features travel, and all updates of edges and angles."""
    flow = RepflowConfig(
        n_dim=6, e_dim=4, a_dim=4, nlayers=2, e_rcut=4.0, e_rcut_smth=2.0, e_sel=40, a_rcut=3.0, a_rcut_smth=1.5,
        a_sel=20, axis_neuron=2, fix_stat_std=0.3, a_compress_rate=1, a_compress_e_rate=2, a_compress_use_split=True,
    )  # fmt: skip
    descriptor = DPA3Config(repflow=flow, seed=1).build(2, ("A", "B"), seed=0)
    net = EnerFittingConfig(neuron=(4,)).build(2, descriptor.dim_out, True, seed=1)
    return StandardModel.assemble(descriptor, net, ("A", "B"))


MODELS: dict[str, Callable[[], Model]] = {"se_e2_a": lambda: se_a(numb_fparam=2, numb_aparam=1), "dpa3": dpa3}
