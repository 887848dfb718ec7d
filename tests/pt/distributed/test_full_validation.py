"""Full validation on two ranks: the numbers of one process, at every stage, with and without the average."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.data.write import write_system
from dpmodel.training.world import Alone

pytestmark = pytest.mark.usefixtures("one_thread")


def neighbour(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


validating = neighbour("validating")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Five frames in two systems: ranks have different numbers of them."""
    rng = np.random.default_rng(3)
    for name, frames, atoms in (("a", 4, 7), ("b", 1, 5)):
        grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:atoms] * 2.2
        write_system(
            tmp_path / name, grid + rng.uniform(0, 0.8, (frames, atoms, 3)), np.arange(atoms) % 2, np.eye(3) * 6.6,
            type_map=["A", "B"], labels={"energy": rng.normal(size=(frames, 1)), "force": rng.normal(size=(frames, atoms, 3))},
        )  # fmt: skip
    return str(tmp_path)


@pytest.mark.parametrize(("stage", "multi", "averaged"), [
    (0, False, False), (1, True, True), (2, False, True), (2, True, False), (3, True, True), (3, False, False),
])  # fmt: skip
def test_numbers_of_one_process(pair: Any, folder: str, stage: int, multi: bool, averaged: bool) -> None:
    options = {"multi": multi, "averaged": averaged}
    alone = validating.validated(Alone(), folder, stage=0, **options)
    first, second = pair("validating:validated", folder, stage=stage, **options)
    for key in ("values", "stops", "saved", "errors", "state"):
        assert first[key] == second[key], key
    assert first["saved"] == alone["saved"] and first["stops"] == alone["stops"]
    assert first["values"] == pytest.approx(alone["values"], rel=1e-9)
    for found, wanted in zip(first["errors"], alone["errors"], strict=True):
        assert found.keys() == wanted.keys()
        for name, numbers in wanted.items():
            assert found[name] == pytest.approx(numbers, rel=1e-9), name
            assert found[name][0] == (5 if name.endswith("E") else 3 * 33)
    for name, value in alone["parameters"].items():
        np.testing.assert_allclose(first["parameters"][name], value, rtol=0, atol=1e-9)


def test_an_error_of_one_rank_ends_all(pair: Any, folder: str) -> None:
    first, second = pair("validating:failing", folder)
    assert second == "OSError: the disk has gone"
    assert first.startswith("RankError") and "the disk has gone" in first
