"""Ghost exchange: two operators, each the gradient of the other, and providers that move the rows.

Importing this builds and loads nothing; `load_ops` does. The provider between processes is in `ghosts.mpi`, which needs
mpi4py.
"""

from __future__ import annotations

from .decompose import Part, decompose, slabs
from .exchange import GhostExchange
from .folding import NODE_KEYS, fold
from .library import load_ops, ops_library
from .providers import ABI, FaultProvider, MappingProvider, Provider, failure_of

__all__ = [
    "ABI",
    "NODE_KEYS",
    "FaultProvider",
    "GhostExchange",
    "MappingProvider",
    "Part",
    "Provider",
    "decompose",
    "failure_of",
    "fold",
    "load_ops",
    "ops_library",
    "slabs",
]
