"""The compiled training step against the eager one: gradients, and what the code takes for granted.

These run the traced graphs as they are: what is compiled wrongly would be Inductor's fault, what is traced wrongly is
ours. Inductor itself runs in test_training_stepper.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.bridge import graph_to_torch, to_torch
from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.backends.pt_expt.compile import CompiledStep
from dpmodel.graph import Graph
from dpmodel.models import Model
from dpmodel.op import Array, Op, buffer, param

from .steps import MODELS, SIZES, WANTED, assert_same, batch_of, eager, se_a, slopes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=MODELS)
def whole(request: pytest.FixtureRequest) -> tuple[Model, Any, CompiledStep]:
    """A model with everything that enters, and its compiled step."""
    model = MODELS[request.param]()
    module = to_torch(model)
    return model, module, CompiledStep(module, WANTED, derivatives=True)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_at_every_size(whole: tuple[Model, Any, CompiledStep], sizes: tuple[int, ...]) -> None:
    model, module, step = whole
    graph = graph_to_torch(batch_of(model, sizes).graph)
    found = step(graph)
    assert found.keys() == WANTED
    assert_same(module, found, eager(module, graph))
    assert step.compilations() == len(step.contents()) == 1


@pytest.mark.usefixtures("traced_only")
def test_no_edges(whole: tuple[Model, Any, CompiledStep]) -> None:
    model, module, step = whole
    graph = graph_to_torch(batch_of(model, (1, 1), frames_without_cell=True).graph)
    assert graph.edge_vec.shape[0] == 0
    assert_same(module, step(graph), eager(module, graph))


@pytest.mark.usefixtures("traced_only")
def test_changes_of_state_act(whole: tuple[Model, Any, CompiledStep]) -> None:
    """Buffers replaced, parameters overwritten: read anew at every call; gradients add up over calls."""
    model, module, step = whole
    graph = graph_to_torch(batch_of(model, (4, 3)).graph)
    before = step(graph)["energy"].detach()
    bias = module.out_bias
    module.out_bias = bias + 1.0
    with torch.no_grad():
        weight = next(iter(module.descriptor.parameters()))
        weight.mul_(1.5)
    try:
        found = step(graph)
        assert_same(module, found, eager(module, graph))
        assert float((found["energy"].detach() - before).abs().min()) > 0.1
    finally:
        module.out_bias = bias
        with torch.no_grad():
            weight.div_(1.5)
    torch.autograd.backward(sum(step(graph)["energy"]))
    once = weight.grad.clone()
    torch.autograd.backward(sum(step(graph)["energy"]))
    torch.testing.assert_close(weight.grad, 2 * once, rtol=1e-14, atol=0)
    module.zero_grad()
    assert step.compilations() == 1


@pytest.mark.usefixtures("traced_only")
def test_models_of_one_structure_share_code(
    whole: tuple[Model, Any, CompiledStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights, statistics and biases: the same code, and gradients that reach the caller's own parameters."""
    model, _, step = whole
    step(graph_to_torch(batch_of(model, (5, 2), seed=4).graph))  # compiled, whichever test came first
    monkeypatch.setattr(compilation, "_compile_step", lambda *_: pytest.fail("it was traced again"))
    rng = np.random.default_rng(5)
    assert step.contents()
    module = to_torch(model.map_arrays(lambda x: x * rng.uniform(0.8, 1.2, x.shape) if x.dtype == "float64" else x))
    other = CompiledStep(module, WANTED, derivatives=True)
    graph = graph_to_torch(batch_of(model, (5, 2), seed=3).graph)
    assert_same(module, other(graph), eager(module, graph))
    assert other.contents() == step.contents()
    assert next(iter(other._codes.values())) is next(iter(step._codes.values()))


# --- what is trained belongs to the structure --------------------------------------------------------------


class Pair(Op):
    """The smallest model with everything that matters here: two parameters, and forces."""

    scale: Array = param()
    width: Array = param()
    shift: Array = buffer()
    factor: float = 2.0
    label: str = ""
    stop: str = ""
    """What an author may do on purpose: "detach" or "no_grad"."""

    def call(self, graph: Graph) -> dict[str, Array]:
        square = (graph.edge_vec**2).sum(dim=1)
        weight = torch.tanh(square * self.width)
        if self.stop == "detach":
            weight = weight.detach()
        elif self.stop == "no_grad":
            with torch.no_grad():
                weight = torch.tanh(square * self.width)
        fade = self.scale * weight * torch.exp(-square / self.factor) + self.shift
        fade = torch.where(graph.edge_mask, fade, torch.zeros_like(fade))
        atom = torch.zeros(graph.frame.shape[0], dtype=fade.dtype).index_add(0, graph.centre, fade)[:, None]
        total = torch.zeros(graph.natoms.shape[0], 1, dtype=fade.dtype).index_add(0, graph.frame, atom)
        return {"atom_energy": atom, "energy": total}


