"""From coordinates, types and cells to `Graph`s; switch functions and the environment matrix.

vesin is loaded when a list is built, not before.
"""

from __future__ import annotations

from dpmodel.geometry.build import GraphBuilder, TruncationWarning, neighbour_counts
from dpmodel.geometry.neighbours import Pairs, neighbour_pairs
from dpmodel.geometry.padding import Buckets, Sizes, bucket_sizes, graph_sizes, pad_graph
from dpmodel.geometry.switch import env_mat, switch_exp, switch_poly

__all__ = [
    "Buckets",
    "GraphBuilder",
    "Pairs",
    "Sizes",
    "TruncationWarning",
    "bucket_sizes",
    "env_mat",
    "graph_sizes",
    "neighbour_counts",
    "neighbour_pairs",
    "pad_graph",
    "switch_exp",
    "switch_poly",
]
