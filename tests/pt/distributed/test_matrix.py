"""Two ranks against one process: every combination of stage, tasks, average and optimizer."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.training.world import Alone

FOLDER = Path(__file__).parent


def neighbour(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cells, matrix = neighbour("cells"), neighbour("matrix")
pytestmark = pytest.mark.usefixtures("one_thread")
REFERENCES: dict[Any, Any] = {}


def reference(cell: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """One process, uninterrupted: after three steps, and after six (with gradients of the fourth)."""
    key = (cell.multi, cell.ema, cell.optimizer)
    if key not in REFERENCES:
        options = {"multi": cell.multi, "ema": cell.ema, "optimizer": cell.optimizer}
        three = cells.cell(Alone(), **options)
        REFERENCES[key] = three, cells.cell(Alone(), **options, first=3, last=6, start=three)
    found: tuple[dict[str, Any], dict[str, Any]] = REFERENCES[key]
    return found


def assert_near(own: Any, expected: Any) -> None:
    assert own["gradients"].keys() == expected["gradients"].keys()
    largest = max(float(np.abs(g).max()) for g in expected["gradients"].values())
    for name, value in expected["gradients"].items():
        np.testing.assert_allclose(own["gradients"][name], value, rtol=0, atol=1e-10 * largest, err_msg=name)
    for kind in ("parameters", "average", "averaged"):
        assert own[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            np.testing.assert_allclose(own[kind][name], value, rtol=0, atol=1e-8, err_msg=f"{kind} {name}")
    assert own["optimizer"].keys() == expected["optimizer"].keys()
    for slot, values in expected["optimizer"].items():
        assert own["optimizer"][slot].keys() == values.keys(), slot
        for name, value in values.items():
            found = own["optimizer"][slot][name]
            assert found.dtype == value.dtype and found.shape == value.shape
            np.testing.assert_allclose(found, value, rtol=0, atol=1e-6 * max(1.0, float(np.abs(value).max())), err_msg=f"{slot} {name}")  # fmt: skip
    for kind in ("norms", "measured"):
        np.testing.assert_allclose(own[kind], expected[kind], rtol=1e-7, atol=1e-12)
    assert own["norms"][0] > 0 and math.isclose(own["norms"][0], own["norms"][1], rel_tol=1e-12)


@pytest.mark.parametrize(
    "cell", [pytest.param(c, id=str(c), marks=() if c.often else pytest.mark.nightly) for c in matrix.CELLS]
)
def test_cell(cell: Any, pair: Any) -> None:
    """Steps, then a restart in another stage on two ranks, and on one process."""
    options = {"multi": cell.multi, "ema": cell.ema, "optimizer": cell.optimizer}
    three, six = reference(cell)
    first, second = pair("cell", **options, stage=cell.stage)
    assert_near(first, three)
    for kind in ("parameters", "average"):  # whole, and the same, on all ranks
        assert all(np.array_equal(value, second[kind][name]) for name, value in first[kind].items())
    again, _ = pair("cell", **options, stage=cell.then, first=3, last=6, start=first)
    assert_near(again, six)
    assert_near(cells.cell(Alone(), **options, first=3, last=6, start=first), six)


@pytest.mark.parametrize("stage", matrix.STAGES)
def test_from_one_process_to_two_with_accumulation(stage: int, pair: Any) -> None:
    """Two batches on each rank are four in one process, and one batch of all frames."""
    cell = matrix.Cell(stage=stage, multi=bool(stage % 2), ema=True, optimizer="AdamW")
    three, six = reference(cell)
    options = {"multi": cell.multi, "ema": True, "optimizer": cell.optimizer, "first": 3, "last": 6, "start": three}
    assert_near(pair("cell", **options, stage=stage, accumulate=2)[0], six)
    if stage < 2:
        assert_near(cells.cell(Alone(), **options, accumulate=4), six)


def test_the_matrix_and_what_runs_every_time() -> None:
    """All pairs of values of two columns."""
    assert len(matrix.CELLS) == 64 and len(matrix.table().splitlines()) == 64
    often = [cell for cell in matrix.CELLS if cell.often]
    assert len(often) == 16
    for a in range(4):
        for b in range(a):
            assert {(c[a], c[b]) for c in often} == {(c[a], c[b]) for c in matrix.CELLS}
    assert {(c.stage, c.then) for c in often} == {(a, b) for a in range(4) for b in range(4) if a != b}
