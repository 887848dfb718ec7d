"""Small graphs to try a model on, such as what was compiled from it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from dpmodel.graph import Graph
from dpmodel.models.base import Model
from dpmodel.models.builder import builder_of

__all__ = ["sample_graph"]


def sample_graph(model: Model, frames: int, atoms: int) -> Graph:
    """The graph (NumPy) of up to 27 atoms a frame near the points of a lattice, with every input that the model takes."""
    rng = np.random.default_rng(atoms)
    lattice = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:atoms]
    spacing = min(2.0, 0.6 * min(request.rcut for request in model.requests()))
    coord = spacing * (lattice + rng.uniform(0, 0.25, (frames, atoms, 3)))
    atype = np.broadcast_to(np.arange(atoms) % model.ntypes, (frames, atoms))
    extra: dict[str, Any] = {}
    if model.dim_fparam:
        extra["fparam"] = rng.normal(size=(frames, model.dim_fparam))
    if model.dim_aparam:
        extra["aparam"] = rng.normal(size=(frames, atoms, model.dim_aparam))
    if model.takes_charge_spin:
        extra["charge_spin"] = np.tile([1.0, 2.0], (frames, 1))
    if model.spin_scales is not None:
        extra["spin"] = rng.normal(size=(frames, atoms, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a small `sel` is no matter here
        return builder_of(model).build(coord, atype, None, **extra)
