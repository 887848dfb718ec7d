"""Pair tables from text files: rows of a distance in Å and energies in eV for the pairs 0-0, 0-1, ..., 1-1, ...

The splines are cubic, twice continuously differentiable, and flat at both ends.
"""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path

import numpy as np

from dpmodel.errors import InputError
from dpmodel.models.pair_table import PairTable
from dpmodel.precision import global_dtype

__all__ = ["read_pair_table"]

logger = logging.getLogger(__name__)

JUMP = 1e-6
"""eV: energies at a cutoff below this count as none."""

LATE = 0.1
"""Å: atoms come nearer than the beginning of a table that begins beyond this."""


def read_pair_table(
    path: str | Path, type_map: tuple[str, ...], *, rcut: float, sel: int, name: str, alone: bool = False
) -> PairTable:
    """The table of a file for the pairs of `type_map`, continued to `rcut` where it ends before.

    A table that ends in zeros is continued with zeros; any other is led to zero by a cubic polynomial, as DeePMD-kit
    does, with a warning. One that begins beyond 0.1 Å gives a warning too: below, energies grow linearly only. name: what
    messages call the option. alone: nothing takes over before the cutoff, so a table that is not 0 there gives a warning.
    Raises InputError for a file that is no such table.
    """
    rows = _read(path, len(type_map), name)
    rmin, step = float(rows[0, 0]), float(rows[1, 0] - rows[0, 0])
    rmax = float(rows[-1, 0])
    if rmin > LATE:
        logger.warning(
            "%s: %s begins at %g Å: nearer atoms have energies on a straight line, with the slope of its first interval. "
            "Let the table begin at %g Å or below",
            name, path, rmin, LATE,
        )  # fmt: skip
    if rcut > rmax and np.any(rows[-1, 1:]):
        logger.warning(
            "%s: %s ends at %g Å with energies that are not 0, before the cutoff of %g Å: they are led to 0 by a polynomial. "
            "Let the table reach the cutoff, or end in zeros",
            name, path, rmax, rcut,
        )  # fmt: skip
    if alone and rcut <= rmax:
        jump = max(abs(np.interp(rcut, rows[:, 0], column)) for column in rows[:, 1:].T)
        if jump > JUMP:
            logger.warning(
                "%s: %s has energies up to %.3g eV at the cutoff of %g Å, beyond which they are 0: energies jump there, and "
                "molecular dynamics does not conserve them. Raise rcut, or let the table go to 0 at it", name, path, jump, rcut,
            )  # fmt: skip
    rows = _continued(rows, rcut)
    dtype = global_dtype()
    return PairTable(
        type_map=type_map, rmin=rmin, rmax=rmax, step=step, cutoff=rcut, sel=sel, rows=rows,
        coefficients=_splines(rows, len(type_map)), out_bias=np.zeros((len(type_map), 1), dtype),
        out_std=np.ones((len(type_map), 1), dtype),
    )  # fmt: skip


def _read(path: str | Path, ntypes: int, name: str) -> np.ndarray:
    """(rows, 1 + pairs), checked."""
    columns = 1 + ntypes * (ntypes + 1) // 2
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of an empty file
            rows = np.loadtxt(path, ndmin=2)
    except OSError as problem:
        raise InputError(
            f"{name}: cannot read {path} ({problem.strerror or problem}); name the file of the table"
        ) from None
    except (ValueError, UnicodeDecodeError) as problem:
        raise InputError(f"{name}: {path}: expected rows of {columns} numbers ({problem})") from None
    if rows.shape[0] < 3 or rows.shape[1] != columns:
        raise InputError(
            f"{name}: {path}: expected at least 3 rows of {columns} numbers (a distance, then {columns - 1} pairs of "
            f"{ntypes} types), got {rows.shape[0]} of {rows.shape[1]}"
        )
    if not np.all(np.isfinite(rows)):
        raise InputError(f"{name}: {path}: expected finite numbers, got NaN or infinity; repair the table")
    steps = np.diff(rows[:, 0])
    if rows[0, 0] < 0.0 or steps[0] <= 0.0 or not np.allclose(steps, steps[0], rtol=1e-3, atol=0.0):
        raise InputError(
            f"{name}: {path}: expected distances that grow in equal steps from at least 0, got {rows[:3, 0].tolist()} ..."
        )
    return rows


def _continued(rows: np.ndarray, rcut: float) -> np.ndarray:
    """The rows up to the cutoff (spec of pair tables: kept to the numbers of DeePMD-kit)."""
    rmin, rmax, step = rows[0, 0], rows[-1, 0], rows[1, 0] - rows[0, 0]
    last = len(rows) - 1
    more = math.ceil(rcut / step - rmin / step) - last
    if rcut <= rmax or more <= 0:
        return rows
    grid = np.linspace(rmax + step, rmax + step * more, more)
    added = np.zeros((more, rows.shape[1]))
    added[:, 0] = grid
    if not np.any(rows[-1, 1:]):
        return np.concatenate([rows, added])
    end = more - 2 if grid[-1] / step - rmax / step >= 2 else more - 1
    width = grid[end] - rmax
    x = ((grid - rmax) / width)[:, None]
    value, slope = rows[-1, 1:], rows[-1, 1:] - rows[-2, 1:]
    # Cubic Hermite polynomial on [rmax, end]: value and slope at rmax, 0 and 0 at the end.
    added[:, 1:] = value * (1.0 + x * x * (2.0 * x - 3.0)) + slope * width * x * (1.0 - x) ** 2
    return np.concatenate([rows, added[: end + 1]])


def _splines(rows: np.ndarray, ntypes: int) -> np.ndarray:
    """(ntypes, ntypes, intervals, 4): coefficients of the fraction of every interval."""
    values = rows[:, 1:]
    slope = _slopes(values)
    low, high, d0, d1 = values[:-1], values[1:], slope[:-1], slope[1:]
    parts = [2 * low - 2 * high + d0 + d1, -3 * low + 3 * high - 2 * d0 - d1, d0, low]
    table = np.zeros((ntypes, ntypes, len(rows) - 1, 4))
    pair = 0
    for a in range(ntypes):
        for b in range(a, ntypes):
            table[a, b] = table[b, a] = np.stack([part[:, pair] for part in parts], axis=1)
            pair += 1
    return table


def _slopes(values: np.ndarray) -> np.ndarray:
    """(rows, pairs): derivatives by the number of the row, 0 at both ends.

    Inside, d[i-1] + 4 d[i] + d[i+1] = 3 (v[i+1] - v[i-1]): a tridiagonal system, by elimination.
    """
    count = len(values)
    right = np.zeros_like(values)
    right[1:-1] = 3.0 * (values[2:] - values[:-2])
    factor = np.zeros(count)
    for i in range(1, count - 1):
        pivot = 4.0 - factor[i - 1]
        factor[i] = 1.0 / pivot
        right[i] = (right[i] - right[i - 1]) / pivot
    factor[-1] = 0.0
    for i in range(count - 2, 0, -1):
        right[i] -= factor[i] * right[i + 1]
    right[0] = 0.0
    return right
