"""Data systems as folders of npy files ("deepmd/npy"), or as HDF5 groups with the same names inside.

    system/type.raw          one integer per atom
    system/type_map.raw      symbols of the types (optional)
    system/nopbc             an empty file: open boundaries
    system/set.*/x.npy       frames first: coord, box, energy, force, virial, ...
    system/set.*/real_atom_types.npy   mixed types: types per frame, -1 for padding; type.raw then only counts atoms

Everything that can be wrong is found by `NpySystem.open`, values included, before any work is done with the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpmodel.data.columns import Column, Folder, PartialColumn
from dpmodel.data.frames import FrameSystem, Values, check_copies, flat_cell
from dpmodel.data.hdf5 import Hdf5Folder
from dpmodel.data.labels import NUMB_COPY, LabelLike, LabelRequest, as_request
from dpmodel.data.system import Integers
from dpmodel.data.types import apply_table, check_mixed, translation
from dpmodel.errors import DataError

__all__ = ["NpySystem", "is_system"]

_MIXED = "real_atom_types.npy"


def is_system(path: Folder) -> bool:
    """Whether the folder is a data system."""
    return (path / "type.raw").is_file()


class NpySystem(FrameSystem):
    """A folder of npy files, or an HDF5 group that looks like one. Make one with `NpySystem.open`."""

    @classmethod
    def open(
        cls,
        path: str | Folder,
        type_map: Sequence[str] | None = None,
        labels: Sequence[LabelLike | LabelRequest] = (),
        *,
        sort_atoms: bool = True,
    ) -> NpySystem:
        """Open and check a system.

        type_map: symbols of the model's types; types of the system are translated by symbol. Where either map is
        missing, numbers are kept. labels: what batches shall carry. sort_atoms: order atoms by type, stably (training);
        False keeps the order of the files (test). Mixed types are never reordered.

        Raises DataError: a file is missing, truncated or of the wrong shape; NaN or infinity; a cell without volume;
        a symbol or type that the model does not know; a label with `everywhere` missing; no frames or no atoms.
        """
        root = path if isinstance(path, Hdf5Folder) else Path(path)
        kinds = _read_types(root)
        natoms = len(kinds)
        sets = _find_sets(root)
        pbc = not (root / "nopbc").exists()
        table, names = translation(_own_map(root), type_map, root / "type_map.raw")
        mixed = any((folder / _MIXED).is_file() for folder in sets)

        coord = Column.open(
            _files(sets, "coord.npy"), 3 * natoms, None, f"3 numbers for each of {natoms} atoms of type.raw"
        )
        frames = np.diff(coord.starts).tolist()
        if min(frames) == 0:
            raise DataError(f"{coord.paths[frames.index(0)]}: expected at least one frame, found none; remove the set")
        columns: dict[str, Values] = {"coord": coord}
        coord.check_finite()
        if pbc:
            columns["box"] = _open_box(sets, frames)
        if mixed:
            columns["real_atom_types"] = _open_mixed(sets, natoms, frames, table)
            in_files, atype, order = None, None, np.arange(natoms)
        else:
            in_files = apply_table(kinds, table, names, root / "type.raw")
            order = np.argsort(in_files, kind="stable") if sort_atoms else np.arange(natoms)
            atype = in_files[order]

        requests = tuple(as_request(label) for label in labels)
        for request in requests:
            column = _open_part(sets, request, in_files, frames) or _open_label(sets, request, natoms, frames)
            if column is not None:
                columns[request.name] = column
        copies = _read_copies(sets, natoms, frames)
        found = {request.name: float(request.name in columns) for request in requests}
        return cls(
            path=str(path), type_map=names, natoms=natoms, pbc=pbc, order=order, atype=atype, labels=requests,
            found=found, copies=copies, columns=columns, table=table,
        )  # fmt: skip


# --- files of the folder ------------------------------------------------------------------------------


def _read_words(path: Folder) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split()  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a readable text file ({error})") from None


def _read_types(root: Folder) -> Integers:
    """(n,) types as type.raw has them."""
    path = root / "type.raw"
    if not path.is_file():
        raise DataError(f"{root}: expected a data system, a folder with the file type.raw; found no such file")
    words = _read_words(path)
    try:
        kinds = np.array([int(word) for word in words], np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: expected integers separated by blanks ({error})") from None
    if not len(kinds):
        raise DataError(f"{path}: expected at least one atom, found none")
    return kinds


def _find_sets(root: Folder) -> list[Folder]:
    sets = sorted((item for item in root.glob("set.*") if item.is_dir()), key=str)
    if not sets:
        raise DataError(f"{root}: expected folders set.* with the frames, found none")
    return sets


def _files(sets: Sequence[Folder], name: str) -> list[Folder]:
    """That file of every set. Raises DataError where one is missing."""
    paths = [folder / name for folder in sets]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: this file is missing; every set needs it")
    return paths


def _own_map(root: Folder) -> list[str] | None:
    path = root / "type_map.raw"
    return _read_words(path) if path.is_file() else None


def _open_box(sets: Sequence[Folder], frames: Sequence[int]) -> Column:
    """The cells. Raises DataError where one has no volume."""
    paths = [folder / "box.npy" for folder in sets]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: this file is missing; for open boundaries put a file `nopbc` beside type.raw")
    column = Column.open(paths, 9, frames, "9 numbers, three cell vectors, for each frame of coord.npy")
    column.check_finite()
    for name, start, part in column.pieces():
        cell = part.astype(np.float64).reshape(-1, 3, 3)
        if (bad := flat_cell(cell)) is not None:
            rows = cell[bad].tolist()
            raise DataError(
                f"{name}: expected cells with a volume, found the vectors {rows} in frame {start + bad}; "
                f"for open boundaries put an empty file `nopbc` beside type.raw"
            )
    return column


def _open_mixed(sets: Sequence[Folder], natoms: int, frames: Sequence[int], table: Integers | None) -> Column:
    """Types per frame. Raises DataError where they are incomplete, no integers, or unknown."""
    if table is None:
        raise DataError(f"{sets[0].parent / 'type_map.raw'}: this file is missing; systems with {_MIXED} need it")
    column = Column.open(_files(sets, _MIXED), natoms, frames, f"a type for each of {natoms} atoms of type.raw")
    column.check_finite()
    for path, start, part in column.pieces():
        check_mixed(part, len(table), path, start)
    return column


def _file_of(folder: Folder, request: LabelRequest) -> Folder | None:
    """The label's file in a set."""
    return next((folder / name for name in request.files if (folder / name).is_file()), None)


