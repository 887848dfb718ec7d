"""`stat_file`: statistics kept between runs, in the layout of DeePMD-kit v3.

    ROOT/TYPE_MAP/HASH/r_0, a_0, r_1, ...           [n, s, q] of the environment matrix
    ROOT/TYPE_MAP/bias_atom_KEY, std_atom_KEY       (ntypes, dim)
    ROOT/TYPE_MAP/fparam, aparam                    (dim, 3), rows [n, s, q]
    ROOT/TYPE_MAP/observed_type                     symbols as bytes, by atomic number
    ROOT/TYPE_MAP/options                           what they were made with (`statistics.options`); only written here

ROOT is a folder of .npy payloads (names without a suffix), or an HDF5 file (.h5, .hdf5). TYPE_MAP is the type map
joined by spaces. The names say nothing about the data: whoever changes the data removes the cache. Statistics that
were made with other options are computed anew, or refused in mode "read".

    cache = StatCache("stat", ("O", "H"))
    found = cache.output_bias("energy", dim=1)      # None: compute it, then
    cache.store_output_bias({"energy": (bias, std)})
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import h5py
import numpy as np

from dpmodel.errors import DataError, InputError
from dpmodel.files.atomic import atomic_write
from dpmodel.files.hdf5 import FAULTS, write_hdf5
from dpmodel.statistics.environment import item_names
from dpmodel.statistics.items import StatItem
from dpmodel.statistics.options import check_finite, differing, pack, plain_options, unpack
from dpmodel.statistics.output_bias import Bias

__all__ = ["MARKER", "StatCache", "by_atomic_number"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

MARKER = "__deepmd_output_stat_transaction__"
"""Stands beside output statistics while a pair of them is being written."""

_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb "
    "Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu "
    "Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db "
    "Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
ELEMENTS = tuple(_SYMBOLS.split())
"""Chemical symbols by atomic number."""


def by_atomic_number(symbols: Iterable[str]) -> list[str]:
    """Every symbol once; names that are no element come last."""
    order = {symbol: number for number, symbol in enumerate(ELEMENTS)}
    return sorted(set(symbols), key=lambda symbol: (order.get(symbol, len(order)), symbol))


class StatCache:
    """The statistics of one type map.

    path: folder, or HDF5 file (by its suffix). mode "update": what is missing comes as None and can be stored;
    "read": nothing is written, and what is missing raises DataError.

    Raises InputError for another mode, a path or a type map that cannot serve, and in mode "read" where there is no
    cache; DataError wherever an entry is damaged or does not fit.
    """

    def __init__(self, path: str | os.PathLike[str], type_map: Sequence[str], mode: str = "update") -> None:
        if mode not in ("update", "read"):
            raise InputError(f"stat_file_mode must be 'update' or 'read', not {mode!r}")
        self.path, self.mode, self.ntypes = Path(path), mode, len(type_map)
        self.group = " ".join(type_map)
        if not self.group.strip() or any("/" in name or "\0" in name for name in type_map) or self.group in (".", ".."):
            raise InputError(f"stat_file: a type_map of symbols without '/' is needed, got {list(type_map)}")
        hdf5 = self.path.suffix.lower() in (".h5", ".hdf5")
        if self.path.exists() and self.path.is_dir() == hdf5:
            what = "a folder, but its suffix is that of an HDF5 file" if hdf5 else "a file, but not .h5 or .hdf5"
            raise InputError(f"stat_file {self.path} is {what}; give another path")
        if not hdf5 and len(self.group.encode()) > 255:
            raise InputError(
                f"stat_file {self.path}: a type_map of {self.ntypes} symbols is too long for the name of a folder; "
                "use an HDF5 file, as in 'stat.h5'"
            )
        if mode == "read" and not self.path.exists():
            raise InputError(
                f"stat_file {self.path} does not exist, and stat_file_mode is 'read'; use 'update' to make it"
            )
        self._store: _Store = _HDF5(self.path) if hdf5 else _Folder(self.path)
        self.graph_options: Mapping[str, Any] = {}
        """What environment statistics depend on besides their key and the options of the descriptor: how graphs are made."""

    # --- environment ----------------------------------------------------------------------------------

    def environment(
        self, key: str, options: Mapping[str, Any] | None = None, *, radial_only: bool = False
    ) -> dict[str, StatItem] | None:
        """The items below `key` (`environment_key`); None unless all are there, made with these options.

        options: those of the descriptor that the key leaves out; `graph_options` join them.
        """
        items = {}
        for name in item_names(self.ntypes, radial_only=radial_only):
            rows = self._rows(f"{key}/{name}", 1)
            if rows is None:
                self._missing(f"{key}/{name}")
                return None
            items[name] = rows[0]
        return items if self._made_with(key, {**(options or {}), **self.graph_options}) else None

    def store_environment(
        self, key: str, items: Mapping[str, StatItem], options: Mapping[str, Any] | None = None
    ) -> None:
        """Store all items of a descriptor below `key`."""
        entries = {f"{key}/{name}": item.as_array() for name, item in items.items()}
        self._put_made_with(entries, {key: {**(options or {}), **self.graph_options}})

    # --- output ---------------------------------------------------------------------------------------

    def output_bias(self, name: str, *, dim: int, options: Mapping[str, Any] | None = None) -> Bias | None:
        """Bias and deviation (ntypes, dim) of the output `name`; None unless both were written completely.

        options: what the bias depends on besides the data; None is also the answer where it was made with others.
        """
        if self._store.exists(f"{self.group}/{MARKER}"):
            self._missing(f"{name} (its last write was interrupted)")
            return None
        pair = []
        for entry in (f"bias_atom_{name}", f"std_atom_{name}"):
            value = self._get(entry)
            if value is None:
                self._missing(entry)
                return None
            where = self._where(entry)
            x = _numbers(value, where)
            if x.ndim < 1 or x.shape[0] != self.ntypes or x.size != self.ntypes * dim:
                raise DataError(f"{where}: expected shape ({self.ntypes}, {dim}), got {x.shape}; {_REMEDY}")
            pair.append(x.reshape(self.ntypes, dim))
        return (pair[0], pair[1]) if self._made_with(f"bias_atom_{name}", options or {}) else None

    def store_output_bias(self, pairs: Mapping[str, Bias], options: Mapping[str, Any] | None = None) -> None:
        """Store (bias, deviation) of several outputs; a reader sees either all of a pair or nothing of it."""
        entries = {}
        for name, (bias, deviation) in pairs.items():
            entries[f"bias_atom_{name}"] = np.asarray(bias, dtype=np.float64)
            entries[f"std_atom_{name}"] = np.asarray(deviation, dtype=np.float64)
        self._writable()
        marker = f"{self.group}/{MARKER}"
        if self._store.exists(marker):  # an earlier run was killed here: no pair can be trusted
            self._store.remove([f"{self.group}/{n}" for n in self._store.names(self.group) if n.startswith(_PAIRS)])
        if not self._store.atomic:
            self._store.mark(marker)
        self._put_made_with(entries, {f"bias_atom_{name}": options or {} for name in pairs})
        self._store.remove([marker])

    # --- parameters and types -------------------------------------------------------------------------

    def parameters(self, name: str, dim: int) -> tuple[StatItem, ...] | None:
        """One item per component of "fparam" or "aparam"; None where there is no entry."""
        items = self._rows(name, dim)
        if items is None:
            self._missing(name)
        return items

    def store_parameters(self, name: str, items: Sequence[StatItem]) -> None:
        """Store the items of "fparam" or "aparam"."""
        self._put({name: np.stack([item.as_array() for item in items])})

    def observed_types(self) -> tuple[str, ...] | None:
        """Symbols of the types that the data holds, by atomic number; None where there is no entry."""
        value = self._get("observed_type")
        if value is None:
            self._missing("observed_type")
            return None
        items = value.reshape(-1).tolist()
        if not all(isinstance(item, bytes | str) for item in items):
            raise DataError(f"{self._where('observed_type')}: expected symbols, got {value.dtype}; {_REMEDY}")
        return tuple(item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items)

    def store_observed_types(self, symbols: Sequence[str]) -> None:
        """Store the symbols, in the order of `by_atomic_number`."""
        self._put({"observed_type": np.array([s.encode() for s in by_atomic_number(symbols)], dtype=np.bytes_)})

    # --- common ---------------------------------------------------------------------------------------

    def _where(self, name: str) -> str:
        return f"stat_file {self.path}, entry '{self.group}/{name}'"

    def _missing(self, name: str) -> None:
        """Raise DataError in mode "read"."""
        if self.mode == "read":
            there = self._store.names("")
            raise DataError(
                f"{self._where(name)} is missing, and stat_file_mode is 'read'. The cache holds the type maps {there}; "
                "use stat_file_mode 'update' to compute what is missing"
            )

    def _get(self, name: str) -> np.ndarray | None:
        return self._store.get(f"{self.group}/{name}")

    def _rows(self, name: str, count: int) -> tuple[StatItem, ...] | None:
        """`count` items [n, s, q]; None where there is no entry."""
        value = self._get(name)
        if value is None:
            return None
        where = self._where(name)
        x = _numbers(value, where)
        if x.shape != (count, 3) and not (count == 1 and x.shape == (3,)):
            raise DataError(
                f"{where}: expected {count} x [number, sum, sum of squares], got shape {x.shape}; {_REMEDY}"
            )
        x = x.reshape(count, 3)
        if np.any(x[:, 0] < 0) or np.any(x[:, 2] < 0):
            raise DataError(f"{where}: a number or a sum of squares is negative; {_REMEDY}")
        return tuple(StatItem(*row) for row in x.tolist())

    def _options(self) -> dict[str, dict[str, Any] | None]:
        value = self._get("options")
        try:
            return {} if value is None else unpack(value)
        except ValueError as error:
            raise DataError(f"{self._where('options')}: {error}; {_REMEDY}") from error

    def _made_with(self, part: str, options: Mapping[str, Any]) -> bool:
        """Whether the part was made with these options. Raises DataError in mode "read" where it was not."""
        other = differing(self._options().get(part, {}), plain_options(options))
        if not other:
            return True
        what = f"{self._where(part)} was made with other options: {'; '.join(other)}"
        if self.mode == "read":
            raise DataError(f"{what}, and stat_file_mode is 'read'; use 'update' to compute it again")
        logger.warning("%s; it is computed again", what)
        return False

    def _put_made_with(self, entries: Mapping[str, np.ndarray], parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Store entries and their options; a run that is killed in between leaves parts that nobody takes."""
        known = self._options()
        final = pack({**known, **{part: plain_options(options) for part, options in parts.items()}})
        changed = {part for part, options in parts.items() if known.get(part, {}) != plain_options(options)}
        if changed and self._store.atomic:
            entries, changed = {**entries, "options": final}, set()
        if changed:  # otherwise old and new numbers belong to the same options
            check_finite(entries, self._where)
            self._put({"options": pack({**known, **dict.fromkeys(changed)})})
        self._put(entries)
        if changed:
            self._put({"options": final})

    def _writable(self) -> None:
        if self.mode == "read":
            raise InputError(f"stat_file {self.path} is open with stat_file_mode 'read'; use 'update' to write to it")

    def _put(self, entries: Mapping[str, np.ndarray]) -> None:
        self._writable()
        check_finite(entries, self._where)
        self._store.put({f"{self.group}/{name}": value for name, value in entries.items()})


