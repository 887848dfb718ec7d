"""Writes OH.txt, the pair table of oxygen and hydrogen: the universal screened nuclear repulsion of Ziegler, Biersack
and Littmark (The Stopping and Range of Ions in Solids, Pergamon, 1985).

    V(r) = k Z1 Z2 / r sum_m c_m exp(-d_m r / a),    a = 0.8854 a0 / (Z1^0.23 + Z2^0.23)

    python make_table.py

Columns: r in Å, then V in eV of the pairs O-O, O-H, H-H. From 0.6 Å to 1.0 Å V is led to 0 by the polynomial
1 - 10 u^3 + 15 u^4 - 6 u^5 with u = (r - 0.6 Å) / 0.4 Å, so that the table ends in zeros.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

COULOMB = 14.399645
"""e^2 / (4 pi epsilon_0), eV Å."""
BOHR = 0.529177211
"""Å."""
SHARES = (0.18175, 0.50986, 0.28022, 0.02817)
RATES = (3.19980, 0.94229, 0.40290, 0.20162)


def zbl(r: np.ndarray, z1: int, z2: int) -> np.ndarray:
    """eV, of distances in Å."""
    length = 0.8854 * BOHR / (z1**0.23 + z2**0.23)
    screening = sum(share * np.exp(-rate * r / length) for share, rate in zip(SHARES, RATES, strict=True))
    return COULOMB * z1 * z2 / r * screening


def main() -> None:
    """Write the table beside this file."""
    r = np.arange(1, 101) * 0.01
    u = np.clip((r - 0.6) / 0.4, 0.0, 1.0)
    switch = 1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u**2)
    pairs = [switch * zbl(r, *charges) for charges in ((8, 8), (8, 1), (1, 1))]
    pairs = [np.where(r < 0.995, pair, 0.0) for pair in pairs]  # exactly 0 in the last row
    header = "ZBL; r in Å, eV: O-O O-H H-H (made by make_table.py)"
    np.savetxt(Path(__file__).parent / "OH.txt", np.stack([r, *pairs], axis=1), fmt="%.10e", header=header)


if __name__ == "__main__":
    main()
