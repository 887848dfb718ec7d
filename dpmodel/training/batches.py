"""From batches of data systems to what a training step takes: a graph, flat labels, flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dpmodel.data.labels import HESSIAN
from dpmodel.data.system import Batch
from dpmodel.errors import DataError, InputError
from dpmodel.geometry.build import GraphBuilder
from dpmodel.graph import INPUTS, Graph
from dpmodel.nn.charge_spin import check_charge_spin

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """One batch, NumPy."""

    graph: Graph
    labels: Mapping[str, np.ndarray]
    """Atomic labels (n, *shape) over all frames, frame labels (f, *shape); hessian (n, 3, 3 na), na atoms per frame."""
    found: Mapping[str, float]
    """1.0 where the system has the label."""


def prepare(batch: Batch, builder: GraphBuilder, atomic: frozenset[str], path: str = "") -> Prepared:
    """Build the graph and flatten the labels.

    atomic: names of the per-atom labels. path: that of the system; DataError names it and the frame where no graph can
    be built.
    """
    given: dict[str, Any] = {name: batch.labels[name] for name in INPUTS if batch.found.get(name, 0.0) > 0}
    cell = batch.cell if batch.pbc else None
    try:
        if "charge_spin" in given:
            check_charge_spin(given["charge_spin"], "charge_spin")
        graph = builder.build(batch.coord, batch.atype, cell, pbc=batch.pbc, numbers=batch.frames.tolist(), **given)
    except InputError as problem:
        raise DataError(f"{path or 'a system'}, {problem} (atoms are counted sorted by type)") from problem
    labels = {}
    for name, value in batch.labels.items():
        if name not in INPUTS:
            labels[name] = value.reshape(-1, *value.shape[2:]) if name in atomic else value
        if name == HESSIAN.name:
            labels[name] = value.reshape(-1, 3, value.shape[2])
    found = {name: flag for name, flag in batch.found.items() if name not in INPUTS}
    return Prepared(graph, labels, found)
