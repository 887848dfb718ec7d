"""Datasets: which systems are found, their batch sizes and probabilities, and passes over all frames."""

import json
from pathlib import Path

import numpy as np
import pytest

from dpmodel.data import Dataset, LabelRequest, iterate, labels, statistics_batches, write_system
from dpmodel.data.pairs import too_close
from dpmodel.data.plan import batch_sizes, probabilities, total_batches
from dpmodel.errors import DataError, InputError

WATER = Path(__file__).parents[2] / "examples" / "water" / "data"


def make(path, nframes, natoms, cell=True, **options):
    """A system whose energy is the index of the frame."""
    coord = np.random.default_rng(natoms).random((nframes, natoms, 3)) * 9
    box = 10 * np.eye(3) if cell else None
    return write_system(
        path, coord, np.zeros(natoms, int), box, type_map=["H"], labels={"energy": np.arange(nframes) * 1.0}, **options
    )


@pytest.fixture
def folder(tmp_path):
    """b: 4 frames of 10 atoms; a/deep: 6 of 3; c: 1 of 40, open. In the order of paths: a/deep, b, c."""
    make(tmp_path / "data" / "b", 4, 10)
    make(tmp_path / "data" / "a" / "deep", 6, 3, frames_per_set=4)
    make(tmp_path / "data" / "c", 1, 40, cell=False)
    return tmp_path / "data"


def names(dataset, folder):
    return [str(Path(system.path).relative_to(folder)) for system in dataset.systems]


# --- discovery ------------------------------------------------------------------------------------------


def test_a_folder_is_searched(folder):
    assert names(Dataset.from_config(str(folder)), folder) == ["a/deep", "b", "c"]
    assert names(Dataset.from_config(str(folder / "b")), folder) == ["b"]


def test_a_list_keeps_its_order_and_its_folders_are_searched(folder):
    assert names(Dataset.from_config([str(folder / "c"), folder / "a"]), folder) == ["c", "a/deep"]
    assert names(Dataset.from_config(["c", "b"], base=folder), folder) == ["c", "b"]


def test_patterns_replace_the_search(folder):
    assert names(Dataset.from_config(str(folder), rglob_patterns=["[bc]", "b"]), folder) == ["b", "c"]
    with pytest.raises(DataError, match="matching"):
        Dataset.from_config(str(folder), rglob_patterns=["z*"])
    with pytest.raises(InputError, match="rglob_patterns"):
        Dataset.from_config(str(folder), rglob_patterns=["/b"])


def test_links_are_followed_once(folder):
    (folder / "a" / "up").symlink_to(folder)
    (folder.parent / "link").symlink_to(folder)
    assert len(Dataset.from_config(str(folder.parent / "link")).systems) == 3


def test_a_system_that_is_listed_twice_is_noticed(folder, caplog):
    assert len(Dataset.from_config([folder / "b", folder / "b"]).systems) == 2
    assert "listed twice" in caplog.text


def test_what_is_no_data_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.lmdb").mkdir()
    (tmp_path / "file").touch()
    for entry, message in (
        ("nothing", r"nothing: no such folder"),
        ("empty", r"empty: expected a data system"),
        ("file", "found a file"),
        ("x.lmdb", r"x\.lmdb: expected an LMDB folder"),
        ("x.h5", r"x\.h5: expected an HDF5 file, found no such file"),
        ("x.hdf5#/group", r"x\.hdf5: expected an HDF5 file, found no such file"),
        ("x.xyz", r"x\.xyz: no such file"),
    ):
        for systems in (entry, [str(folder / "b"), entry]):
            with pytest.raises(DataError, match=message):
                Dataset.from_config(systems, base=tmp_path)
    with pytest.raises(DataError, match="empty list"):
        Dataset.from_config([])


# --- batch sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (3, [3, 3, 3]),
        ([1, 2, 3], [1, 2, 3]),
        ("auto", [11, 4, 1]),
        ("auto:30", [10, 3, 1]),
        ("auto:1", [1, 1, 1]),
        ("max:30", [10, 3, 1]),
        ("max:9", [3, 1, 1]),
        ("filter:10", [3, 1, None]),
        ("filter:40", [13, 4, 1]),
        ("mixed:8", [1, 1, 1]),
    ],
)
def test_batch_sizes(form, expected):
    assert batch_sizes(form, [3, 10, 40]) == expected


@pytest.mark.parametrize(
    "form",
    [0, -1, True, 1.5, [1, 2], [1, 2, 0], [1, 2, True], "", "auto:", "auto:0", "max", "some:3", "mixed:0", "mix:8"],
)
def test_bad_batch_sizes(form):
    with pytest.raises(InputError, match="batch_size"):
        batch_sizes(form, [3, 10, 40])


