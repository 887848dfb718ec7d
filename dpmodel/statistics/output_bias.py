"""Output bias: what a model predicts per type before it has learnt anything.

Least squares of the frames' labels on their type counts; where atoms have labels of their own, the mean of each type.
The deviation is that of the frames' residuals (not divided by the number of atoms).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpmodel.errors import DataError
from dpmodel.op import Array

__all__ = [
    "Bias",
    "atomic_bias",
    "common_bias",
    "frame_bias",
    "merge_bias",
    "type_counts",
    "without_prediction",
]

Bias = tuple[np.ndarray, np.ndarray]
"""(ntypes, dim) bias and (ntypes, dim) deviation."""


def type_counts(atype: Array, frame: Array, nframes: int, ntypes: int) -> np.ndarray:
    """(f, ntypes) float64: atoms of every type in every frame; virtual ones (negative type) do not count.

    atype, frame: (n,) integer, as in `Graph`.
    """
    atype, frame = np.asarray(atype), np.asarray(frame)
    counts = np.zeros((nframes, ntypes))
    np.add.at(counts, (frame[atype >= 0], atype[atype >= 0]), 1.0)
    return counts


def frame_bias(
    labels: Array,
    counts: Array,
    *,
    preset: Sequence[Any] | None = None,
    exclude_types: Sequence[int] = (),
    intensive: bool = False,
) -> Bias:
    """Bias from labels of frames: the minimum-norm least-squares solution of counts . bias = labels.

    labels: (f, ...) numbers of every frame, flattened to (f, dim). counts: (f, ntypes). preset: per type None or the
    bias that it keeps (dim numbers; one with a NaN is not set). exclude_types: atoms of these types contribute
    nothing, so their bias is 0 unless preset. intensive: the label is a mean over atoms.
    The deviation is the same for every type. Types that do not occur get bias 0.
    Raises DataError for labels that are not finite, or none at all, or shapes that do not fit.
    """
    y, a = _checked(labels, counts)
    ntypes, dim = a.shape[1], y.shape[1]
    a[:, list(exclude_types)] = 0.0
    if intensive:
        atoms = np.sum(a, axis=1, keepdims=True)
        a = a / np.where(atoms > 0, atoms, 1.0)
    fixed = _preset_rows(preset, ntypes, dim)
    for t, value in fixed.items():
        y = y - a[:, t : t + 1] * value
        a[:, t] = 0.0
    bias = np.linalg.lstsq(a, y, rcond=None)[0]
    deviation = np.std(y - a @ bias, axis=0)
    for t, value in fixed.items():
        bias[t] = value
    return bias, np.tile(deviation, (ntypes, 1))


def common_bias(labels: Array, counts: Array, *, exclude_types: Sequence[int] = (), intensive: bool) -> Bias:
    """One mean and deviation for all types: properties that do not distinguish types.

    labels: (f, ...); divided by the frame's number of atoms unless `intensive`. counts: (f, ntypes). exclude_types: atoms
    of these types contribute nothing and are not counted; frames of them alone do not enter.
    Raises DataError as `frame_bias` does.
    """
    y, a = _checked(labels, counts)
    a[:, list(exclude_types)] = 0.0
    atoms = np.sum(a, axis=1, keepdims=True)
    some = atoms[:, 0] > 0
    if np.any(some):
        y, atoms = y[some], atoms[some]
    if not intensive:
        y = y / np.where(atoms > 0, atoms, 1.0)
    ntypes = a.shape[1]
    return np.tile(np.mean(y, axis=0), (ntypes, 1)), np.tile(np.std(y, axis=0), (ntypes, 1))


def atomic_bias(labels: Array, atype: Array, ntypes: int) -> Bias:
    """Bias from labels of atoms: mean and deviation of every type, NaN for types that do not occur.

    labels: (n, ...) flattened to (n, dim). atype: (n,) integer; virtual atoms do not count.
    Raises DataError for labels of real atoms that are not finite.
    """
    atype = np.asarray(atype)
    y = np.asarray(labels, dtype=np.float64)
    y = y.reshape(y.shape[0], int(np.prod(y.shape[1:])))
    if y.shape[0] != atype.size:
        raise DataError(f"atomic labels of {y.shape[0]} atoms do not fit {atype.size} atom types")
    if not np.all(np.isfinite(y[atype >= 0])):
        raise DataError("atomic labels hold NaN or infinite values; correct or remove those frames")
    bias, deviation = np.full((2, ntypes, y.shape[1]), np.nan)
    for t in range(ntypes):
        rows = y[atype == t]
        if len(rows):
            bias[t], deviation[t] = np.mean(rows, axis=0), np.std(rows, axis=0)
    return bias, deviation


def merge_bias(atomic: Bias | None, frames: Bias | None) -> Bias:
    """Atomic statistics where there are any, frames' for the types they lack, bias 0 and deviation 1 for the rest.

    Raises DataError where both are None.
    """
    if atomic is None:
        if frames is None:
            raise DataError("the output bias needs labels of frames or of atoms in at least one system")
        return frames
    missing = np.isnan(atomic[0])
    other = (np.zeros_like(atomic[0]), np.ones_like(atomic[1])) if frames is None else frames
    return np.where(missing, other[0], atomic[0]), np.where(missing, other[1], atomic[1])


def without_prediction(labels: Array, prediction: Array) -> np.ndarray:
    """Labels minus the model's predictions: the bias fitted to it is what to add ("change-by-statistic").

    Both of one shape: (f, ...) reduced as the model reduces (mean if intensive), or (n, ...) for atomic labels.
    """
    labels, prediction = np.asarray(labels, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if labels.shape != prediction.shape:
        raise DataError(f"labels of shape {labels.shape} do not fit predictions of shape {prediction.shape}")
    return np.asarray(labels - prediction)


def _checked(labels: Array, counts: Array) -> tuple[np.ndarray, np.ndarray]:
    """(f, dim) labels and a (f, ntypes) copy of the counts."""
    y, a = np.asarray(labels, dtype=np.float64), np.array(counts, dtype=np.float64)
    if a.ndim != 2 or y.ndim < 1 or y.shape[0] != a.shape[0]:
        raise DataError(f"labels of shape {y.shape} do not fit type counts of shape {a.shape}")
    if not a.shape[0]:
        raise DataError("the output bias needs at least one frame with the label")
    y = y.reshape(y.shape[0], int(np.prod(y.shape[1:])))
    if not np.all(np.isfinite(y)):
        raise DataError("the labels hold NaN or infinite values; correct or remove those frames")
    return y, a


def _preset_rows(preset: Sequence[Any] | None, ntypes: int, dim: int) -> dict[int, np.ndarray]:
    """The preset bias by type."""
    if preset is None:
        return {}
    if len(preset) != ntypes:
        raise DataError(f"preset_out_bias: expected one entry per type ({ntypes}), got {len(preset)}")
    rows = {}
    for t, value in enumerate(preset):
        if value is None:
            continue
        row = np.asarray(value, dtype=np.float64).reshape(-1)
        if row.size != dim:
            raise DataError(f"preset_out_bias of type {t}: expected {dim} numbers, got {row.size}")
        if not np.any(np.isnan(row)):
            rows[t] = row
    return rows
