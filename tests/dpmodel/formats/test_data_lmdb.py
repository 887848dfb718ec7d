"""LMDB data sets."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import msgpack
import numpy as np
import pytest

from dpmodel.data import Dataset, labels, open_systems

from .written import (
    ALL,
    MAP,
    numbers,
    packed,
    records,
    refused,
    write_lmdb,
)

WATER = Path(__file__).parents[2] / "data" / "lmdb" / "water.lmdb"


def test_water():
    (found,) = open_systems(WATER, ["H", "O"], ALL)
    assert (found.natoms, found.nframes, found.pbc, found.mixed) == (192, 80, True, False)
    assert found.found == {"energy": 1, "force": 1, "virial": 0, "atom_pref": 0, "dipole": 0}
    batch = found.batch(np.array([79, 0]))
    assert np.bincount(batch.atype[0]).tolist() == [128, 64]
    assert 0.7 < batch.labels["force"].std() < 0.9
    assert -29960 < batch.labels["energy"].min() < batch.labels["energy"].max() < -29900
    assert not (WATER / "lock.mdb").exists()
    data = Dataset.from_config([WATER / "data.mdb"], type_map=["O", "H"], labels=ALL)
    assert (data.nframes, data.systems[0].path) == (80, str(WATER))


def test_frames_are_grouped(tmp_path):
    small, large = numbers(3), numbers(4, natoms=7, seed=1)
    frames = [*records(small), *records(large, types=[0, 0, 1, 1, 0, 1, 0])]
    del frames[1]["virials"]
    frames[4]["atom_types"] = packed(np.array([1, 1, 1, 1, -1, 0, 0], np.int64))
    frames[6]["cells"] = packed(np.zeros(9, "f4"))
    frames[6]["numb_copy"] = 3
    path = write_lmdb(tmp_path / "a.lmdb", [frames[k] for k in (0, 3, 1, 4, 2, 5, 6)])
    found = open_systems(path, MAP, ALL)
    assert [(s.natoms, s.nframes, s.pbc, s.mixed) for s in found] == [
        (5, 2, True, False), (7, 3, True, True), (5, 1, True, False), (7, 1, False, False),
    ]  # fmt: skip
    assert [s.found["virial"] for s in found] == [1, 1, 0, 1]
    assert len({s.path for s in found}) == 4
    np.testing.assert_array_equal(found[1].batch(np.array([1])).atype, [[1, 1, 1, 1, -1, 2, 2]])
    np.testing.assert_array_equal(found[1].batch(np.array([2])).coord[0], large["coord"][2])
    assert found[3].batch(np.array([0])).cell is None
    np.testing.assert_array_equal(found[3].copies, [3])
    # Labels that nobody asks for do not divide frames.
    assert len(open_systems(path, MAP, (labels.ENERGY,))) == 3


def test_a_frame_is_decoded_when_it_is_asked_for_and_once(tmp_path, monkeypatch):
    path = write_lmdb(tmp_path / "a.lmdb", records(numbers(6)))
    (found,) = open_systems(path, MAP, ALL)
    decoded = []
    original = msgpack.unpackb
    monkeypatch.setattr(msgpack, "unpackb", lambda data, **kw: decoded.append(len(data)) or original(data, **kw))
    found.batch(np.array([4, 1]))
    assert len(decoded) == 2  # for coordinates, cells and five labels
    found.batch(np.array([0]))
    assert len(decoded) == 3


def test_a_database_in_one_file(tmp_path):
    source = write_lmdb(tmp_path / "a.lmdb", records(numbers(2)))
    shutil.copy(source / "data.mdb", tmp_path / "one.lmdb")
    (one,) = open_systems(tmp_path / "one.lmdb", MAP, ALL)
    (two,) = open_systems(source, MAP, ALL)
    np.testing.assert_array_equal(one.batch(np.array([1])).coord, two.batch(np.array([1])).coord)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lmdb", "one.lmdb"]


def test_singular_names_and_keys_of_bytes(tmp_path):
    data = numbers(1)
    (frame,) = records(data)
    singular = {"coords": "coord", "cells": "box", "forces": "force", "energies": "energy", "atom_types": "atype"}
    frame = {singular.get(name, name).encode(): value for name, value in frame.items()}
    frame[b"force"] = {key.encode(): value for key, value in frame[b"force"].items()}
    frame[b"energy"] = float(data["energy"][0])
    frame[b"dipole"] = data["dipole"][0].tolist()
    (found,) = open_systems(write_lmdb(tmp_path / "a.lmdb", [frame]), MAP, ALL, sort_atoms=False)
    batch = found.batch(np.array([0]))
    for name in ("energy", "force", "dipole"):
        np.testing.assert_array_equal(batch.labels[name].reshape(-1), data[name][0].reshape(-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("coords"), "frame 1: expected coords and atom_types, found atom_names"),
        (lambda f: f.pop("atom_types"), "frame 1: expected coords and atom_types"),
        (lambda f: f["forces"].update(shape=[4, 3]), "frame 1, forces: expected an array.*bytes"),
        (lambda f: f["forces"].update(type="O"), "frame 1, forces: expected an array"),
        (lambda f: f["forces"].update(type="nonsense"), "frame 1, forces: expected an array"),
        (lambda f: f["forces"].update(shape=[-1, 15]), "frame 1, forces: expected an array"),
        (lambda f: f["forces"].pop("data"), "frame 1, forces: expected an array"),
        (lambda f: f.update(forces=packed(np.full((5, 3), np.inf))), "frame 1: expected finite.*'forces'"),
        (lambda f: f.update(coords=packed(np.full((5, 3), np.nan))), "frame 1: expected finite.*'coord'"),
        (lambda f: f.update(coords=packed(np.zeros((4, 3)))), "frame 1: expected 'coord'.*found shape 4 x 3"),
        (lambda f: f.update(energies=packed(np.zeros(2))), "frame 1: expected 'energies'.*found shape 2"),
        (lambda f: f.update(cells=packed(np.ones((3, 3)))), "frame 1: expected a cell with a volume"),
        (lambda f: f.update(cells=packed(np.ones(4))), "frame 1: expected 'box'"),
        (lambda f: f.update(atom_types=packed(np.array([0, 1, 2, 0, 0]))), "frame 1: expected types 0 to 1.*found 2"),
        (lambda f: f.update(atom_types=packed(np.array([0, 1, -2, 0, 0]))), "frame 1: expected types.*found -2"),
        (lambda f: f.update(atom_types=packed(np.full(5, -1))), "frame 1: expected types of at least one real"),
        (lambda f: f.update(atom_types=packed(np.zeros(5))), "integers as atom_types"),
        (lambda f: f.update(numb_copy=0.5), "numb_copy: expected integers"),
        (lambda f: f.update(energies="-1.5"), "frame 1: expected 'energies' to be 1 numbers, found '-1.5'"),
        (lambda f: f.update(coords=None), "frame 1: expected coords and atom_types"),
        (lambda f: f.update(atom_types="HOHOH"), "frame 1: expected integers as atom_types, found 'HOHOH'"),
    ],
)
def test_bad_frames(tmp_path, change, message):
    frames = records(numbers(2))
    change(frames[1])
    refused(str(write_lmdb(tmp_path / "a.lmdb", frames)), message)


class Evil:
    """Would make a file if it were unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


