"""One quantity of a system on disk: the npy files (or HDF5 datasets) of its sets, seen as one array over all frames.

Files are mapped into memory, not read: only the frames that are asked for are copied. At most 256 maps are open at a
time in the process (each holds a file descriptor), so the number of systems is not limited by `ulimit -n`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeAlias

import numpy as np

from dpmodel.data.hdf5 import Hdf5Folder
from dpmodel.data.system import Floats, Integers
from dpmodel.errors import DataError

__all__ = ["Column", "Folder", "PartialColumn", "describe"]

Folder: TypeAlias = Path | Hdf5Folder
"""A folder or a file of a system: on the disk, or inside an HDF5 file."""

_CHECK_BYTES = 1 << 24
"""Values are checked in pieces of this size, so that a check needs no memory to speak of."""


def describe(shape: Sequence[int]) -> str:
    """A shape for messages: "80 x 576"."""
    return " x ".join(str(n) for n in shape) if shape else "a single number"


@functools.lru_cache(maxsize=256)
def _map(path: Folder, stamp: int) -> Any:
    """The array of a file, mapped. `stamp` is its time of change when it was checked; later changes are an error."""
    if _stamp(path) != stamp:
        raise DataError(f"{path}: the file changed while it was in use; start again, so that it is checked")
    if isinstance(path, Hdf5Folder):
        return path.rows()
    # Not numpy.load, which opens what begins as a zip archive or a pickle, whatever its name.
    return np.asarray(np.lib.format.open_memmap(path, mode="r"))


def _stamp(path: Folder) -> int:
    return path.stat().st_mtime_ns


def _open(path: Folder) -> Any:
    """The mapped array of a file that may be anything. Raises DataError."""
    try:
        array = _map(path, _stamp(path))
    except DataError:
        raise
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, TokenError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: expected a complete npy file, but it cannot be read ({reason}). "
            f"It may be truncated or of another format; write it again with numpy.save"
        ) from None
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected an npy file of numbers, found dtype {array.dtype}")
    return array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """A quantity over all frames of a system. Make one with `Column.open`."""

    files: tuple[Folder, ...]
    stamps: tuple[int, ...]
    starts: Integers
    """(nsets + 1,): number of the first frame of every set, and the number of all frames."""
    size: int
    """Numbers per frame."""

    @classmethod
    def open(
        cls,
        paths: Sequence[Folder],
        size: int,
        frames: Sequence[int] | None,
        what: str,
        shape: tuple[int, ...] = (),
    ) -> Column:
        """Look at the files and check their shapes; values are checked by `check_finite`.

        size: expected numbers per frame. frames: expected frames of every set; None takes what comes. what: how a
        message explains `size`. A file is (frames, size); (frames, size / 3, 3), (frames, *shape), (frames, natoms, numbers
        of an atom) where `shape` begins with atoms, and (frames,) where size is 1, hold the same numbers in the same order
        and are taken as well. Raises DataError.
        """
        legal = {(size,), (size // 3, 3), shape if size != 1 else ()}
        if len(shape) > 1 and size % shape[0] == 0:
            legal.add((shape[0], size // shape[0]))
        counts = []
        for k, path in enumerate(paths):
            came = _open(path).shape
            wanted = frames[k] if frames is not None else (came[0] if came else 0)
            same = bool(came) and came[1:] in legal and int(np.prod(came[1:], dtype=np.int64)) == size
            if not same or came[0] != wanted:
                number = "frames" if frames is None else str(wanted)
                raise DataError(f"{path}: expected shape {number} x {size} ({what}), found {describe(came)}")
            counts.append(wanted)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        stamps = tuple(_stamp(path) for path in paths)
        return cls(files=tuple(paths), stamps=stamps, starts=starts, size=size)

    @staticmethod
    def width(path: Folder) -> int:
        """Numbers per frame of a file. Raises DataError where it cannot be read."""
        return int(np.prod(_open(path).shape[1:], dtype=np.int64))

    @property
    def paths(self) -> tuple[str, ...]:
        """Names of the files, for messages."""
        return tuple(map(str, self.files))

    @property
    def nframes(self) -> int:
        """Number of frames."""
        return int(self.starts[-1])

    def pieces(self) -> Iterator[tuple[str, int, np.ndarray[Any, Any]]]:
        """(path, index of the first frame within the file, (k, size) values as stored), in order, in small pieces."""
        for path, stamp in zip(self.files, self.stamps, strict=True):
            array = _map(path, stamp)
            step = max(1, _CHECK_BYTES // max(1, self.size * array.dtype.itemsize))
            for start in range(0, array.shape[0], step):
                part = array[start : start + step]
                yield str(path), start, part.reshape(part.shape[0], self.size)

    def check_finite(self) -> None:
        """Raise DataError naming the first frame that holds NaN or infinity."""
        for path, start, part in self.pieces():
            if part.dtype.kind != "f":
                continue
            # A sum is finite only if every term is: one pass without a temporary. It may also overflow, so look again.
            with np.errstate(all="ignore"):
                if np.isfinite(np.add.reduce(part, axis=None)):
                    continue
            bad = np.argwhere(~np.isfinite(part))
            if len(bad):
                frame, place = bad[0]
                raise DataError(
                    f"{path}: expected finite numbers, found {part[frame, place]} in frame {start + int(frame)} "
                    f"(number {int(place)} of {self.size}); remove the frame or repair the file"
                )

    def read(self, frames: Integers, dtype: str) -> Floats:
        """(f, size): the frames with these indices, converted."""
        out = np.empty((len(frames), self.size), dtype)
        if len(self.files) == 1:
            array = _map(self.files[0], self.stamps[0])
            out[...] = array[frames].reshape(out.shape)
            return out
        member = np.searchsorted(self.starts, frames, side="right") - 1
        for k in np.unique(member):
            chosen = member == k
            rows = _map(self.files[k], self.stamps[k])[frames[chosen] - self.starts[k]]
            out[chosen] = rows.reshape(-1, self.size)
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class PartialColumn:
    """A quantity of some of the atoms, as one of all of them: zeros for the others."""

    column: Column
    atoms: Integers
    """Whose numbers the column has, in its order."""
    natoms: int

    @property
    def nframes(self) -> int:
        """Number of frames."""
        return self.column.nframes

    def read(self, frames: Integers, dtype: str) -> Floats:
        """(f, natoms * numbers per atom): the frames with these indices, converted."""
        width = self.column.size // len(self.atoms)
        out = np.zeros((len(frames), self.natoms, width), dtype)
        out[:, self.atoms] = self.column.read(frames, dtype).reshape(len(frames), len(self.atoms), width)
        return out.reshape(len(frames), self.natoms * width)
