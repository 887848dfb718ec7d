"""Write a data system as npy files (see `dpmodel.data.npy` for the format)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from dpmodel.errors import DataError

__all__ = ["write_system"]


def write_system(
    path: str | Path,
    coord: ArrayLike,
    atype: ArrayLike,
    cell: ArrayLike | None = None,
    *,
    type_map: Sequence[str] | None = None,
    labels: Mapping[str, ArrayLike] | None = None,
    frames_per_set: int | None = None,
    dtype: str = "float64",
) -> Path:
    """Write a system and return its folder.

    coord: (f, n, 3) Å. atype: (n,), or (f, n) with -1 for padding, which is written as mixed types. cell: (f, 3, 3) or
    one (3, 3) for all frames, Å; None: open boundaries. labels: arrays by file name, frames first; flattened per frame.
    frames_per_set: frames of one `set.*` folder (None: all in one). dtype: of every file of floats.

    Raises DataError where there is a system already (nothing is overwritten), or shapes do not fit.
    """
    root = Path(path)
    if (root / "type.raw").exists() or any(root.glob("set.*")):
        raise DataError(f"{root}: there is a data system already; remove it or choose another folder")
    x, kinds = np.asarray(coord, dtype), np.asarray(atype)
    if x.ndim != 3 or x.shape[2] != 3 or 0 in x.shape:
        raise DataError(f"{root}: expected coord of shape (frames, atoms, 3), got {x.shape}")
    nframes, natoms = x.shape[:2]
    if kinds.shape not in ((natoms,), (nframes, natoms)) or kinds.dtype.kind not in "iu":
        raise DataError(
            f"{root}: expected integer atype of shape ({natoms},) or ({nframes}, {natoms}), got {kinds.shape}"
        )
    if kinds.ndim == 2 and type_map is None:
        raise DataError(f"{root}: types that differ between frames need a type_map")
    arrays = {"coord": x}
    if cell is not None:
        arrays["box"] = np.broadcast_to(np.asarray(cell, dtype), (nframes, 3, 3))
    for name, value in (labels or {}).items():
        array = np.asarray(value)
        arrays[name] = array.astype(dtype) if array.dtype.kind == "f" else array
        if array.shape[:1] != (nframes,):
            raise DataError(f"{root}: expected {nframes} frames of {name!r}, got shape {array.shape}")
    if kinds.ndim == 2:
        arrays["real_atom_types"] = kinds

    root.mkdir(parents=True, exist_ok=True)
    if cell is None:
        (root / "nopbc").touch()
    if type_map is not None:
        (root / "type_map.raw").write_text("".join(f"{name}\n" for name in type_map), encoding="utf-8")
    step = frames_per_set or nframes
    for k, start in enumerate(range(0, nframes, step)):
        folder = root / f"set.{k:03d}"
        folder.mkdir()
        for name, array in arrays.items():
            part = array[start : start + step]
            np.save(folder / f"{name}.npy", part if part.ndim == 1 else part.reshape(len(part), -1), allow_pickle=False)
    # Last, because the folder counts as a system from here on.
    flat = np.zeros(natoms, np.int64) if kinds.ndim == 2 else kinds
    (root / "type.raw").write_text("".join(f"{kind}\n" for kind in flat), encoding="utf-8")
    return root
