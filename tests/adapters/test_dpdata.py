"""The dpdata driver: labels are those of the potential, through dpdata's own front door."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dpdata
import numpy as np
import pytest

import dpmodel
from dpmodel.adapters.dpdata import ModelDriver
from dpmodel.errors import BackendError, InputError

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FILE = GOLDEN / "se_e2_a.dp"
RNG = np.random.default_rng(2)
NF, NA = 3, 6
COORD = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[:NA] * 2.0 + RNG.uniform(-0.3, 0.3, (NF, NA, 3))
CELLS = np.broadcast_to(np.eye(3) * 7.0 + 0.2, (NF, 3, 3)) + RNG.uniform(-0.1, 0.1, (NF, 3, 3))
SYMBOLS = ["H", "O", "H", "O", "H", "H"]


def system(*, periodic: bool = True, names: tuple[str, ...] = ("H", "O")) -> dpdata.System:
    """Types in another order than the model's."""
    data = {
        "atom_names": list(names), "atom_numbs": [4, 2], "atom_types": np.array([0, 1, 0, 1, 0, 0]), "orig": np.zeros(3),
        "coords": COORD.copy(), "cells": CELLS.copy(),
    }  # fmt: skip
    return dpdata.System(data=data if periodic else {**data, "nopbc": True})


@pytest.mark.parametrize("periodic", [True, False])
def test_labels(periodic: bool) -> None:
    asked = system(periodic=periodic)
    labelled = asked.predict(str(FILE), driver="dpmodel", backend="pt")
    assert isinstance(labelled, dpdata.LabeledSystem)
    # dpdata sorts atoms by type on the way; the driver keeps what it gets.
    order = [asked["atom_names"][k] for k in asked["atom_types"]]
    expected = dpmodel.load(FILE, "pt").evaluate(asked["coords"], order, asked["cells"] if periodic else None)
    assert np.std(expected["energy"]) > 1e-6
    np.testing.assert_allclose(labelled["energies"], expected["energy"][:, 0], rtol=1e-13)
    np.testing.assert_allclose(labelled["forces"], expected["force"], rtol=0, atol=1e-13)
    np.testing.assert_array_equal(labelled["atom_types"], asked["atom_types"])
    if periodic:
        np.testing.assert_allclose(labelled["virials"].reshape(NF, 9), expected["virial"], rtol=0, atol=1e-12)
    else:
        assert "virials" not in labelled.data


def test_labels_survive_the_way_to_disk_and_back(tmp_path) -> None:
    """What dpdata writes from our labels, our test reads as exact."""
    labelled = system().predict(dpmodel.load(FILE, "pt"), driver="dpmodel")
    labelled.to("deepmd/npy", str(tmp_path / "data"), prec=np.float64)
    from dpmodel.metrics import evaluate_systems

    total = evaluate_systems(dpmodel.load(FILE, "pt"), tmp_path / "data").total
    assert all(total[name].rmse < 1e-12 for name in ("energy", "force", "virial"))


def test_parameters_and_refusals() -> None:
    demanding = dpmodel.load(GOLDEN / "se_e2_a_fparam_aparam.dp", "pt")
    given = {"fparam": RNG.normal(size=2), "aparam": RNG.normal(size=(NA, 3))}
    asked = system()
    labelled = asked.predict(demanding, driver="dpmodel", **given)
    order = [asked["atom_names"][k] for k in asked["atom_types"]]
    expected = demanding.evaluate(asked["coords"], order, asked["cells"], **given)
    np.testing.assert_allclose(labelled["energies"], expected["energy"][:, 0], rtol=1e-13)
    with pytest.raises(InputError, match="fparam is missing"):
        asked.predict(demanding, driver="dpmodel")
    with pytest.raises(InputError, match="the model knows no 'Na'"):
        system(names=("H", "Na")).predict(str(FILE), driver="dpmodel")
    with pytest.raises(BackendError, match="the numpy backend has no derivatives"):
        asked.predict(str(FILE), driver="dpmodel", backend="numpy")
    with pytest.raises(InputError, match="a model of energies without spin"):
        ModelDriver(GOLDEN / "spin_sea.dp", "pt")
    with pytest.raises(InputError, match="backend, device and head belong to loading"):
        ModelDriver(demanding, "pt")
    with pytest.raises(InputError, match="unknown argument 'fparm'; models take fparam, aparam, charge_spin"):
        asked.predict(str(FILE), driver="dpmodel", fparm=[1.0])


def test_one_of_several_tasks() -> None:
    several = GOLDEN.parent / "checkpoints" / "multi.pt"
    with pytest.raises(InputError, match="choose one of its heads with head"):
        ModelDriver(several, "pt")
    assert ModelDriver(several, "pt", head="water_a").potential.type_map == ("O", "H")


@pytest.mark.parametrize("first", ["dpdata", "dpmodel.adapters.dpdata"])
def test_either_may_be_imported_first(first: str) -> None:
    """dpdata loads its plugins while it is imported itself."""
    code = f"import {first}, dpdata; assert 'dpmodel' in dpdata.driver.Driver.get_drivers()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
