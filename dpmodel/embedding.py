"""Descriptors and features of every atom of data systems, in one HDF5 file.

    /                   attributes: model, type_map, dtype, created_by
    /systems/0          attributes: path
        descriptor      (frames, atoms, width)
        fitting_feature (frames, atoms, width)   the last hidden layer of the fitting net
        atype           (frames, atoms) integer  types as the model counts them; -1 is padding, whose features are 0
    /systems/1 ...

Atoms keep the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpmodel import __version__
from dpmodel.data import labels
from dpmodel.data.dataset import Dataset
from dpmodel.data.system import Batch, System
from dpmodel.errors import DataError, InputError
from dpmodel.files.hdf5 import write_hdf5
from dpmodel.graph import INPUTS
from dpmodel.metrics import requests_of
from dpmodel.potential import Potential

__all__ = ["write_embedding"]

CHUNK_ATOMS = 100_000
"""Atoms that are evaluated at a time."""


def write_embedding(
    potential: Potential,
    systems: str | Path | Sequence[str | Path],
    path: str | Path,
    *,
    dtype: str | None = "float32",
    source: str = "",
    label_names: Mapping[str, str] | None = None,
) -> int:
    """Write the file, whole or not at all; returns the number of systems.

    Args:
        potential: of a model with one descriptor and one fitting net.
        systems: as in `dpmodel.data.discovery.find_systems`.
        path: the file.
        dtype: "float32" or "float64"; None: as the nets compute.
        source: where the model is from, stored.
        label_names: what XYZ files call labels, by their names.

    Raises InputError for other models, DataError for bad systems, OSError where the disk refuses.
    """
    spins = (labels.SPIN,) if potential.model.spin_scales is not None else ()
    wanted = {request.name: request for request in (*requests_of(potential), *spins)}
    inputs = [request for name, request in wanted.items() if name in INPUTS]
    dataset = Dataset.from_config(
        systems, batch_size=1, type_map=potential.type_map, labels=inputs, sort_atoms=False, label_names=label_names
    )  # fmt: skip

    def fill(file: h5py.File) -> None:
        file.attrs["model"] = str(source)
        file.attrs["type_map"] = list(potential.type_map)
        file.attrs["dtype"] = dtype or "native"
        file.attrs["created_by"] = f"dpmodel {__version__}"
        for index, system in enumerate(dataset.systems):
            group = file.create_group(f"systems/{index}")
            group.attrs["path"] = system.path
            for name, value in _of_system(potential, system, dtype).items():
                group.create_dataset(name, data=value)

    write_hdf5(path, fill)
    return len(dataset.systems)


def _of_system(potential: Potential, system: System, dtype: str | None) -> dict[str, np.ndarray]:
    step = max(1, CHUNK_ATOMS // system.natoms)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, system.nframes, step):
        batch = system.batch(np.arange(start, min(start + step, system.nframes)))
        found = _of_batch(potential, batch, system.path)
        if dtype is not None:
            found = {name: value.astype(dtype) for name, value in found.items()}
        parts.append({**found, "atype": batch.atype})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_batch(potential: Potential, batch: Batch, path: str) -> dict[str, np.ndarray]:
    given: dict[str, Any] = {k: batch.labels[k] for k in INPUTS if batch.found.get(k, 0.0) > 0}
    try:
        return potential.features(batch.coord, batch.atype, batch.cell, pbc=batch.pbc, **given)
    except InputError as problem:
        raise DataError(f"{path}, frames {batch.frames[0]} to {batch.frames[-1]}: {problem}") from problem