def test_a_filter_leaves_out_systems(folder):
    data = Dataset.from_config(str(folder), batch_size="filter:10", sys_probs=[0.5, 0.25, 0.25])
    assert names(data, folder) == ["a/deep", "b"]
    np.testing.assert_allclose(data.probabilities, [2 / 3, 1 / 3])
    with pytest.raises(DataError, match="leaves no system: the smallest has 3 atoms"):
        Dataset.from_config(str(folder), batch_size="filter:2")


# --- probabilities --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auto_prob", "sys_probs", "expected"),
    [
        ("prob_uniform", None, [0.25, 0.25, 0.25, 0.25]),
        ("prob_sys_size", None, [0.1, 0.2, 0.3, 0.4]),
        ("prob_sys_size;0:2:0.5;2:4:0.5", None, [1 / 6, 1 / 3, 3 / 14, 2 / 7]),
        ("prob_sys_size; 0:2:3 ;-1::1e0", None, [0.25, 0.5, 0.0, 0.25]),
        ("prob_uniform", [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        ("prob_sys_size", [0.4, -1, -3, 0], [0.4, 0.24, 0.36, 0]),
        ("prob_sys_size", [-1, -1, -1, -1], [0.1, 0.2, 0.3, 0.4]),
        ("prob_sys_size", [0.33, 0.33, 0.33, 0], [1 / 3, 1 / 3, 1 / 3, 0]),
    ],
)
def test_probabilities(auto_prob, sys_probs, expected):
    got = probabilities(auto_prob, sys_probs, [1, 2, 3, 4])
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("auto_prob", "sys_probs"),
    [
        ("prob_size", None),
        ("prob_sys_size;", None),
        ("prob_sys_size;0:2", None),
        ("prob_sys_size;0:2:x", None),
        ("prob_sys_size;0:2:-1", None),
        ("prob_sys_size;0:2:nan", None),
        ("prob_sys_size;0:3:1;2:4:1", None),
        ("prob_sys_size;4:9:1", None),
        ("prob_sys_size;0:4:0", None),
        ("prob_uniform;0:4:1", None),
        ("prob_sys_size", [0.5, 0.5]),
        ("prob_sys_size", [0.5, 0.5, 0.5, -1]),
        ("prob_sys_size", [0.1, 0.1, 0.1, 0.1]),
        ("prob_sys_size", [0, 0, 0, 0]),
        ("prob_sys_size", [float("nan"), 1, 0, 0]),
    ],
)
def test_bad_probabilities(auto_prob, sys_probs):
    with pytest.raises(InputError, match=r"auto_prob|sys_probs"):
        probabilities(auto_prob, sys_probs, [1, 2, 3, 4])


def test_systems_that_are_never_drawn_are_named(caplog):
    probabilities("prob_sys_size;1:2:1", None, [1, 1, 1])
    assert "systems [0, 2] are in no block" in caplog.text
    probabilities("prob_sys_size", [1.0, -1], [1, 1])
    assert "nothing is left for systems [1]" in caplog.text


def test_length_of_an_epoch():
    counts = [80, 160, 80, 80]
    assert total_batches(counts, probabilities("prob_sys_size", None, counts)) == 400
    assert total_batches(counts, probabilities("prob_uniform", None, counts)) == 640
    assert total_batches(counts, probabilities("prob_sys_size", [1, 0, 0, 0], counts)) == 80
    assert total_batches([3, 7], probabilities("prob_sys_size", None, [3, 7])) == 10


def test_batches_and_summary(folder):
    data = Dataset.from_config(str(folder), batch_size=4)
    assert data.nframes == 11
    assert data.nbatches() == (2, 1, 1)
    assert data.nbatches(world=2) == (1, 1, 1)
    assert data.total_batches() == 4
    lines = data.summary("validation").splitlines()
    assert "validation" in lines[0]
    assert "3 system(s), 11 frames" in lines[1]
    assert [line.split()[1:] for line in lines[3:6]] == [
        ["3", "4", "2", "5.000e-01", "T"],
        ["10", "4", "1", "2.500e-01", "T"],
        ["40", "4", "1", "2.500e-01", "F"],
    ]
    assert len({len(line) for line in lines[2:]}) == 1


# --- labels ---------------------------------------------------------------------------------------------


