"""Writes data/: dipoles of frames of water, few to learn from and others to test on, from `../dipole/data/global_system`.

Frames 0, 10, ... 70 become `few`, all others `others`; the numbers are unchanged.

    python split_data.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SOURCE = HERE.parent / "dipole" / "data" / "global_system"
FEW = range(0, 80, 10)
FRAMES = {"few": list(FEW), "others": [k for k in range(80) if k not in FEW]}


def main() -> None:
    """Both systems, with everything that the source has."""
    for name, frames in FRAMES.items():
        target = HERE / "data" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(SOURCE, target)
        for file in target.glob("set.000/*.npy"):
            np.save(file, np.load(file)[frames])


if __name__ == "__main__":
    main()
