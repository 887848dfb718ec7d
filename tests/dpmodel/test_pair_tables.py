"""Pair tables from text files: the splines of DeePMD-kit, tables that end early, and what is no table."""

from __future__ import annotations

import itertools
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel import Potential
from dpmodel.errors import InputError
from dpmodel.models import PairTable
from dpmodel.models.tables import read_pair_table

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TABLE = GOLDEN / "zbl.txt"
"""Types O, H, B; 0.01 Å to 4 Å, then 0."""


def read(path: Path, *, rcut: float = 3.0, types: tuple[str, ...] = ("O", "H", "B")) -> PairTable:
    return read_pair_table(path, types, rcut=rcut, sel=10, name="model.use_srtab")


@pytest.mark.parametrize("name", ["zbl_dpa1", "zbl_dpa3"])
def test_the_splines_of_deepmd_kit(name: str) -> None:
    golden = dpmodel.load(GOLDEN / f"{name}.dp", backend="numpy").model.parts[1]
    table = read(TABLE, rcut=golden.cutoff, types=golden.type_map)
    for key in ("rmin", "step", "rmax"):
        np.testing.assert_allclose(getattr(table, key), getattr(golden, key), rtol=1e-12)
    scale = np.max(np.abs(golden.coefficients))
    np.testing.assert_allclose(table.coefficients, golden.coefficients, rtol=0, atol=1e-11 * scale)
    np.testing.assert_allclose(table.rows, golden.rows, rtol=1e-12, atol=1e-12)


def pair_energy(table: PairTable, r: float, types: tuple[int, int] = (0, 1)) -> float:
    coord = np.array([[[0.0, 0.0, 0.0], [0.0, r, 0.0]]])
    return float(Potential.from_model(table, "numpy").evaluate(coord, np.array(types), None)["energy"][0, 0])


def test_the_table_goes_through_its_points() -> None:
    table, rows = read(TABLE), np.loadtxt(TABLE)
    for k in (5, 100, 250):
        for column, pair in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))):
            for types in (pair, pair[::-1]):
                expected = rows[k, 1 + column]
                np.testing.assert_allclose(pair_energy(table, rows[k, 0], types), expected, rtol=1e-9)


def write(path: Path, rows: np.ndarray) -> Path:
    np.savetxt(path, rows)
    return path


def short_rows(last: float = 0.0) -> np.ndarray:
    """Of one type, 0.5 Å to 2 Å."""
    r = np.linspace(0.5, 2.0, 31)
    return np.stack([r, (2.0 - r) ** 2 + last], axis=1)


def test_tables_that_end_before_the_cutoff(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ends = read(write(tmp_path / "a.txt", short_rows()), types=("O",))
    assert "not 0" not in caplog.text and abs(pair_energy(ends, 2.5, (0, 0))) < 1e-15
    led = read(write(tmp_path / "b.txt", short_rows(0.3)), types=("O",))
    assert re.search(r"b.txt ends at 2 Å with energies that are not 0, before the cutoff of 3 Å", caplog.text)
    values = [pair_energy(led, r, (0, 0)) for r in (1.99, 2.2, 2.5, 2.8, 2.9999)]
    assert values[0] == pytest.approx(0.3, abs=0.01) and all(a > b for a, b in itertools.pairwise(values))
    assert abs(values[-1]) < 1e-3
    assert read(tmp_path / "b.txt", rcut=1.5, types=("O",)).cutoff == 1.5


def test_tables_that_jump_at_the_cutoff(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rows = short_rows() - [[0.4, 0.0]]
    path = write(tmp_path / "a.txt", rows)
    options: dict[str, Any] = {"sel": 8, "name": "models.1.tab_file"}
    read_pair_table(path, ("O",), rcut=float(rows[-1, 0]), alone=True, **options)  # 0 there
    read_pair_table(path, ("O",), rcut=1.0, **options)  # something takes over before
    assert not caplog.records
    read_pair_table(path, ("O",), rcut=1.0, alone=True, **options)
    assert re.search(r"models.1.tab_file: .*a.txt has energies up to 0.36 eV at the cutoff of 1 Å", caplog.text)


def test_tables_that_begin_late(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    read(TABLE)
    read(write(tmp_path / "a.txt", short_rows() - [[0.4, 0.0]]), types=("O",))  # 0.1 Å
    assert not caplog.records
    read(write(tmp_path / "b.txt", short_rows()), types=("O",))
    assert re.search(
        r"model.use_srtab: .*b.txt begins at 0.5 Å: nearer atoms .* Let the table begin at 0.1 Å", caplog.text
    )


def changed(rows: np.ndarray, place: tuple[int, int], value: float) -> np.ndarray:
    out = rows.copy()
    out[place] = value
    return out


ROWS = np.loadtxt(TABLE)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:, :6], "expected at least 3 rows of 7 numbers .* got 400 of 6"),
        (ROWS[:2], "got 2 of 7"),
        (changed(ROWS, (7, 3), math.nan), "expected finite numbers, got NaN or infinity"),
        (changed(ROWS, (7, 3), math.inf), "expected finite numbers"),
        (changed(ROWS, (7, 0), 0.085), "expected distances that grow in equal steps"),
        (ROWS[::-1], "expected distances that grow in equal steps"),
        (ROWS - np.eye(1, 7) * 0.02, "from at least 0"),
    ],
)
def test_bad_tables(tmp_path: Path, rows: np.ndarray, words: str) -> None:
    path = write(tmp_path / "bad.txt", rows)
    with pytest.raises(InputError, match=rf"model.use_srtab: .*bad.txt: .*{words}"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [TABLE.read_bytes()[: TABLE.stat().st_size // 2 + 20], b"", b"r e e e\n", b"1.0 two\n", bytes(range(256)) * 8],
    ids=["half", "empty", "header", "words", "binary"],
)
def test_damaged_tables(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"bad.txt: expected .*rows of 7 numbers"):
        read(tmp_path / "bad.txt")


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(InputError, match=r"model.use_srtab: cannot read .*; name the file of the table"):
            read(path)
