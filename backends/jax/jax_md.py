"""Energy functions for JAX MD (https://github.com/jax-md/jax-md).

    from dpmodel.backends.jax.jax_md import model_neighbor_list

    jax.config.update("jax_enable_x64", True)
    neighbor_fn, energy_fn = model_neighbor_list("model.dp", box, ["O", "H", "H"], fractional_coordinates=False)
    neighbors = neighbor_fn.allocate(R)
    energy_fn(R, neighbors)                         # eV; jax.grad gives forces, jax_md.simulate takes it as it is

As all of JAX MD, a box is a matrix whose columns are the cell vectors, and gradients by fractional coordinates are those
by real ones. The neighbour lists are those of `jax_md.custom_partition.neighbor_list_multi_image`, which see every
periodic image, so that small cells are right; the graph is made of them inside the compiled function. Numbers are those
of `Potential.evaluate`. Before a list is made, bring fractional coordinates into [0, 1), where JAX MD's shift functions
keep them: lists remember images, and do not see an atom jump by a whole cell vector. Written for jax-md 0.2.29.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpmodel.errors import BackendError, InputError
from dpmodel.graph import Angles, Edges, Graph, NeighbourRequest, Slots, TypeGroups
from dpmodel.models import Model, predict
from dpmodel.potential import Potential, check_parameters, load

from .bridge import to_jax

try:
    from jax_md import space
    from jax_md.custom_partition import neighbor_list_multi_image
    from jax_md.partition import Dense
except ModuleNotFoundError as _problem:
    raise ImportError(
        f'dpmodel.backends.jax.jax_md needs JAX MD ({_problem}); install it with: pip install "dpmodel[jax-md]"'
    ) from _problem

__all__ = ["energy_function", "model_neighbor_list"]

EnergyFunction = Callable[..., jax.Array]


def model_neighbor_list(
    model: Potential | str | Path,
    box: Any,
    types: Sequence[int] | Sequence[str] | np.ndarray,
    *,
    fractional_coordinates: bool = True,
    pbc: Sequence[bool] = (True, True, True),
    dr_threshold: float = 0.5,
    capacity_multiplier: float = 1.25,
    head: str | None = None,
    **parameters: Any,
) -> tuple[Any, EnergyFunction]:
    """What simulations need: functions that make and update neighbour lists, and the energy.

    Args:
        model: a potential, or the path of a model file or checkpoint.
        box: (3, 3) Å, columns are cell vectors.
        types: (n,) type indices or symbols.
        fractional_coordinates: whether positions are fractions of the cell vectors.
        pbc: periodic or not, along each cell vector.
        dr_threshold: lists are made anew when an atom has moved half of that, Å.
        capacity_multiplier: room for more neighbours than the first positions have.
        head: as for `dpmodel.load`, for a path.
        parameters: fparam (df,), aparam (n, da), charge_spin (2,), for models that take them.

    Returns:
        (neighbor_fn, energy_fn) as the potentials of `jax_md.energy` do. energy_fn(R, neighbor, box=None): eV, scalar.

    Raises what `dpmodel.load` and `energy_function` raise.
    """
    if isinstance(model, Potential) and head is not None:
        raise InputError("head belongs to loading; this potential is loaded already")
    potential = model if isinstance(model, Potential) else load(model, "jax", head=head)
    energy = energy_function(potential, types, fractional_coordinates=fractional_coordinates, **parameters)
    neighbors = neighbor_list_multi_image(
        None, jnp.asarray(box), potential.rcut, dr_threshold, capacity_multiplier, pbc=jnp.asarray(pbc),
        fractional_coordinates=fractional_coordinates, format=Dense,
    )  # fmt: skip
    return neighbors, energy


def energy_function(
    potential: Potential,
    types: Sequence[int] | Sequence[str] | np.ndarray,
    *,
    fractional_coordinates: bool = True,
    **parameters: Any,
) -> EnergyFunction:
    """energy_fn(R, neighbor, box=None) for dense multi-image lists that reach `potential.rcut`.

    Raises InputError for models that are not of energies or take spins, and for types and parameters that do not fit;
    BackendError where JAX computes in single precision.
    """
    model = potential.model
    if model.output().name != "energy" or model.spin_scales is not None:
        raise InputError("JAX MD runs models of energies without spin")
    atype = _types(types, potential.type_map)
    template = _template(model, potential, atype, parameters)
    _need_double()
    tree, fixed = to_jax(model), jax.tree.map(jnp.asarray, template)

    def energy(R: Any, neighbor: Any, box: Any = None, **_options: Any) -> jax.Array:
        _need_double()
        cell = jnp.asarray(neighbor.box if box is None else box)
        positions = jnp.asarray(R, jnp.float64)
        positions = space.transform(cell, positions) if fractional_coordinates else positions
        graph = _graph(model, fixed, positions, neighbor, cell)
        return predict(tree, graph, None)["energy"][0, 0]

    return energy


def _need_double() -> None:
    if jnp.zeros(()).dtype != jnp.float64:
        raise BackendError('models compute in float64: call jax.config.update("jax_enable_x64", True) at the start')


def _types(types: Any, type_map: tuple[str, ...]) -> np.ndarray:
    """(n,) indices. Raises InputError."""
    array = np.asarray(types)
    if array.dtype.kind == "U":
        unknown = sorted(set(array.ravel().tolist()) - set(type_map))
        if unknown:
            raise InputError(f"types: the model knows no {unknown[0]!r}; its type_map is {list(type_map)}")
        array = np.array([type_map.index(name) for name in array.ravel().tolist()])
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise InputError(f"types: expected a type index or symbol for every atom, got {array.dtype} {array.shape}")
    if array.min() < 0 or array.max() >= len(type_map):
        raise InputError(
            f"types: expected 0 to {len(type_map) - 1} {list(type_map)}, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int64)


def _template(model: Model, potential: Potential, atype: np.ndarray, parameters: dict[str, Any]) -> Graph:
    """All of the graph that does not depend on positions."""
    n, none = len(atype), np.zeros(0, np.int64)
    sizes = {"fparam": (1, potential.dim_fparam), "aparam": (n, potential.dim_aparam)}
    sizes["charge_spin"] = (1, 2 if model.takes_charge_spin else 0)
    needed = {
        "fparam": not model.has_default_fparam, "aparam": True, "charge_spin": model.default_charge_spin is None,
    }  # fmt: skip
    given: dict[str, Any] = {}
    check_parameters(parameters, tuple(sizes))
    for name, shape in sizes.items():
        value = parameters.get(name)
        if value is None and shape[1] and needed[name]:
            raise InputError(f"{name} is missing: this model takes {shape[1]} numbers")
        if value is not None:
            if np.size(value) != shape[0] * shape[1]:
                raise InputError(f"{name}: expected {shape[0] * shape[1]} numbers, got {np.size(value)}")
            given[name] = np.reshape(np.asarray(value, np.float64), shape)
    return Graph(
        atype=atype, frame=np.zeros(n, np.int64), natoms=np.array([n]), centre=none, neighbour=none,
        edge_vec=np.zeros((0, 3)), edge_mask=np.zeros(0, np.bool_),
        types=_groups(atype, model.graph_model.ntypes) if model.groups_types() else None, **given,
    )  # fmt: skip


def _groups(atype: np.ndarray, ntypes: int) -> TypeGroups:
    rows = tuple(np.flatnonzero(atype == kind) for kind in range(ntypes))
    return TypeGroups(rows=rows, place=np.argsort(np.concatenate(rows)))


def _graph(model: Model, fixed: Graph, positions: Any, neighbor: Any, cell: Any) -> Graph:
    """The graph of a dense list: one edge per place of the list, those of an atom by distance."""
    n, width = neighbor.idx.shape
    valid = neighbor.idx < n
    index = jnp.where(valid, neighbor.idx, 0)
    vec = positions[index] + neighbor.shifts.astype(positions.dtype) @ cell.T - positions[:, None, :]
    vec = jnp.where(valid[:, :, None], vec, jnp.array([1.0, 0.0, 0.0]))
    distance = jnp.where(valid, jnp.linalg.norm(jax.lax.stop_gradient(vec), axis=2), jnp.inf)
    order = jnp.argsort(distance, axis=1)
    index, distance = (jnp.take_along_axis(x, order, axis=1) for x in (index, distance))
    vec = jnp.take_along_axis(vec, order[:, :, None], axis=1)
    kind = fixed.atype[index]
    excluded = np.zeros((model.ntypes, model.ntypes), np.bool_)
    for a, b in model.pair_exclude_types:
        excluded[a, b] = excluded[b, a] = True
    allowed = ~jnp.asarray(excluded)[fixed.atype[:, None], kind]
    view = functools.partial(_view, distance=distance, kind=kind, allowed=allowed)
    return fixed.replace(
        centre=jnp.repeat(jnp.arange(n), width),
        neighbour=index.reshape(-1),
        edge_vec=vec.reshape(-1, 3),
        edge_mask=jnp.isfinite(distance).reshape(-1),
        views=tuple(view(request) for request in model.requests()),
    )


def _view(request: NeighbourRequest, *, distance: Any, kind: Any, allowed: Any) -> Any:
    """The layout of a request, from (n, w) distances in ascending order, types, and pairs that are not excluded."""
    n, width = distance.shape
    kept = (distance <= request.rcut) & (jnp.arange(width) < sum(request.sel))
    if request.layout == "typed_slots":
        groups = [_first(kept & (kind == t), sel) & allowed for t, sel in enumerate(request.sel)]
        return tuple(_slots(group, min(width, sel)) for group, sel in zip(groups, request.sel, strict=True))
    if request.layout == "slots":
        return _slots(kept & allowed, min(width, sum(request.sel)))
    mask, angles = kept & allowed, None
    if request.angles is not None:
        near = _first(mask & (distance < request.angles.rcut), request.angles.sel)
        place, seen = _front(near, min(width, request.angles.sel))
        # Padding names the last place of its atom, so that positions stay sorted.
        place = jnp.arange(n)[:, None] * width + jnp.where(seen, place, width - 1)
        shape = (n, place.shape[1], place.shape[1])
        angles = Angles(
            ij=jnp.broadcast_to(place[:, :, None], shape).reshape(-1),
            ik=jnp.broadcast_to(place[:, None, :], shape).reshape(-1),
            mask=(seen[:, :, None] & seen[:, None, :]).reshape(-1),
        )
    return Edges(row=jnp.arange(n * width), mask=mask.reshape(-1), angles=angles)


def _first(mask: Any, count: int) -> Any:
    """The first so many of every row that are True."""
    return mask & (jnp.cumsum(mask, axis=1) <= count)


def _front(mask: Any, count: int) -> tuple[Any, Any]:
    """(n, count) places of what is True, in front and in order, and whether each place holds one."""
    place = jnp.argsort(~mask, axis=1, stable=True)[:, :count]
    return place, jnp.take_along_axis(mask, place, axis=1)


def _slots(mask: Any, count: int) -> Slots:
    place, seen = _front(mask, count)
    row = jnp.arange(mask.shape[0])[:, None] * mask.shape[1] + place
    return Slots(edge=jnp.where(seen, row, 0), mask=seen)
