"""The compiled training step against the eager one: gradients, updates, and what the code takes for granted.

Most of these run the traced graphs as they are: what is compiled wrongly would be Inductor's fault, what is traced
wrongly is ours. Inductor itself runs in one test here, with a narrow model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._functorch.aot_autograd import aot_compile_joint_with_descriptors

from dpmodel.backend import get_trainer
from dpmodel.backends.pt.bridge import graph_to_torch, to_torch, torch_gradient
from dpmodel.backends.pt.training import TorchStepper
from dpmodel.backends.pt_expt import compile as compilation
from dpmodel.backends.pt_expt.compile import CompiledStep
from dpmodel.backends.pt_expt.training import CompiledStepper
from dpmodel.descriptors import DPA3Config, SeAConfig
from dpmodel.descriptors.dpa3 import RepflowConfig
from dpmodel.errors import BackendError
from dpmodel.fittings import EnerFittingConfig
from dpmodel.graph import Graph
from dpmodel.input.sections import AdamConfig
from dpmodel.losses import EnerLossConfig, build_loss
from dpmodel.models import Model, StandardModel, builder_of, predict
from dpmodel.op import Array, Op, buffer, param
from dpmodel.training.batches import Prepared

WANTED = frozenset(("energy", "atom_energy", "force", "virial"))
SIZES = [(4, 3), (5, 12), (27, 20, 1), (0,), (1,), (1, 1), (2,), (0, 3)]
"""Atoms of every frame: among them no atom, and atoms without edges."""


def run_as_it_is(joint: Any) -> Any:
    return aot_compile_joint_with_descriptors(joint)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "compile_joint", run_as_it_is)


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


@pytest.fixture(scope="module", params=MODELS)
def whole(request: pytest.FixtureRequest) -> tuple[Model, Any, CompiledStep]:
    """A model with everything that enters, and its compiled step."""
    model = MODELS[request.param]()
    module = to_torch(model)
    return model, module, CompiledStep(module, WANTED, derivatives=True)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_at_every_size(whole: tuple[Model, Any, CompiledStep], sizes: tuple[int, ...]) -> None:
    model, module, step = whole
    graph = graph_to_torch(batch_of(model, sizes).graph)
    found = step(graph)
    assert found.keys() == WANTED
    assert_same(module, found, eager(module, graph))
    assert step.compilations() == len(step.contents()) == 1


@pytest.mark.usefixtures("uncompiled")
def test_no_edges(whole: tuple[Model, Any, CompiledStep]) -> None:
    model, module, step = whole
    graph = graph_to_torch(batch_of(model, (1, 1), frames_without_cell=True).graph)
    assert graph.edge_vec.shape[0] == 0
    assert_same(module, step(graph), eager(module, graph))


@pytest.mark.usefixtures("uncompiled")
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


@pytest.mark.usefixtures("uncompiled")
def test_models_of_one_structure_share_code(
    whole: tuple[Model, Any, CompiledStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights, statistics and biases: the same code, and gradients that reach the caller's own parameters."""
    monkeypatch.setattr(compilation, "_compile_step", lambda *_: pytest.fail("it was traced again"))
    model, _, step = whole
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


@pytest.mark.usefixtures("uncompiled")
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


@pytest.mark.usefixtures("uncompiled")
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


@pytest.mark.usefixtures("uncompiled")
def test_gradients_can_be_switched_off() -> None:
    module, graph = pair(), graph_of(4, 3)
    step = step_of(module)
    with torch.no_grad():
        first = step(graph)
        assert not any(value.requires_grad for value in first.values())
    assert_same(module, step(graph), eager(module, graph))
    assert step.compilations() == 1


@pytest.mark.usefixtures("uncompiled")
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


@pytest.mark.usefixtures("uncompiled")
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


# --- the trainer -------------------------------------------------------------------------------------------


