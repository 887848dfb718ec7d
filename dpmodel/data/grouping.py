"""Frames that come one by one, such as records of a database, gathered into systems.

Frames with the same number of atoms, boundaries and labels (of those that are asked for) form one system; where their
types differ it is one of mixed types. Everything is checked while frames are gathered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dpmodel.data.columns import describe
from dpmodel.data.frames import PLURALS, FrameSystem, Values, check_copies, flat_cell
from dpmodel.data.labels import NUMB_COPY, LabelRequest
from dpmodel.data.system import Boundaries, Integers
from dpmodel.data.types import apply_table
from dpmodel.errors import DataError, InputError
from dpmodel.geometry.cells import make_lattice

__all__ = ["Group", "Grouping"]


@dataclasses.dataclass(eq=False)
class Group:
    """Frames of one system to be."""

    natoms: int
    pbc: Boundaries
    keys: tuple[tuple[str, str], ...]
    """(label, its name in the frames) of the labels that the frames have."""
    first: Integers
    """(natoms,) types of the first frame."""
    frames: list[int] = dataclasses.field(default_factory=list)
    """Their numbers in the file."""
    copies: list[float] = dataclasses.field(default_factory=list)
    mixed: bool = False
    """Whether types differ between frames."""

    def name(self, path: Any, *, alone: bool) -> str:
        """What messages and tables call the system."""
        if alone:
            return str(path)
        sides = "" if self.pbc is True else ", open" if self.pbc is False else ", partly periodic"
        labels = ", ".join(name for name, _ in self.keys) or "no labels"
        return f"{path} ({self.natoms} atoms{sides}; {labels})"


@dataclasses.dataclass
class Grouping:
    """Gathers frames."""

    path: str
    table: Integers | None
    """Index in the model's map by type of the file; None: numbers are kept."""
    names: tuple[str, ...] | None
    requests: tuple[LabelRequest, ...]
    groups: dict[Any, Group] = dataclasses.field(default_factory=dict)

    def add(self, number: int, frame: Mapping[str, Any], pbc: Sequence[bool]) -> None:
        """Check a frame and give it to its group.

        frame: arrays by name: `coord` (n, 3), `atype` (n,) integers as the file counts (-1 pads), `box` where pbc has a
        True, labels by the file's names. Raises DataError naming the frame.
        """
        where = f"{self.path}, frame {number}"
        kinds, coord = frame["atype"], frame["coord"]
        natoms = kinds.size
        if kinds.ndim != 1 or not natoms or not (kinds >= 0).any():
            raise DataError(f"{where}: expected types of at least one real atom, found shape {describe(kinds.shape)}")
        if kinds.min() < -1:
            raise DataError(f"{where}: expected types of at least 0, or -1 for padding; found {int(kinds.min())}")
        apply_table(kinds[kinds >= 0].astype(np.int64), self.table, self.names, where)
        _check(where, "coord", coord, {(natoms, 3), (3 * natoms,)}, 3 * natoms, f"3 numbers for {natoms} atoms")
        sides = _boundaries(pbc)
        if sides is not False:
            _check_cell(where, frame.get("box"), sides)
        keys = ((request.name, self._check_label(where, frame, request, natoms)) for request in self.requests)
        found = tuple((name, key) for name, key in keys if key is not None)
        group = self.groups.setdefault((natoms, sides, found), Group(natoms, sides, found, kinds.astype(np.int64)))
        group.mixed |= not np.array_equal(group.first, kinds) or bool(kinds.min() < 0)
        group.frames.append(number)
        group.copies.append(self._copies(where, frame, natoms))

    def systems(
        self, kind: type[FrameSystem], column_of: Callable[[Group], Callable[[str], Values]], *, sort_atoms: bool
    ) -> list[FrameSystem]:
        """The groups as systems, in the order of their first frames.

        column_of: from a group to what makes a column from a name.
        """
        return [self._system(kind, group, column_of(group), sort_atoms) for group in self.groups.values()]

    def _system(
        self, kind: type[FrameSystem], group: Group, column: Callable[[str], Values], sort_atoms: bool
    ) -> FrameSystem:
        columns = {"coord": column("coord")}
        if group.pbc:
            columns["box"] = column("box")
        atype, order = None, np.arange(group.natoms)
        if group.mixed:
            columns["real_atom_types"] = column("atype")
        else:
            atype = group.first if self.table is None else self.table[group.first]
            order = np.argsort(atype, kind="stable") if sort_atoms else order
            atype = atype[order]
        found = dict(group.keys)
        columns |= {name: column(key) for name, key in found.items()}
        copies = np.asarray(group.copies)
        return kind(
            path=group.name(self.path, alone=len(self.groups) == 1), type_map=self.names, natoms=group.natoms,
            pbc=group.pbc, order=order, atype=atype, labels=self.requests, columns=columns, table=self.table,
            found={request.name: float(request.name in found) for request in self.requests},
            copies=None if np.all(copies == 1) else check_copies(copies, f"{self.path}, numb_copy"),
        )  # fmt: skip

    def _check_label(self, where: str, frame: Mapping[str, Any], request: LabelRequest, natoms: int) -> str | None:
        """The label's name in the frame, after a look at its values; None where it has none."""
        key = _key_of(frame, request)
        if key is None:
            if request.everywhere:
                raise DataError(
                    f"{where}: {' or '.join(request.stem)} is missing; the model or the loss needs {request.name!r}. "
                    f"The frame has {_listed(frame)}"
                )
            return None
        size = request.file_size(natoms)
        legal = {(size,), (size // 3, 3), request.frame_shape(natoms), *([()] if size == 1 else [])}
        if request.atomic:
            legal.add((natoms, size // natoms))
        if request.shape == (9,):
            legal.add((natoms, 3, 3) if request.atomic else (3, 3))
        per = f" for {natoms} atoms" if request.atomic or request.square else ""
        _check(where, key, frame[key], legal, size, f"{size} numbers{per}")
        return key

    def _copies(self, where: str, frame: Mapping[str, Any], natoms: int) -> float:
        key = self._check_label(where, frame, NUMB_COPY, natoms)
        return 1.0 if key is None else float(np.reshape(frame[key], ()))


def _key_of(frame: Mapping[str, Any], request: LabelRequest) -> str | None:
    """The name under which a frame has a label: its own, or its plural."""
    names = [name for stem in request.stem for name in (stem, PLURALS.get(stem, stem))]
    return next((name for name in names if name in frame), None)


def _listed(frame: Mapping[str, Any]) -> str:
    return ", ".join(sorted(set(frame) - {"coord", "atype", "box"})) or "no labels"


def _boundaries(pbc: Sequence[bool]) -> Boundaries:
    a, b, c = (bool(side) for side in pbc)
    return a if a == b == c else (a, b, c)


def _check(where: str, name: str, array: Any, legal: set[tuple[int, ...]], size: int, what: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        came = array.tolist() if isinstance(array, np.ndarray) and array.size < 8 else array
        raise DataError(f"{where}: expected {name!r} to be {what}, found {came!r:.80}")
    if array.size != size or array.shape not in legal:
        raise DataError(f"{where}: expected {name!r} to be {what}, found shape {describe(array.shape)}")
    if not np.isfinite(array).all():
        raise DataError(f"{where}: expected finite numbers in {name!r}, found NaN or infinity; remove the frame")


def _check_cell(where: str, box: Any, sides: Boundaries) -> None:
    _check(where, "box", box, {(3, 3), (9,)}, 9, "9 numbers, three cell vectors")
    cell = np.reshape(box, (3, 3)).astype(np.float64)
    if sides is True and flat_cell(cell[None]) is not None:
        raise DataError(f"{where}: expected a cell with a volume, found the vectors {cell.tolist()}")
    try:
        make_lattice(cell, sides)
    except InputError as problem:
        raise DataError(f"{where}: {problem}") from problem
