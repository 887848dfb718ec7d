"""The learning curve: its form, restarts, and what the reader refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.errors import InputError
from dpmodel.files import atomic
from dpmodel.training.lcurve import LearningCurve, read_lcurve

NOTE = "# If there is no available reference data, rmse_*_{val,trn} will print nan"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lcurve.out"


def test_form(path: Path) -> None:
    LearningCurve(path).write(1, {"rmse_e": 10.26, "rmse": 34.1}, {"rmse_e": 10.3, "rmse": 33.3}, 1e-3)
    assert path.read_text().split("\n") == [
        "# step       rmse_val    rmse_trn    rmse_e_val  rmse_e_trn   lr      ",
        NOTE,
        "      1      3.33e+01    3.41e+01      1.03e+01    1.03e+01    1.0e-03",
        "",
    ]


def test_without_validation(path: Path) -> None:
    LearningCurve(path).write(100, {"rmse_f": 0.5, "rmse": 1.0}, None, 1e-3)
    assert path.read_text().split("\n")[::2] == [
        "# step       rmse_trn    rmse_f_trn   lr      ",
        "    100      1.00e+00      5.00e-01    1.0e-03",
    ]


def test_metric_of_the_validation_data_only(path: Path) -> None:
    LearningCurve(path).write(1, {"rmse_f": 1.0, "mae": 2.0}, {"rmse_f": 3.0, "rmse": 4.0}, 1e-3)
    table = read_lcurve(path)
    assert list(table) == ["step", "mae_trn", "rmse_val", "rmse_trn", "rmse_f_val", "rmse_f_trn", "lr"]
    assert table["rmse_val"][0] == 4.0
    assert np.isnan(table["rmse_trn"][0])


def test_tasks_in_their_order(path: Path) -> None:
    curve = LearningCurve(path)
    curve.write(1, {"water": {"b": 1, "a": 2}, "ice": {"a": 3}}, {"water": {"b": 4, "a": 5}}, 1e-3)
    curve.write(2, {"water": {"b": 6}}, None, 1e-3)
    table = read_lcurve(path)
    assert list(table) == ["step", "a_val_water", "a_trn_water", "b_val_water", "b_trn_water", "a_trn_ice", "lr"]
    assert [column[0] for column in table.values()] == [1, 5, 2, 4, 1, 3, 1e-3]
    assert table["b_trn_water"][1] == 6
    assert np.isnan(table["a_trn_ice"][1])


def test_read_back(path: Path) -> None:
    curve = LearningCurve(path)
    for step in (1, 1000, 2000):
        curve.write(
            step, {"rmse": step / 7, "rmse_v": float("nan")}, {"rmse": step / 3, "rmse_v": float("inf")}, 1e-3 / step
        )
    table = read_lcurve(path)
    assert table["step"].dtype == np.int64
    assert table["step"].tolist() == [1, 1000, 2000]
    np.testing.assert_allclose(table["rmse_trn"], np.array([1, 1000, 2000]) / 7, rtol=5e-3)
    assert np.all(np.isnan(table["rmse_v_trn"]))
    assert np.all(np.isinf(table["rmse_v_val"]))
    np.testing.assert_allclose(table["lr"], 1e-3 / np.array([1, 1000, 2000]), rtol=5e-2)


def rows(path: Path, *steps: int) -> None:
    curve = LearningCurve(path)
    for step in steps:
        curve.write(step, {"rmse": float(step)}, None, 1e-3)


def test_a_new_run_replaces(path: Path) -> None:
    rows(path, 1, 2, 3)
    curve = LearningCurve(path)
    assert read_lcurve(path)["step"].tolist() == [1, 2, 3]
    curve.write(1, {"other": 0.0}, None, 1e-3)
    assert list(read_lcurve(path)) == ["step", "other_trn", "lr"]
    assert read_lcurve(path)["step"].tolist() == [1]


def test_restart_drops_rows_beyond_and_appends(path: Path) -> None:
    rows(path, 1, 100, 200, 300)
    with path.open("a") as stream:
        stream.write("    400      4.0")
    curve = LearningCurve(path, restored_step=200)
    assert read_lcurve(path)["step"].tolist() == [1, 100, 200]
    curve.write(300, {"rmse": 7.0}, None, 1e-3)
    table = read_lcurve(path)
    assert table["step"].tolist() == [1, 100, 200, 300]
    assert table["rmse_trn"][-1] == 7.0
    assert path.read_text().count("# step") == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, ""])
def test_restart_without_a_curve(content: str | None, path: Path) -> None:
    if content is not None:
        path.write_text(content)
    LearningCurve(path, restored_step=5).write(6, {"rmse": 1.0}, None, 1e-3)
    assert read_lcurve(path)["step"].tolist() == [6]


def test_restart_with_other_columns(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows(path, 1, 2)
    LearningCurve(path, restored_step=2).write(3, {"mae": 1.0}, None, 1e-3)
    assert list(read_lcurve(path)) == ["step", "mae_trn", "lr"]
    assert read_lcurve(path.with_name("lcurve.out.old"))["step"].tolist() == [1, 2]
    assert "other columns" in caplog.text


def test_new_metric_in_a_later_row(path: Path) -> None:
    curve = LearningCurve(path)
    curve.write(1, {"rmse": 1.0}, None, 1e-3)
    with pytest.raises(ValueError, match="rmse_v_trn"):
        curve.write(2, {"rmse": 1.0, "rmse_v": 1.0}, None, 1e-3)


def test_deepmd_file_with_a_second_header(path: Path) -> None:
    head = "#  step      rmse_trn    rmse_e_trn         lr\n"
    path.write_text(head + "# a remark\n      0   1.0 2.0 1e-3\n" + head + "\n    100   0.5 nan 1e-4\n")
    table = read_lcurve(path)
    assert table["step"].tolist() == [0, 100]
    assert table["rmse_trn"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no header"),
        ("1 2 3\n", "line 1: expected a header"),
        ("# step a lr\n1 2\n2 3 4\n", "line 2: expected 3 numbers"),
        ("# step a lr\n1 x 3\n", "line 2"),
        ("# step a lr\n1.5 2 3\n", "line 2"),
        ("# step a lr\n1 2 3\n# step b lr\n", "line 3: the columns change"),
        (b"\x89HDF\xff", "not text"),
    ],
)
def test_malformed(content: str | bytes, message: str, path: Path) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_lcurve(path)
    if content:
        before = path.read_bytes()
        with pytest.raises(InputError, match=message):
            LearningCurve(path, restored_step=1)
        assert path.read_bytes() == before


def test_missing(path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_lcurve(path)


def full_disk(*_args: Any, **_options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(path, 1, 2, 3)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full_disk)
        with pytest.raises(OSError, match=r"lcurve\.out.*No space left"):
            LearningCurve(path, restored_step=1)
    assert path.read_bytes() == before
    curve = LearningCurve(path, restored_step=3)
    curve.write(4, {"rmse": 1.0}, None, 1e-3)
    monkeypatch.setattr(Path, "open", full_disk)
    with pytest.raises(OSError, match=r"cannot write the learning curve .*No space left"):
        curve.write(5, {"rmse": 1.0}, None, 1e-3)