def test_nothing_in_a_frame_is_executed(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    payload = pickle.dumps(Evil())
    frames = records(numbers(1))
    for bad in (
        {**frames[0], "forces": {"type": "O", "shape": [1], "data": payload}},
        {**frames[0], "coords": {b"nd": True, b"type": "O", b"kind": "O", b"shape": [1], b"data": payload}},
        {**frames[0], "coords": msgpack.ExtType(42, payload)},
    ):
        path = tmp_path / "a.lmdb"
        shutil.rmtree(path, ignore_errors=True)
        refused(str(write_lmdb(path, [bad])), "expected")
    write_lmdb(tmp_path / "b.lmdb", [payload])
    refused(str(tmp_path / "b.lmdb"), "decoded as msgpack|expected a map")
    assert not (tmp_path / "evil").exists()


def test_truncated_and_foreign_lmdb(tmp_path):
    path = write_lmdb(tmp_path / "a.lmdb", records(numbers(20)))
    raw = (path / "data.mdb").read_bytes()
    for k, (content, message) in enumerate(
        [(raw[: len(raw) // 2], "truncated"), (b"", "expected an LMDB"), (b"nonsense" * 4096, "expected an LMDB")]
    ):
        other = tmp_path / f"{k}.lmdb"
        other.mkdir()
        (other / "data.mdb").write_bytes(content)
        refused(str(other), message)
    refused(str(write_lmdb(tmp_path / "m.lmdb", records(numbers(1)), nframes=3)), "record '000000000001' is missing")
    refused(str(write_lmdb(tmp_path / "n.lmdb", records(numbers(1)), nframes="1")), "another layout")
    refused(str(write_lmdb(tmp_path / "o.lmdb", [], nframes=0)), "at least one frame")
    refused(str(write_lmdb(tmp_path / "p.lmdb", records(numbers(1)), frame_idx_fmt="q")), "frame_idx_fmt")
    refused(str(write_lmdb(tmp_path / "q.lmdb", records(numbers(1)), type_map="HO")), "list of symbols")
    import lmdb

    with lmdb.open(str(tmp_path / "r.lmdb")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"0", b"an ASE database, say")
    refused(str(tmp_path / "r.lmdb"), "__metadata__.*another layout")
