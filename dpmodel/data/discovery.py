"""From what an input file says under `systems` to data systems. Here, and only here, a path decides which reader it is.

folder                   deepmd/npy: searched for folders with `type.raw`
x.h5, x.hdf5[#/group]    HDF5: searched for groups with `type.raw`
x.lmdb, folder/data.mdb  LMDB
x.xyz, x.extxyz          extended XYZ
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dpmodel.data.frames import FrameSystem
from dpmodel.data.hdf5 import Hdf5Folder, find_groups, is_hdf5, split_name
from dpmodel.data.labels import LabelLike, LabelRequest
from dpmodel.data.npy import NpySystem, is_system
from dpmodel.errors import DataError, InputError

__all__ = ["find_systems", "is_xyz", "open_systems"]


def find_systems(
    systems: str | Path | Sequence[str | Path],
    rglob_patterns: Sequence[str] | None = None,
    base: str | Path | None = None,
) -> list[Path]:
    """Paths for `open_systems`, in the order of `systems`, those below one folder or file sorted by path.

    systems: one path, or a list; folders and HDF5 files are searched with everything below them, unless an entry of a
    list is a system itself. HDF5, LMDB and XYZ files are named themselves: a search of folders finds npy systems.
    rglob_patterns: look below the folders for these patterns instead (as in `pathlib.Path.rglob`); they find all kinds.
    base: where relative paths start (None: the working directory).

    Raises DataError where a path does not exist or nothing is found; InputError for patterns that are none.
    """
    single = isinstance(systems, str | Path)
    entries: list[str | Path] = [systems] if isinstance(systems, str | Path) else list(systems)
    if not entries:
        raise DataError("systems: expected at least one data system, got an empty list")
    found: list[Path] = []
    for entry in entries:
        root = Path(base or "") / Path(entry).expanduser()
        kind = _kind(root)
        if kind is not None:
            here = _below(root, kind, single=single)
        elif _is_folder(root, base) and rglob_patterns is not None:
            here = _match(root, rglob_patterns)
        elif not single and is_system(root):
            here = [root]
        else:
            here = sorted(_walk(root))
        if not here:
            how = "type.raw" if rglob_patterns is None else f"type.raw matching {list(rglob_patterns)}"
            raise DataError(
                f"{root}: expected a data system or a folder that contains some; found none with {how}. "
                f"HDF5, LMDB and XYZ files must be named themselves"
            )
        found += here
    return found


def open_systems(
    path: str | Path,
    type_map: Sequence[str] | None = None,
    labels: Sequence[LabelLike | LabelRequest] = (),
    *,
    sort_atoms: bool = True,
    label_names: Mapping[str, str] | None = None,
) -> list[FrameSystem]:
    """The systems of one path of `find_systems`: LMDB and XYZ files may hold several. Arguments: `NpySystem.open`.

    label_names: what an XYZ file calls labels, by their names; other formats have none but these.
    Raises DataError, and InputError where a package is missing that the format needs.
    """
    root = Path(path)
    kind = _kind(root)
    if kind == "hdf5":
        return [NpySystem.open(group, type_map, labels, sort_atoms=sort_atoms) for group in _groups(root, single=False)]
    if kind is None:
        return [NpySystem.open(root, type_map, labels, sort_atoms=sort_atoms)]
    try:
        # With packages that need not be there.
        module = importlib.import_module(f"dpmodel.data.{kind}")
    except ImportError as problem:
        raise InputError(f"{path}: {problem}") from problem
    names = {"names": label_names} if kind == "xyz" else {}
    found: list[FrameSystem] = getattr(module, f"open_{kind}")(root, type_map, labels, sort_atoms=sort_atoms, **names)
    return found


def is_xyz(path: str | Path) -> bool:
    """Whether a path of `find_systems` is an extended XYZ file."""
    return _kind(Path(path)) == "xyz"


def _kind(path: Path) -> str | None:
    """ "hdf5", "lmdb", "xyz", or None: folders of npy files."""
    suffix = path.suffix.lower()
    if suffix == ".lmdb" or path.name == "data.mdb" or (path / "data.mdb").exists():
        return "lmdb"
    if path.is_dir():
        return None
    if suffix in (".xyz", ".extxyz"):
        return "xyz"
    return "hdf5" if is_hdf5(path) else None


def _groups(path: Path, *, single: bool) -> list[Hdf5Folder]:
    """The group itself where it is a system (and not to be searched), else the systems at or below it."""
    named = Hdf5Folder(*split_name(path))
    return [named] if not single and named.file.is_file() and is_system(named) else find_groups(path)


def _below(root: Path, kind: str, *, single: bool = False) -> list[Path]:
    """Paths of systems in a file."""
    if kind == "hdf5":
        return [Path(str(group)) for group in _groups(root, single=single)]
    if not root.exists():
        raise DataError(f"{root}: no such file")
    return [root.parent if root.name == "data.mdb" else root]


def _is_folder(root: Path, base: str | Path | None) -> bool:
    """True, or DataError for what is none."""
    if not root.exists():
        raise DataError(f"{root}: no such folder (relative paths start at {Path(base or os.curdir).resolve()})")
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder, or a file named .h5, .hdf5, .lmdb, .xyz or .extxyz; found a file of another name"
        )
    return True


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
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            matches = list(root.rglob(pattern))
        except (ValueError, NotImplementedError, IndexError) as error:
            raise InputError(
                f"rglob_patterns: expected patterns such as 'train_*', got {pattern!r} ({error})"
            ) from None
        for path in matches:
            kind = _kind(path)
            if kind is not None:
                found.update(dict.fromkeys(_below(path, kind)))
            elif path.is_dir() and is_system(path):
                found[path] = None
    return sorted(found)
