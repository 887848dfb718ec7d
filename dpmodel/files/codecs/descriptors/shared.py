"""What the dictionaries of several descriptors have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.files.nodes import Node
from dpmodel.op import Array

__all__ = ["env_mat", "read_statistics", "write_statistics"]


def read_statistics(node: Node, ntypes: int, nnei: int, dtype: str) -> dict[str, Array]:
    """davg and dstd, each (ntypes, 4); files repeat them for every slot.

    Raises ModelFileError where they vary along the slots, and for deviations of 0.
    """
    shape, found = (ntypes, nnei, 4), {}
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
    return found


def write_statistics(op: Any, nnei: int) -> dict[str, Array]:
    """The inverse of `read_statistics`."""
    return {name: np.repeat(np.asarray(getattr(op, name))[:, None], nnei, axis=1) for name in ("davg", "dstd")}


def env_mat(rcut: float, rcut_smth: float, protection: float) -> dict[str, Any]:
    """Written for other readers; not authoritative."""
    return {"rcut": rcut, "rcut_smth": rcut_smth, "protection": protection, "use_exp_switch": False}
