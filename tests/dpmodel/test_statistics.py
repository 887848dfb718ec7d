"""Statistics against loops, and the cache against kills, damage and foreign writers."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.errors import DataError, InputError
from dpmodel.graph import Graph, Slots
from dpmodel.statistics import (
    StatItem,
    atomic_bias,
    common_bias,
    environment_items,
    environment_mean_and_deviation,
    frame_bias,
    mean_and_inverse_deviation,
    merge_bias,
    parameter_items,
    type_counts,
    without_prediction,
)
from dpmodel.statistics.cache import ELEMENTS, MARKER, StatCache
from dpmodel.statistics.environment import environment_key

# --- items --------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), max_size=4))
def test_items_add_like_lists(parts: list[list[float]]) -> None:
    item = sum((StatItem.of(part) for part in parts), StatItem())
    flat = [x for part in parts for x in part]
    assert item.number == len(flat)
    np.testing.assert_allclose(item.avg(), np.mean(flat) if flat else 0.0, atol=1e-9)
    expected = max(float(np.std(flat)), 1e-2) if flat else 0.1
    np.testing.assert_allclose(item.std(), expected, rtol=1e-6, atol=1e-4)


def test_deviation_rules() -> None:
    assert StatItem().avg() == 0.0 and StatItem().std() == 0.1 and StatItem().std(default=3.0) == 3.0
    assert StatItem.of([2.0, 2.0]).std() == 1e-2 and StatItem.of([2.0, 2.0]).std(protection=0.5) == 0.5
    assert StatItem.of([1.0, 3.0]).std() == 1.0
    # Round-off can make q/n - (s/n)^2 negative.
    assert StatItem(3.0, 3e8, 3e16 - 64).std() == 1e-2
    np.testing.assert_array_equal(StatItem.of([[1.0], [3.0]]).as_array(), [2.0, 4.0, 10.0])


# --- environment --------------------------------------------------------------------------------------

RCUT, RCUT_SMTH = 3.0, 1.0


def make_graph(coord: np.ndarray, atype: np.ndarray, sel: tuple[int, ...], typed: bool, padding: int = 0) -> Graph:
    """One open frame: all pairs of real atoms within the cutoff, nearest first, truncated as the model asks."""
    n, centre, neighbour, vec = len(atype), [], [], []
    slots: list[list[int]] = []
    for i in range(n):
        pairs = [(np.linalg.norm(coord[j] - coord[i]), j) for j in range(n) if j != i and atype[i] >= 0 <= atype[j]]
        mine = []
        for r, j in sorted(pairs)[: sum(sel)]:
            if r <= RCUT:
                mine.append(len(centre))
                centre.append(i)
                neighbour.append(j)
                vec.append(coord[j] - coord[i])
        slots.append(mine)
    tables = []
    for t in range(len(sel)) if typed else [None]:
        rows = [[e for e in mine if t is None or atype[neighbour[e]] == t] for mine in slots]
        rows = [row[: sel[0 if t is None else t]] for row in rows]
        width = max((len(row) for row in rows), default=0)
        edge = np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int64).reshape(n, width)
        mask = np.array([[True] * len(row) + [False] * (width - len(row)) for row in rows], bool).reshape(n, width)
        tables.append(Slots(edge=edge, mask=mask))
    return Graph(
        atype=atype, frame=np.zeros(n, np.int64), natoms=np.array([np.sum(atype >= 0)]),
        centre=np.array(centre + [0] * padding, np.int64), neighbour=np.array(neighbour + [0] * padding, np.int64),
        edge_vec=np.array(vec + [[1.0, 0.0, 0.0]] * padding, float).reshape(-1, 3),
        edge_mask=np.array([True] * len(centre) + [False] * padding, bool),
        views=(None, tuple(tables) if typed else tables[0]),
    )  # fmt: skip


def entries(vec: np.ndarray, protection: float) -> list[float]:
    r = math.sqrt(sum(x * x for x in vec))
    u = (min(max(r, RCUT_SMTH), RCUT) - RCUT_SMTH) / (RCUT - RCUT_SMTH)
    w = 1 - 6 * u**5 + 15 * u**4 - 10 * u**3
    return [w / (r + protection), *(w * x / (r + protection) ** 2 for x in vec)]


@pytest.mark.parametrize("radial_only", [False, True])
@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("exclude", [(), ((0, 1),), ((1, 1), (1, 0))])
@pytest.mark.parametrize("protection", [0.0, 0.3])
def test_environment_equals_loops(
    radial_only: bool, typed: bool, exclude: tuple[tuple[int, int], ...], protection: float
) -> None:
    rng, ntypes = np.random.default_rng(3), 3
    sel = (3, 2, 4) if typed else (5,)
    graphs = []
    for size, padding in ((7, 0), (1, 2), (0, 0), (9, 3)):
        atype = rng.integers(-1, 2, size)  # type 2 never occurs
        graphs.append(make_graph(rng.uniform(0, 4, (size, 3)), atype, sel, typed, padding))
    items = environment_items(
        iter(graphs), 1, rcut=RCUT, rcut_smth=RCUT_SMTH, sel=sel, ntypes=ntypes, protection=protection,
        exclude_types=exclude, radial_only=radial_only,
    )  # fmt: skip
    davg, dstd = environment_mean_and_deviation(items, ntypes, radial_only=radial_only)
    assert davg.shape == dstd.shape == (ntypes, 1 if radial_only else 4)
    for t in range(ntypes):
        values: list[list[float]] = []
        for graph in graphs:
            tables = graph.views[1] if typed else (graph.views[1],)
            for i in np.flatnonzero(graph.atype == t):
                found = [int(e) for table in tables for e, m in zip(table.edge[i], table.mask[i], strict=True) if m]
                for e in found:
                    pair = (t, int(graph.atype[graph.neighbour[e]]))
                    excluded = pair in exclude or pair[::-1] in exclude
                    values.append([0.0] * 4 if excluded else entries(graph.edge_vec[e], protection))
                values += [[0.0] * 4] * (sum(sel) - len(found))
        table = np.array(values).reshape(-1, 4)
        radial, angular = table[:, 0], table[:, 1:].ravel()
        assert items[f"r_{t}"].number == len(radial)
        np.testing.assert_allclose(davg[t, 0], radial.mean() if len(radial) else 0.0, rtol=1e-12)
        np.testing.assert_allclose(dstd[t, 0], max(radial.std(), 1e-2) if len(radial) else 0.1, rtol=1e-10)
        if not radial_only:
            assert items[f"a_{t}"].number == len(angular)
            assert np.all(davg[t, 1:] == 0.0)
            np.testing.assert_allclose(dstd[t, 1:], max(angular.std(), 1e-2) if len(angular) else 0.1, rtol=1e-10)
    assert set(items) == {f"{kind}_{t}" for kind in ("r" if radial_only else "ra") for t in range(ntypes)}


def test_environment_refuses_an_overfull_view() -> None:
    graph = make_graph(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.zeros(3, np.int64), (2,), False)
    with pytest.raises(ValueError, match="more than sum"):
        environment_items([graph], 1, rcut=RCUT, rcut_smth=RCUT_SMTH, sel=(1,), ntypes=1)


# --- output bias --------------------------------------------------------------------------------------


def test_bias_recovers_linear_labels() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, (20, 3)).astype(float)
    truth = np.array([[-3.0, 1.0], [2.0, 0.5], [10.0, -4.0]])
    noise = rng.normal(size=(20, 2))
    bias, deviation = frame_bias(counts @ truth, counts)
    np.testing.assert_allclose(bias, truth, atol=1e-12)
    np.testing.assert_allclose(deviation, 0.0, atol=1e-12)
    bias, deviation = frame_bias(counts @ truth + noise, counts)
    normal = np.linalg.solve(counts.T @ counts, counts.T @ (counts @ truth + noise))
    np.testing.assert_allclose(bias, normal, rtol=1e-10)
    residual = counts @ truth + noise - counts @ normal
    expected = np.sqrt(np.mean((residual - residual.mean(axis=0)) ** 2, axis=0))
    np.testing.assert_allclose(deviation, np.stack([expected] * 3), rtol=1e-10)


def test_bias_of_one_composition_has_minimum_norm() -> None:
    """Water only: one equation, two unknowns, and a type that never occurs."""
    bias, deviation = frame_bias([[-30.0], [-36.0]], [[1.0, 2.0, 0.0]] * 2)
    np.testing.assert_allclose(bias[:, 0], np.array([1.0, 2.0, 0.0]) * (-33.0 / 5.0), atol=1e-12)
    np.testing.assert_allclose(deviation, 3.0)


def test_preset_and_excluded_types() -> None:
    counts = np.array([[1.0, 2.0, 1.0], [3.0, 1.0, 2.0], [2.0, 2.0, 5.0]])
    labels = counts @ np.array([[1.0], [7.0], [0.0]])
    bias, deviation = frame_bias(labels, counts, preset=[None, (7.0,), None], exclude_types=[2])
    np.testing.assert_allclose(bias[:, 0], [1.0, 7.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(deviation, 0.0, atol=1e-12)
    bias, _ = frame_bias(labels, counts, preset=[None, 7.0, math.nan], exclude_types=[2])
    np.testing.assert_allclose(bias[:, 0], [1.0, 7.0, 0.0], atol=1e-12)
    bias, _ = frame_bias(labels, counts, preset=[None, None, 5.0], exclude_types=[2])
    np.testing.assert_allclose(bias[:, 0], [1.0, 7.0, 5.0], atol=1e-12)
    assert counts[0, 2] == 1.0, "the caller's counts are left alone"


def test_intensive_labels() -> None:
    counts = np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0], [0.0, 0.0]])
    labels = np.array([[0.25 * 4 + 0.75 * 8], [6.0], [8.0], [0.0]])
    bias, _ = frame_bias(labels, counts, intensive=True)
    np.testing.assert_allclose(bias[:, 0], [4.0, 8.0], atol=1e-12)


def test_common_bias() -> None:
    counts = np.array([[1.0, 3.0], [2.0, 0.0]])
    bias, deviation = common_bias([[8.0], [12.0]], counts, intensive=False)
    np.testing.assert_allclose((bias, deviation), ([[4.0]] * 2, [[2.0]] * 2))
    bias, deviation = common_bias([[8.0], [12.0]], counts, intensive=True)
    np.testing.assert_allclose((bias, deviation), ([[10.0]] * 2, [[2.0]] * 2))
    # Atoms that contribute nothing are not counted; a frame of those alone says nothing.
    bias, deviation = common_bias([[8.0], [12.0]], counts, exclude_types=(0,), intensive=False)
    np.testing.assert_allclose((bias, deviation), ([[8.0 / 3.0]] * 2, [[0.0]] * 2))


def test_atomic_labels_and_merging() -> None:
    labels = np.array([[1.0], [3.0], [10.0], [math.nan]])
    atomic = atomic_bias(labels, [0, 0, 2, -1], 4)
    np.testing.assert_array_equal(atomic[0][:, 0], [2.0, math.nan, 10.0, math.nan])
    np.testing.assert_array_equal(atomic[1][:, 0], [1.0, math.nan, 0.0, math.nan])
    frames = (np.array([[9.0], [8.0], [7.0], [6.0]]), np.full((4, 1), 0.5))
    merged = merge_bias(atomic, frames)
    np.testing.assert_array_equal(merged[0][:, 0], [2.0, 8.0, 10.0, 6.0])
    np.testing.assert_array_equal(merged[1][:, 0], [1.0, 0.5, 0.0, 0.5])
    alone = merge_bias(atomic, None)
    np.testing.assert_array_equal(alone[0][:, 0], [2.0, 0.0, 10.0, 0.0])
    np.testing.assert_array_equal(alone[1][:, 0], [1.0, 1.0, 0.0, 1.0])
    assert merge_bias(None, frames) is frames
    with pytest.raises(DataError, match="at least one system"):
        merge_bias(None, None)


def test_change_by_statistic_moves_predictions_onto_labels() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 5, (10, 2)).astype(float)
    labels, prediction = counts @ np.array([[3.0], [-1.0]]), counts @ np.array([[2.5], [0.5]])
    bias, deviation = frame_bias(without_prediction(labels, prediction), counts)
    np.testing.assert_allclose(prediction + counts @ bias, labels, atol=1e-12)
    np.testing.assert_allclose(deviation, 0.0, atol=1e-12)
    with pytest.raises(DataError, match="do not fit predictions"):
        without_prediction(labels, prediction[:3])


def test_type_counts_leave_virtual_atoms_out() -> None:
    counts = type_counts([0, 1, 1, -1, 2, -1], [0, 0, 0, 0, 1, 2], 3, 3)
    np.testing.assert_array_equal(counts, [[1, 2, 0], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("labels", "counts", "preset", "words"),
    [
        ([[math.nan]], [[1.0]], None, "NaN"),
        (np.zeros((0, 1)), np.zeros((0, 2)), None, "at least one frame"),
        ([[1.0], [2.0]], [[1.0]], None, "do not fit"),
        ([[1.0]], [[1.0, 1.0]], [None], "one entry per type"),
        ([[1.0]], [[1.0]], [(1.0, 2.0)], "expected 1 numbers"),
    ],
)
def test_bad_labels(labels: Any, counts: Any, preset: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        frame_bias(labels, counts, preset=preset)


def test_bad_atomic_labels() -> None:
    with pytest.raises(DataError, match="NaN"):
        atomic_bias([[math.nan]], [0], 1)
    with pytest.raises(DataError, match="do not fit"):
        atomic_bias([[1.0], [2.0]], [0], 1)


# --- parameters ---------------------------------------------------------------------------------------


def test_parameters() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(5, 2)), rng.normal(size=(3, 2))
    second[:, 1], first[:, 1] = 7.0, 7.0
    mask = np.array([True, False, True])
    items = parameter_items([(first, None), (second, mask)], 2, "aparam")
    avg, inverse = mean_and_inverse_deviation(items)
    rows = np.concatenate([first, second[mask]])
    np.testing.assert_allclose(avg, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(inverse, [1.0 / rows[:, 0].std(), 100.0], rtol=1e-10)
    assert mean_and_inverse_deviation(items, 10.0)[1].tolist() == [0.1, 0.1]
    assert parameter_items([], 0, "fparam") == ()


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([], "no system has fparam"),
        ([(np.zeros((2, 2)), [False, False])], "no system has fparam"),
        ([(np.zeros((2, 3)), None)], "expected 2 numbers"),
        ([(np.full((1, 2), np.inf), None)], "NaN or infinite"),
    ],
)
def test_bad_parameters(blocks: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parameter_items(blocks, 2, "fparam")


# --- cache --------------------------------------------------------------------------------------------

TYPE_MAP = ("O", "H")
ITEMS = {"r_0": StatItem(4, 1.0, 2.0), "a_0": StatItem(12, 0.5, 3.0), "r_1": StatItem(), "a_1": StatItem()}
BIAS = (np.array([[-1.5], [2.5]]), np.array([[0.5], [0.5]]))


@pytest.fixture(params=["stat", "deep/stat.h5", "stat.hdf5"])
def path(request: Any, tmp_path: Path) -> Path:
    return tmp_path / request.param


def test_key_has_the_value_that_other_writers_give() -> None:
    key = environment_key(ntypes=2, rcut=4.0, rcut_smth=3.0, sel=(6, 12), mixed_types=False)
    assert key == "ed0feb18c2d84e50d82755f65fa5de50dad0b0dd"
    same = environment_key(ntypes=np.int64(2), rcut=4.0004, rcut_smth=3, sel=np.array([6, 12]), mixed_types=np.False_)
    assert same == key
    other = environment_key(ntypes=2, rcut=4.0, rcut_smth=3.0, sel=(6, 12), mixed_types=False, radial_only=True)
    assert other != key


def test_round_trip(path: Path) -> None:
    cache = StatCache(path, TYPE_MAP)
    assert cache.environment("abc") is None and cache.output_bias("energy", dim=1) is None
    assert cache.parameters("fparam", 1) is None and cache.observed_types() is None
    assert not path.exists(), "looking does not write"
    cache.store_environment("abc", ITEMS)
    cache.store_output_bias({"energy": BIAS, "dos": (np.ones((2, 3)), np.zeros((2, 3)))})
    cache.store_parameters("fparam", (StatItem(1, 2, 3), StatItem(4, 5, 6)))
    cache.store_observed_types(["H", "Xx", "O", "H"])
    for mode in ("update", "read"):
        other = StatCache(path, TYPE_MAP, mode)
        assert other.environment("abc") == ITEMS
        found = other.output_bias("energy", dim=1)
        assert found is not None
        np.testing.assert_array_equal(found, BIAS)
        assert other.output_bias("dos", dim=3) is not None
        assert other.parameters("fparam", 2) == (StatItem(1, 2, 3), StatItem(4, 5, 6))
        assert other.observed_types() == ("H", "O", "Xx")
    assert StatCache(path, ("H", "O")).output_bias("energy", dim=1) is None, "another type map is another cache"
    leftovers = [p for p in path.parent.rglob("*") if p.name.endswith(".tmp")]
    assert not leftovers


def test_layout_of_a_folder(tmp_path: Path) -> None:
    cache = StatCache(tmp_path / "stat", TYPE_MAP)
    cache.store_output_bias({"energy": BIAS})
    cache.store_environment("abc", ITEMS)
    cache.store_observed_types(["O", "H"])
    root = tmp_path / "stat" / "O H"
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    assert names == [
        "abc/a_0", "abc/a_1", "abc/r_0", "abc/r_1", "bias_atom_energy", "observed_type", "std_atom_energy"
    ]  # fmt: skip
    np.testing.assert_array_equal(np.load(root / "abc" / "r_0"), [4.0, 1.0, 2.0])
    np.testing.assert_array_equal(np.load(root / "bias_atom_energy"), BIAS[0])
    assert np.load(root / "observed_type").tolist() == [b"H", b"O"]


def test_layout_of_an_hdf5_file(tmp_path: Path) -> None:
    StatCache(tmp_path / "stat.h5", TYPE_MAP).store_output_bias({"energy": BIAS})
    StatCache(tmp_path / "stat.h5", ("H",)).store_environment("abc", {"r_0": StatItem(1, 2, 3)})
    with h5py.File(tmp_path / "stat.h5") as file:
        assert sorted(file) == ["H", "O H"] and sorted(file["O H"]) == ["bias_atom_energy", "std_atom_energy"]
        np.testing.assert_array_equal(file["H/abc/r_0"][()], [1.0, 2.0, 3.0])


def test_reads_what_others_write(tmp_path: Path) -> None:
    """Shapes and dtypes of other writers: text of variable length, float32, atomic tensors that are not flattened."""
    with h5py.File(tmp_path / "stat.h5", "w") as file:
        file["O H/observed_type"] = np.array([b"H", b"O"], dtype=h5py.string_dtype())
        file["O H/bias_atom_polarizability"] = np.ones((2, 3, 3), np.float32)
        file["O H/std_atom_polarizability"] = np.zeros((2, 3, 3), np.float32)
    cache = StatCache(tmp_path / "stat.h5", TYPE_MAP, "read")
    assert cache.observed_types() == ("H", "O")
    found = cache.output_bias("polarizability", dim=9)
    assert found is not None and found[0].shape == (2, 9) and found[0].dtype == np.float64


def test_partial_environment_counts_as_missing(path: Path) -> None:
    cache = StatCache(path, TYPE_MAP)
    cache.store_environment("abc", {name: ITEMS[name] for name in ("r_0", "r_1")})
    assert cache.environment("abc") is None
    assert cache.environment("abc", radial_only=True) == {"r_0": ITEMS["r_0"], "r_1": ITEMS["r_1"]}


def test_read_mode(path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        StatCache(path, TYPE_MAP, "read")
    StatCache(path, TYPE_MAP).store_environment("abc", ITEMS)
    cache = StatCache(path, TYPE_MAP, "read")
    for missing in (
        lambda: cache.environment("other"),
        lambda: cache.output_bias("energy", dim=1),
        lambda: cache.parameters("fparam", 1),
        cache.observed_types,
    ):
        with pytest.raises(DataError, match=r"is missing.*'O H'"):
            missing()
    before = sorted(path.rglob("*")) if path.is_dir() else path.read_bytes()
    for write in (
        lambda: cache.store_environment("abc", ITEMS),
        lambda: cache.store_output_bias({"energy": BIAS}),
        lambda: cache.store_parameters("fparam", [StatItem()]),
        lambda: cache.store_observed_types(["H"]),
    ):
        with pytest.raises(InputError, match="'read'"):
            write()
    assert (sorted(path.rglob("*")) if path.is_dir() else path.read_bytes()) == before


def test_statistics_of_other_options_are_not_taken(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, other = StatCache(path, TYPE_MAP), {"env_protection": 0.5, "exclude_types": [[0, 1]]}
    cache.store_environment("abc", ITEMS)
    cache.store_output_bias({"energy": BIAS}, {"atom_exclude_types": [], "preset_out_bias": None})
    assert cache.environment("abc") == ITEMS and cache.output_bias("energy", dim=1) is not None
    cache.graph_options = other
    assert cache.environment("abc") is None
    assert "env_protection is 0.5 (was null); exclude_types" in caplog.text
    assert cache.output_bias("energy", dim=1, options={"preset_out_bias": [1.0, None]}) is None
    cache.store_environment("abc", ITEMS)
    cache.store_output_bias({"energy": BIAS}, {"preset_out_bias": (1.0, None)})
    read = StatCache(path, TYPE_MAP, "read")
    with pytest.raises(DataError, match="env_protection is null"):
        read.environment("abc")
    with pytest.raises(DataError, match="preset_out_bias is null"):
        read.output_bias("energy", dim=1)
    read.graph_options = other
    assert read.environment("abc") == ITEMS
    assert read.output_bias("energy", dim=1, options={"preset_out_bias": [1.0, None]}) is not None
    cache._store.remove(["O H/options"])  # as other writers leave it
    with pytest.raises(DataError, match="env_protection is 0"):
        read.environment("abc")
    cache._store.put({"O H/options": np.array([b"[1"])})
    with pytest.raises(DataError, match="options"):
        read.output_bias("energy", dim=1)


def test_environment_whose_writing_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = StatCache(tmp_path / "stat", TYPE_MAP)
    cache.store_environment("abc", ITEMS)
    cache.graph_options, put = {"env_protection": 0.5}, cache._store.put

    def killed(entries: Any) -> None:
        if any(name.endswith("options") for name in entries):
            put(entries)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(cache._store, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.store_environment("abc", ITEMS)
    for options in ({}, {"env_protection": 0.5}):
        cache.graph_options = options
        assert cache.environment("abc") is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_stored(path: Path, value: float) -> None:
    cache = StatCache(path, TYPE_MAP)
    with pytest.raises(DataError, match="NaN or infinite, and nothing was stored"):
        cache.store_environment("abc", {**ITEMS, "r_0": StatItem(1.0, value, 1.0)})
    with pytest.raises(DataError, match="bias_atom_energy"):
        cache.store_output_bias({"energy": (np.full((2, 1), value), np.ones((2, 1)))})
    with pytest.raises(DataError, match="fparam"):
        cache.store_parameters("fparam", (StatItem(1, value, 3),))
    assert not [p for p in path.parent.rglob("*") if p.is_file()]


def test_half_a_pair_is_no_pair(path: Path) -> None:
    cache = StatCache(path, TYPE_MAP)
    cache.store_output_bias({"energy": BIAS})
    cache._store.remove(["O H/std_atom_energy"])
    assert cache.output_bias("energy", dim=1) is None
    with pytest.raises(DataError, match="std_atom_energy"):
        StatCache(path, TYPE_MAP, "read").output_bias("energy", dim=1)


def test_an_interrupted_pair_is_no_pair(path: Path) -> None:
    cache = StatCache(path, TYPE_MAP)
    cache.store_output_bias({"energy": BIAS, "dos": BIAS})
    cache._store.mark(f"O H/{MARKER}")
    assert cache.output_bias("energy", dim=1) is None
    with pytest.raises(DataError, match="interrupted"):
        StatCache(path, TYPE_MAP, "read").output_bias("energy", dim=1)
    cache.store_output_bias({"energy": BIAS})
    assert cache.output_bias("energy", dim=1) is not None
    assert cache.output_bias("dos", dim=1) is None, "the other pair may have been the interrupted one"
    assert not cache._store.exists(f"O H/{MARKER}")


KILLED = """
import os, sys
import numpy as np
import dpmodel.statistics.cache as module

