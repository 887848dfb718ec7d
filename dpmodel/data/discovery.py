"""From what an input file says under `systems` to the folders that hold data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpmodel.data.npy import is_system
from dpmodel.errors import DataError, InputError

__all__ = ["find_systems"]


def find_systems(
    systems: str | Path | Sequence[str | Path],
    rglob_patterns: Sequence[str] | None = None,
    base: str | Path | None = None,
) -> list[Path]:
    """Folders with `type.raw`, in the order of `systems`, those below one folder sorted by path.

    systems: one folder, which is searched with everything below it; or a list, whose entries are systems themselves or
    folders to search. rglob_patterns: look below the folders for these patterns instead (as in `pathlib.Path.rglob`).
    base: where relative paths start (None: the working directory).

    Raises DataError where a path does not exist or nothing is found, and for formats that are not available yet;
    InputError for patterns that are none.
    """
    single = isinstance(systems, str | Path)
    entries: list[str | Path] = [systems] if isinstance(systems, str | Path) else list(systems)
    if not entries:
        raise DataError("systems: expected at least one data system, got an empty list")
    found: list[Path] = []
    for entry in entries:
        root = Path(base or "") / Path(entry).expanduser()
        _check_folder(root, base)
        if rglob_patterns is not None:
            here = _match(root, rglob_patterns)
        elif not single and is_system(root):
            here = [root]
        else:
            here = sorted(_walk(root))
        if not here:
            how = "type.raw" if rglob_patterns is None else f"type.raw matching {list(rglob_patterns)}"
            raise DataError(f"{root}: expected a data system or a folder that contains some; found none with {how}")
        found += here
    return found


def _check_folder(root: Path, base: str | Path | None) -> None:
    """Raise DataError for formats that are not available yet, and for what is no folder."""
    text = str(root)
    if root.suffix == ".lmdb" or (root / "data.mdb").exists():
        raise DataError(f"{root}: LMDB data sets are not available yet in this version; give folders of npy files")
    if "#" in text or root.suffix in (".h5", ".hdf5"):
        raise DataError(f"{root}: HDF5 data systems are not available yet in this version; give folders of npy files")
    if not root.exists():
        raise DataError(f"{root}: no such folder (relative paths start at {Path(base or os.curdir).resolve()})")
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder, found a file")


def _walk(root: Path) -> Iterator[Path]:
    """Every system at or below `root`, through symbolic links, each folder once."""
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        if "type.raw" in files:
            yield Path(folder)


def _match(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Systems below `root` that match a pattern, each once, sorted."""
    found: set[Path] = set()
    for pattern in patterns:
        try:
            matches = list(root.rglob(pattern))
        except (ValueError, NotImplementedError, IndexError) as error:
            raise InputError(
                f"rglob_patterns: expected patterns such as 'train_*', got {pattern!r} ({error})"
            ) from None
        found.update(path for path in matches if is_system(path))
    return sorted(found)
