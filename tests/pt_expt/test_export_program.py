"""Exported programs, run without compiling: equal to the model at every size, and refused where they could not be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.bridge import graph_to_torch, override_table, to_torch, torch_gradient
from dpmodel.backends.pt_expt.export import program as programs_of_export
from dpmodel.backends.pt_expt.export.artefact import run_program
from dpmodel.backends.pt_expt.export.exchanges import Exchange
from dpmodel.backends.pt_expt.export.freezing import compare, precision_of, with_ghosts
from dpmodel.backends.pt_expt.export.metadata import describe_model, describe_program
from dpmodel.backends.pt_expt.export.program import export_program, graph_like
from dpmodel.backends.pt_expt.ghosts import FaultProvider, GhostExchange, MappingProvider, Provider, load_ops
from dpmodel.descriptors.message_passing import MessagePassing
from dpmodel.errors import BackendError
from dpmodel.graph import Comm, Graph
from dpmodel.models import Model, builder_of, predict
from dpmodel.op import Array, Op

MODELS = {
    "se_a": lambda models: models.small_se_a(numb_fparam=2, numb_aparam=3, default_fparam=(0.5, -1.0)),
    "dpa3": lambda models: models.small_dpa3(),
    "dpa3_float32": lambda models: models.small_dpa3(
        "float32", nlayers=1, add_chg_spin_ebd=True, default_chg_spin=(1, 2)
    ),
}
RTOL = {"float64": 1e-10, "float32": 2e-5}


class Exported:
    """A model, its module, and its program run by torch."""

    def __init__(self, model: Model) -> None:
        load_ops()
        self.model = model
        self.module = to_torch(model, overrides=override_table({MessagePassing: GhostExchange}))
        self.module.eval().requires_grad_(False)
        self.program = export_program(self.module, graph_like(model), atomic_virial=True)
        self.metadata = {**describe_model(model), **describe_program(self.program), "precision": self.precision}
        run: Any = self.program.exported.module()
        self.run: Callable[..., Any] = lambda inputs: run(*inputs)

    @property
    def precision(self) -> str:
        return precision_of(self.module)

    def check(self, graph: Graph) -> None:
        """Compare on a graph of NumPy arrays."""
        expected = predict(self.module, graph_to_torch(graph), torch_gradient, atomic_virial=True)
        found = run_program(self.run, self.metadata, graph)
        assert found.keys() == expected.keys() == {each["name"] for each in self.metadata["outputs"]}
        for key, tensor in expected.items():
            value = tensor.detach().numpy()
            assert found[key].shape == value.shape
            assert str(found[key].dtype) == f"torch.{value.dtype}"
            bound = RTOL[self.precision] * max(1.0, np.abs(value).max(initial=0.0))
            np.testing.assert_allclose(found[key].numpy(), value, rtol=0, atol=bound, err_msg=key)

    def graph(self, frames: int, atoms: int, *, length: float = 5.0, periodic: bool = True) -> Graph:
        rng = np.random.default_rng(frames + 10 * atoms)
        coord = rng.uniform(0, length, (frames, atoms, 3))
        atype = rng.integers(-1 if atoms > 4 else 0, 2, (frames, atoms))
        cell = np.broadcast_to(length * np.eye(3), (frames, 3, 3)) if periodic else None
        return builder_of(self.model).build(coord, atype, cell, **self.extra(rng, frames, atoms))

    def extra(self, rng: np.random.Generator, frames: int, atoms: int) -> dict[str, np.ndarray]:
        extra = {}
        if self.model.dim_fparam:
            extra["fparam"] = rng.normal(size=(frames, self.model.dim_fparam))
        if self.model.dim_aparam:
            extra["aparam"] = rng.normal(size=(frames, atoms, self.model.dim_aparam))
        if self.model.takes_charge_spin:
            extra["charge_spin"] = np.tile([2.0, 1.0], (frames, 1))
        return extra


@pytest.fixture(scope="module")
def programs(models: Any) -> Callable[[str], Exported]:
    """By name of the model; each is exported once."""
    return functools.cache(lambda name: Exported(MODELS[name](models)))


@pytest.fixture(params=MODELS)
def exported(request: pytest.FixtureRequest, programs: Callable[[str], Exported]) -> Exported:
    return programs(request.param)


SIZES = [(2, 7), (1, 3), (3, 1), (1, 0), (0, 0)]


@pytest.mark.parametrize(("frames", "atoms"), SIZES)
@pytest.mark.parametrize("ghosts", [False, True])
def test_every_size(exported: Exported, frames: int, atoms: int, ghosts: bool) -> None:
    for graph in (
        exported.graph(frames, atoms),
        exported.graph(frames, atoms, periodic=False),
        exported.graph(frames, atoms, length=100.0, periodic=False),
    ):
        exported.check(with_ghosts(graph) if ghosts else graph)


def test_one_edge_and_one_angle(exported: Exported) -> None:
    graph = exported.graph(1, 2, length=1.0, periodic=False)
    assert len(graph.centre) == 2
    keep = np.array([True, False])
    views = tuple(_first_centre(view) for view in graph.views)
    graph = graph.replace(
        centre=graph.centre[keep], neighbour=graph.neighbour[keep], edge_vec=graph.edge_vec[keep],
        edge_mask=graph.edge_mask[keep], views=views,
    )  # fmt: skip
    exported.check(graph)


def _first_centre(view: Any) -> Any:
    """What remains of a view of two atoms that see each other when the second atom is blind."""
    if isinstance(view, tuple):
        return tuple(map(_first_centre, view))
    if hasattr(view, "edge"):
        mask = view.mask.copy()
        mask[1] = False
        return view.replace(edge=np.where(mask, view.edge, 0), mask=mask)
    angles = view.angles
    one = None if angles is None else angles.replace(ij=angles.ij[:1], ik=angles.ik[:1], mask=angles.mask[:1])
    return view.replace(row=view.row[:1], mask=view.mask[:1], angles=one)


class _Filling(Provider):
    """Other processes, whose atoms have features 0.5 and nothing to add."""

    def forward(self, rows: np.ndarray, n_owned: int) -> None:
        rows[n_owned:] = 0.5

    def reverse(self, rows: np.ndarray, n_owned: int) -> None:
        pass


@pytest.mark.parametrize(("owned", "ghosts"), [(0, 0), (0, 4), (3, 2), (1, 0)])
def test_processes_with_few_atoms(exported: Exported, owned: int, ghosts: int) -> None:
    """Atoms without neighbours, ghosts that nobody here owns: the exchanges take place all the same."""
    alone = exported.graph(1, owned, length=60.0, periodic=False)
    assert not len(alone.centre)
    graph, provider = alone.replace(atype=np.concatenate([alone.atype, np.arange(ghosts) % 2])), _Filling()
    if exported.model.message_passing:
        graph = graph.replace(comm=Comm(handle=provider.handle))
    found = run_program(exported.run, exported.metadata, graph)
    sizes = {"atoms": owned, "nodes": owned + ghosts, "frames": 1}
    for each in exported.metadata["outputs"]:
        assert tuple(found[each["name"]].shape) == (*(sizes[axis] for axis in each["axes"]), *each["static"])
    assert not found["force"].any() and not found["virial"].any() and not found["atom_virial"].any()
    expected = predict(exported.module, graph_to_torch(alone), None)
    torch.testing.assert_close(found["energy"], expected["energy"].detach(), rtol=1e-6, atol=1e-10)
    ops = [each["op"] for each in exported.metadata["exchanges"]]
    assert (provider.n_forward, provider.n_reverse) == (ops.count("forward"), ops.count("reverse"))


def test_metadata_of_exchanges(programs: Callable[[str], Exported]) -> None:
    """L layers: L exchanges before them, L - 1 backwards (the first features do not depend on the geometry)."""
    for name, precision, nlayers in (("dpa3", "float64", 2), ("dpa3_float32", "float32", 1)):
        found = programs(name).metadata
        assert [each["op"] for each in found["exchanges"]] == ["forward"] * nlayers + ["reverse"] * (nlayers - 1)
        assert {(each["dtype"], each["width"]) for each in found["exchanges"]} == {(precision, 6)}
        assert found["max_bytes_per_row"] == 6 * (8 if precision == "float64" else 4)


def test_metadata_of_arrays(programs: Callable[[str], Exported]) -> None:
    found = programs("se_a").metadata
    inputs = {each["name"]: each for each in found["inputs"]}
    assert list(inputs)[:7] == ["atype", "frame", "natoms", "centre", "neighbour", "edge_vec", "edge_mask"]
    assert inputs["edge_vec"] == {"name": "edge_vec", "dtype": "float64", "axes": ["edges"], "static": [3]}
    assert inputs["fparam"] == {"name": "fparam", "dtype": "float64", "axes": ["frames"], "static": [2]}
    assert inputs["aparam"] == {"name": "aparam", "dtype": "float64", "axes": ["atoms"], "static": [3]}
    assert inputs["views.0.1.mask"]["axes"] == ["atoms", "views.0.1.width"]
    assert "owner" not in inputs and "comm.handle" not in inputs
    outputs = {each["name"]: (each["dtype"], each["axes"], each["static"]) for each in found["outputs"]}
    assert outputs == {
        "energy": ("float64", ["frames"], [1]),
        "atom_energy": ("float64", ["atoms"], [1]),
        "mask": ("int32", ["atoms"], []),
        "virial": ("float64", ["frames"], [9]),
        "force": ("float64", ["nodes"], [3]),
        "atom_virial": ("float64", ["nodes"], [9]),
    }
    assert (found["dim_fparam"], found["default_fparam"], found["dim_aparam"]) == (2, [0.5, -1.0], 3)
    assert found["exchanges"] == [] and found["max_bytes_per_row"] == 0


def test_a_default_replaces_what_is_left_out(programs: Callable[[str], Exported]) -> None:
    exported = programs("se_a")
    graph = exported.graph(2, 4)
    left_out, given = graph.replace(fparam=None), graph.replace(fparam=np.array([[0.5, -1.0]] * 2))
    found = [run_program(exported.run, exported.metadata, g)["energy"] for g in (left_out, given, graph)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_comparison_sees_what_differs(programs: Callable[[str], Exported]) -> None:
    exported = programs("se_a")
    found = compare(exported.run, exported.metadata, exported.model, exported.module)
    assert len(found) >= 2 and len({(each.atoms, each.edges) for each in found}) == len(found)
    assert all(each.largest_difference <= 1e-10 for each in found)
    names = [each["name"] for each in exported.metadata["outputs"]]

    def altered(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
        where = names.index(name)
        return lambda inputs: [change(x) if k == where else x for k, x in enumerate(exported.run(inputs))]

    for run, what in (
        (altered("force", lambda x: x * (1 + 1e-6)), "force"),
        (altered("atom_virial", lambda x: x + 1e-9), "atom_virial"),
        (altered("energy", lambda x: x * float("nan")), "energy"),
        (altered("virial", lambda x: x.float()), "virial is torch.float32"),
    ):
        with pytest.raises(BackendError, match=f"compiled, {what}"):
            compare(run, exported.metadata, exported.model, exported.module)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_a_failed_exchange_is_seen(programs: Callable[[str], Exported], kind: Any) -> None:
    """Compiled code may go on after an operator that failed, and return something."""
    exported = programs("dpa3")
    graph = exported.graph(1, 3)
    zeros = [torch.zeros(1)] * len(exported.metadata["outputs"])

    def going_on(inputs: Any) -> Any:
        try:
            return exported.run(inputs)
        except RuntimeError:
            return zeros

    provider = FaultProvider(MappingProvider(), fail_at=1, kind=kind)
    comm = Comm(handle=provider.handle)
    with pytest.raises(
        BackendError, match=rf"a ghost exchange failed.*{kind} exchange 1 .*injected fault in exchange 1"
    ):
        run_program(going_on, exported.metadata, graph.replace(comm=comm))
    with pytest.raises(BackendError, match="the handle is null"):
        run_program(going_on, exported.metadata, graph.replace(comm=Comm(handle=np.array([0]))))

    def failing(inputs: Any) -> Any:
        raise RuntimeError("the operator gave up")

    with pytest.raises(BackendError, match=r"does not run on a graph of 8 atoms: the operator gave up. No file was"):
        compare(failing, exported.metadata, exported.model, exported.module)


def test_other_graphs_are_refused(programs: Callable[[str], Exported]) -> None:
    exported = programs("se_a")
    graph = exported.graph(1, 3)
    for other, message in (
        (graph.replace(types=None), "the program takes .*types.place"),
        (graph.replace(aparam=None), "the program takes .*aparam"),
        (graph.replace(fparam=graph.fparam.astype(np.float32)), "fparam: the program takes float64"),
        (graph.replace(aparam=graph.aparam[:, :2]), r"aparam: the program takes float64 over \['atoms'\] and \[3\]"),
        (graph.replace(frame=graph.frame[:2]), "atoms"),
    ):
        with pytest.raises(ValueError, match=message):
            run_program(exported.run, exported.metadata, other)


# --- programs that would not serve every size or every process ---------------------------------------------


class _Toy(MessagePassing):
    """Layers of exchanges, arranged as a test wants them."""

    arrange: Any = None

    def call(self, graph: Graph) -> dict[str, Array]:
        length = (graph.edge_vec**2).sum(1)
        node = torch.zeros_like(graph.frame, dtype=torch.float64).index_add(0, graph.centre, length)[:, None]

        def exchange(x: Array) -> Array:
            seen = self._exchange_ghosts(x, graph)
            return torch.zeros_like(x).index_add(0, graph.centre, seen[graph.neighbour])

        node = self.arrange(node, exchange)
        energy = torch.zeros(graph.natoms.shape[0], 1, dtype=node.dtype).index_add(0, graph.frame, node.sum(1)[:, None])
        return {"atom_energy": node.sum(1)[:, None], "energy": energy}


def _export(op: Op) -> Any:
    load_ops()
    n = np.zeros(1, np.int64)
    graph = Graph(
        atype=n, frame=n, natoms=n, centre=n, neighbour=n, edge_vec=np.zeros((1, 3)), edge_mask=n > 0,
        comm=Comm(handle=n),
    )  # fmt: skip
    module = to_torch(op, overrides=override_table({MessagePassing: GhostExchange}))
    return export_program(module, graph_to_torch(graph), atomic_virial=False)


def _toy(arrange: Callable[..., Any]) -> _Toy:
    return _Toy(config=None, ntypes=1, arrange=arrange)


def test_exchanges_in_a_row_are_read_off() -> None:
    program = _export(_toy(lambda x, exchange: exchange(torch.cat([exchange(x), x], 1) ** 2)))
    assert [tuple(each) for each in program.exchanges] == [
        ("forward", "float64", 1), ("forward", "float64", 2), ("reverse", "float64", 2), ("reverse", "float64", 1),
    ]  # fmt: skip
    assert isinstance(program.exchanges[0], Exchange)


def _two(x: Array, exchange: Any) -> Array:
    return exchange(x) + exchange(torch.cat([x, x**2], 1))[:, :1]


def test_exchanges_side_by_side_are_put_into_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the trace, by handles that are made of the results before."""
    exported = _export(_toy(_two))
    assert [(each.op, each.width) for each in exported.exchanges] == [
        ("forward", 1), ("forward", 2), ("reverse", 2), ("reverse", 1),
    ]  # fmt: skip
    assert "ghost_after" in str(exported.exported.graph)
    monkeypatch.setattr(programs_of_export, "order_exchanges", lambda _: None)
    with pytest.raises(BackendError, match=r"exchange 1 \(forward\) does not depend on exchange 0"):
        _export(_toy(_two))


def test_exchanges_in_a_row_are_left_alone() -> None:
    assert "ghost_after" not in str(_export(_toy(lambda x, exchange: exchange(exchange(x) ** 2))).exported.graph)


def test_an_exchange_whose_result_nothing_uses_is_left_out() -> None:
    def arrange(x: Array, exchange: Any) -> Array:
        exchange(torch.cat([x, x], 1))
        return exchange(x**2)

    assert [each.width for each in _export(_toy(arrange)).exchanges] == [1, 1]


def test_exchanges_in_other_precisions_are_refused() -> None:
    with pytest.raises(
        BackendError, match=r"exchange 0 \(forward\) is of float16, only float32 and float64.*precision"
    ):
        _export(_toy(lambda x, exchange: exchange(x.half()).double()))


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda x, exchange: x * 2 if x.shape[0] == 11 else x, "11|atoms"),
        (lambda x, exchange: x + torch.ones(11, 1, dtype=x.dtype), "11|atoms"),
        (lambda x, exchange: x if x.shape[0] > 1 else 2 * x, "atoms|size"),
    ],
)
def test_dependence_on_a_size_is_refused(arrange: Callable[..., Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        _export(_toy(arrange))