def test_a_label_that_no_system_has(folder):
    virial = LabelRequest(name="virial", shape=(9,), required=True)
    data = Dataset.from_config(str(folder), labels=(labels.ENERGY, virial))
    data.require(["energy"])
    with pytest.raises(DataError, match=r"'virial'.*none of the 3 systems has virial\.npy"):
        data.require()
    for folder_ in (folder / "c").glob("set.*"):
        np.save(folder_ / "virial.npy", np.ones((1, 9)))
    data = Dataset.from_config(str(folder), labels=(labels.ENERGY, virial))
    data.require()
    assert data.found("virial") == (0.0, 0.0, 1.0)


# --- passes ---------------------------------------------------------------------------------------------


def test_iterate_shows_every_frame_once_in_order(folder):
    data = Dataset.from_config(str(folder), labels=(labels.ENERGY,))
    batches = list(iterate(data, chunk_atoms=20))
    assert [(b.system, b.frames.tolist()) for b in batches] == [
        (0, [0, 1, 2, 3, 4, 5]),
        (1, [0, 1]),
        (1, [2, 3]),
        (2, [0]),
    ]
    for batch in batches:
        np.testing.assert_array_equal(batch.labels["energy"][:, 0], batch.frames)
    assert [b.nframes for b in iterate(data, max_frames=3)] == [3, 3, 1]
    with pytest.raises(InputError, match="above 0"):
        next(iterate(data, max_frames=0))


def test_statistics_take_frames_from_everywhere(folder):
    data = Dataset.from_config(str(folder), batch_size=2)
    assert [(b.system, b.frames.tolist()) for b in statistics_batches(data, 1)] == [(0, [0, 3]), (1, [0, 2]), (2, [0])]
    every = [(b.system, b.frames.tolist()) for b in statistics_batches(data, 10)]
    assert every == [(0, [0, 1]), (0, [2, 3]), (0, [4, 5]), (1, [0, 1]), (1, [2, 3]), (2, [0])]
    with pytest.raises(InputError, match="data_stat_nbatch"):
        next(statistics_batches(data, 0))


# --- min_pair_dist, numb_copy ---------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [None, 3.0 * np.eye(3), np.array([[4.0, 0, 0], [3.5, 1.2, 0], [0.3, -0.2, 3.0]])])
def test_close_pairs_against_all_images(tmp_path, cell):
    rng = np.random.default_rng(3)
    coord = rng.normal(size=(30, 5, 3)) * 3
    data = Dataset.from_config(write_system(tmp_path / "s", coord, np.zeros(5, int), cell))
    shifts = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3), -1).reshape(-1, 3) if cell is not None else np.zeros((1, 3))
    vector = coord[:, :, None, None] - coord[:, None, :, None] + (shifts @ (np.eye(3) if cell is None else cell))
    length = np.linalg.norm(vector, axis=-1)
    length[:, np.arange(5), np.arange(5), np.flatnonzero(~shifts.any(1))[0]] = np.inf
    nearest = length.min(axis=(1, 2, 3))
    for distance in (*np.quantile(nearest, [0.0, 0.3, 0.7]) * (1 + 1e-9), 3.2):
        np.testing.assert_array_equal(too_close(data.systems[0], distance), nearest < distance)


def test_too_close_frames_are_left_out_of_training(tmp_path, caplog):
    coord = np.zeros((4, 2, 3))
    coord[:, 1, 0] = [1.0, 0.1, 9.8, 2.0]
    path = write_system(tmp_path / "s", coord, np.zeros(2, int), 10 * np.eye(3))
    data = Dataset.from_config(path, min_pair_dist=0.5, batch_size=1)
    assert data.frames[0].tolist() == [0, 3]
    assert data.nbatches() == (2,)
    assert "left out 2 frames" in caplog.text
    assert sum(b.nframes for b in iterate(data)) == 4
    assert [b.frames.tolist() for b in statistics_batches(data, 9)] == [[0], [3]]
    with pytest.raises(DataError, match="every frame"):
        Dataset.from_config(path, min_pair_dist=5.5)


def test_copies_count_in_training_only(folder):
    np.save(folder / "b" / "set.000" / "numb_copy.npy", np.array([1, 0, 2, 1]))
    data = Dataset.from_config(str(folder / "b"), batch_size=1)
    assert data.frames[0].tolist() == [0, 2, 2, 3]
    assert sum(b.nframes for b in iterate(data)) == 4


def test_water():
    data = Dataset.from_config(str(WATER), type_map=["O", "H"], labels=labels.STANDARD_LABELS, batch_size=1)
    assert data.nbatches() == (80, 160, 80, 80)
    assert data.total_batches() == 400
    assert json.dumps(data.probabilities.tolist()) == "[0.2, 0.4, 0.2, 0.2]"
