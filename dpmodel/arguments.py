"""The arguments of an evaluation: checked, and brought to one form, before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.geometry.cells import make_lattice

__all__ = ["Frames"]


@dataclasses.dataclass(frozen=True)
class Frames:
    """Checked inputs: coord (nf, na, 3), atype (nf, na), cell (nf, 3, 3) or None."""

    coord: np.ndarray
    atype: np.ndarray
    cell: np.ndarray | None

    @classmethod
    def read(cls, coord: Any, atype: Any, box: Any, type_map: tuple[str, ...], pbc: tuple[bool, bool, bool]) -> Frames:
        """Raises InputError for whatever is no system of atoms."""
        coord = _floats(coord, "coord")
        shape = coord.shape
        coord = coord[None] if coord.ndim == 2 else coord
        if coord.ndim != 3 or coord.shape[2] != 3:
            raise InputError(f"coord: expected shape (frames, atoms, 3) or (atoms, 3), got {shape}")
        nf, na = coord.shape[:2]
        if nf < 1:
            raise InputError(f"coord: expected at least one frame, got shape {shape}")
        types = _types(atype, type_map)
        if types.shape not in ((na,), (nf, na)):
            raise InputError(f"atype: expected shape ({na},) or ({nf}, {na}) to go with coord, got {types.shape}")
        types = np.broadcast_to(types, (nf, na))
        if types.size and (types.min() < -1 or types.max() >= len(type_map)):
            bad = next(int(t) for t in types.ravel() if t < -1 or t >= len(type_map))
            raise InputError(
                f"atype: {bad} is out of range; this model knows 0 to {len(type_map) - 1} {list(type_map)}, and -1 pads"
            )
        wrong = ~np.isfinite(coord).all(axis=2) & (types >= 0)
        if wrong.any():
            frame, atom = np.argwhere(wrong)[0]
            raise InputError(
                f"coord: atom {atom} of frame {frame} has NaN or infinite coordinates {coord[frame, atom].tolist()}"
            )
        return cls(coord, types, None if box is None else _cells(box, nf, pbc))

    def chunks(self, size: int) -> Iterator[slice]:
        """Slices of frames with at most `size` atoms each (at least one frame)."""
        nf, na = self.atype.shape
        step = max(1, size // max(1, na))
        return (slice(k, min(k + step, nf)) for k in range(0, nf, step))

    def frame_values(self, value: Any, width: int, name: str) -> np.ndarray | None:
        """(nf, width), from (nf, width) or (width,)."""
        return self._values(value, width, name, (self.atype.shape[0], width), ((width,),))

    def atom_values(self, value: Any, width: int, name: str) -> np.ndarray | None:
        """(nf, na, width), from that or (na, width)."""
        nf, na = self.atype.shape
        return self._values(value, width, name, (nf, na, width), ((na, width),))

    def _values(
        self, value: Any, width: int, name: str, shape: tuple[int, ...], short: tuple[tuple[int, ...], ...]
    ) -> np.ndarray | None:
        if value is None:
            return None
        if not width:
            raise InputError(f"{name} was given, but this model does not take it; leave it out")
        array = _floats(value, name)
        if array.shape != shape and array.shape not in short:
            allowed = " or ".join(str(each) for each in dict.fromkeys((shape, *short)))
            raise InputError(f"{name}: expected shape {allowed}, got {array.shape}")
        if not np.all(np.isfinite(array)):
            raise InputError(f"{name} holds NaN or infinite numbers")
        return np.broadcast_to(array, shape)


def _array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InputError(
            f"{name}: {int(np.sum(np.ma.getmaskarray(value)))} entries are masked; leave them out, or fill them with numbers"
        )
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as problem:  # RuntimeError: a tensor that requires grad
        raise InputError(
            f"{name}: expected numbers of a regular shape, got {type(value).__name__} ({problem})"
        ) from problem


def _floats(value: Any, name: str) -> np.ndarray:
    array = _array(value, name)
    if array.dtype.kind not in "fiu" and array.size:
        raise InputError(f"{name}: expected real numbers, got {type(value).__name__} of dtype {array.dtype}")
    return array.astype(np.float64, copy=False)


def _cells(box: Any, nf: int, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    """(nf, 3, 3). Raises InputError for other shapes and for cells without volume."""
    cells = _floats(box, "box")
    if cells.shape not in ((9,), (3, 3), (1, 9), (1, 3, 3), (nf, 9), (nf, 3, 3)):
        raise InputError(
            f"box: expected shape ({nf}, 3, 3), ({nf}, 9), (3, 3) or (9,), rows are cell vectors; got {cells.shape}"
        )
    cells = cells.reshape(-1, 3, 3)
    for frame, cell in enumerate(cells):
        make_lattice(cell, pbc, where=f"box: frame {frame}: ")
    return np.broadcast_to(cells, (nf, 3, 3))


def _types(atype: Any, type_map: tuple[str, ...]) -> np.ndarray:
    array = _array(atype, "atype")
    if array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(name, str) for name in array.flat)):
        index = {name: k for k, name in enumerate(type_map)}
        try:
            return np.array([index[str(name)] for name in array.ravel()], dtype=np.int64).reshape(array.shape)
        except KeyError as problem:
            raise InputError(
                f"atype: the model knows no {problem.args[0]!r}; its type_map is {list(type_map)}"
            ) from None
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"atype: expected integers or symbols, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.size and array.max() >= len(type_map):  # 2^64 - 1 would become -1
        raise InputError(
            f"atype: {array.max()} is out of range; this model knows 0 to {len(type_map) - 1} {list(type_map)}"
        )
    return array.astype(np.int64, copy=False)
