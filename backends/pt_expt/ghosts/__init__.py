"""Ghost exchange: two operators, each the gradient of the other, and providers that move the rows.

Importing this builds and loads nothing; `load_ops` does.
"""

from __future__ import annotations

from .exchange import GhostExchange
from .library import load_ops, ops_library
from .providers import ABI, FaultProvider, MappingProvider, Provider

__all__ = ["ABI", "FaultProvider", "GhostExchange", "MappingProvider", "Provider", "load_ops", "ops_library"]
