"""HDF5 files as folders: `file.h5#/group` is read like a folder of npy files, its datasets like the files.

`Hdf5Folder` has the part of `pathlib.Path` that readers of systems use, so that there is one reader for both. Only the
frames that are asked for are read. Files are opened read-only and without locks: data may lie on a read-only or network
disk, and any number of processes may read it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpmodel.errors import DataError

__all__ = ["Hdf5Folder", "find_groups", "is_hdf5", "split_name"]

SUFFIXES = (".h5", ".hdf5", ".hdf")


def split_name(path: Path) -> tuple[Path, str]:
    """("file.h5", "/group") from "file.h5#/group"; the group is "/" where none is named."""
    text = str(path)
    if "#" not in text or path.exists():
        return path, "/"
    file, _, group = text.rpartition("#")
    return Path(file), "/" + group.strip("/")


def is_hdf5(path: Path) -> bool:
    """Whether the path names an HDF5 file, or a group in one, by its name."""
    return not path.is_dir() and split_name(path)[0].suffix.lower() in SUFFIXES


@functools.lru_cache(maxsize=32)
def _file(path: Path, _stamp: int, _process: int) -> Any:
    """The open file. A process that was forked opens its own: the two would share one position in it."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        reason = str(error).strip()
        raise DataError(
            f"{path}: expected a complete HDF5 file, but it cannot be read ({reason}). "
            f"It may be truncated or of another format; copy or write it again"
        ) from None


@dataclasses.dataclass(frozen=True, order=True)
class Hdf5Folder:
    """A group or a dataset of an HDF5 file, with the methods of `pathlib.Path` that reading needs."""

    file: Path
    name: str = "/"

    def __str__(self) -> str:
        return f"{self.file}#{self.name}"

    def __truediv__(self, part: str) -> Hdf5Folder:
        return Hdf5Folder(self.file, f"{self.name.rstrip('/')}/{part}")

    @property
    def parent(self) -> Hdf5Folder:
        """The group that holds it."""
        return Hdf5Folder(self.file, self.name.rpartition("/")[0] or "/")

    def stat(self) -> os.stat_result:
        """That of the file."""
        try:
            return self.file.stat()
        except OSError as error:
            raise DataError(f"{self.file}: expected a readable HDF5 file ({error.strerror})") from None

    def node(self) -> Any:
        """The h5py object, or None where there is none. Raises DataError where the file cannot be read."""
        file = _file(self.file, self.stat().st_mtime_ns, os.getpid())
        try:
            return file.get(self.name)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise DataError(f"{self}: the file is damaged here ({error}); copy or write it again") from None

    def exists(self) -> bool:
        return self.node() is not None

    def is_dir(self) -> bool:
        """Whether it is a group."""
        return isinstance(self.node(), h5py.Group)

    def is_file(self) -> bool:
        """Whether it is a dataset."""
        return isinstance(self.node(), h5py.Dataset)

    def names(self) -> list[str]:
        """Names in the group, sorted."""
        node = self.node()
        return sorted(node.keys()) if isinstance(node, h5py.Group) else []

    def glob(self, pattern: str) -> Iterator[Hdf5Folder]:
        """Members of the group whose name fits the pattern."""
        return (self / name for name in self.names() if fnmatch.fnmatchcase(name, pattern))

    def read_text(self, encoding: str = "utf-8") -> str:
        """A dataset of numbers or strings as words."""
        try:
            values = np.asarray(self.node()[()]).reshape(-1)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise DataError(f"{self}: expected a dataset of numbers or strings ({error})") from None
        words = [value.decode(encoding) if isinstance(value, bytes) else str(value) for value in values.tolist()]
        return " ".join(words)

    def rows(self) -> Rows:
        """The dataset, to be read by frames. Raises DataError for what is no array of its own numbers."""
        dataset = self.node()
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None or dataset.dtype.kind not in "fiu":
            kind = f"dtype {dataset.dtype}" if isinstance(dataset, h5py.Dataset) else "no dataset"
            raise DataError(f"{self}: expected a dataset of numbers, found {kind}")
        if dataset.chunks is None and dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
            raise DataError(f"{self}: the dataset was declared but never written; write the file again")
        return Rows(str(self), dataset)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A dataset that is indexed by frames, in any order, with repetitions."""

    name: str
    dataset: Any

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.dataset.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.dataset.dtype
        return dtype

    def __getitem__(self, frames: Any) -> np.ndarray[Any, Any]:
        try:
            if isinstance(frames, slice):
                return np.asarray(self.dataset[frames])
            # HDF5 reads rising indices only, and runs of frames much faster than single ones.
            rising, place = np.unique(frames, return_inverse=True)
            ends = np.flatnonzero(np.diff(rising) != 1) + 1
            parts = [self.dataset[run[0] : run[-1] + 1] for run in np.split(rising, ends) if len(run)]
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.name}: the file is damaged here ({error}); copy or write it again") from None
        if not parts:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return np.concatenate(parts)[place]


def find_groups(path: Path) -> list[Hdf5Folder]:
    """Systems (groups with `type.raw`) at or below the named group, sorted. Raises DataError for what is none."""
    file, group = split_name(path)
    if not file.is_file():
        raise DataError(f"{file}: expected an HDF5 file, found {'a folder' if file.is_dir() else 'no such file'}")
    root = Hdf5Folder(file, group)
    if not root.is_dir():
        known = ", ".join(Hdf5Folder(file).names()[:8]) or "nothing"
        raise DataError(f"{root}: the file has no such group; at its top level there is {known}")
    return list(_walk(root, set()))


def _walk(folder: Hdf5Folder, seen: set[Any]) -> Iterator[Hdf5Folder]:
    """Every system at or below the group, each once: links may form circles."""
    address = folder.node().id.__hash__()
    if address in seen:
        return
    seen.add(address)
    if (folder / "type.raw").is_file():
        yield folder
    for name in folder.names():
        if (folder / name).is_dir():
            yield from _walk(folder / name, seen)
