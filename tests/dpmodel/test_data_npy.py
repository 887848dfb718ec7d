"""Systems of npy files: what is read, in which order, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dpmodel.data import LabelRequest, NpySystem, labels, write_system
from dpmodel.errors import DataError
from dpmodel.losses.base import Label

WATER = Path(__file__).parents[2] / "examples" / "water" / "data"
TYPES = np.array([1, 0, 1, 0, 1])
ALL = (labels.ENERGY, labels.FORCE, labels.VIRIAL, labels.ATOM_PREF, labels.HESSIAN, labels.drdq(2), labels.aparam(2))


def arrays(nframes=4, natoms=5, seed=0):
    """Labels whose numbers are all different."""
    rng = np.random.default_rng(seed)
    return {
        "energy": rng.normal(size=nframes),
        "force": rng.normal(size=(nframes, natoms, 3)),
        "atom_pref": rng.random((nframes, natoms)),
        "hessian": rng.normal(size=(nframes, 3 * natoms, 3 * natoms)),
        "drdq": rng.normal(size=(nframes, natoms, 3, 2)),
        "aparam": rng.normal(size=(nframes, natoms, 2)),
    }


@pytest.fixture
def system(tmp_path):
    """A periodic system in three sets of 2, 2 and 1 frames, and what was written."""
    data = arrays(5)
    data["coord"] = np.random.default_rng(1).random((5, 5, 3))
    data["cell"] = np.eye(3) * np.arange(5, 10)[:, None, None]
    extra = {k: v for k, v in data.items() if k not in ("coord", "cell")}
    path = write_system(
        tmp_path / "s", data["coord"], TYPES, data["cell"], type_map=["H", "O"], labels=extra, frames_per_set=2
    )
    return path, data


def test_everything_follows_the_atoms_when_they_are_sorted(system):
    path, data = system
    opened = NpySystem.open(path, ["X", "O", "H"], ALL)  # H and O have changed places
    assert (opened.natoms, opened.nframes, opened.pbc, opened.mixed) == (5, 5, True, False)
    order = np.array([0, 2, 4, 1, 3])  # types are O H O H O, so as the model counts 1 2 1 2 1
    np.testing.assert_array_equal(opened.order, order)
    frames = np.array([4, 0, 3])
    batch = opened.batch(frames, 7)
    assert batch.system == 7
    np.testing.assert_array_equal(batch.frames, frames)
    np.testing.assert_array_equal(batch.atype, [[1, 1, 1, 2, 2]] * 3)
    np.testing.assert_array_equal(batch.coord, data["coord"][frames][:, order])
    np.testing.assert_array_equal(batch.cell, data["cell"][frames])
    np.testing.assert_array_equal(batch.labels["energy"], data["energy"][frames, None])
    np.testing.assert_array_equal(batch.labels["force"], data["force"][frames][:, order])
    weights = data["atom_pref"][frames][:, order, None]
    np.testing.assert_array_equal(batch.labels["atom_pref"], np.broadcast_to(weights, (3, 5, 3)))
    np.testing.assert_array_equal(batch.labels["drdq"], data["drdq"][frames][:, order])
    hessian = data["hessian"][frames].reshape(3, 5, 3, 5, 3)[:, order][:, :, :, order]
    np.testing.assert_array_equal(batch.labels["hessian"], hessian.reshape(3, 15, 15))
    np.testing.assert_array_equal(batch.labels["virial"], np.zeros((3, 9)))
    assert batch.found == {r.name: float(r.name != "virial") for r in ALL}


def test_tests_keep_the_order_of_the_files(system):
    path, data = system
    batch = NpySystem.open(path, ["H", "O"], ALL, sort_atoms=False).batch(np.arange(5))
    np.testing.assert_array_equal(batch.atype[0], TYPES)
    np.testing.assert_array_equal(batch.coord, data["coord"])
    np.testing.assert_array_equal(batch.labels["hessian"], data["hessian"])


def test_a_batch_is_a_copy(system):
    path, data = system
    opened = NpySystem.open(path, labels=ALL)
    for array in (opened.batch(np.array([0])).coord, opened.batch(np.array([0])).atype):
        array[:] = 9
    np.testing.assert_array_equal(opened.batch(np.array([0])).coord, data["coord"][:1][:, opened.order])
    assert opened.batch(np.array([0])).atype.max() == 1
    with pytest.raises(IndexError, match="0 to 4"):
        opened.batch(np.array([5]))


def test_numbers_are_kept_without_a_type_map(tmp_path):
    path = write_system(tmp_path / "s", np.ones((1, 2, 3)) * [[[1], [2]]], np.array([1, 0]))
    assert NpySystem.open(path, ["A", "B"]).batch(np.array([0])).atype.tolist() == [[0, 1]]
    assert NpySystem.open(path).type_map is None
    with pytest.raises(DataError, match=r"type\.raw: expected types 0 to 0.*type_map.*found 1"):
        NpySystem.open(path, ["A"])


def test_open_boundaries_win_over_a_box(system):
    path, _ = system
    (path / "nopbc").touch()
    (path / "set.000" / "box.npy").unlink()
    batch = NpySystem.open(path).batch(np.array([0]))
    assert batch.cell is None
    assert not batch.pbc


def test_precision_follows_the_interface(system, monkeypatch):
    path, _ = system
    monkeypatch.setenv("DP_INTERFACE_PREC", "low")
    batch = NpySystem.open(path, labels=ALL).batch(np.array([0]))
    assert batch.labels["energy"].dtype == batch.coord.dtype == np.float64
    assert batch.labels["force"].dtype == batch.labels["virial"].dtype == np.float32


def test_other_layouts_of_the_same_numbers(system):
    path, data = system
    for file in path.glob("set.*/*.npy"):
        array = np.load(file)
        if file.stem in ("coord", "force", "box"):
            np.save(file, np.asfortranarray(array.reshape(len(array), -1, 3)).astype(">f8"))
        if file.stem == "energy":
            np.save(file, array[:, None])
    batch = NpySystem.open(path, labels=ALL, sort_atoms=False).batch(np.arange(5))
    np.testing.assert_array_equal(batch.coord, data["coord"])
    np.testing.assert_array_equal(batch.cell, data["cell"])
    np.testing.assert_array_equal(batch.labels["energy"], data["energy"][:, None])


def test_atomic_labels_have_two_spellings(system):
    path, data = system
    request = LabelRequest(name="atom_pref", shape=(3,), atomic=True, repeat=3)
    assert request.files == ("atom_pref.npy", "atomic_pref.npy")
    for folder in path.glob("set.*"):
        (folder / "atom_pref.npy").rename(folder / "atomic_pref.npy")
    opened = NpySystem.open(path, labels=(request,), sort_atoms=False)
    np.testing.assert_array_equal(opened.batch(np.arange(5)).labels["atom_pref"][:, :, 1], data["atom_pref"])


def test_the_losss_own_description_is_understood(system):
    path, data = system
    label = Label(name="force", shape=(3,), atomic=True, required=True)
    batch = NpySystem.open(path, labels=(label,), sort_atoms=False).batch(np.array([2]))
    np.testing.assert_array_equal(batch.labels["force"], data["force"][2:3])


def test_default_values(system):
    path, _ = system
    requests = (labels.fparam(2, (0.5, -1.0)), labels.ATOM_ENER_COEFF)
    batch = NpySystem.open(path, labels=requests).batch(np.arange(2))
    np.testing.assert_array_equal(batch.labels["fparam"], [[0.5, -1.0]] * 2)
    np.testing.assert_array_equal(batch.labels["atom_ener_coeff"], np.ones((2, 5, 1)))
    assert batch.found == {"fparam": 0.0, "atom_ener_coeff": 0.0}
    with pytest.raises(DataError, match=r"fparam\.npy: this file is missing.*'fparam'"):
        NpySystem.open(path, labels=(labels.fparam(2),))
    for wrong in (
        {"shape": (3,), "repeat": 2},
        {"shape": ()},
        {"default": (1.0, 2.0)},
        {"square": True, "atomic": True},
    ):
        with pytest.raises(ValueError, match="'x'"):
            LabelRequest(name="x", **wrong)


def test_mixed_types(tmp_path):
    kinds = np.array([[0, 1, 2, -1], [2, 2, 0, 0]])
    coord = np.random.default_rng(0).random((2, 4, 3))
    path = write_system(tmp_path / "s", coord, kinds, type_map=["C", "H", "O"])
    opened = NpySystem.open(path, ["O", "H", "C"])
    assert opened.mixed
    batch = opened.batch(np.array([1, 0]))
    np.testing.assert_array_equal(batch.atype, [[0, 0, 2, 2], [2, 1, 0, -1]])
    np.testing.assert_array_equal(batch.coord, coord[::-1])
    file = path / "set.000" / "real_atom_types.npy"
    for bad, message in (([[0, 1, 3, 0], [0, 0, 0, 0]], "found 3"), ([[-1] * 4, [0] * 4], "in frame 0")):
        np.save(file, np.array(bad))
        with pytest.raises(DataError, match=message):
            NpySystem.open(path)
    np.save(file, kinds + 0.5)
    with pytest.raises(DataError, match="integers"):
        NpySystem.open(path)
    np.save(file, kinds)
    (path / "type_map.raw").unlink()
    with pytest.raises(DataError, match=r"type_map\.raw: this file is missing"):
        NpySystem.open(path)


def test_numb_copy_is_read(system):
    path, _ = system
    for k, copies in enumerate(([1, 2], [0, 1], [3])):
        np.save(path / f"set.00{k}" / "numb_copy.npy", np.array(copies))
    np.testing.assert_array_equal(NpySystem.open(path).copies, [1, 2, 0, 1, 3])
    np.save(path / "set.002" / "numb_copy.npy", np.array([-1]))
    with pytest.raises(DataError, match=r"numb_copy\.npy"):
        NpySystem.open(path)


def change(name, edit):
    """A damage that replaces an array of the first set."""

    def damage(path):
        file = path / "set.000" / f"{name}.npy"
        array = np.load(file)
        result = edit(array)
        np.save(file, array if result is None else result)

    return damage


def put(name, index, value):
    return change(name, lambda array: array.__setitem__(index, value))


def shorten(path):
    file = path / "set.001" / "force.npy"
    file.write_bytes(file.read_bytes()[:-8])


def archive(path):
    with (path / "set.000" / "force.npy").open("wb") as stream:
        np.savez(stream, force=np.zeros((2, 15)))


def remove(pattern):
    def damage(path):
        for item in list(path.glob(pattern)):
            shutil.rmtree(item) if item.is_dir() else item.unlink()

    return damage


def text(name, content):
    return lambda path: (path / name).write_bytes(content)


DAMAGES = {
    "no type.raw": (remove("type.raw"), r"expected a data system.*type\.raw"),
    "types that are words": (text("type.raw", b"0 1 H"), r"type\.raw: expected integers"),
    "types that are bytes": (text("type.raw", b"\xff\xfe"), r"type\.raw: expected a readable text"),
    "huge types": (text("type.raw", b"99999999999999999999"), r"type\.raw: expected integers"),
    "no atoms": (text("type.raw", b" \n"), "at least one atom"),
    "other number of atoms": (text("type.raw", b"0 1 1"), r"coord\.npy: expected shape frames x 9 .*found 2 x 15"),
    "negative type": (text("type.raw", b"0 1 1 0 -1"), r"type\.raw: expected types 0 to 1.*found -1"),
    "type outside the map": (text("type.raw", b"0 1 1 0 2"), r"type\.raw: expected types 0 to 1.*found 2"),
    "unknown symbol": (text("type_map.raw", b"H Zz"), r"type_map\.raw: the model has no type Zz.*\['O', 'H'\]"),
    "symbol twice": (text("type_map.raw", b"H H"), "H twice"),
    "no sets": (remove("set.*"), r"expected folders set\.\*"),
    "no coord": (remove("set.001/coord.npy"), r"set\.001/coord\.npy: this file is missing"),
    "no box": (remove("set.*/box.npy"), r"box\.npy: this file is missing.*nopbc"),
    "label in some sets": (
        remove("set.002/force.npy"),
        r"set\.002/force\.npy: this file is missing, although .*set\.000",
    ),
    "short file": (shorten, r"set\.001/force\.npy: expected a complete npy file"),
    "empty file": (text("set.000/force.npy", b""), r"force\.npy: expected a complete npy file"),
    "short header": (text("set.000/force.npy", b"\x93NUMPY\x01\x00v\x00{'de"), r"force\.npy: expected a complete npy"),
    "bad header": (
        text("set.000/coord.npy", b"\x93NUMPY\x01\x00\x06\x00{'de(\n"),
        r"coord\.npy: expected a complete npy",
    ),
    "not npy": (text("set.000/coord.npy", b"1.0 2.0 3.0\n" * 9), r"coord\.npy: expected a complete npy"),
    "objects": (
        change("energy", lambda a: np.array([None] * len(a), dtype=object)),
        r"energy\.npy: expected a complete npy",
    ),
    "begins as a zip archive": (
        text("set.000/force.npy", b"PK\x03\x04 no archive"),
        r"force\.npy: expected a complete",
    ),
    "an archive of arrays": (archive, r"force\.npy: expected a complete npy"),
    "words": (change("energy", lambda a: np.array(["a"] * len(a))), r"energy\.npy: expected an npy file of numbers"),
    "no frames": (change("coord", lambda a: a[:0]), "at least one frame"),
    "frames differ": (change("force", lambda a: a[:1]), r"force\.npy: expected shape 2 x 15 .*found 1 x 15"),
    "box too small": (change("box", lambda a: a[:, :6]), r"box\.npy: expected shape 2 x 9 .*found 2 x 6"),
    "scalar": (change("energy", lambda _: np.float64(1.0)), r"energy\.npy: expected shape 2 x 1 .*a single number"),
    "transposed": (change("force", lambda a: a.reshape(2, 5, 3).transpose(0, 2, 1)), r"force\.npy: .*found 2 x 3 x 5"),
    "NaN in coord": (put("coord", (1, 4), np.nan), r"coord\.npy: expected finite.*nan in frame 1 \(number 4 of 15\)"),
    "inf in force": (put("force", (0, 3), np.inf), r"force\.npy: expected finite.*inf in frame 0"),
    "NaN energy": (put("energy", 1, np.nan), r"energy\.npy: expected finite"),
    "inf in box": (put("box", (1, 0), -np.inf), r"box\.npy: expected finite"),
    "flat cell": (put("box", (1, slice(3, 6)), [6.0, 0, 0]), r"box\.npy: expected cells with a volume.*frame 1"),
    "zero cell": (put("box", 0, 0.0), r"box\.npy: expected cells with a volume.*nopbc"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named(system, case):
    path, _ = system
    opened = NpySystem.open(path, ["O", "H"], ALL)
    damage, message = DAMAGES[case]
    damage(path)
    with pytest.raises(DataError, match=message) as caught:
        NpySystem.open(path, ["O", "H"], ALL)
    assert str(path) in str(caught.value)
    assert opened.nframes == 5


def test_numbers_whose_sum_overflows_are_still_numbers(system):
    path, _ = system
    put("force", (0, slice(0, 2)), 1.7e308)(path)
    assert NpySystem.open(path, labels=ALL).nframes == 5


def test_a_byte_order_mark_is_no_text(system):
    path, _ = system
    plain = NpySystem.open(path, ["O", "H"]).batch(np.array([0]))
    for name in ("type.raw", "type_map.raw"):
        (path / name).write_bytes(b"\xef\xbb\xbf" + (path / name).read_bytes())
    marked = NpySystem.open(path, ["O", "H"]).batch(np.array([0]))
    np.testing.assert_array_equal(marked.atype, plain.atype)


def test_left_handed_and_small_cells_are_cells(system):
    path, _ = system
    put("box", 0, (-1e-3 * np.eye(3)).reshape(-1))(path)
    assert NpySystem.open(path, labels=ALL).nframes == 5


def test_a_file_that_changes_later_is_noticed(system):
    path, _ = system
    opened = NpySystem.open(path)
    file = path / "set.000" / "coord.npy"
    np.save(file, np.load(file) + 1)
    assert NpySystem.open(path).batch(np.array([0])).coord.min() >= 1  # opened anew, it is read anew
    from dpmodel.data import columns

    columns._map.cache_clear()
    with pytest.raises(DataError, match="changed while it was in use"):
        opened.batch(np.array([0]))


def test_the_writer_overwrites_nothing_and_checks_shapes(tmp_path):
    coord = np.zeros((2, 3, 3))
    with pytest.raises(DataError, match="coord of shape"):
        write_system(tmp_path / "a", coord[0], np.zeros(3, int))
    with pytest.raises(DataError, match="integer atype"):
        write_system(tmp_path / "a", coord, np.zeros(2, int))
    with pytest.raises(DataError, match="2 frames of 'energy'"):
        write_system(tmp_path / "a", coord, np.zeros(3, int), labels={"energy": np.zeros(3)})
    assert not (tmp_path / "a").exists()
    write_system(tmp_path / "a", coord, np.zeros(3, int))
    with pytest.raises(DataError, match="already"):
        write_system(tmp_path / "a", coord, np.zeros(3, int))


def test_water():
    opened = NpySystem.open(WATER / "data_1", ["O", "H"], labels.STANDARD_LABELS)
    assert (opened.natoms, opened.nframes, opened.pbc) == (192, 160, True)
    assert opened.found == {"energy": 1, "force": 1, "virial": 0, "atom_ener": 0, "atom_pref": 0}
    batch = opened.batch(np.array([159, 0]))
    assert np.bincount(batch.atype[0]).tolist() == [64, 128]
    kinds = np.loadtxt(WATER / "data_1" / "type.raw", dtype=int)
    np.testing.assert_array_equal(opened.order, np.concatenate([np.flatnonzero(kinds == t) for t in (0, 1)]))
    last = np.load(WATER / "data_1" / "set.001" / "force.npy")[-1].reshape(192, 3)
    np.testing.assert_array_equal(batch.labels["force"][0], last[opened.order].astype(np.float64))


@pytest.mark.parametrize("sort_atoms", [True, False])
def test_labels_of_selected_types_alone(tmp_path, sort_atoms):
    """Old data of dipoles: numbers of the atoms that have one, in the order of the file."""
    values = np.arange(3 * 2 * 3.0).reshape(3, 6) + 1.0
    path = write_system(tmp_path / "s", np.random.default_rng(0).random((3, 5, 3)), TYPES, None, type_map=["H", "O"])
    np.save(path / "set.000" / "atomic_dipole.npy", values)
    request = LabelRequest(name="atom_dipole", shape=(3,), atomic=True)
    chosen = labels.of_included(request, 3, (0, 2))
    assert chosen.selected == (1,) and labels.of_included(request, 3, ()) == request
    for refused in (request, labels.of_included(request, 3, (0, 1))):  # of all atoms; of the three of O
        with pytest.raises(DataError, match=r"expected shape 3 x 15 .*15 numbers for 5 atoms.*\), found 3 x 6"):
            NpySystem.open(path, ["X", "H", "O"], [refused])
    # The two atoms of type 0 of the file are H: type 1 of this model.
    system = NpySystem.open(path, ["X", "H", "O"], [chosen], sort_atoms=sort_atoms)
    found = system.batch(np.array([2, 0])).labels["atom_dipole"]
    whole = np.zeros((3, 5, 3))
    whole[:, [1, 3]] = values.reshape(3, 2, 3)
    np.testing.assert_array_equal(found, whole[[2, 0]][:, system.order])
    np.save(path / "set.000" / "atom_dipole.npy", 2.0 * values)  # the first spelling counts
    both = NpySystem.open(path, ["X", "H", "O"], [chosen], sort_atoms=False).batch(np.array([0]))
    np.testing.assert_array_equal(both.labels["atom_dipole"][0], 2.0 * whole[0])
    (path / "set.000" / "atom_dipole.npy").unlink()
    np.save(path / "set.000" / "atomic_dipole.npy", np.full((3, 6), np.nan))
    with pytest.raises(DataError, match="expected finite numbers"):
        NpySystem.open(path, ["X", "H", "O"], [chosen])


def test_tensors_of_atoms_in_rows(tmp_path):
    values = np.random.default_rng(0).random((3, 5, 9))
    path = write_system(tmp_path / "s", np.random.default_rng(0).random((3, 5, 3)), TYPES, None, type_map=["H", "O"])
    np.save(path / "set.000" / "atom_polarizability.npy", values)
    request = LabelRequest(name="atom_polarizability", shape=(3, 3), atomic=True)
    batch = NpySystem.open(path, None, [request], sort_atoms=False).batch(np.arange(3))
    np.testing.assert_array_equal(batch.labels[request.name], values.reshape(3, 5, 3, 3))
