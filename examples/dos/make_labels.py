"""Writes data/: densities of states made by a formula, on frames of the water data. No calculation, no experiment: they
show how such a model is trained, and nothing about water.

Every atom i of type t has one level, whose energy moves with its coordination:

    n_i  = sum_j (1 + cos(pi r_ij / 3 Å)) / 2      over atoms within 3 Å
    mu_i = mu_t + b_t (n_i - m_t)                   m_t: mean of n_i over the atoms of the type
    D_i(E) = w_t exp(-(E - mu_i)^2 / (2 s^2)) / (s sqrt(2 pi))

on a grid of 24 energies from -12 eV to 4 eV, in states per eV. The density of a frame is the sum over its atoms.

    python make_labels.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from dpmodel.data.write import write_system

HERE = Path(__file__).parent
WATER = HERE.parent / "water" / "data"
GRID = np.linspace(-12.0, 4.0, 24)
"""eV."""
WIDTH = 1.5
"""s, eV."""
CUTOFF = 3.0
"""Å."""
LEVEL, SLOPE, MEAN, STATES = (np.array(x) for x in ((-7.0, -2.0), (4.0, -5.0), (2.16, 1.99), (6.0, 1.0)))
"""mu, b, m and w of O and H."""


def coordination(coord: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(n,): n_i of a frame; the cell is rectangular and wider than twice the cutoff."""
    edges = np.diag(cell)
    d = coord[:, None] - coord[None, :]
    r = np.linalg.norm(d - edges * np.round(d / edges), axis=2)
    near = (r < CUTOFF) & ~np.eye(len(r), dtype=bool)
    return np.sum(np.where(near, 0.5 * (1.0 + np.cos(np.pi * r / CUTOFF)), 0.0), axis=1)


def densities(coord: np.ndarray, cell: np.ndarray, atype: np.ndarray) -> np.ndarray:
    """(n, 24)."""
    level = LEVEL[atype] + SLOPE[atype] * (coordination(coord, cell) - MEAN[atype])
    shape = np.exp(-((GRID - level[:, None]) ** 2) / (2.0 * WIDTH**2)) / (WIDTH * np.sqrt(2.0 * np.pi))
    return STATES[atype][:, None] * shape


def main() -> None:
    """Twelve frames of data_0 to learn from, six of data_3 to test on."""
    for name, frames in (("data_0", 12), ("data_3", 6)):
        source, target = WATER / name, HERE / "data" / name
        shutil.rmtree(target, ignore_errors=True)
        coord = np.load(source / "set.000" / "coord.npy")[:frames].reshape(frames, -1, 3)
        cell = np.load(source / "set.000" / "box.npy")[:frames].reshape(frames, 3, 3)
        atype = np.loadtxt(source / "type.raw", dtype=int)
        of_atoms = np.stack([densities(x, box, atype) for x, box in zip(coord, cell, strict=True)])
        labels = {"dos": of_atoms.sum(axis=1), "atom_dos": of_atoms}
        names = (source / "type_map.raw").read_text().split()
        write_system(target, coord, atype, cell, type_map=names, labels=labels, dtype="float32")


if __name__ == "__main__":
    main()
