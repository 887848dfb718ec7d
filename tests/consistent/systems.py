"""Atoms to test with, and the graphs of them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from dpmodel.geometry import TruncationWarning
from dpmodel.graph import Edges, Graph, Slots
from dpmodel.models import Model, builder_of

__all__ = ["System", "charges", "graph_of", "map_views", "random_system", "with_ghosts"]

CELLS = np.array([
    [[5.4, 0.0, 0.0], [1.9, 5.1, 0.0], [-1.2, 0.8, 4.9]],
    [[0.0, 5.3, 0.4], [5.6, 0.3, 0.0], [0.0, -0.9, 5.2]],  # left-handed
])  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """Arguments of `GraphBuilder.build`."""

    coord: np.ndarray
    atype: np.ndarray
    cell: np.ndarray | None
    pbc: tuple[bool, bool, bool] = (True, True, True)
    fparam: np.ndarray | None = None
    aparam: np.ndarray | None = None
    charge_spin: np.ndarray | None = None

    def replace(self, **changes: Any) -> System:
        return dataclasses.replace(self, **changes)

    def frames(self, index: Any) -> System:
        """Some of the frames: an index array or a slice."""
        arrays = {k: v[index] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return self.replace(**arrays)

    def atoms(self, index: Any) -> System:
        """Some of the atoms of every frame, in that order."""
        arrays = {k: getattr(self, k)[:, index] for k in ("coord", "atype", "aparam") if getattr(self, k) is not None}
        return self.replace(**arrays)


def random_system(
    model: Model, *, frames: int = 2, atoms: int = 7, virtual: int = 1, periodic: bool = True, seed: int = 3
) -> System:
    """Atoms no closer than about 1 Å, with several images within the cutoff, some outside the cell.

    `virtual`: that many atoms per frame are of type -1. Every type of the model occurs while there are atoms enough.
    """
    rng = np.random.default_rng(seed)
    cell = CELLS[np.arange(frames) % 2] * rng.uniform(0.97, 1.03, (frames, 1, 1))
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) / 3
    coord = np.stack([
        (rng.permutation(grid)[:atoms] + rng.uniform(-0.05, 0.05, (atoms, 3)) + rng.integers(-1, 2, (atoms, 3)) * periodic) @ c
        for c in cell
    ])  # fmt: skip
    real = np.arange(atoms - virtual) % model.ntypes
    atype = np.stack([rng.permutation(np.concatenate([real, np.full(virtual, -1)])) for _ in range(frames)])
    return System(
        coord=coord,
        atype=atype,
        cell=cell if periodic else None,
        fparam=rng.normal(size=(frames, model.dim_fparam))
        if model.dim_fparam and not model.has_default_fparam
        else None,
        aparam=rng.normal(size=(frames, atoms, model.dim_aparam)) if model.dim_aparam else None,
        charge_spin=charges(frames) if model.takes_charge_spin and model.default_charge_spin is None else None,
    )


def charges(frames: int) -> np.ndarray:
    """(f, 2) charges and spins, another in every frame."""
    return np.stack([np.arange(frames) % 5 - 2.0, np.arange(frames) % 3], axis=-1)


def graph_of(model: Model, system: System) -> Graph:
    """The graph of a system. That neighbours are cut off is a matter of other tests."""
    builder = builder_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        return builder.build(**vars(system))


def map_views(views: Any, convert: Callable[[Slots | Edges], Slots | Edges]) -> Any:
    """Apply a function to every table and edge list of a graph's views."""
    return convert(views) if isinstance(views, Slots | Edges) else tuple(map_views(view, convert) for view in views)


def with_ghosts(graph: Graph, system: System) -> Graph:
    """The same graph with one ghost node for every periodic image that an edge sees."""
    coord = system.coord.reshape(-1, 3)
    shift = graph.edge_vec - (coord[graph.neighbour] - coord[graph.centre])
    far = np.abs(shift).max(axis=1) > 1e-6
    keys = np.concatenate([graph.neighbour[far, None], np.round(shift[far], 4)], axis=1)
    nodes, place = np.unique(keys, axis=0, return_inverse=True)
    n, neighbour = len(coord), graph.neighbour.copy()
    neighbour[far] = n + place.reshape(-1)
    owner = np.concatenate([np.arange(n), nodes[:, 0].astype(np.int64)])
    return graph.replace(atype=graph.atype[owner], owner=owner, neighbour=neighbour)
