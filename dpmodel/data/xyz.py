"""Extended XYZ files, read with ASE: `data.xyz`, `data.extxyz`, any number of frames of any composition.

    3
    Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="T T F"
    O 0.0 0.0 0.0 0.1 0.0 0.0
    ...

Labels are found by name: `energy`, `forces` (or `force`), `virial`, `dipole`, and any other array of the frame or of the
atoms. Without `virial` it comes from `stress` (eV/Å^3, ASE's sign): virial = -volume * stress. Files are held in memory.
Files with other names, such as `REF_energy`, are read with a table of names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.data.frames import PLURALS, FrameSystem, MemoryColumn, Values
from dpmodel.data.grouping import Group, Grouping
from dpmodel.data.labels import LabelLike, LabelRequest, as_request
from dpmodel.data.types import translation
from dpmodel.errors import DataError

try:
    from ase.io import iread
except ModuleNotFoundError as _problem:
    raise ImportError(f'XYZ data needs ASE ({_problem}): pip install "dpmodel[ase]"') from _problem

__all__ = ["XyzSystem", "open_xyz"]

logger = logging.getLogger(__name__)

_VOIGT = np.array([0, 5, 4, 5, 1, 3, 4, 3, 2])
"""Places of xx, xy, xz, yx, ... in the order xx, yy, zz, yz, xz, xy."""


class XyzSystem(FrameSystem):
    """Frames of an XYZ file that belong together."""

    def place_of(self, request: LabelRequest) -> str:
        names = " or ".join(request.stem)
        return f"the property {names}" if request.atomic else f"{names}=... in the comment lines"


def open_xyz(
    path: str | Path,
    type_map: Sequence[str] | None = None,
    labels: Sequence[LabelLike | LabelRequest] = (),
    *,
    sort_atoms: bool = True,
    names: Mapping[str, str] | None = None,
) -> list[FrameSystem]:
    """The systems of a file, in the order of their first frames; arguments as for `NpySystem.open`. Raises DataError.

    names: what the file calls labels, by their own names (or "stress"). A label of that name in the file is then not read.
    """
    frames = _read(Path(path))
    symbols = list(dict.fromkeys(symbol for atoms in frames for symbol in atoms.get_chemical_symbols()))
    table, types = translation(symbols, type_map, path)
    grouping = Grouping(str(path), table, types, tuple(as_request(label) for label in labels))
    numbers = {symbol: k for k, symbol in enumerate(symbols)}
    arrays = []
    for number, atoms in enumerate(frames):
        arrays.append(_arrays(atoms, numbers, names or {}))
        grouping.add(number, arrays[-1], atoms.pbc)

    absent = [own for name, own in (names or {}).items() if not any(name in frame for frame in arrays)]
    if absent:
        logger.warning("%s: no frame has %s, which label_names asks for", path, ", ".join(absent))

    def column_of(group: Group) -> Callable[[str], Values]:
        members = [arrays[number] for number in group.frames]
        return lambda name: MemoryColumn(np.stack([np.reshape(frame[name], -1) for frame in members]))

    return grouping.systems(XyzSystem, column_of, sort_atoms=sort_atoms)


def _read(path: Path) -> list[Any]:
    """All frames. Raises DataError for anything that is no complete XYZ file."""
    expected = _count(path)
    try:
        frames = list(iread(path, index=":", format="extxyz"))
    except Exception as error:  # noqa: BLE001  # ASE raises whatever its parsers meet
        raise DataError(
            f"{path}: expected a complete extended XYZ file with chemical symbols, but ASE cannot read it "
            f"({type(error).__name__}: {error})"
        ) from None
    if not frames:
        raise DataError(f"{path}: expected at least one frame, found none")
    if len(frames) != expected:
        raise DataError(f"{path}: expected {expected} frames by their first lines, ASE reads {len(frames)}")
    return frames


def _count(path: Path) -> int:
    """Number of frames, by their first lines: ASE ends at an empty line, whatever follows."""
    count = 0
    try:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                word = line.strip()
                if word.startswith("VEC") and count:
                    continue
                if not word:
                    if any(rest.strip() for rest in stream):
                        raise DataError(f"{path}: there is an empty line after frame {count - 1}; remove it")
                    break
                if not word.isdecimal() or int(word) < 1:
                    raise DataError(f"{path}: expected the number of atoms at the start of frame {count}, got {word!r}")
                for k in range(int(word) + 1):
                    if not next(stream, ""):
                        raise DataError(f"{path}: frame {count} is incomplete: {k} of {int(word) + 1} lines are there")
                count += 1
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a readable XYZ file ({error})") from None
    return count


def _arrays(atoms: Any, numbers: dict[str, int], names: Mapping[str, str]) -> dict[str, Any]:
    """Everything of a frame, by name; what `names` has, by the names of labels."""
    results = {} if atoms.calc is None else atoms.calc.results
    found: dict[str, Any] = {}
    for source in (atoms.info, atoms.arrays, results):
        for name, value in source.items():
            try:
                array = np.asarray(value)
            except ValueError:  # lists of lists of different lengths are notes
                continue
            if name not in ("numbers", "positions"):
                found[name] = array
    given = {name: found[own] for name, own in names.items() if own in found}
    for name in names:
        for spelling in (
            ("virial", "virials", "stress") if name in ("virial", "stress") else (name, PLURALS.get(name, name))
        ):
            found.pop(spelling, None)
    found |= given
    cell = np.asarray(atoms.cell.array)
    found |= {
        "coord": atoms.positions, "box": cell,
        "atype": np.array([numbers[symbol] for symbol in atoms.get_chemical_symbols()], np.int64),
    }  # fmt: skip
    volume = float(np.abs(np.linalg.det(cell)))
    if "virial" not in found and "virials" not in found and "stress" in found and volume > 0:
        stress = np.reshape(found["stress"], -1)
        # Of another size it is refused as a virial would be.
        found["virial"] = -volume * (stress[_VOIGT] if stress.size == 6 else stress)
    return found