_PAIRS = ("bias_atom_", "std_atom_")
_REMEDY = "remove the cache to compute it again"


def _numbers(value: np.ndarray, where: str) -> np.ndarray:
    if value.dtype.kind not in "fiu":
        raise DataError(f"{where}: expected numbers, got {value.dtype}; {_REMEDY}")
    x = value.astype(np.float64)
    if not np.all(np.isfinite(x)):
        raise DataError(f"{where}: it holds NaN or infinite values; {_REMEDY}")
    return x


class _Store(Protocol):
    """Arrays by path, segments joined by '/'."""

    atomic: bool
    """Whether `put` shows all its entries at once or none."""

    def exists(self, name: str) -> bool: ...
    def names(self, name: str) -> list[str]: ...
    def get(self, name: str) -> np.ndarray | None: ...
    def put(self, entries: Mapping[str, np.ndarray]) -> None: ...
    def mark(self, name: str) -> None: ...
    def remove(self, names: Sequence[str]) -> None: ...


class _Folder:
    """One file per array: .npy payloads without a suffix."""

    atomic = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def names(self, name: str) -> list[str]:
        folder = self.root / name
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def get(self, name: str) -> np.ndarray | None:
        path = self.root / name
        if not path.exists():
            return None
        try:
            with open(path, "rb") as stream:
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
        except (ValueError, OSError, EOFError, MemoryError, SyntaxError) as error:
            raise DataError(f"stat_file {path} is not a complete .npy array ({error}); {_REMEDY}") from error

    def put(self, entries: Mapping[str, np.ndarray]) -> None:
        for name, value in entries.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, partial(_save, value))

    def mark(self, name: str) -> None:
        (self.root / name).mkdir(parents=True, exist_ok=True)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _save(value: np.ndarray, path: Path) -> None:
    with open(path, "xb") as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(value), allow_pickle=False)


