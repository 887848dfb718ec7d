"""Numbers of neighbours in data systems, and `sel` from them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from dpmodel.data import Dataset, write_system
from dpmodel.errors import DataError, InputError
from dpmodel.statistics.neighbour import NeighbourStatistics, neighbour_statistics, resolve_sel

CELL = 7.0 * np.eye(3) + 0.3


def by_loops(coord, atype, cell, rcut, ntypes):
    """(largest counts per type, largest total, smallest distance) of one frame, images up to two cells away."""
    shifts = (
        np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3), -1).reshape(-1, 3) @ cell
        if cell is not None
        else np.zeros((1, 3))
    )
    table = np.zeros((len(atype), ntypes), int)
    closest = 10.0
    for i in range(len(atype)):
        for j in range(len(atype)):
            for shift in shifts:
                r = np.linalg.norm(coord[j] + shift - coord[i])
                if i == j and not np.any(shift):
                    continue
                closest = min(closest, r)
                table[i, atype[j]] += r < rcut
    return table.max(axis=0), table.sum(axis=1).max(), closest


@pytest.fixture
def systems(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(3)
    write_system(tmp_path / "a", rng.uniform(0, 7, (3, 5, 3)), [0, 1, 1, 0, 2], CELL, type_map=["O", "H", "C"])
    write_system(tmp_path / "b", rng.uniform(0, 4, (2, 4, 3)), [0, 0, 1, 1], None, type_map=["H", "O"])
    return [tmp_path / "a", tmp_path / "b"]


def test_counts_equal_those_of_loops(systems: list[Path]) -> None:
    data = Dataset.from_config(systems, batch_size=1, type_map=["O", "H", "C", "N"])
    found = neighbour_statistics(data, 4.0, 4)
    parts = []
    for system in data.systems:
        batch = system.batch(np.arange(system.nframes))
        for k in range(batch.nframes):
            cell = None if batch.cell is None else batch.cell[k]
            parts.append(by_loops(batch.coord[k], batch.atype[k], cell, 4.0, 4))
    assert found.by_type == tuple(np.max([p[0] for p in parts], axis=0))
    assert found.total == max(p[1] for p in parts)
    assert found.min_distance == pytest.approx(min(p[2] for p in parts), abs=1e-12)
    assert found.frames == 5
    # Without ntypes the length of the type map counts: the type that is in no system has its place.
    assert neighbour_statistics(data, 4.0) == found


def test_water_agrees_with_what_is_known(water_data: Path) -> None:
    data = Dataset.from_config(water_data / "data_0", batch_size=1, type_map=["O", "H"])
    found = neighbour_statistics(data, 6.0, 2)
    assert 0.85 < found.min_distance < 0.95
    assert found.total <= sum(found.by_type)
    assert resolve_sel("auto:1", found) == tuple(4 * -(-n // 4) for n in found.by_type)


def test_overlapping_atoms_are_named(tmp_path: Path) -> None:
    coord = np.random.default_rng(0).uniform(0, 7, (3, 4, 3))
    coord[2, 3] = coord[2, 1] + CELL[0]  # the image of an atom is at the place of another
    write_system(tmp_path / "bad", coord, [0, 1, 1, 0], CELL, type_map=["O", "H"])
    with pytest.raises(DataError, match=r"bad, frame 2: two atoms are at the same place"):
        neighbour_statistics(Dataset.from_config(tmp_path / "bad", batch_size=1, type_map=["O", "H"]), 3.0)
    left_out = Dataset.from_config(tmp_path / "bad", batch_size=1, type_map=["O", "H"], min_pair_dist=1e-3)
    assert neighbour_statistics(left_out, 3.0).frames == 2


@pytest.mark.parametrize("rcut", [0.0, -1.0, np.nan, np.inf])
def test_bad_cutoffs(systems: list[Path], rcut: float) -> None:
    with pytest.raises(InputError, match="rcut"):
        neighbour_statistics(Dataset.from_config(systems, batch_size=1, type_map=["O", "H", "C"]), rcut)


def found(*by_type: int, total: int = 0) -> NeighbourStatistics:
    return NeighbourStatistics(by_type=by_type, total=total, min_distance=1.0, frames=1)


@pytest.mark.parametrize(("count", "sel"), [(0, 0), (1, 4), (10, 12), (20, 24), (38, 44), (100, 112)])
def test_auto(count: int, sel: int) -> None:
    assert resolve_sel("auto", found(count, 1)) == (sel, 4)
    assert resolve_sel("auto:1.1", found(1, 1, total=count or 1), typed=False) == (sel or 4,)


def test_given_numbers_stay_with_a_warning_where_they_are_small(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dpmodel"):
        assert resolve_sel([40, 80], found(38, 72)) == (40, 80)
        assert not caplog.records
        assert resolve_sel((30, 80), found(38, 72)) == (30, 80)
    assert "[30, 80] is smaller" in caplog.text
    assert resolve_sel(120, found(38, 72, total=104), typed=False) == (120,)


@pytest.mark.parametrize("sel", ["automatic", "auto:", "auto:0", "auto:x", "auto:nan"])
def test_bad_texts(sel: str) -> None:
    if sel == "auto:":
        assert resolve_sel(sel, found(1)) == (4,)
        return
    with pytest.raises(InputError, match="auto:f"):
        resolve_sel(sel, found(1))


def test_no_neighbours_at_all() -> None:
    with pytest.raises(DataError, match="larger rcut"):
        resolve_sel("auto", found(0, 0))
