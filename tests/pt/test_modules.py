"""Models on torch are ordinary modules: hooks, state dicts, copies, pickles, FSDP."""

from __future__ import annotations

import copy
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dpmodel
from dpmodel.backends.pt import OVERRIDES
from dpmodel.backends.pt.bridge import graph_to_torch, to_torch, torch_gradient
from dpmodel.files.model_file import read_model
from dpmodel.geometry import GraphBuilder
from dpmodel.graph import Comm, Graph
from dpmodel.models import Model, builder_of, predict
from dpmodel.nn import Linear

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(GOLDEN / "se_e2_a.dp").model


@pytest.fixture(scope="module")
def graph(model: Model) -> Graph:
    rng = np.random.default_rng(0)
    builder = builder_of(model)
    return graph_to_torch(builder.build(rng.uniform(0, 4, (1, 5, 3)), np.array([[0, 1, 1, 0, 1]]), None))


def outputs(module: Any, graph: Graph) -> dict[str, torch.Tensor]:
    return predict(module, graph, torch_gradient, atomic_virial=True)


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def test_hooks_fire_on_inner_layers(model: Model, graph: Graph) -> None:
    module = to_torch(model, overrides=OVERRIDES)
    seen: list[str] = []
    names = [name for name, part in module.named_modules() if isinstance(part, Linear)]
    assert "descriptor.networks.0.layers.1" in names
    assert "fitting.networks.1.layers.0" in names
    for name in names:
        part = module.get_submodule(name)
        assert isinstance(part, torch.nn.Module)
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
    module.register_forward_hook(lambda *_: seen.append(""))
    module(graph)
    assert set(seen) == {"", *names}


def test_state_dict_round_trip(model: Model, graph: Graph) -> None:
    one, other = to_torch(model), to_torch(model.map_arrays(np.zeros_like))
    assert not torch.equal(one(graph)["energy"], other(graph)["energy"])
    other.load_state_dict(one.state_dict())
    assert_equal(outputs(one, graph), outputs(other, graph))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(model: Model, graph: Graph, how: str) -> None:
    module = to_torch(model, overrides=OVERRIDES).eval()
    module.fitting.requires_grad_(False)
    twin = copy.deepcopy(module) if how == "deepcopy" else pickle.loads(pickle.dumps(module))
    assert type(twin) is type(module)
    assert not twin.training
    assert_equal(outputs(module, graph), outputs(twin, graph))
    flags = [{name: p.requires_grad for name, p in m.named_parameters()} for m in (module, twin)]
    assert flags[0] == flags[1]
    before = module(graph)["energy"].clone()
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(module(graph)["energy"], before)  # nothing is shared


def test_deepcopy_within_a_structure(model: Model) -> None:
    module = to_torch(model)
    one, two = copy.deepcopy([module, module])
    assert one is two


def test_trainable_false_freezes(model: Model, graph: Graph) -> None:
    layers = model.fitting.networks[0].layers
    frozen = model.fitting.networks[0].replace(layers=(layers[0].replace(trainable=False), *layers[1:]))
    fitting = model.fitting.replace(networks=(frozen, *model.fitting.networks[1:]))
    module = to_torch(model.replace(fitting=fitting))
    module(graph)["energy"].sum().backward()
    first, second = module.fitting.networks[0].layers[:2]
    assert not first.w.requires_grad
    assert first.w.grad is None
    assert second.w.grad is not None
    assert second.w.grad.abs().max() > 0


def test_a_shared_op_becomes_one_module(model: Model) -> None:
    net = model.fitting.networks[0]
    shared = model.replace(fitting=model.fitting.replace(networks=(net, net)))
    module = to_torch(shared)
    assert module.fitting.networks[0] is module.fitting.networks[1]


def test_changes_of_parameters_reach_the_saved_file(model: Model, tmp_path: Path) -> None:
    potential = dpmodel.Potential.from_model(model, "pt")
    with torch.no_grad():
        potential._evaluator.module.out_bias += 1.0
    dpmodel.save(potential, tmp_path / "model.dp")
    saved = read_model(tmp_path / "model.dp").model
    np.testing.assert_array_equal(saved.out_bias, model.out_bias + 1.0)


def test_fsdp_of_inner_layers(model: Model, graph: Graph) -> None:
    """FSDP2 on one process: layers are sharded through their own hooks, the numbers stay, gradients arrive."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        module, plain = to_torch(model), to_torch(model)
        for part in module.fitting.networks:
            for layer in part.layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        energy = module(graph)["energy"]
        assert torch.equal(energy, plain(graph)["energy"])
        energy.sum().backward()
        plain(graph)["energy"].sum().backward()
        for (name, p), q in zip(module.named_parameters(), plain.parameters(), strict=True):
            assert p.grad is not None, name
            torch.testing.assert_close(p.grad.full_tensor(), q.grad, rtol=1e-12, atol=1e-14)
    finally:
        torch.distributed.destroy_process_group()


def test_a_handle_of_an_exchange_stays_on_the_host() -> None:
    graph = GraphBuilder((), 2).build(np.zeros((1, 1, 3)), np.array([[0]]), None)
    moved = graph_to_torch(graph.replace(comm=Comm(handle=np.array([5]))), "meta")
    assert moved.atype.device.type == "meta"
    assert moved.comm is not None
    assert moved.comm.handle.device.type == "cpu"
    assert moved.comm.handle.tolist() == [5]
