"""Data sets of many frames in one LMDB database: `data.lmdb/`, a folder with `data.mdb`.

    __metadata__     msgpack: nframes, frame_idx_fmt ("012d"), type_map (optional)
    000000000000     msgpack: {"coords": array, "cells": array, "atom_types": array, "energies": array, ...}

An array is {"type": NumPy's name of the type, "shape", "data": its bytes}. Names may be in the singular. A frame
without `cells`, or with a cell of zeros, has open boundaries. Only plain data is decoded: nothing in a file can run.
Files are opened read-only and without locks, so that they may lie on a read-only disk, and each frame is read when it
is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.data.frames import FrameSystem, Values
from dpmodel.data.grouping import Group, Grouping
from dpmodel.data.labels import LabelLike, LabelRequest, as_request
from dpmodel.data.system import Floats, Integers
from dpmodel.data.types import translation
from dpmodel.errors import DataError

try:
    import lmdb
    import msgpack
except ModuleNotFoundError as _problem:
    raise ImportError(
        f'LMDB data needs the packages lmdb and msgpack ({_problem}): pip install "dpmodel[lmdb]"'
    ) from _problem

__all__ = ["LmdbSystem", "open_lmdb"]

_NAMES = {"coords": "coord", "cells": "box", "cell": "box", "atom_types": "atype", "real_atom_types": "atype"}
_NO_CELL = 1e-12
"""Å. A cell of smaller numbers stands for open boundaries."""


class LmdbSystem(FrameSystem):
    """Frames of an LMDB database that belong together."""

    def place_of(self, request: LabelRequest) -> str:
        return f"the key {' or '.join(request.stem)} in its frames"


def open_lmdb(
    path: str | Path,
    type_map: Sequence[str] | None = None,
    labels: Sequence[LabelLike | LabelRequest] = (),
    *,
    sort_atoms: bool = True,
) -> list[FrameSystem]:
    """The systems of a database, in the order of their first frames; arguments as for `NpySystem.open`.

    Every frame is read once, and checked. Raises DataError.
    """
    reader = _Reader(Path(path), _stamp(Path(path)), os.path.realpath(path))
    metadata = reader.metadata()
    own = metadata.get("type_map")
    if own is not None and not (isinstance(own, list) and all(isinstance(name, str) for name in own)):
        raise DataError(f"{path}: expected a list of symbols as type_map in __metadata__, got {own!r}")
    table, names = translation(own, type_map, f"{path}, type_map of __metadata__")
    grouping = Grouping(str(path), table, names, tuple(as_request(label) for label in labels))
    if not reader.nframes():
        raise DataError(f"{path}: expected at least one frame, found none")
    for number in range(reader.nframes()):
        frame = reader.frame(number)
        grouping.add(number, frame, [frame["box"] is not None] * 3)

    def column_of(group: Group) -> Callable[[str], Values]:
        return functools.partial(_Column, _Source(reader, np.asarray(group.frames, np.int64)))

    return grouping.systems(LmdbSystem, column_of, sort_atoms=sort_atoms)


class _Source:
    """Frames of one system; the last ones that were read are kept, for the columns that ask next."""

    def __init__(self, reader: _Reader, numbers: Integers) -> None:
        self.reader, self.numbers = reader, numbers
        self._last: tuple[bytes, list[dict[str, Any]]] = (b"", [])

    def frames(self, wanted: Integers) -> list[dict[str, Any]]:
        key, found = self._last
        if key != wanted.tobytes():
            key, found = wanted.tobytes(), [self.reader.frame(int(number)) for number in self.numbers[wanted]]
            self._last = key, found
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
    """One quantity of a system."""

    source: _Source
    name: str

    @property
    def nframes(self) -> int:
        return len(self.source.numbers)

    def read(self, frames: Integers, dtype: str) -> Floats:
        found = self.source.frames(frames)
        rows = [np.asarray(frame[self.name], dtype).reshape(-1) for frame in found]
        return np.stack(rows) if rows else np.empty((0, 0), dtype)


# --- the database ---------------------------------------------------------------------------------------


def _file_of(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def _stamp(path: Path) -> int:
    try:
        return _file_of(path).stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{path}: expected an LMDB folder with data.mdb, or such a file ({error.strerror})") from None


_OPEN: dict[str, tuple[int, int, Any]] = {}
"""By path: process, time of change, open database. One may be open once in a process, and not across a fork."""
_LOCK = threading.Lock()


def _environment(path: str, stamp: int) -> Any:
    """The open database."""
    with _LOCK:
        process, opened_at, environment = _OPEN.get(path, (0, 0, None))
        if (process, opened_at) != (os.getpid(), stamp):
            if environment is not None:
                environment.close()  # in a forked process its own copy
            environment = _open(path, stamp)
            _OPEN[path] = os.getpid(), stamp, environment
        return environment


def _open(path: str, stamp: int) -> Any:
    file = _file_of(Path(path))
    if _stamp(Path(path)) != stamp:
        raise DataError(f"{path}: the file changed while it was in use; start again, so that it is checked")
    try:
        size = file.stat().st_size
        opened = lmdb.open(
            str(path), subdir=Path(path).is_dir(), readonly=True, lock=False, readahead=False, meminit=False,
            max_dbs=0, map_size=max(size, 1),
        )  # fmt: skip
        pages, page = opened.info()["last_pgno"] + 1, opened.stat()["psize"]
    except (lmdb.Error, OSError) as error:
        raise DataError(f"{path}: expected an LMDB database, but it cannot be opened ({error})") from None
    if pages * page > size:  # reading beyond the end of the file would end the process
        opened.close()
        raise DataError(f"{path}: the LMDB file is truncated: {size} of {pages * page} bytes are there; copy it again")
    return opened


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Frames by number."""

    path: Path
    stamp: int
    real: str

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of a key: plain data, keys as text. Raises DataError."""
        environment = _environment(self.real, self.stamp)
        try:
            with environment.begin(buffers=True) as transaction:
                raw = transaction.get(key.encode("ascii"))
                record = None if raw is None else msgpack.unpackb(raw, raw=False, strict_map_key=False)
        except (lmdb.Error, ValueError, TypeError, msgpack.UnpackException) as error:
            raise DataError(f"{self.path}: the record {key!r} cannot be decoded as msgpack ({error})") from None
        if record is None:
            return None
        if not isinstance(record, dict):
            raise DataError(f"{self.path}: expected a map as the record {key!r}, found {type(record).__name__}")
        return _text_keys(record)

    @functools.cached_property
    def _metadata(self) -> dict[str, Any]:
        found = self.get("__metadata__")
        if found is None or not isinstance(found.get("nframes"), int) or found["nframes"] < 0:
            raise DataError(
                f"{self.path}: expected the record __metadata__ with the number nframes; this LMDB database is of "
                f"another layout. Expected: keys such as 000000000000 with msgpack maps of coords, atom_types, ..."
            )
        return found

    def metadata(self) -> dict[str, Any]:
        """The record that describes the others."""
        return self._metadata

    def nframes(self) -> int:
        """Number of frames."""
        return int(self._metadata["nframes"])

    def frame(self, number: int) -> dict[str, Any]:
        """Arrays by name: coord, atype, box (None: open), and labels as they are called. Raises DataError."""
        form = self._metadata.get("frame_idx_fmt", "012d")
        try:
            key = format(number, form)
        except (ValueError, TypeError):
            raise DataError(f"{self.path}: frame_idx_fmt: expected a format such as '012d', got {form!r}") from None
        record = self.get(key)
        where = f"{self.path}, frame {number}"
        if record is None:
            raise DataError(f"{where}: the record {key!r} is missing; the file is incomplete, copy or write it again")
        found: dict[str, Any] = {}
        for name, value in record.items():
            if value is not None:
                found[_NAMES.get(name, name)] = _array(value, f"{where}, {name}")
        for name in ("coord", "atype"):
            if name not in found:
                raise DataError(f"{where}: expected coords and atom_types, found {', '.join(sorted(record))}")
        if not isinstance(found["atype"], np.ndarray) or found["atype"].dtype.kind not in "iu":
            raise DataError(f"{where}: expected integers as atom_types, found {found['atype']!r:.80}")
        box = found.get("box")
        none = isinstance(box, np.ndarray) and box.dtype.kind in "fiu" and bool(np.all(np.abs(box) < _NO_CELL))
        open_ones = box is None or none or bool(np.any(found.get("nopbc", False)))
        found["box"] = None if open_ones else box
        return found


def _text_keys(record: Mapping[Any, Any]) -> dict[str, Any]:
    return {key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key): v for key, v in record.items()}


def _array(value: Any, where: str) -> Any:
    """An encoded array, a number or a list of numbers, as an array; what is no number (names, notes) unchanged."""
    if isinstance(value, bool | int | float):
        return np.asarray(value)
    if isinstance(value, list):
        return np.asarray(value) if value and all(type(item) in (int, float) for item in value) else value
    if not isinstance(value, dict):
        return value
    value = _text_keys(value)
    try:
        dtype = np.dtype(value["type"])
        shape, data = tuple(int(n) for n in value["shape"]), value["data"]
        good = dtype.kind in "fiub" and isinstance(data, bytes) and min(shape, default=0) >= 0
        if not good or len(data) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"{len(data)} bytes for shape {shape} of {dtype}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: expected an array as {{type, shape, data}} with as many bytes as its shape says ({error})"
        ) from None
    return np.frombuffer(data, dtype).reshape(shape)
