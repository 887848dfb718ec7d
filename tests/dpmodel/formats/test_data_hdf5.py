"""HDF5 systems."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from dpmodel.data import Dataset, find_systems, open_systems

from .written import (
    ALL,
    MAP,
    numbers,
    refused,
    write_hdf5,
    write_npy,
    written,
)


def test_groups_are_searched(tmp_path):
    a, b = (write_npy(tmp_path / name, numbers(seed=k)) for k, name in enumerate("ab"))
    file = write_hdf5(tmp_path / "data.h5", {"one": a, "deep/er/two": b, "deep/er": a})
    names = [str(path).rpartition("#")[2] for path in find_systems(str(file))]
    assert names == ["/deep/er", "/deep/er/two", "/one"]
    assert len(Dataset.from_config(f"{file}#deep", type_map=MAP).systems) == 2
    assert len(Dataset.from_config([f"{file}#/deep/er"], type_map=MAP).systems) == 1  # itself, not what lies below
    assert [path.name for path in find_systems(tmp_path, ["*.h5"])][:1] == ["er"]
    root = write_hdf5(tmp_path / "root.h5", {"/": a})
    assert len(Dataset.from_config(f"{root}#/", type_map=MAP).systems) == 1
    circular = shutil.copy(file, tmp_path / "circular.h5")
    with h5py.File(circular, "a") as opened:
        opened["deep/circle"] = h5py.SoftLink("/")
        opened["dangling"] = h5py.SoftLink("/nothing")
    assert len(find_systems(str(circular))) == 3


def test_a_folder_with_a_number_sign_is_a_folder(tmp_path):
    folder = tmp_path / "run.h5#1"
    folder.mkdir()
    write_npy(folder / "a", numbers())
    assert find_systems(str(folder)) == [folder / "a"]


def test_open_boundaries_and_mixed_types_in_hdf5(tmp_path):
    data = numbers(2)
    open_one = write_npy(tmp_path / "open", data, cell=False)
    kinds = np.array([[1, 0, 1, 0, -1], [0, 0, 0, 1, 1]])
    mixed = write_npy(tmp_path / "mixed", data, types=kinds)
    file = write_hdf5(tmp_path / "x.h5", {"open": open_one, "mixed": mixed})
    second, first = Dataset.from_config(str(file), type_map=MAP, labels=ALL).systems
    assert first.pbc is False and first.batch(np.array([0])).cell is None
    assert second.mixed
    np.testing.assert_array_equal(second.batch(np.arange(2)).atype, [[1, 2, 1, 2, -1], [2, 2, 2, 1, 1]])


def test_hdf5_reads_only_what_is_asked_for(tmp_path, monkeypatch):
    (found,) = open_systems(written(tmp_path, "hdf5", numbers(6)), MAP, ALL)
    read = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, key, **kw: read.append(key) or original(self, key, **kw)
    )
    found.columns["force"].read(np.array([5, 3, 3]), "float64")
    assert [(key.start, key.stop) for key in read] == [(0, 1), (2, 3)]  # of the second set


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("x/y/set.000/coord.npy"), r"coord\.npy: this file is missing"),
        (lambda f: f.pop("x/y/set.000/box.npy"), r"box\.npy: this file is missing"),
        (lambda f: f.pop("x/y/set.001/force.npy"), r"force\.npy: this file is missing, although"),
        (lambda f: f["x/y/set.000/force.npy"].__setitem__((1, 4), np.nan), r"found nan in frame 1"),
        (lambda f: (f.pop("x/y/set.000"), f.pop("x/y/set.001")), r"expected folders set"),
        (lambda f: replaced(f, "x/y/set.000/energy.npy", np.zeros((3, 2))), "expected shape 3 x 1"),
        (lambda f: replaced(f, "x/y/set.000/energy.npy", np.array([b"a"] * 3)), "dataset of numbers, found dtype"),
        (lambda f: replaced(f, "x/y/set.000/force.npy", h5py.Empty("f8")), "dataset of numbers"),
        (lambda f: replaced(f, "x/y/set.000/force.npy", None), "declared but never written"),
        (lambda f: replaced(f, "x/y/type.raw", np.array([0, 1, 2, 0, 1])), "types 0 to 1.*found 2"),
        (lambda f: replaced(f, "x/y/type.raw", np.array([0.5] * 5)), "integers separated by blanks"),
        (lambda f: replaced(f, "x/y/type_map.raw", ["H", "Xx"]), "no type Xx"),
        (lambda f: (f.pop("x/y/type.raw"), f["x/y"].create_group("type.raw")), "no such file|found none"),
    ],
)
def test_bad_hdf5(tmp_path, change, message):
    path = written(tmp_path, "hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        change(file)
    refused([path], message)


def replaced(file, name, value):
    del file[name]
    if value is None:
        file.create_dataset(name, shape=(3, 15), dtype="f8")
    else:
        file[name] = value


def test_truncated_and_foreign_hdf5(tmp_path):
    written(tmp_path, "hdf5")
    file = tmp_path / "a.hdf5"
    raw = file.read_bytes()
    for content in (raw[: len(raw) // 2], b"", b"no HDF5 at all" * 100):
        (tmp_path / "b.h5").write_bytes(content)
        refused(str(tmp_path / "b.h5"), r"b\.h5: expected a complete HDF5 file")
    with h5py.File(tmp_path / "c.h5", "w") as opened:
        opened["weights"] = np.zeros(3)
    refused(str(tmp_path / "c.h5"), "found none with type.raw")
    refused(f"{file}#/nothing", "no such group; at its top level there is x")
    refused([f"{file}#x/y/type.raw"], "no such group")
