"""One protocol: what every format gives, and the programs on them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from dpmodel.data import Dataset, LabelRequest, Sampler, find_systems, iterate, labels, open_systems
from dpmodel.errors import DataError, InputError

from . import written as formats
from .written import (
    ALL,
    MAP,
    TYPES,
    numbers,
    written,
)


@pytest.mark.parametrize("kind", ["hdf5", "lmdb", "xyz"])
@pytest.mark.parametrize("sort_atoms", [True, False])
def test_every_format_gives_what_npy_gives(tmp_path, kind, sort_atoms):
    data = numbers()
    requests = ALL if kind == "xyz" else (*ALL, labels.HESSIAN)
    (expected,) = open_systems(written(tmp_path, "npy", data), MAP, requests, sort_atoms=sort_atoms)
    (path,) = find_systems([written(tmp_path, kind, data)])
    (found,) = open_systems(path, MAP, requests, sort_atoms=sort_atoms)
    assert (found.natoms, found.nframes, found.pbc, found.mixed) == (5, 4, True, False)
    np.testing.assert_array_equal(found.order, expected.order)
    assert found.type_map == MAP
    for frames in ([0, 1, 2, 3], [3, 0, 0, 2], [1], []):
        a, b = expected.batch(np.array(frames, int), 3), found.batch(np.array(frames, int), 3)
        assert a.found == b.found
        for name in ("coord", "atype", "cell", "frames"):
            np.testing.assert_array_equal(getattr(b, name), getattr(a, name))
        for request in requests:
            assert b.labels[request.name].dtype == a.labels[request.name].dtype
            np.testing.assert_array_equal(b.labels[request.name], a.labels[request.name])
    batch = found.batch(np.array([2]))
    batch.coord[:] = 0
    assert found.batch(np.array([2])).coord.any()


@pytest.mark.parametrize("kind", ["hdf5", "lmdb", "xyz"])
def test_own_types_without_a_map_of_the_model(tmp_path, kind):
    (found,) = open_systems(written(tmp_path, kind), labels=ALL, sort_atoms=False)
    symbols = [found.type_map[t] for t in found.batch(np.array([0])).atype[0]]
    assert symbols == [formats.SYMBOLS[t] for t in TYPES]


def test_formats_mix_and_batches_come_from_all(tmp_path):
    paths = [written(tmp_path, kind) for kind in ("npy", "hdf5", "lmdb", "xyz")]
    data = Dataset.from_config(paths, batch_size=[1, 2, 3, 4], type_map=MAP, labels=ALL)
    assert [system.nframes for system in data.systems] == [4] * 4
    assert [batch.system for batch in iterate(data)] == [0, 1, 2, 3]
    assert data.summary().count("\n") == 7
    sampler = Sampler(data, seed=5)
    first = [sampler.next().coord for _ in range(6)]
    again = Sampler(Dataset.from_config(paths, batch_size=[1, 2, 3, 4], type_map=MAP, labels=ALL), seed=5)
    for coord in first:
        np.testing.assert_array_equal(again.next().coord, coord)


@pytest.mark.parametrize("kind", ["hdf5", "lmdb", "xyz"])
def test_a_restart_notices_other_frames(tmp_path, kind):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    old = Sampler(Dataset.from_config(written(tmp_path / "a", kind), type_map=MAP, labels=ALL), seed=1)
    new = Dataset.from_config(written(tmp_path / "b", kind, numbers(5)), type_map=MAP, labels=ALL)
    with pytest.raises(InputError, match="other systems, frames"):
        Sampler(new, seed=1).restore(old.state())


@pytest.mark.parametrize("kind", ["hdf5", "lmdb"])
def test_a_file_that_changes_later_is_noticed(tmp_path, kind):
    path = written(tmp_path, kind)
    (found,) = open_systems(path, MAP, ALL)
    file = tmp_path / ("a.hdf5" if kind == "hdf5" else "a.lmdb/data.mdb")
    os.utime(file, ns=(1, 1))
    assert open_systems(path, MAP, ALL)[0].batch(np.array([0])).natoms == 5  # opened anew
    from dpmodel.data import columns

    columns._map.cache_clear()
    with pytest.raises(DataError, match="changed while it was in use"):
        found.batch(np.array([0]))


# JAX, where another test imported it, warns of every fork; this child reads a file and ends.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("kind", ["hdf5", "lmdb"])
def test_data_may_be_read_only_and_is_read_by_forked_processes(tmp_path, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    path = written(folder, kind)
    before = {item.relative_to(folder) for item in folder.rglob("*")}
    for item in (folder, *folder.rglob("*")):
        item.chmod(stat.S_IRUSR | (stat.S_IXUSR if item.is_dir() else 0))
    try:
        (found,) = open_systems(path, MAP, ALL)
        expected = found.batch(np.arange(4)).labels["force"]
        child = os.fork()
        if child == 0:
            good = np.array_equal(found.batch(np.arange(4)).labels["force"], expected)
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        np.testing.assert_array_equal(found.batch(np.arange(4)).labels["force"], expected)
        assert {item.relative_to(folder) for item in folder.rglob("*")} == before  # no lock files
    finally:
        for item in (folder, *folder.rglob("*")):
            item.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("kind", ["npy", "hdf5", "lmdb", "xyz"])
def test_a_label_that_nobody_has(tmp_path, kind):
    path = written(tmp_path, kind)
    wanted = LabelRequest(name="dos", shape=(7,), required=True)
    where = {"lmdb": "the key dos in its frames", "xyz": "dos=... in the comment lines"}.get(
        kind, r"dos\.npy in its set"
    )
    with pytest.raises(DataError, match=f"needs the label 'dos'.*{where}"):
        Dataset.from_config(path, type_map=MAP, labels=(wanted,)).require()
    with pytest.raises(DataError, match=r"missing.*'aparam'"):
        open_systems(path, MAP, (labels.aparam(2),))


def test_unknown_symbols_are_named(tmp_path):
    for kind in ("hdf5", "lmdb", "xyz"):
        with pytest.raises(DataError, match="no type H; its type_map is"):
            open_systems(written(tmp_path, kind), ["O", "C"], ALL)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    import sys

    for kind, package, extra in (("lmdb", "lmdb", "lmdb"), ("lmdb", "msgpack", "lmdb"), ("xyz", "ase.io", "ase")):
        path = written(tmp_path, kind) if not (tmp_path / f"a.{kind}").exists() else tmp_path / f"a.{kind}"
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, f"dpmodel.data.{kind}")
            patch.setitem(sys.modules, package, None)
            with pytest.raises((InputError, DataError), match=rf'pip install "dpmodel\[{extra}\]"'):
                open_systems(path, MAP, ALL)


def test_commands_read_every_format(tmp_path, capsys):
    from dpmodel.cli import main

    data = numbers(2)
    paths = [str(written(tmp_path, kind, data)) for kind in ("npy", "hdf5", "lmdb", "xyz")]
    main(["neighbor-stat", "-s", *paths, "-r", "3", "-t", "O", "H"])
    assert "4 systems, 8 frames" in capsys.readouterr().out
    model = Path(__file__).parents[2] / "data" / "golden" / "se_e2_a.dp"
    main(["test", "-m", str(model), "-s", *paths, "--json", str(tmp_path / "out.json"), "--backend", "numpy"])
    report = json.loads((tmp_path / "out.json").read_text())
    errors = [system["errors"] for system in report["systems"]]
    assert len(errors) == 4 and errors[0]["energy"]["rmse"] > 0
    for other in errors[1:]:
        assert other == errors[0]