def stepper_of(model: Model, *, backend: str = "pt_expt", compile: bool = False, **options: Any) -> Any:
    loss = {"start_pref_v": 0.5, "start_pref_ae": 3.0, **options}
    return get_trainer(backend).stepper(
        model, build_loss(EnerLossConfig(**loss), 0.01), AdamConfig(), device="cpu", compile=compile
    )


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", MODELS)
def test_adam_steps(name: str) -> None:
    """Compiled against the eager step of pt with its overrides, each batch of another size."""
    model = MODELS[name]()
    steppers = [stepper_of(model, compile=True), stepper_of(model), stepper_of(model, backend="pt")]
    assert [type(stepper) for stepper in steppers] == [CompiledStepper, TorchStepper, TorchStepper]
    for k, sizes in enumerate([(9, 4), (3,), (12, 7, 1), (1, 0)]):
        batch = batch_of(model, sizes, seed=k)
        shown = [stepper.step(*batch, 0.01)() for stepper in steppers]
        for other in shown[1:]:
            assert shown[0] == pytest.approx(other, rel=1e-10)
    check = batch_of(model, (6, 2), seed=9)
    measured = [stepper.measure(*check, 0.01) for stepper in steppers]
    for other in measured[1:]:
        assert measured[0] == pytest.approx(other, rel=1e-9)
    states = [stepper.model().state() for stepper in steppers]
    slots = [stepper.optimizer_state() for stepper in steppers]
    for other, slot in zip(states[1:], slots[1:], strict=True):
        assert other.keys() == states[0].keys()
        for path, value in other.items():
            np.testing.assert_allclose(states[0][path], value, rtol=0, atol=1e-8, err_msg=path)
        assert slot["step"] == slots[0]["step"]
    moved = [path for path, value in model.state().items() if not np.array_equal(value, states[0][path])]
    assert len(moved) > 10
    assert steppers[0].compiled.compilations() == 1
    np.testing.assert_allclose(
        steppers[0].predict(check.graph)["energy"], steppers[1].predict(check.graph)["energy"], rtol=1e-12
    )


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"start_pref_f": 0.0, "limit_pref_f": 0.0, "start_pref_v": 0.0, "start_pref_ae": 0.0}, {"energy"}),
        ({"start_pref_e": 0.0, "limit_pref_e": 0.0, "start_pref_v": 0.0, "start_pref_ae": 0.0}, {"energy", "force"}),
    ],
    ids=["energy_alone", "force_alone"],
)
def test_terms_of_the_loss(options: dict[str, float], wanted: set[str]) -> None:
    model = se_a(trainable=False, types=("A",))
    one, two = (stepper_of(model, compile=compiled, **options) for compiled in (True, False))
    batch = batch_of(model, (4, 3))
    for _ in range(3):
        assert one.step(*batch, 0.01)() == pytest.approx(two.step(*batch, 0.01)(), rel=1e-10)
    assert one.compiled.wanted == wanted
    before, after, expected = (op.state() for op in (model, one.model(), two.model()))
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-8, err_msg=name)
        assert np.array_equal(after[name], before[name]) or not name.startswith("descriptor"), name


def test_backends_that_do_not_compile_say_so() -> None:
    with pytest.raises(BackendError, match="compiled training step needs the backend pt_expt"):
        stepper_of(PLAIN, backend="pt", compile=True)


def test_inductor() -> None:
    """What users run. One type, one layer: Inductor takes its time for every kernel."""
    model = se_a(types=("A",))
    compiled, plain = stepper_of(model, compile=True), stepper_of(model)
    for k, sizes in enumerate([(9, 4), (1,), (12, 7, 1)]):
        batch = batch_of(model, sizes, seed=k)
        graph = graph_to_torch(batch.graph)
        assert_same(compiled.module, compiled.compiled(graph), eager(compiled.module, graph))
        assert compiled.step(*batch, 0.01)() == pytest.approx(plain.step(*batch, 0.01)(), rel=1e-9)
    for name, value in plain.model().state().items():
        np.testing.assert_allclose(compiled.model().state()[name], value, rtol=0, atol=1e-8, err_msg=name)
    assert compiled.compiled.compilations() == 1