def pair(**options: Any) -> Any:
    return to_torch(Pair(scale=np.array([1.3]), width=np.array([0.4]), shift=np.array([0.1]), **options))


PLAIN = se_a(types=("A",))


def graph_of(*sizes: int) -> Any:
    return graph_to_torch(batch_of(PLAIN, sizes).graph)


def step_of(module: Any, wanted: frozenset[str] = WANTED) -> CompiledStep:
    return CompiledStep(module, wanted, derivatives=True)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("stop", ["detach", "no_grad"])
def test_an_intended_stop_of_gradients_stays(stop: str) -> None:
    module = pair(stop=stop)
    step, plain = step_of(module), step_of(pair())
    for sizes in ((4, 3), (1, 2)):
        graph = graph_of(*sizes)
        assert_same(module, step(graph), eager(module, graph))
        free = slopes(plain.module, plain(graph))["width"]
        here = slopes(module, step(graph))["width"]
        # Without the stop, the width would have a gradient.
        assert free is not None and float(free.abs()) > 1e-3
        assert here is None or not float(here.abs())
    assert step.contents() != plain.contents()


@pytest.mark.usefixtures("traced_only")
def test_frozen_parameters() -> None:
    module = pair()
    step, graph = step_of(module), graph_of(4, 3)
    step(graph)
    module.width.requires_grad_(False)
    assert slopes(module, step(graph)).keys() == {"scale"}
    assert_same(module, step(graph), eager(module, graph))
    assert step.compilations() == len(step.contents()) == 2
    module.width.requires_grad_(True)
    assert_same(module, step(graph), eager(module, graph))
    assert step.compilations() == 2
    # Compiled without it first: no gradient may be lost when it comes back.
    late = pair()
    late.width.requires_grad_(False)
    step = step_of(late)
    step(graph)
    late.width.requires_grad_(True)
    assert_same(late, step(graph), eager(late, graph))


@pytest.mark.usefixtures("traced_only")
def test_gradients_can_be_switched_off() -> None:
    module, graph = pair(), graph_of(4, 3)
    step = step_of(module)
    with torch.no_grad():
        first = step(graph)
        assert not any(value.requires_grad for value in first.values())
    assert_same(module, step(graph), eager(module, graph))
    assert step.compilations() == 1


@pytest.mark.usefixtures("traced_only")
def test_the_key_holds_what_the_code_holds() -> None:
    """Everything in the code of a layer separates; values of the state do not."""
    graph = graph_of(4, 3)
    contents: set[str] = set()
    others: dict[str, Callable[[], CompiledStep]] = {
        "plain": lambda: step_of(pair()),
        "static": lambda: step_of(pair(factor=1.9)),
        "stop": lambda: step_of(pair(stop="detach")),
        "outputs": lambda: step_of(pair(), frozenset(("energy", "force"))),
        "energies": lambda: CompiledStep(pair(), frozenset(("energy",)), derivatives=False),
        "dtype": lambda: step_of(pair().float()),
        "frozen": lambda: step_of(pair().requires_grad_(False)),
    }
    for count, (name, make) in enumerate(others.items(), start=1):
        step = make()
        step(graph)
        contents |= step.contents()
        assert len(contents) == count, name
    again = pair()
    again.shift = again.shift * 0.0 + 7.0
    step = step_of(again)
    step(graph)
    assert step.contents() <= contents
    # Other names in the code make another trace, of the same content.
    named = step_of(pair(label="another"))
    named(graph)
    assert named.contents() == step.contents()
    assert next(iter(named._codes.values())) is next(iter(step._codes.values()))


@pytest.mark.usefixtures("traced_only")
def test_wrong_inputs_are_refused() -> None:
    module, graph = pair(), graph_of(4, 3)
    step = step_of(module)
    step(graph)
    with pytest.raises(ValueError, match=r"centre has dtype torch.int32; integers are int64"):
        step(graph.replace(centre=graph.centre.int()))
    with pytest.raises(ValueError, match="edge_mask has 1 edges"):
        step(graph.replace(edge_mask=graph.edge_mask[:1]))
    strided = graph.replace(edge_vec=graph.edge_vec.T.contiguous().T)
    assert_same(module, step(strided), eager(module, graph))
    assert step.compilations() == 1
