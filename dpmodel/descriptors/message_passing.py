"""The one seam of message passing: how ghost rows get the features of the atoms they copy."""

from __future__ import annotations

from dpmodel.descriptors.base import Descriptor
from dpmodel.graph import Graph
from dpmodel.op import Array
from dpmodel.ops import take_rows

__all__ = ["MessagePassing"]


class MessagePassing(Descriptor):
    """Base of the descriptors whose layers read neighbours' features."""

    @property
    def message_passing(self) -> bool:
        return True

    def _exchange_ghosts(self, x: Array, graph: Graph) -> Array:
        """Features of the owned atoms (n, ...) to features of all nodes (m, ...).

        Within one process ghosts copy their owner's row. A backend with an exchange between processes overrides this
        method, and nothing else, for graphs whose `comm` is set.
        """
        if graph.comm is not None:
            raise ValueError(f"{type(self).__name__}: this backend has no ghost exchange between processes")
        return x if graph.owner is None else take_rows(x, graph.owner)
