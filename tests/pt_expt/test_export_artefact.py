"""Compiled artefacts: equal to the model they were made from, through the public face."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest

import dpmodel
from dpmodel.ase import Calculator
from dpmodel.errors import InputError
from dpmodel.metrics import evaluate_systems

ATOL = {"float64": 1e-10, "float32": 2e-5}


@pytest.fixture(params=["se_a_pt2", "dpa3_pt2", "dpa3_float32_pt2"])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def pair(path: Path) -> tuple[Any, Any]:
    """The artefact and the model that it was made from, eager."""
    return dpmodel.load(path), dpmodel.load(path.with_suffix(".dp"), backend="pt", device="cpu")


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], precision: str) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert found[key].dtype == value.dtype
        bound = ATOL[precision] * max(1.0, np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(found[key], value, rtol=0, atol=bound, err_msg=key)


@pytest.mark.parametrize(("frames", "atoms"), [(1, 12), (3, 5), (1, 1), (2, 0), (1, 2)])
@pytest.mark.parametrize("periodic", [True, False])
def test_equals_the_model(path: Path, frames: int, atoms: int, periodic: bool) -> None:
    compiled, eager = pair(path)
    rng = np.random.default_rng(atoms)
    coord = rng.uniform(0, 6, (frames, atoms, 3))
    atype = rng.integers(-1 if atoms > 4 else 0, 2, (frames, atoms))
    box = np.array([[6.0, 0, 0], [1.0, 5.5, 0], [-0.5, 0.7, 6.2]]) if periodic else None
    single = "float32" in path.name
    for atomic in (False, True):
        options = {"atomic": atomic, "forces": False} if atomic and single else {"atomic": atomic}
        results = [potential.evaluate(coord, atype, box, **options) for potential in (compiled, eager)]
        assert_equal(*results, "float32" if single else "float64")
    assert_equal(
        *(p.evaluate(coord, atype, box, forces=False) for p in (compiled, eager)), "float32" if single else "float64"
    )


def test_what_it_says(dpa3_pt2: Path) -> None:
    pot = dpmodel.load(dpa3_pt2)
    assert (pot.type_map, pot.rcut, pot.dim_fparam, pot.dim_aparam) == (("O", "H"), 4.0, 0, 0)
    assert pot.backend.name == "pt_expt"
    compared = pot._evaluator.metadata["compared"]
    assert len({(each["atoms"], each["edges"]) for each in compared}) >= 2
    assert all(0 <= each["largest_difference"] <= 1e-10 for each in compared)


def test_large_systems_in_pieces(se_a_pt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a local model have ghosts."""
    compiled, eager = pair(se_a_pt2)
    rng = np.random.default_rng(1)
    coord, atype = rng.uniform(0, 9, (60, 3)), rng.integers(0, 2, 60)
    expected = eager.evaluate(coord, atype, 9 * np.eye(3), atomic=True)
    monkeypatch.setenv("DP_INFER_BATCH_SIZE", "7")
    assert_equal(compiled.evaluate(coord, atype, 9 * np.eye(3), atomic=True), expected, "float64")


def test_without_atomic_virial(dpa3_float32_pt2: Path) -> None:
    pot = dpmodel.load(dpa3_float32_pt2)
    with pytest.raises(InputError, match=r"frozen without per-atom virials: freeze the model with --atomic-virial"):
        pot.evaluate(np.zeros((1, 3)), [0], atomic=True)
    assert "atom_virial" not in pot.outputs


def test_atomic_energies_need_no_atomic_virials(dpa3_float32_pt2: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    coord, atype = rng.uniform(0, 5, (1, 3, 3)), np.array([0, 1, 1])
    compiled, eager = pair(dpa3_float32_pt2)
    expected = eager.evaluate(coord, atype, 5 * np.eye(3), atomic=True)
    found = compiled.evaluate(coord, atype, 5 * np.eye(3), atomic=True, atomic_virial=False)
    assert_equal(found, {key: value for key, value in expected.items() if key != "atom_virial"}, "float32")
    atoms = ase.Atoms("OHH", positions=coord[0], cell=[5, 5, 5], pbc=True, calculator=Calculator(compiled))
    np.testing.assert_allclose(atoms.get_potential_energies(), expected["atom_energy"][0, :, 0], rtol=0, atol=1e-4)
    folder = tmp_path / "system" / "set.000"
    folder.mkdir(parents=True)
    (folder.parent / "type.raw").write_text("0 1 1")
    (folder.parent / "type_map.raw").write_text("O H")
    for name, value in {"coord": coord, "box": 5 * np.eye(3), "atom_ener": expected["atom_energy"]}.items():
        np.save(folder / f"{name}.npy", value.reshape(1, -1))
    report = evaluate_systems(compiled, folder.parent, atomic=True)
    assert report.total.keys() == {"atom_energy"}
    assert report.total["atom_energy"].mae < 1e-4


def test_nothing_is_left_behind(se_a_pt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch unpacks goes when it is loaded: a process that is killed cleans nothing up."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "other").touch()
    pots = [dpmodel.load(se_a_pt2) for _ in range(2)]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    first, second = (pot.evaluate(np.zeros((1, 3)), [0])["energy"] for pot in pots)
    assert np.isfinite(first).all() and np.array_equal(first, second)


def test_ase(dpa3_pt2: Path) -> None:
    results = []
    for file in (dpa3_pt2, dpa3_pt2.with_suffix(".dp")):
        atoms = ase.Atoms("H2O", positions=[[0, 0, 1], [0, 1, 0], [0, 0, 0]], cell=[5, 5, 5], pbc=True)
        atoms.calc = Calculator(file)
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_inputs_checked_by_torch(dpa3_pt2: Path) -> None:
    """What the evaluator hands over is what the compiled code declares; torch looks only when told so."""
    program = (
        "import sys, numpy as np, dpmodel\n"
        "pot = dpmodel.load(sys.argv[1])\n"
        "rng = np.random.default_rng(0)\n"
        "for n in (7, 1, 0):\n"
        "    out = pot.evaluate(rng.uniform(0, 5, (2, n, 3)), rng.integers(0, 2, n), 5 * np.eye(3), atomic=True)\n"
        "    print(n, np.isfinite(out['energy']).all())\n"
    )
    environment = {**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program, dpa3_pt2], env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "7 True\n1 True\n0 True\n", done.stderr
    assert done.stderr == ""
