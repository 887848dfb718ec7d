"""Every backend gives NumPy's energies and torch's derivatives, whatever the sizes and the order of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpmodel.evaluation import evaluate_graph, select_centres
from dpmodel.geometry.padding import bucket_sizes, pad_graph
from dpmodel.graph import Edges, Graph, Record, Slots, map_record

from .cases import each_base, each_case, model_of, single
from .runners import Backend, each_base_and_backend, each_case_and_backend, each_gradient, runner
from .systems import System, charges, graph_of, map_views, random_system, with_ghosts
from .tolerance import assert_close, distance

DERIVATIVES = ("force", "virial", "atom_virial")


@each_case_and_backend
def test_outputs(case: str, backend: Backend) -> None:
    model = model_of(case)
    graph = graph_of(model, random_system(model))
    ours, energies = runner(case, backend)(graph), runner(case, Backend.NUMPY)(graph)
    assert_close(ours, energies, 2e-5 if single(case) else 1e-12)
    if backend.value not in ("numpy", "numpy_readonly", "strict"):
        torch = runner(case, Backend.TORCH)(graph)
        assert ours.keys() == torch.keys() >= set(DERIVATIVES)
        assert_close(ours, {key: torch[key] for key in DERIVATIVES}, 2e-5 if single(case) else 1e-11)


@each_case
def test_the_comparison_says_something(case: str) -> None:
    model = model_of(case)
    graph = graph_of(model, random_system(model))
    outputs = runner(case, Backend.TORCH)(graph)
    shown = outputs["mask"] > 0
    assert np.ptp(outputs["atom_energy"][shown]) > 1e-3
    for key in DERIVATIVES:
        assert np.abs(outputs[key]).max() > 1e-3, key
    assert all(value.dtype == np.float64 for key, value in outputs.items() if key != "mask")
    assert (outputs["atom_energy"][~shown] == 0).all()


@each_base_and_backend
def test_inputs_stay_as_they_are(case: str, backend: Backend) -> None:
    model = model_of(case)
    graph = graph_of(model, random_system(model))
    before = map_record(graph, np.copy)
    runner(case, backend)(graph)
    equal: list[bool] = []
    for name in vars(graph):
        pairs(getattr(before, name), getattr(graph, name), equal)
    assert equal and all(equal)


def pairs(a: Any, b: Any, equal: list[bool]) -> None:
    """Compare two records of arrays."""
    if isinstance(a, Record | tuple):
        parts = (vars(a).values(), vars(b).values()) if isinstance(a, Record) else (a, b)
        for x, y in zip(*parts, strict=True):
            pairs(x, y, equal)
    elif a is not None:
        equal.append(np.array_equal(a, b))


# --- sizes ----------------------------------------------------------------------------------------------


def empty_system(model: Any, *, atoms: int, frames: int = 1) -> System:
    """Atoms too far apart to see each other."""
    return System(
        coord=100.0 * np.arange(frames * atoms * 3).reshape(frames, atoms, 3),
        atype=np.arange(frames * atoms).reshape(frames, atoms) % model.ntypes,
        cell=None,
        fparam=np.ones((frames, model.dim_fparam)) if model.dim_fparam else None,
        aparam=np.ones((frames, atoms, model.dim_aparam)) if model.dim_aparam else None,
        charge_spin=charges(frames) if model.takes_charge_spin else None,
    )


SIZES = {"no_frame": (0, 0), "no_atom": (1, 0), "no_atoms_in_frames": (3, 0), "one_atom": (1, 1), "no_edge": (2, 2)}


@each_base
@each_gradient
@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_zero_and_one(case: str, backend: Backend, size: str) -> None:
    model = model_of(case)
    frames, atoms = SIZES[size]
    graph = graph_of(model, empty_system(model, atoms=atoms, frames=frames))
    ours, expected = runner(case, backend)(graph), runner(case, Backend.NUMPY)(graph)
    assert_close(ours, expected, 2e-5 if single(case) else 1e-12)
    assert ours["force"].shape == (frames * atoms, 3)
    assert ours["virial"].shape == (frames, 9)
    assert all((ours[key] == 0).all() for key in DERIVATIVES)


@each_case
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", [Backend.STRICT, Backend.TORCH], ids=lambda b: b.value)
def test_sizes_of_zero_and_one_with_every_option(case: str, backend: Backend, size: str) -> None:
    model = model_of(case)
    frames, atoms = SIZES[size]
    graph = graph_of(model, empty_system(model, atoms=atoms, frames=frames))
    expected = runner(case, Backend.NUMPY)(graph)
    assert_close(runner(case, backend)(graph), expected, 2e-5 if single(case) else 1e-12)


@each_base
@each_gradient
def test_one_edge(case: str, backend: Backend) -> None:
    """An atom that sees without being seen, as at the border of a domain."""
    model = model_of(case)
    whole = graph_of(model, random_system(model, frames=1, atoms=2, virtual=0, periodic=False))
    part = first_edge(whole) if model.message_passing else select_centres(whole, 0, 1)[0]
    assert part.edge_vec.shape == (1, 3) or model.pair_exclude_types
    assert_close(runner(case, backend)(part), runner(case, Backend.TORCH)(part), 2e-5 if single(case) else 1e-11)


def first_edge(graph: Graph) -> Graph:
    """Only the first of all edges; both atoms are owned."""
    edges = {name: getattr(graph, name)[:1] for name in ("centre", "neighbour", "edge_vec", "edge_mask")}

    def first(view: Slots | Edges) -> Slots | Edges:
        if isinstance(view, Slots):
            return Slots(edge=np.zeros_like(view.edge), mask=view.mask & (view.edge == 0))
        kept = view.row == 0
        angles = None if view.angles is None else map_record(view.angles, lambda x: x[view.angles.ij < np.sum(kept)])
        return Edges(row=view.row[kept], mask=view.mask[kept], angles=angles)

    return graph.replace(**edges, views=map_views(graph.views, first))


# --- storage --------------------------------------------------------------------------------------------


@each_case
def test_order_of_neighbours_is_irrelevant(case: str) -> None:
    model, rng = model_of(case), np.random.default_rng(4)
    graph = graph_of(model, random_system(model))
    count = len(graph.centre)
    order = np.lexsort((rng.random(count), graph.centre))  # edges are sorted by centre, in any order about each
    place = np.argsort(order)

    def shuffle(slots: Slots | Edges) -> Slots | Edges:
        """The rows where the edges now are; slots in any order, with empty ones between them."""
        if isinstance(slots, Edges):
            return shuffle_list(slots, graph.centre[slots.row], place, rng)
        n = len(slots.edge)
        edge = np.concatenate([place[slots.edge] if count else slots.edge, np.zeros((n, 2), np.int64)], axis=1)
        mask = np.concatenate([slots.mask, np.zeros((n, 2), bool)], axis=1)
        columns = rng.permuted(np.tile(np.arange(edge.shape[1]), (n, 1)), axis=1)
        edge, mask = np.take_along_axis(edge, columns, axis=1), np.take_along_axis(mask, columns, axis=1)
        return Slots(edge=np.where(mask, edge, 0), mask=mask)

    edges = {name: getattr(graph, name)[order] for name in ("centre", "neighbour", "edge_vec", "edge_mask")}
    shuffled = graph.replace(**edges, views=map_views(graph.views, shuffle))
    expected = runner(case, Backend.TORCH)(graph)
    assert_close(runner(case, Backend.TORCH)(shuffled), expected, 2e-5 if single(case) else 1e-11)


def shuffle_list(view: Edges, centre: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> Edges:
    """The rows where the edges now are, in any order about each centre; the angles of each edge in any order."""
    order = np.lexsort((rng.random(len(centre)), centre))
    now = np.argsort(order)
    angles = view.angles
    if angles is not None:
        ij, ik = now[angles.ij], now[angles.ik]
        turn = np.lexsort((rng.random(len(ij)), ij))
        angles = angles.replace(ij=ij[turn], ik=ik[turn], mask=angles.mask[turn])
    return Edges(row=place[view.row][order], mask=view.mask[order], angles=angles)


@each_base_and_backend
def test_layout_of_memory_is_irrelevant(case: str, backend: Backend) -> None:
    """Views of any stride, and arrays that cannot be written to, as users hand them in."""

    def turned(x: np.ndarray) -> np.ndarray:
        view = np.asfortranarray(x[::-1])[::-1]
        view.flags.writeable = False
        return view

    model = model_of(case)
    graph = graph_of(model, random_system(model))
    assert_close(runner(case, backend)(map_record(graph, turned)), runner(case, backend)(graph), 1e-12)


@each_case
def test_padding_is_irrelevant(case: str) -> None:
    model = model_of(case)
    graph = graph_of(model, random_system(model))
    sizes = bucket_sizes(graph)
    padded = runner(case, Backend.TORCH)(pad_graph(graph, sizes))
    for key, value in runner(case, Backend.TORCH)(graph).items():
        assert len(padded[key]) > len(value)
        assert distance(padded[key][: len(value)], value) <= (2e-5 if single(case) else 1e-11), key
        if key != "energy":
            assert (padded[key][len(value) :] == 0).all(), key


@each_base
@each_gradient
def test_ghosts_equal_periodic_images(case: str, backend: Backend) -> None:
    check_ghosts(case, backend)


@each_case
def test_ghosts_equal_periodic_images_with_every_option(case: str) -> None:
    check_ghosts(case, Backend.TORCH)


def check_ghosts(case: str, backend: Backend) -> None:
    model = model_of(case)
    system = random_system(model)
    graph = graph_of(model, system)
    ghostly = with_ghosts(graph, system)
    assert len(ghostly.atype) > 2 * len(graph.atype)
    expected = runner(case, Backend.TORCH)(graph)
    assert_close(runner(case, backend)(ghostly), expected, 2e-5 if single(case) else 1e-11)


@each_case
def test_features_without_rotation(case: str) -> None:
    """What only the vectors need may be left out, and nothing else."""
    model = model_of(case)
    graph = graph_of(model, random_system(model))
    whole, part = model.descriptor(graph), model.descriptor(graph, rotation=False)
    assert distance(part.node, whole.node) <= 1e-14
    if model.message_passing:
        assert part.rotation is None


@each_case
def test_pieces_make_the_whole(case: str) -> None:
    """Large systems are evaluated some centres at a time."""
    model = model_of(case)
    graph = graph_of(model, random_system(model))
    run = runner(case, Backend.TORCH)
    pieces = evaluate_graph(lambda part, **_: run(part), graph, model, forces=True, atomic=True, size=3)
    assert_close(pieces, run(graph), 2e-5 if single(case) else 1e-11)


@each_case
def test_default_charge_spin(case: str) -> None:
    """Leaving charge and spin out and giving the defaults is the same; other ones are not, in their frame alone."""
    model = model_of(case)
    if model.default_charge_spin is None:
        return
    system = random_system(model)
    default = np.tile(model.default_charge_spin, (2, 1))
    without, given, other = (
        runner(case, Backend.TORCH)(graph_of(model, system.replace(charge_spin=values)))
        for values in (None, default, default + np.array([[0.0, 0.0], [3.0, 0.0]]))
    )
    assert_close(given, without, 0.0)
    changed = np.abs(other["energy"] - without["energy"])[:, 0]
    assert changed[0] == 0
    assert changed[1] > 1e-6


@each_case
def test_default_fparam(case: str) -> None:
    """Leaving frame parameters out and giving the defaults is the same; other ones are not."""
    model = model_of(case)
    if not model.has_default_fparam:
        return
    system = random_system(model)
    default = np.tile(model.fitting.default_fparam, (2, 1))
    without, given, other = (
        runner(case, Backend.TORCH)(graph_of(model, system.replace(fparam=fparam)))
        for fparam in (None, default, default + 1)
    )
    assert_close(given, without, 0.0)
    assert distance(other["energy"], without["energy"]) > 1e-6