class _HDF5:
    """One dataset per array. Every change rewrites the file as a whole: a killed run leaves the previous one."""

    atomic = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self, name: str) -> bool:
        return self._read(lambda file: name in file) or False

    def names(self, name: str) -> list[str]:
        return self._read(lambda file: sorted(file[name or "/"]) if not name or name in file else []) or []

    def get(self, name: str) -> np.ndarray | None:
        return self._read(lambda file: _dataset(file, name))

    def put(self, entries: Mapping[str, np.ndarray]) -> None:
        def change(file: h5py.File) -> None:
            for name, value in entries.items():
                if name in file:
                    del file[name]
                file.create_dataset(name, data=value)

        self._rewrite(change)

    def mark(self, name: str) -> None:
        self._rewrite(lambda file: file.require_group(name))

    def remove(self, names: Sequence[str]) -> None:
        there = [name for name in names if self.exists(name)]

        def change(file: h5py.File) -> None:
            for name in there:
                del file[name]

        if there:
            self._rewrite(change)

    def _rewrite(self, change: Callable[[h5py.File], object]) -> None:
        """Replace the file by a copy of itself after `change`."""

        def fill(file: h5py.File) -> None:
            self._read(lambda old: [old.copy(name, file) for name in old])
            change(file)

        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_hdf5(self.path, fill)

    def _read(self, function: Callable[[h5py.File], T]) -> T | None:
        """What `function` finds in the file; None where there is no file."""
        if not self.path.exists():
            return None
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                return function(file)
        except FAULTS as error:
            raise DataError(f"stat_file {self.path} cannot be read as HDF5 ({error}); {_REMEDY}") from error


def _dataset(file: h5py.File, name: str) -> np.ndarray | None:
    """A dataset as an array, None where there is no such name. Raises ValueError for anything else of that name."""
    if name not in file:
        return None
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.shape is None:
        raise ValueError(f"{name!r} is not an array inside the file")
    return np.asarray(item[()])
