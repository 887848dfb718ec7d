"""Artefacts that several test files share: each is compiled once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._functorch.aot_autograd import aot_compile_joint_with_descriptors

import dpmodel
from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.descriptors import DPA3Config, SeAConfig
from dpmodel.descriptors.dpa3 import RepflowConfig
from dpmodel.files.model_file import ModelFile, write_model
from dpmodel.fittings import EnerFittingConfig
from dpmodel.models import Model, StandardModel

from .family import small


def small_se_a(**fitting: object) -> Model:
    """Two types, a cutoff of 4 Å; numbers of the size that trained models have."""
    section = SeAConfig(
        sel=(30, 30), rcut=4.0, rcut_smth=0.5, neuron=(4,), axis_neuron=2, type_one_side=True, resnet_dt=False
    )
    descriptor = section.build(2, ("O", "H"), seed=0)
    rng = np.random.default_rng(0)
    descriptor = descriptor.replace(davg=rng.normal(size=(2, 4)), dstd=rng.uniform(0.3, 0.5, (2, 4)))
    net = EnerFittingConfig(neuron=(5,), **fitting).build(2, descriptor.dim_out, False, seed=1)
    model = StandardModel.assemble(descriptor, net, ("O", "H"))
    return model.replace(out_bias=np.array([[-3.0], [1.5]]))


def small_dpa3(precision: str = "float64", *, nlayers: int = 2, **options: object) -> Model:
    """Two types, a cutoff of 4 Å, message passing over angles."""
    flow = RepflowConfig(
        n_dim=6, e_dim=5, a_dim=4, nlayers=nlayers, e_rcut=4.0, e_rcut_smth=3.0, e_sel=60, a_rcut=3.0, a_rcut_smth=2.0,
        a_sel=20, smooth_edge_update=True,
    )  # fmt: skip
    descriptor = DPA3Config(repflow=flow, precision=precision, **options).build(2, ("O", "H"), seed=3)
    net = EnerFittingConfig(neuron=(5,), precision=precision).build(2, descriptor.dim_out, True, seed=1)
    model = StandardModel.assemble(descriptor, net, ("O", "H"))
    return model.replace(out_bias=np.array([[-3.0], [1.5]]))


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    """The makers of small models."""
    return SimpleNamespace(small_se_a=small_se_a, small_dpa3=small_dpa3, small=small)


@pytest.fixture(scope="session")
def artefact(made_once: Callable[[str], AbstractContextManager[Path]]) -> Callable[..., Path]:
    """artefact(name, model, atomic_virial) -> `name`.pt2, beside `name`.dp; compiled on the first call of a name."""

    def make(name: str, model: Model, *, atomic_virial: bool = False) -> Path:
        with made_once(f"artefact_{name}") as folder:
            source, target = folder / f"{name}.dp", folder / f"{name}.pt2"
            if not target.exists():
                write_model(source, ModelFile(model=model))
                dpmodel.freeze(source, target, atomic_virial=atomic_virial)
        return target

    return make


@pytest.fixture(scope="session")
def se_a_pt2(artefact: Callable[..., Path]) -> Path:
    """A local model, float64, with per-atom virials."""
    return artefact("se_a", small_se_a(), atomic_virial=True)


@pytest.fixture(scope="session")
def dpa3_pt2(artefact: Callable[..., Path]) -> Path:
    """A message-passing model, float64, with per-atom virials."""
    return artefact("dpa3", small_dpa3(), atomic_virial=True)


@pytest.fixture(scope="session")
def dpa3_float32_pt2(artefact: Callable[..., Path]) -> Path:
    """A message-passing model, float32, without per-atom virials."""
    return artefact("dpa3_float32", small_dpa3("float32"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training steps run the traced graphs as they are."""
    monkeypatch.setattr(compilation, "compile_joint", aot_compile_joint_with_descriptors)
