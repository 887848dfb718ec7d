"""What the dictionaries of several descriptors have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.files.nodes import Node
from dpmodel.op import Array

__all__ = [
    "check_excluded",
    "check_radii",
    "env_mat",
    "read_counts",
    "read_residual",
    "read_statistics",
    "upgrade_1_to_2",
    "upgrade_of_tables",
    "write_statistics",
]


def upgrade_1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 carries the type map; the protected distance came while version 1 was current, so it may be missing."""
    return {"type_map": None, "env_protection": 0.0, **data}


def upgrade_of_tables(data: dict[str, Any]) -> dict[str, Any]:
    """A version that differs from the one before by the tables of a compressed model alone."""
    return dict(data)


def read_counts(node: Node) -> tuple[int, ...]:
    """The capacities in "sel"."""
    sel = node.items("sel")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sel) or sum(sel) < 1:
        raise node.fail(f"'sel' should be numbers of neighbours, at least one in all; got {sel}")
    return tuple(sel)


def check_radii(node: Node, config: Any) -> None:
    """Raise ModelFileError where the switch function has no room, or the second factor is wider than the first."""
    axis = getattr(config, "axis_neuron", 1)
    if config.rcut_smth >= config.rcut or not 0 < axis <= (config.neuron or (0,))[-1]:
        raise node.fail(
            f"rcut_smth = {config.rcut_smth} should be below rcut = {config.rcut}, and axis_neuron = {axis} at most the "
            f"last of neuron = {list(config.neuron)}"
        )


def check_excluded(node: Node, pairs: tuple[tuple[int, int], ...], ntypes: int) -> None:
    """Raise ModelFileError for excluded pairs of types that do not exist."""
    if any(not 0 <= t < ntypes for pair in pairs for t in pair):
        raise node.fail(f"'exclude_types' are {[list(pair) for pair in pairs]}, expected types from 0 to {ntypes - 1}")


def read_statistics(
    node: Node, ntypes: int, nnei: int, dtype: str, *, columns: int = 4, centred: bool = False
) -> dict[str, Array]:
    """davg and dstd, each (ntypes, columns); files repeat them for every slot.

    centred: the mean of the angular entries must be 0, as every known writer makes it.
    Raises ModelFileError where they vary along the slots, and for deviations of 0.
    """
    shape, found = (ntypes, nnei, columns), {}
    for name in ("davg", "dstd"):
        array = node.array(name, shape)
        if not np.array_equal(array, np.broadcast_to(array[:, :1], shape)):
            raise node.fail(
                f"{name!r} varies along the neighbour axis; every known writer makes it constant there, and dpmodel relies "
                "on it. Recompute the statistics in the program that wrote the file"
            )
        found[name] = array[:, 0].astype(dtype)
    if not np.all(found["dstd"]):
        raise node.fail("the array 'dstd' holds zeros; deviations divide, so they cannot be 0")
    if centred and np.any(found["davg"][:, 1:]):
        raise node.fail(
            "'davg' subtracts a mean from the angular entries; every known writer makes it 0 there, and dpmodel relies on "
            "it. Recompute the statistics in the program that wrote the file"
        )
    return found


def write_statistics(op: Any, nnei: int) -> dict[str, Array]:
    """The inverse of `read_statistics`."""
    return {name: np.repeat(np.asarray(getattr(op, name))[:, None], nnei, axis=1) for name in ("davg", "dstd")}


def env_mat(rcut: float, rcut_smth: float, protection: float) -> dict[str, Any]:
    """Written for other readers; not authoritative."""
    return {"rcut": rcut, "rcut_smth": rcut_smth, "protection": protection, "use_exp_switch": False}


def read_residual(node: Node, key: str, shape: tuple[int, int], dtype: str) -> Array:
    """(count, width), from a list of vectors below "@variables" or beside it."""
    variables = node.get("@variables", None)
    place = node if key in node.data or variables is None else node.node("@variables")
    vectors = [Node({"@variables": {key: v}}, f"{node.path}.{key}[{k}]") for k, v in enumerate(place.items(key))]
    if len(vectors) != shape[0]:
        raise node.fail(f"{key!r} has {len(vectors)} vectors, but the section implies {shape[0]}")
    found = np.zeros(shape, dtype)
    for k, vector in enumerate(vectors):
        found[k] = vector.array(key, shape[1:], dtype=dtype)
    return found
