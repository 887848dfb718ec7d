"""Data systems as folders of npy files ("deepmd/npy").

    system/type.raw          one integer per atom
    system/type_map.raw      symbols of the types (optional)
    system/nopbc             an empty file: open boundaries
    system/set.*/x.npy       frames first: coord, box, energy, force, virial, ...
    system/set.*/real_atom_types.npy   mixed types: types per frame, -1 for padding; type.raw then only counts atoms

Everything that can be wrong is found by `NpySystem.open`, values included, before any work is done with the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dpmodel.data.columns import Column
from dpmodel.data.labels import NUMB_COPY, LabelLike, LabelRequest, as_request
from dpmodel.data.system import Batch, Floats, Integers
from dpmodel.errors import DataError
from dpmodel.precision import ENERGY_DTYPE, global_dtype

__all__ = ["NpySystem", "is_system"]

_MIXED = "real_atom_types.npy"
_FLAT = 1e-8
"""A cell whose volume is below this fraction of the product of its edges has no usable inverse."""


def is_system(path: Path) -> bool:
    """Whether the folder is a data system."""
    return (path / "type.raw").is_file()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NpySystem:
    """A folder of npy files. Make one with `NpySystem.open`; see `dpmodel.data.system.System`."""

    path: str
    type_map: tuple[str, ...] | None
    """Symbols of the types of `Batch.atype`: the model's, else the system's own, else None."""
    natoms: int
    pbc: bool
    order: Integers
    """(natoms,): batches hold file atom `order[k]` at place k. `x_file[order] = x_batch` maps back."""
    atype: Integers | None
    """(natoms,) in the order of batches; None where types differ between frames (mixed types)."""
    labels: tuple[LabelRequest, ...]
    found: Mapping[str, float]
    copies: Integers | None
    columns: Mapping[str, Column]
    """By name: coord, box, real_atom_types and the labels that were found."""
    table: Integers | None
    """(types of the system,) index in the model's map; None: unchanged. Used for mixed types."""

    @classmethod
    def open(
        cls,
        path: str | Path,
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
        root = Path(path)
        kinds = _read_types(root)
        natoms = len(kinds)
        sets = _find_sets(root)
        pbc = not (root / "nopbc").exists()
        table, names = _translate(root, type_map)
        mixed = any((folder / _MIXED).is_file() for folder in sets)

        coord = Column.open(
            _files(sets, "coord.npy"), 3 * natoms, None, f"3 numbers for each of {natoms} atoms of type.raw"
        )
        frames = np.diff(coord.starts).tolist()
        if min(frames) == 0:
            raise DataError(f"{coord.paths[frames.index(0)]}: expected at least one frame, found none; remove the set")
        columns = {"coord": coord}
        coord.check_finite()
        if pbc:
            columns["box"] = _open_box(sets, frames)
        if mixed:
            columns["real_atom_types"] = _open_mixed(sets, natoms, frames, table)
            atype, order = None, np.arange(natoms)
        else:
            atype = _apply(kinds, table, names, root / "type.raw")
            order = np.argsort(atype, kind="stable") if sort_atoms else np.arange(natoms)
            atype = atype[order]

        requests = tuple(as_request(label) for label in labels)
        for request in requests:
            if (column := _open_label(sets, request, natoms, frames)) is not None:
                columns[request.name] = column
        copies = _read_copies(sets, natoms, frames)
        found = {request.name: float(request.name in columns) for request in requests}
        return cls(
            path=str(path), type_map=names, natoms=natoms, pbc=pbc, order=order, atype=atype, labels=requests,
            found=found, copies=copies, columns=columns, table=table,
        )  # fmt: skip

    @property
    def nframes(self) -> int:
        """Number of frames."""
        return int(self.columns["coord"].starts[-1])

    @property
    def mixed(self) -> bool:
        """Whether types differ between frames."""
        return self.atype is None

    def batch(self, frames: Integers, index: int = 0) -> Batch:
        """The frames with these indices, in this order. Raises IndexError where there is no such frame."""
        frames = np.asarray(frames, np.int64)
        if frames.size and not 0 <= frames.min() <= frames.max() < self.nframes:
            raise IndexError(f"{self.path}: frames are 0 to {self.nframes - 1}, asked for {frames.tolist()}")
        count = len(frames)
        coord = self._sorted(self.columns["coord"].read(frames, "float64").reshape(count, self.natoms, 3))
        cell = self.columns["box"].read(frames, "float64").reshape(count, 3, 3) if self.pbc else None
        return Batch(
            coord=coord, atype=self._types(frames), cell=cell, pbc=self.pbc, system=index, frames=frames.copy(),
            labels={request.name: self._label(request, frames) for request in self.labels}, found=dict(self.found),
        )  # fmt: skip

    def _types(self, frames: Integers) -> Integers:
        if self.atype is not None:
            return np.repeat(self.atype[None, :], len(frames), axis=0)
        kinds = self.columns["real_atom_types"].read(frames, "int64").astype(np.int64, copy=False)
        return kinds if self.table is None else np.where(kinds < 0, -1, self.table[kinds])

    def _label(self, request: LabelRequest, frames: Integers) -> Floats:
        dtype = ENERGY_DTYPE if request.high_precision else global_dtype()
        shape = (len(frames), *request.frame_shape(self.natoms))
        column = self.columns.get(request.name)
        if column is None:
            default = np.asarray(request.default, dtype)
            return np.full(shape, default.reshape(request.shape) if default.ndim else default, dtype)
        values = column.read(frames, dtype)
        if request.repeat > 1:
            values = np.repeat(values, request.repeat, axis=1)
        values = values.reshape(shape)
        if request.square:
            rows = (3 * self.order[:, None] + np.arange(3)).reshape(-1)
            return values[:, rows[:, None], rows[None, :]]
        return self._sorted(values) if request.atomic else values

    def _sorted(self, values: Floats) -> Floats:
        """Atoms on axis 1 in the order of batches."""
        return values[:, self.order]


# --- files of the folder ------------------------------------------------------------------------------


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split()  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a readable text file ({error})") from None


def _read_types(root: Path) -> Integers:
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


def _find_sets(root: Path) -> list[Path]:
    sets = sorted(item for item in root.glob("set.*") if item.is_dir())
    if not sets:
        raise DataError(f"{root}: expected folders set.* with the frames, found none")
    return sets


def _files(sets: Sequence[Path], name: str) -> list[Path]:
    """That file of every set. Raises DataError where one is missing."""
    paths = [folder / name for folder in sets]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: this file is missing; every set needs it")
    return paths


def _translate(root: Path, type_map: Sequence[str] | None) -> tuple[Integers | None, tuple[str, ...] | None]:
    """(index in the model's map by type of the system, symbols that the result counts in)."""
    path = root / "type_map.raw"
    names = None if type_map is None else tuple(type_map)
    if not path.is_file():
        return None, names
    own = tuple(_read_words(path))
    twice = sorted({name for name in own if own.count(name) > 1})
    if twice or not own:
        raise DataError(
            f"{path}: expected symbols, none twice; found {', '.join(twice) + ' twice' if twice else 'none'}"
        )
    if names is None:
        return np.arange(len(own)), own
    unknown = [name for name in own if name not in names]
    if unknown:
        raise DataError(
            f"{path}: the model has no type {', '.join(unknown)}; its type_map is {list(names)}. "
            f"Add the symbol to the model's type_map, or take the system out"
        )
    return np.array([names.index(name) for name in own], np.int64), names


def _apply(kinds: Integers, table: Integers | None, names: tuple[str, ...] | None, path: Path) -> Integers:
    """Translated types. Raises DataError for types that a map does not have."""
    ntypes = len(table) if table is not None else None if names is None else len(names)
    if kinds.min() < 0 or (ntypes is not None and kinds.max() >= ntypes):
        bad = int(kinds.min() if kinds.min() < 0 else kinds.max())
        legal = "0 or more" if ntypes is None else f"0 to {ntypes - 1}, the places in {_map_name(table)}"
        raise DataError(f"{path}: expected types {legal}; found {bad}")
    return kinds if table is None else table[kinds]


def _map_name(table: Integers | None) -> str:
    return "type_map.raw" if table is not None else "the model's type_map (the system has no type_map.raw)"


def _open_box(sets: Sequence[Path], frames: Sequence[int]) -> Column:
    """The cells. Raises DataError where one has no volume."""
    paths = [folder / "box.npy" for folder in sets]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: this file is missing; for open boundaries put a file `nopbc` beside type.raw")
    column = Column.open(paths, 9, frames, "9 numbers, three cell vectors, for each frame of coord.npy")
    column.check_finite()
    for name, start, part in column.pieces():
        cell = part.astype(np.float64).reshape(-1, 3, 3)
        volume = np.abs(np.linalg.det(cell))
        flat = np.flatnonzero(volume <= _FLAT * np.prod(np.linalg.norm(cell, axis=2), axis=1))
        if len(flat):
            rows = cell[flat[0]].tolist()
            raise DataError(
                f"{name}: expected cells with a volume, found the vectors {rows} in frame {start + int(flat[0])}; "
                f"for open boundaries put an empty file `nopbc` beside type.raw"
            )
    return column


def _open_mixed(sets: Sequence[Path], natoms: int, frames: Sequence[int], table: Integers | None) -> Column:
    """Types per frame. Raises DataError where they are incomplete, no integers, or unknown."""
    if table is None:
        raise DataError(f"{sets[0].parent / 'type_map.raw'}: this file is missing; systems with {_MIXED} need it")
    column = Column.open(_files(sets, _MIXED), natoms, frames, f"a type for each of {natoms} atoms of type.raw")
    column.check_finite()
    for path, start, part in column.pieces():
        kinds = part.astype(np.int64)
        if not np.array_equal(kinds, part):
            raise DataError(f"{path}: expected integers, found dtype {part.dtype} with fractions")
        if kinds.min() < -1 or kinds.max() >= len(table):
            bad = int(kinds.min() if kinds.min() < -1 else kinds.max())
            raise DataError(f"{path}: expected types -1 (padding) to {len(table) - 1} of type_map.raw; found {bad}")
        empty = np.flatnonzero(np.all(kinds < 0, axis=1))
        if len(empty):
            raise DataError(
                f"{path}: expected at least one real atom per frame, found none in frame {start + int(empty[0])}"
            )
    return column


def _open_label(sets: Sequence[Path], request: LabelRequest, natoms: int, frames: Sequence[int]) -> Column | None:
    """The label's column; None where no set has it. Raises DataError where some sets lack it."""
    paths = [next((folder / f for f in request.files if (folder / f).is_file()), None) for folder in sets]
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
    column = Column.open(
        present, size, frames, f"frames as in coord.npy, {size} numbers {per}", request.frame_shape(natoms)
    )
    column.check_finite()
    return column


def _read_copies(sets: Sequence[Path], natoms: int, frames: Sequence[int]) -> Integers | None:
    """numb_copy.npy, read at once: (frames,) integers of at least 0, at least one of them above."""
    column = _open_label(sets, NUMB_COPY, natoms, frames)
    if column is None:
        return None
    values = column.read(np.arange(sum(frames)), "float64")[:, 0]
    copies = values.astype(np.int64)
    if not np.array_equal(copies, values) or copies.min() < 0 or copies.max() == 0:
        raise DataError(
            f"{column.paths[0]}: expected integers of at least 0, one above; found {values.min():g} to {values.max():g}"
        )
    return copies
