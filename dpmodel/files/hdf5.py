"""HDF5 files: made in memory, written in one piece, read with every fault named.

An image is built in memory first, so the disk sees plain writes only: HDF5 itself can neither be caught by a full
disk half-way nor leave an open file behind.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpmodel.errors import ModelFileError
from dpmodel.files.atomic import atomic_write

__all__ = ["DTYPES", "MAGIC", "check_dtype", "open_hdf5", "read_dataset", "text_attribute", "write_hdf5"]

MAGIC = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""

DTYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)
"""What an array in a file may consist of (besides opaque bytes in HDF5)."""

FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError)
"""What h5py raises on damaged files."""


def check_dtype(array: Any, where: str) -> np.ndarray | np.generic:
    """`array` as a NumPy array or scalar of one of `DTYPES`, in native byte order, or opaque bytes (np.void).

    Raises ModelFileError naming `where` for other types (objects, text, complex, bfloat16).
    """
    value = array if isinstance(array, np.ndarray | np.generic) else np.asarray(array)
    dtype = value.dtype
    if dtype.type is np.void and dtype.fields is None and dtype.subdtype is None:
        return value
    native = dtype.newbyteorder("=")
    if native.name not in DTYPES:
        hint = "; convert it to float32, which is exact" if dtype.name == "bfloat16" else ""
        raise ModelFileError(f"{where}: arrays of {', '.join(DTYPES)} can be stored, not of {dtype.name}{hint}")
    return value if dtype.isnative else value.astype(native)


def write_hdf5(path: str | os.PathLike[str], fill: Callable[[h5py.File], None]) -> None:
    """Create or replace the HDF5 file `path` with what `fill(file)` puts into it, completely or not at all.

    Raises OSError when the disk refuses; whatever `fill` raises passes through. A previous file is then unchanged.
    """
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        fill(file)

    def write(temporary: Path) -> None:
        with temporary.open("xb") as stream:
            stream.write(image.getbuffer())

    atomic_write(path, write)


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading. Faults of the file, at opening and while reading, become ModelFileError."""
    try:
        # Nobody changes such a file in place, and locks fail on many network file systems.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ModelFileError:
        raise
    except FAULTS as error:
        raise ModelFileError(
            f"{path} cannot be read as HDF5 ({str(error).strip(chr(39))}). It is truncated or damaged: "
            "copy it again from its source, or use an older checkpoint."
        ) from error


def text_attribute(group: h5py.Group, name: str) -> str | None:
    """A text attribute, or None where there is none or it is not text."""
    value = group.attrs.get(name)
    return value.decode() if isinstance(value, bytes) else value if isinstance(value, str) else None


def read_dataset(group: h5py.Group, name: str, where: str) -> np.ndarray | np.generic:
    """One dataset, whole: an array, or a NumPy scalar where it has no dimensions.

    Raises ModelFileError naming `where` when it is missing, of a type outside `DTYPES`, kept in another file, or
    declared but never written.
    """
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group.get(name), h5py.Dataset):
        raise ModelFileError(f"{where}: the file has no dataset {name!r}. It is incomplete; copy or convert it again.")
    dataset = group[name]
    if dataset.external or dataset.is_virtual:
        raise ModelFileError(
            f"{where}: the dataset {name!r} points to another file; all data must be in the file itself"
        )
    if dataset.shape is None:
        raise ModelFileError(f"{where}: the dataset {name!r} is empty; an array was expected")
    if dataset.chunks is None and dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize:
        raise ModelFileError(f"{where}: the dataset {name!r} was declared but never written; copy or convert it again")
    if dataset.dtype.kind == "O":
        raise ModelFileError(f"{where}: the dataset {name!r} holds text or objects; numbers were expected")
    return check_dtype(dataset[()], where)