calls, last = 0, int(sys.argv[2])
replace = os.replace

def counting(*args):
    global calls
    if calls == last:
        os._exit(9)
    calls += 1
    return replace(*args)

os.replace = counting
pair = np.full((2, 1), 2.0), np.full((2, 1), 2.0)
module.StatCache(sys.argv[1], ("O", "H")).store_output_bias({"energy": pair, "dos": pair})
"""


@pytest.mark.parametrize(("name", "last"), [("stat", 1), ("stat", 3), ("stat.h5", 0)])
def test_a_kill_leaves_whole_pairs_or_none(tmp_path: Path, name: str, last: int) -> None:
    path = tmp_path / name
    cache = StatCache(path, TYPE_MAP)
    cache.store_output_bias({"energy": BIAS, "dos": BIAS})
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(last)], cwd=root, timeout=60, check=False)
    assert done.returncode == 9
    for quantity in ("energy", "dos"):
        found = cache.output_bias(quantity, dim=1)
        if found is not None:
            np.testing.assert_array_equal(found, BIAS)
    cache.store_output_bias({"energy": BIAS})
    assert cache.output_bias("energy", dim=1) is not None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"rubbish",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1), }",
        b"PK\x03\x04",
    ],
)
def test_damaged_npy(tmp_path: Path, damage: bytes) -> None:
    cache = StatCache(tmp_path / "stat", TYPE_MAP)
    cache.store_output_bias({"energy": BIAS})
    (tmp_path / "stat" / "O H" / "bias_atom_energy").write_bytes(damage)
    with pytest.raises(DataError, match="bias_atom_energy is not a complete"):
        cache.output_bias("energy", dim=1)


def test_truncated_npy_and_pickles(tmp_path: Path) -> None:
    cache = StatCache(tmp_path / "stat", TYPE_MAP)
    cache.store_output_bias({"energy": BIAS})
    entry = tmp_path / "stat" / "O H" / "bias_atom_energy"
    entry.write_bytes(entry.read_bytes()[:-3])
    with pytest.raises(DataError, match="not a complete"):
        cache.output_bias("energy", dim=1)
    with open(entry, "wb") as stream:
        np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a complete"):
        cache.output_bias("energy", dim=1)


def test_damaged_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "stat.h5"
    cache = StatCache(path, TYPE_MAP)
    cache.store_output_bias({"energy": BIAS})
    content = path.read_bytes()
    for damage in (b"", b"rubbish", content[:100], content[: len(content) // 2]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"stat\.h5 cannot be read"):
            cache.output_bias("energy", dim=1)
        with pytest.raises(DataError, match=r"stat\.h5 cannot be read"):
            cache.store_output_bias({"energy": BIAS})
        assert path.read_bytes() == damage
    with h5py.File(path, "w") as file:
        file.create_group("O H/bias_atom_energy")
    with pytest.raises(DataError, match="not an array"):
        cache.output_bias("energy", dim=1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((3, 1)), "expected shape"),
        (np.zeros(()), "expected shape"),
        (np.full((2, 1), np.nan), "NaN"),
        (np.array([[b"a"], [b"b"]]), "expected numbers"),
    ],
)
def test_entries_that_do_not_fit(path: Path, value: np.ndarray, words: str) -> None:
    cache = StatCache(path, TYPE_MAP)
    cache.store_output_bias({"energy": BIAS})
    cache._store.put({"O H/bias_atom_energy": value})
    with pytest.raises(DataError, match=words):
        cache.output_bias("energy", dim=1)


@pytest.mark.parametrize(
    "value", [np.zeros((3, 3)), np.zeros(4), np.array([[-1.0, 0, 0]] * 2), np.full((2, 3), np.inf)]
)
def test_items_that_do_not_fit(path: Path, value: np.ndarray) -> None:
    cache = StatCache(path, TYPE_MAP)
    cache._store.put({"O H/fparam": value})
    with pytest.raises(DataError, match="fparam"):
        cache.parameters("fparam", 2)


def test_observed_types_that_are_numbers(path: Path) -> None:
    cache = StatCache(path, TYPE_MAP)
    cache._store.put({"O H/observed_type": np.zeros(2)})
    with pytest.raises(DataError, match="expected symbols"):
        cache.observed_types()


def test_bad_paths_and_type_maps(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.h5").mkdir()
    for wrong in ("file", "folder.h5"):
        with pytest.raises(InputError, match="give another path"):
            StatCache(tmp_path / wrong, TYPE_MAP)
    with pytest.raises(InputError, match="'update' or 'read'"):
        StatCache(tmp_path / "stat", TYPE_MAP, "write")
    for type_map in ((), ("..",), ("O/H",), (" ",)):
        with pytest.raises(InputError, match="type_map"):
            StatCache(tmp_path / "stat", type_map)
    with pytest.raises(InputError, match="use an HDF5 file"):
        StatCache(tmp_path / "stat", ELEMENTS)
    cache = StatCache(tmp_path / "stat.h5", ELEMENTS)
    cache.store_observed_types(ELEMENTS[::-1])
    assert cache.observed_types() == ELEMENTS and len(ELEMENTS) == 118 and ELEMENTS[91] == "U"
