"""Files with labels and predictions side by side, as `dpmodel test -d PREFIX` writes and `dpmodel plot` reads them.

=====================  ======  =======================================================
file                   rows    columns (labels, then predictions)
=====================  ======  =======================================================
PREFIX.e.out           frames  energy, eV
PREFIX.e_peratom.out   frames  energy per atom, eV
PREFIX.f.out           atoms   force x y z, eV/Å
PREFIX.v.out           frames  virial xx xy ... zz, eV
PREFIX.v_peratom.out   frames  virial per atom, eV
PREFIX.s.out           frames  stress (-virial / volume), eV/Å^3
PREFIX.ae.out          atoms   energy of every atom, eV
PREFIX.fm.out          atoms   magnetic force x y z, eV per unit of spin
PREFIX.h.out           pairs   elements of the Hessian, eV/Å^2
=====================  ======  =======================================================

Models of other quantities write `PREFIX.<quantity>.out`, as `PREFIX.dipole.out`, `PREFIX.dipole_peratom.out` and
`PREFIX.atom_dipole.out`, a column per component. Systems follow one another, each after a line `# <system>: data_e pred_e`. A suffix of PREFIX is replaced.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import numpy as np

from dpmodel.errors import InputError
from dpmodel.metrics import Comparison

__all__ = ["FILES", "DetailWriter", "detail_path", "other_quantities", "read_detail"]

_TENSOR = tuple(a + b for a in "xyz" for b in "xyz")

FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "energy": ("e", ("e",)),
    "energy_per_atom": ("e_peratom", ("e",)),
    "force": ("f", tuple(f"f{axis}" for axis in "xyz")),
    "virial": ("v", tuple(f"v{axes}" for axes in _TENSOR)),
    "virial_per_atom": ("v_peratom", tuple(f"v{axes}" for axes in _TENSOR)),
    "stress": ("s", tuple(f"s{axes}" for axes in _TENSOR)),
    "atom_energy": ("ae", ("e",)),
    "force_mag": ("fm", tuple(f"fm{axis}" for axis in "xyz")),
    "hessian": ("h", ("h",)),
}
"""By quantity of models of energies: part of the file's name, names of the columns."""


def _part(quantity: str) -> str:
    """The part of the file's name that tells the quantity."""
    return FILES[quantity][0] if quantity in FILES else quantity.replace("_per_atom", "_peratom")


def _columns(quantity: str, width: int) -> tuple[str, ...]:
    """Names of the columns."""
    return FILES[quantity][1] if quantity in FILES else tuple(f"{quantity}_{k}" for k in range(width))


def detail_path(prefix: str | os.PathLike[str], quantity: str) -> Path:
    """The file of a quantity. Raises InputError for a prefix without a name."""
    path = Path(prefix)
    if not path.name:
        raise InputError(f"expected a prefix for files such as results/water, got {os.fspath(prefix)!r}")
    return path.with_suffix(f".{_part(quantity)}.out")


def other_quantities(prefix: str | os.PathLike[str]) -> tuple[str, ...]:
    """Quantities of models of no energies of which there are files, sorted."""
    path = detail_path(prefix, "energy")
    stem, known = path.name.removesuffix("e.out"), {part for part, _ in FILES.values()}
    parts = (
        file.name.removeprefix(stem).removesuffix(".out") for file in path.parent.glob(f"{glob.escape(stem)}*.out")
    )
    return tuple(sorted(part.replace("_peratom", "_per_atom") for part in parts if part not in known))


class DetailWriter:
    """Writes the files of a prefix. They appear when the block ends without an error, complete; older ones of the
    same prefix are replaced, those of quantities that this test has not are removed.

    with DetailWriter("results/water") as writer:
        evaluate_systems(potential, "water", on_chunk=writer)

    Raises OSError naming the file where the disk refuses; earlier files are then unchanged.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self._prefix = prefix
        self._paths = {quantity: detail_path(prefix, quantity) for quantity in FILES}
        self._mark = f".{secrets.token_hex(4)}.tmp"
        self._open = contextlib.ExitStack()
        self._streams: dict[str, TextIO] = {}
        self._system: dict[str, str] = {}

    def __enter__(self) -> Self:
        # A folder that cannot be written to should be an error before hours of evaluation, not after.
        trial = self._temporary("energy")
        trial.touch(exist_ok=False)
        trial.unlink()
        return self

    def __call__(self, part: Comparison) -> None:
        """Append the rows of a chunk."""
        for quantity, label in part.label.items():
            stream = self._stream(quantity)
            if self._system.get(quantity) != part.system:
                self._system[quantity] = part.system
                names = _columns(quantity, label.shape[1])
                columns = " ".join([*(f"data_{name}" for name in names), *(f"pred_{name}" for name in names)])
                stream.write(f"# {part.system}: {columns}\n")
            np.savetxt(stream, np.concatenate([label, part.prediction[quantity]], axis=1))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that were written so far."""
        return tuple(path for quantity, path in self._paths.items() if quantity in self._streams)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._open.close()
            if kind is None:
                for quantity, path in self._paths.items():
                    if quantity in self._streams:
                        os.replace(self._temporary(quantity), path)
                    else:
                        path.unlink(missing_ok=True)
        finally:
            for quantity in self._streams:
                self._temporary(quantity).unlink(missing_ok=True)

    def _stream(self, quantity: str) -> TextIO:
        if quantity not in self._streams:
            self._paths.setdefault(quantity, detail_path(self._prefix, quantity))
            stream = self._open.enter_context(open(self._temporary(quantity), "x", encoding="utf-8"))  # noqa: SIM115  # the stack closes it
            self._streams[quantity] = stream
        return self._streams[quantity]

    def _temporary(self, quantity: str) -> Path:
        path = self._paths[quantity]
        return path.with_name(f".{path.name}{self._mark}")


def read_detail(prefix: str | os.PathLike[str], quantity: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(labels, predictions), each (rows, columns), of all systems; None where there is no such file.

    Raises InputError where the file is not of this kind.
    """
    path = detail_path(prefix, quantity)
    if not path.exists():
        return None
    expected = f"{2 * len(FILES[quantity][1])}" if quantity in FILES else "twice as many as there are components of"
    try:
        table = np.loadtxt(path, ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected rows of {expected} numbers, as `dpmodel test -d` writes ({error})"
        ) from None
    width = len(FILES[quantity][1]) if quantity in FILES else table.shape[1] // 2
    if table.shape[1] != 2 * width or not len(table):
        raise InputError(f"{path}: expected rows of {expected} numbers, found {table.shape[0]} of {table.shape[1]}")
    return table[:, :width], table[:, width:]
