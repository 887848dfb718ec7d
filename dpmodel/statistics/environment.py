"""Statistics of the environment matrix: what descriptors normalise their inputs with.

For every centre type, over all sum(sel) slots of all its atoms (an empty slot and an excluded pair count, with
value 0): mean and deviation of the radial entry, and the deviation of the three angular entries taken together.
Always with the polynomial switch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpmodel.geometry.switch import env_mat
from dpmodel.graph import Edges, Graph, Slots
from dpmodel.ops import take_rows
from dpmodel.statistics.items import StatItem
from dpmodel.statistics.options import pairs

if TYPE_CHECKING:
    from dpmodel.statistics.cache import StatCache

__all__ = [
    "cached_environment_items",
    "environment_items",
    "environment_key",
    "environment_mean_and_deviation",
    "item_names",
]


def item_names(ntypes: int, *, radial_only: bool = False) -> tuple[str, ...]:
    """Names of the items of every centre type: `r_0`, `a_0`, `r_1`, ...; without the `a` if `radial_only`."""
    kinds = ("r",) if radial_only else ("r", "a")
    return tuple(f"{kind}_{t}" for t in range(ntypes) for kind in kinds)


def environment_items(
    graphs: Iterable[Graph],
    view: int,
    *,
    rcut: float,
    rcut_smth: float,
    sel: tuple[int, ...],
    ntypes: int,
    protection: float = 0.0,
    exclude_types: tuple[tuple[int, int], ...] = (),
    radial_only: bool = False,
) -> dict[str, StatItem]:
    """Running sums over graphs of NumPy arrays, by the names of `item_names`.

    view: position in `Graph.views`; every kind of view serves. rcut, rcut_smth, protection: Å. exclude_types: pairs of
    types (in either order) that the descriptor leaves out. Virtual centres do not count.
    Raises ValueError where an atom has more neighbours in the view than sum(sel).
    """
    kinds = ("r",) if radial_only else ("r", "a")
    items = {name: StatItem() for name in item_names(ntypes, radial_only=radial_only)}
    for graph in graphs:
        matrix, number = _rows(graph, view, rcut, rcut_smth, protection, exclude_types, ntypes, radial_only)
        if number.size and number.max() > sum(sel):
            raise ValueError(f"an atom has {number.max()} neighbours in view {view}, more than sum(sel) = {sum(sel)}")
        atype = np.asarray(graph.atype[: graph.frame.shape[0]])
        for t in range(ntypes):
            centres = atype == t
            slots = float(np.sum(centres) * sum(sel))
            for kind, columns, width in zip(kinds, (slice(0, 1), slice(1, 4)), (1, 3), strict=False):
                part = matrix[centres][..., columns]
                found = StatItem.of(part)
                items[f"{kind}_{t}"] += StatItem(slots * width, found.total, found.squares)
    return items


def environment_mean_and_deviation(
    items: Mapping[str, StatItem], ntypes: int, *, radial_only: bool = False, protect: float = 1e-2
) -> tuple[np.ndarray, np.ndarray]:
    """davg and dstd, each (ntypes, 4), or (ntypes, 1) if `radial_only`; deviations are at least `protect`.

    Types that do not occur have mean 0 and deviation 0.1. The mean of the angular entries is 0 by symmetry.
    """
    davg, dstd = np.zeros((ntypes, 4)), np.zeros((ntypes, 4))
    for t in range(ntypes):
        radial = items[f"r_{t}"]
        davg[t, 0], dstd[t, 0] = radial.avg(), radial.std(protection=protect)
        if not radial_only:
            dstd[t, 1:] = items[f"a_{t}"].std(protection=protect)
    return (davg[:, :1], dstd[:, :1]) if radial_only else (davg, dstd)


def _rows(
    graph: Graph,
    view: int,
    rcut: float,
    rcut_smth: float,
    protection: float,
    exclude_types: tuple[tuple[int, int], ...],
    ntypes: int,
    radial_only: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """(n, w, 4 or 1) environment rows of every slot of the view, 0 where excluded; (n,) neighbours of every atom."""
    edge, mask = _table(graph, graph.views[view])
    n, n_edges = graph.frame.shape[0], graph.edge_vec.shape[0]
    if n_edges == 0:
        return np.zeros((n, 0, 1 if radial_only else 4)), np.zeros(n, dtype=np.int64)
    edges, _ = env_mat(graph.edge_vec, graph.edge_mask, rcut, rcut_smth, protection, radial_only=radial_only)
    atype = np.asarray(graph.atype)
    excluded = np.zeros((ntypes, ntypes), dtype=bool)
    for a, b in exclude_types:
        excluded[a, b] = excluded[b, a] = True
    kept = ~excluded[atype[np.asarray(graph.centre)], atype[np.asarray(graph.neighbour)]]
    shown = (mask & kept[edge])[..., None]
    return np.where(shown, take_rows(edges, edge), 0.0), np.sum(mask, axis=1)


def _table(graph: Graph, view: Slots | tuple[Slots, ...] | Edges) -> tuple[np.ndarray, np.ndarray]:
    """(n, w) edges and mask of a view; the tables of a typed one side by side."""
    if isinstance(view, Edges):
        rows = np.asarray(view.row)[np.asarray(view.mask)]
        centre = np.asarray(graph.centre)[rows]
        count = np.bincount(centre, minlength=graph.frame.shape[0])
        mask = np.arange(np.max(count, initial=0)) < count[:, None]
        table = np.zeros(mask.shape, np.int64)
        table[mask] = rows  # both are sorted by centre
        return table, mask
    parts = view if isinstance(view, tuple) else (view,)
    edge = np.concatenate([np.asarray(part.edge) for part in parts], axis=1)
    return edge, np.concatenate([np.asarray(part.mask) for part in parts], axis=1)


def environment_key(
    *, ntypes: int, rcut: float, rcut_smth: float, sel: Sequence[int], mixed_types: bool, radial_only: bool = False
) -> str:
    """Name of the group of a descriptor's environment statistics: a sha1 of its parameters, radii to 0.01 Å.

    Protection, excluded pairs and further digits of radii do not enter (so that caches can be exchanged): they are in
    the options beside them.
    """
    described = {
        "type": "se_r" if radial_only else "se_a",
        "ntypes": int(ntypes),
        "rcut": round(float(rcut), 2),
        "rcut_smth": round(float(rcut_smth), 2),
        "nsel": int(sum(sel)),
        "sel": [int(n) for n in sel],
        "mixed_types": bool(mixed_types),
    }
    return hashlib.sha1(json.dumps(described).encode(), usedforsecurity=False).hexdigest()


def cached_environment_items(
    graphs: Callable[[], Iterable[Graph]],
    cache: StatCache | None,
    *,
    ntypes: int,
    rcut: float,
    rcut_smth: float,
    sel: Sequence[int],
    mixed_types: bool,
    protection: float,
    exclude_types: tuple[tuple[int, int], ...],
    radial_only: bool = False,
) -> dict[str, StatItem]:
    """`environment_items` of the first view of the graphs, or what the cache knows of them."""
    shape: dict[str, Any] = {
        "ntypes": ntypes, "rcut": rcut, "rcut_smth": rcut_smth, "sel": sel, "radial_only": radial_only,
    }  # fmt: skip
    key = environment_key(**shape, mixed_types=mixed_types)
    options: dict[str, Any] = {"env_protection": protection, "exclude_types": pairs(exclude_types)}
    for name, radius in (("rcut", rcut), ("rcut_smth", rcut_smth)):  # the key has two decimals
        options[name] = 0.0 if radius == round(radius, 2) else radius
    items = None if cache is None else cache.environment(key, options, radial_only=radial_only)
    if items is None:
        items = environment_items(graphs(), 0, **shape, protection=protection, exclude_types=exclude_types)
        if cache is not None:
            cache.store_environment(key, items, options)
    return items
