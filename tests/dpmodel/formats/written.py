"""The same system written in every format."""

from __future__ import annotations

from pathlib import Path

import h5py
import lmdb
import msgpack
import numpy as np
import pytest

from dpmodel.data import Dataset, LabelRequest, labels, write_system
from dpmodel.errors import DataError

SYMBOLS = ("H", "O")
TYPES = np.array([1, 0, 1, 0, 1])
CELL = np.array([[9.0, 0, 0], [1, 8, 0], [0.5, 0, 10]])


def numbers(nframes=4, natoms=5, seed=0):
    """coord, cell and labels whose numbers are all different."""
    rng = np.random.default_rng(seed)
    return {
        "coord": 8 * rng.random((nframes, natoms, 3)),
        "cell": CELL * (1 + 0.1 * np.arange(nframes)[:, None, None]),
        "energy": rng.normal(size=nframes),
        "force": rng.normal(size=(nframes, natoms, 3)),
        "virial": rng.normal(size=(nframes, 9)),
        "dipole": rng.normal(size=(nframes, 3)),
        "atom_pref": rng.random((nframes, natoms)),
        "hessian": rng.normal(size=(nframes, 3 * natoms, 3 * natoms)),
    }


def write_npy(path, data, types=TYPES, cell=True, **options):
    labels = {k: v for k, v in data.items() if k not in ("coord", "cell")}
    return write_system(
        path, data["coord"], types, data["cell"] if cell else None, type_map=SYMBOLS, labels=labels, **options
    )


def write_hdf5(path, folders):
    """HDF5 groups from folders of npy files, by name."""
    with h5py.File(path, "w") as file:
        for group, folder in folders.items():
            for item in sorted(Path(folder).rglob("*")):
                name = f"{group}/{item.relative_to(folder)}"
                if item.suffix == ".npy":
                    file[name] = np.load(item)
                elif item.name == "type.raw":
                    file[name] = np.loadtxt(item, dtype=np.int64, ndmin=1)
                elif item.name == "type_map.raw":
                    file.create_dataset(name, data=item.read_text().split(), dtype=h5py.string_dtype())
                elif item.name == "nopbc":
                    file[name] = True
    return path


def packed(array):
    array = np.asarray(array)
    return {"type": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}


def records(data, types=TYPES, cell=True):
    """LMDB frames as dictionaries of arrays."""
    names = {"coord": "coords", "energy": "energies", "force": "forces", "virial": "virials"}
    out = []
    for k in range(len(data["coord"])):
        frame = {names.get(key, key): packed(value[k]) for key, value in data.items() if key != "cell"}
        frame["atom_types"] = packed(np.asarray(types, np.int32))
        frame["cells"] = packed(data["cell"][k] if cell else np.zeros((3, 3)))
        out.append(frame | {"atom_names": list(SYMBOLS), "orig": None})
    return out


def write_lmdb(path, frames, **metadata):
    meta = {"nframes": len(frames), "frame_idx_fmt": "012d", "type_map": list(SYMBOLS), **metadata}
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"__metadata__", msgpack.packb(meta))
        for k, frame in enumerate(frames):
            transaction.put(format(k, "012d").encode(), frame if isinstance(frame, bytes) else msgpack.packb(frame))
    (path / "lock.mdb").unlink()
    return path


def xyz_frame(symbols, coord, comment, *columns):
    """A frame; columns are (n, k) arrays behind the coordinates."""
    rows = [
        " ".join([s, *(repr(float(x)) for x in np.concatenate(row))])
        for s, *row in zip(symbols, coord, *columns, strict=True)
    ]
    return "\n".join([str(len(rows)), comment, *rows]) + "\n"


def lattice(cell):
    return f'Lattice="{" ".join(repr(float(x)) for x in np.reshape(cell, -1))}"'


def write_xyz(path, data, types=TYPES, symbols=SYMBOLS):
    text = ""
    for k in range(len(data["coord"])):
        words = {name: " ".join(repr(float(x)) for x in np.reshape(data[name][k], -1)) for name in ("virial", "dipole")}
        # ASE reads virials as matrices in Fortran order, as it does lattices.
        words["virial"] = " ".join(repr(float(x)) for x in data["virial"][k].reshape(3, 3).T.reshape(-1))
        comment = (
            f"{lattice(data['cell'][k])} Properties=species:S:1:pos:R:3:forces:R:3:atom_pref:R:1 "
            f'energy={float(data["energy"][k])!r} virial="{words["virial"]}" dipole="{words["dipole"]}" note=abc'
        )
        names = [symbols[t] for t in types]
        text += xyz_frame(names, data["coord"][k], comment, data["force"][k], data["atom_pref"][k][:, None])
    path.write_text(text)
    return path


DIPOLE = LabelRequest(name="dipole", shape=(3,))
ALL = (labels.ENERGY, labels.FORCE, labels.VIRIAL, labels.ATOM_PREF, DIPOLE)
MAP = ("X", "O", "H")


def written(folder, kind, data=None, **options):
    """A path with the numbers in a format."""
    data = numbers() if data is None else data
    if kind == "npy":
        return write_npy(folder / "npy", data, frames_per_set=3, **options)
    if kind == "hdf5":
        source = write_npy(folder / "source", data, frames_per_set=3, **options)
        return Path(f"{write_hdf5(folder / 'a.hdf5', {'x/y': source})}#/x/y")
    if kind == "lmdb":
        return write_lmdb(folder / "a.lmdb", records(data, **options))
    return write_xyz(folder / "a.xyz", data, **options)


def refused(path, message, **options):
    with pytest.raises(DataError, match=message):
        Dataset.from_config(path, type_map=MAP, labels=options.pop("labels", ALL), **options)
