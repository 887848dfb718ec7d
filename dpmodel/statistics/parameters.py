"""Statistics of frame and atomic parameters: fitting nets see (x - avg) * inverse deviation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dpmodel.errors import DataError
from dpmodel.op import Array
from dpmodel.statistics.items import StatItem

__all__ = ["mean_and_inverse_deviation", "parameter_items"]


def parameter_items(blocks: Iterable[tuple[Array, Array | None]], dim: int, name: str) -> tuple[StatItem, ...]:
    """One item per component, over all rows of all systems.

    blocks: per system (values, mask): (rows, dim), rows being frames (fparam) or atoms (aparam), and (rows,) bool that
    is False on virtual atoms, or None. name: "fparam" or "aparam", for messages.
    Raises DataError for another width, for values that are not finite, and where there is no row at all.
    """
    items = (StatItem(),) * dim
    for values, mask in blocks:
        x = np.asarray(values, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != dim:
            raise DataError(f"{name}: expected {dim} numbers in every row, got an array of shape {x.shape}")
        x = x if mask is None else x[np.asarray(mask, dtype=bool)]
        if not np.all(np.isfinite(x)):
            raise DataError(f"{name}: the data holds NaN or infinite values")
        items = tuple(item + StatItem.of(x[:, c]) for c, item in enumerate(items))
    if any(item.number == 0 for item in items):
        raise DataError(
            f"{name}: the model has numb_{name} = {dim}, but no system has {name}; "
            f"give the data {name}.npy, or set numb_{name} to 0"
        )
    return items


def mean_and_inverse_deviation(items: Sequence[StatItem], protect: float = 1e-2) -> tuple[np.ndarray, np.ndarray]:
    """(dim,) average and (dim,) 1 / deviation, where deviations are at least `protect`."""
    avg = np.array([item.avg() for item in items], dtype=np.float64)
    return avg, np.array([1.0 / item.std(protection=protect) for item in items], dtype=np.float64)
