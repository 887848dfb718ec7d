"""Training and test data: systems of every format, datasets, and the sequence of batches.

    labels = (labels.ENERGY, labels.FORCE)
    data = Dataset.from_config("water", type_map=["O", "H"], labels=labels)
    sampler = Sampler(data, seed=1)
    batch = sampler.next()

Formats (npy, HDF5, LMDB, extended XYZ) are chosen by `dpmodel.data.discovery`. Units: Å, eV, eV/Å; cell vectors are rows.
"""

from __future__ import annotations

from dpmodel.data import labels
from dpmodel.data.dataset import Dataset, iterate, statistics_batches
from dpmodel.data.discovery import find_systems, open_systems
from dpmodel.data.labels import STANDARD_LABELS, LabelRequest
from dpmodel.data.npy import NpySystem
from dpmodel.data.sampler import Sampler
from dpmodel.data.system import Batch, System
from dpmodel.data.write import write_system

__all__ = [
    "STANDARD_LABELS",
    "Batch",
    "Dataset",
    "LabelRequest",
    "NpySystem",
    "Sampler",
    "System",
    "find_systems",
    "iterate",
    "labels",
    "open_systems",
    "statistics_batches",
    "write_system",
]
