"""From coordinates, types and cells to `Graph`s; switch functions and the environment matrix.

vesin is loaded when a list is built, not before.
"""

from __future__ import annotations

from dpmodel.geometry.neighbours import Pairs, neighbour_pairs
from dpmodel.geometry.switch import env_mat, switch_exp, switch_poly

__all__ = ["Pairs", "env_mat", "neighbour_pairs", "switch_exp", "switch_poly"]