def _open_part(
    sets: Sequence[Folder], request: LabelRequest, atype: Integers | None, frames: Sequence[int]
) -> PartialColumn | None:
    """The label's column where its files have atoms of the selected types alone (atype: of the file's atoms), else None."""
    if request.selected is None or atype is None:
        return None
    atoms = np.flatnonzero(np.isin(atype, request.selected))
    each = request.ndof // request.repeat
    paths = [path for folder in sets if (path := _file_of(folder, request)) is not None]
    if len(paths) != len(sets) or not 0 < len(atoms) < len(atype):
        return None
    if any(Column.width(path) != each * len(atoms) for path in paths):
        return None
    what = (
        f"frames as in coord.npy, {each} numbers for the {len(atoms)} atoms of the types that the model has outputs of"
    )
    column = Column.open(paths, each * len(atoms), frames, what, (len(atoms), *request.shape))
    column.check_finite()
    return PartialColumn(column, atoms, len(atype))


def _open_label(sets: Sequence[Folder], request: LabelRequest, natoms: int, frames: Sequence[int]) -> Column | None:
    """The label's column; None where no set has it. Raises DataError where some sets lack it."""
    paths = [_file_of(folder, request) for folder in sets]
    present = [path for path in paths if path is not None]
    if not present:
        if request.everywhere:
            raise DataError(
                f"{sets[0] / request.files[0]}: this file is missing; the model or the loss needs {request.name!r}"
            )
        return None
    if len(present) < len(sets):
        lacking = sets[paths.index(None)]
        raise DataError(
            f"{lacking / request.files[0]}: this file is missing, although {present[0]} exists. "
            f"All sets of a system need the same labels: add it, or move the sets to a system of their own"
        )
    size = request.file_size(natoms)
    per = (
        "the square of 3 numbers per atom"
        if request.square
        else f"for {natoms} atoms"
        if request.atomic
        else "per frame"
    )
    alone = "" if request.selected is None else ", or those of the types that the model has outputs of"
    column = Column.open(
        present, size, frames, f"frames as in coord.npy, {size} numbers {per}{alone}", request.frame_shape(natoms)
    )
    column.check_finite()
    return column


def _read_copies(sets: Sequence[Folder], natoms: int, frames: Sequence[int]) -> Integers | None:
    """numb_copy.npy, read at once: (frames,) integers of at least 0, at least one of them above."""
    column = _open_label(sets, NUMB_COPY, natoms, frames)
    if column is None:
        return None
    return check_copies(column.read(np.arange(sum(frames)), "float64")[:, 0], column.paths[0])
