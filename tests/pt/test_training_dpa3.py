"""Training dpa3: capacities from the data, charge and spin, restarts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.errors import DataError, DPError
from dpmodel.metrics import evaluate_systems
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

FLOW: dict[str, Any] = {
    "e_rcut": 3.0, "e_rcut_smth": 1.0, "e_sel": 30, "a_rcut": 2.5, "a_rcut_smth": 1.0, "a_sel": 20, "n_dim": 4, "e_dim": 3,
    "a_dim": 2, "nlayers": 2, "axis_neuron": 2,
}  # fmt: skip


def dpa3(*, options: dict[str, Any] | None = None, **flow: Any) -> dict[str, Any]:
    return {"type": "dpa3", "repflow": {**FLOW, **flow}, "seed": 1, **(options or {})}


def run(tmp_path: Path, data: dict[str, Any], **options: Any) -> Any:
    checkpoint = train(data, output=tmp_path / "out.json", device="cpu", backend="pt", **options)
    return dpmodel.load(checkpoint, backend="pt", device="cpu")


@pytest.mark.filterwarnings("ignore::dpmodel.geometry.TruncationWarning")
def test_capacities_of_the_data(workshop: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    descriptor = dpa3(e_sel="auto:1", a_sel="auto:1")
    with caplog.at_level(logging.INFO):
        data = workshop.input(workshop.system(natoms=18), model__descriptor=descriptor, training__numb_steps=1)
        pot = run(tmp_path, data)
    counts = {}
    for radius in ("3", "2.5"):
        (line,) = [text for text in caplog.messages if text.startswith(f"Neighbours within {radius} Å: at most ")]
        counts[radius] = int(line.split("at most ")[1].split(",")[0])
    assert counts["3"] > counts["2.5"] > 0
    (request,) = pot.model.requests()
    assert request.sel == (4 * -(-counts["3"] // 4),)
    assert request.angles.sel == 4 * -(-counts["2.5"] // 4)
    written = json.loads((tmp_path / "out.json").read_text())["model"]["descriptor"]["repflow"]
    assert (written["e_sel"], written["a_sel"]) == (request.sel[0], request.angles.sel)


@pytest.mark.filterwarnings("ignore::dpmodel.geometry.TruncationWarning")
def test_capacities_that_are_too_small_are_said(
    workshop: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run(tmp_path, workshop.input(model__descriptor=dpa3(e_sel=3, a_sel=2), training__numb_steps=1))
    for name in ("repflow.e_sel = [3]", "repflow.a_sel = [2]"):
        assert any(text.startswith(f"{name} is smaller than the neighbours of the data") for text in caplog.messages)


def test_capacities_of_the_origin(workshop: Any, tmp_path: Path) -> None:
    data = workshop.input(model__descriptor=dpa3(), training__numb_steps=1)
    run(tmp_path, data)
    data["model"]["descriptor"] = dpa3(e_sel="auto", a_sel="auto")
    pot = run(tmp_path, data, init_model="model.ckpt.dp", skip_neighbor_stat=True)
    assert (pot.model.requests()[0].sel, pot.model.requests()[0].angles.sel) == ((30,), 20)


@pytest.mark.parametrize("deviation", [0.3, 0.0])
def test_statistics(workshop: Any, tmp_path: Path, deviation: float) -> None:
    data = workshop.input(model__descriptor=dpa3(fix_stat_std=deviation), training__numb_steps=0)
    dstd = run(tmp_path, data).model.descriptor.dstd
    assert (dstd == 0.3).all() == (deviation > 0)
    assert (dstd > 0.009).all()


def test_statistics_are_kept(workshop: Any, tmp_path: Path) -> None:
    """A file of statistics serves the next run, and says so where it was made with other options."""
    options = {"training__numb_steps": 0, "training__stat_file": "stat.h5"}
    data = workshop.input(model__descriptor=dpa3(fix_stat_std=0.0), **options)
    first = run(tmp_path, data).model.descriptor.dstd
    data["training"]["stat_file_mode"] = "read"
    np.testing.assert_array_equal(run(tmp_path, data).model.descriptor.dstd, first)
    data["model"]["descriptor"] = dpa3(fix_stat_std=0.0, e_rcut=3.001)
    with pytest.raises(DPError, match=r"stat\.h5.*rcut"):
        run(tmp_path, data)


def test_a_restart_goes_on_exactly(workshop: Any, tmp_path: Path) -> None:
    data = workshop.input(model__descriptor=dpa3(fix_stat_std=0.0), training__numb_steps=6)
    whole = run(tmp_path, data).model.state()
    run(tmp_path, data, stop_at=3)
    again = run(tmp_path, data, restart="model.ckpt").model.state()
    moved = 0
    for path, value in whole.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)
        moved += path.startswith("descriptor.layers")
    assert moved > 20


# --- charge and spin --------------------------------------------------------------------------------------


def charged(workshop: Any, values: np.ndarray | None, **options: Any) -> dict[str, Any]:
    labels = {} if values is None else {"charge_spin": values}
    name = f"data_{len(list(workshop.folder.glob('data_*')))}"
    descriptor = dpa3(options={"add_chg_spin_ebd": True, **options})
    return workshop.input(workshop.system(name, labels=labels), model__descriptor=descriptor, training__numb_steps=3)


def test_charge_and_spin_are_read_from_the_data(workshop: Any, tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 2], [-1, 2], [0, 3], [1, 0], [2, 1]], float)
    first = run(tmp_path, charged(workshop, values)).model.state()
    other = run(tmp_path, charged(workshop, np.zeros((6, 2)))).model.state()
    table = "descriptor.charge_spin.charge.embedding.layers.0.w"
    assert not np.array_equal(first[table], other[table])
    moved = np.flatnonzero((first[table] != other[table]).any(axis=1)) - 100
    assert set(moved) <= {-1, 0, 1, 2}  # rows of charges that no frame has stay as they are


def test_charge_and_spin_must_be_there(workshop: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="charge_spin"):
        run(tmp_path, charged(workshop, None))
    run(tmp_path, charged(workshop, None, default_chg_spin=[0, 1]))


def test_charges_without_a_row(workshop: Any, tmp_path: Path) -> None:
    values = np.zeros((6, 2))
    values[:, 1] = -1
    with pytest.raises(
        DataError, match=r"data_0, charge_spin: expected charges from -100 to 100 and spins from 0 to 100"
    ):
        run(tmp_path, charged(workshop, values))


def test_errors_of_charged_systems(workshop: Any, tmp_path: Path) -> None:
    """`dpmodel test` hands charge and spin to the model."""
    data = charged(workshop, np.tile([2.0, 1.0], (6, 1)))
    pot = run(tmp_path, data)
    (system,) = data["training"]["training_data"]["systems"]
    report = evaluate_systems(pot, system)
    coord = np.load(Path(system) / "set.000" / "coord.npy").reshape(6, -1, 3)
    energy = pot.evaluate(coord, np.arange(5) % 2, 6.0 * np.eye(3), charge_spin=[2, 1])["energy"]
    label = np.load(Path(system) / "set.000" / "energy.npy").reshape(6, 1)
    assert report.systems[0].errors["energy"].mae == pytest.approx(np.abs(energy - label).mean(), rel=1e-9)
