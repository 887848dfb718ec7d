"""Errors over systems: definitions, merging, chunks, detail files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dpmodel
from dpmodel.data import write_system
from dpmodel.details import DetailWriter, detail_path, read_detail
from dpmodel.errors import DataError, InputError
from dpmodel.metrics import ErrorSum, evaluate_systems

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "se_e2_a.dp"
RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def potential() -> dpmodel.Potential:
    return dpmodel.load(GOLDEN, "pt")


def frames(count: int, natoms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Types are out of order on purpose: sorting them would mix up per-atom rows."""
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[:natoms] * 3.0
    coord = grid + RNG.uniform(-0.6, 0.6, (count, natoms, 3))
    atype = np.arange(natoms) % 2 ^ 1
    cell = np.broadcast_to(9.5 * np.eye(3) + 0.2, (count, 3, 3)) + RNG.normal(0, 0.05, (count, 3, 3))
    return coord, atype, cell


@pytest.fixture
def systems(tmp_path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Three systems: periodic with all labels, periodic without virial, open with a virial that means nothing."""
    out = {}
    for name, count, natoms in (("a", 3, 4), ("b", 2, 7), ("c", 2, 5)):
        coord, atype, cell = frames(count, natoms)
        labels = {"energy": RNG.normal(size=(count, 1)), "force": RNG.normal(size=(count, natoms, 3))}
        if name != "b":
            labels["virial"] = RNG.normal(size=(count, 9))
        if name == "a":
            labels["atom_ener"] = RNG.normal(size=(count, natoms))
        box = None if name == "c" else cell
        write_system(tmp_path / name, coord, atype, box, type_map=["O", "H"], labels=labels)
        out[name] = {"coord": coord, "atype": atype, "cell": box, **labels}
    return out


def test_errors_are_those_of_a_direct_evaluation(potential, systems, tmp_path) -> None:
    report = evaluate_systems(potential, tmp_path, atomic=True)
    assert [Path(s.path).name for s in report.systems] == ["a", "b", "c"]
    differences: dict[str, list[np.ndarray]] = {}
    for name, system in systems.items():
        out = potential.evaluate(system["coord"], system["atype"], system["cell"], atomic=True)
        n = system["coord"].shape[1]
        here = {"energy": out["energy"] - system["energy"], "force": out["force"] - system["force"]}
        here["energy_per_atom"] = here["energy"] / n
        if name == "a":
            here["virial"] = out["virial"] - system["virial"]
            here["virial_per_atom"] = here["virial"] / n
            here["atom_energy"] = out["atom_energy"][..., 0] - system["atom_ener"]
        found = next(s for s in report.systems if Path(s.path).name == name)
        assert found.errors.keys() == here.keys()
        assert found.frames == len(system["coord"])
        for key, difference in here.items():
            assert found.errors[key].rmse == pytest.approx(np.sqrt(np.mean(difference**2)), rel=1e-12)
            assert found.errors[key].mae == pytest.approx(np.mean(np.abs(difference)), rel=1e-12)
            differences.setdefault(key, []).append(difference.ravel())
    # The total is that of all data at once: weights are numbers of elements.
    for key, parts in differences.items():
        whole = np.concatenate(parts)
        assert report.total[key].number == whole.size
        assert report.total[key].rmse == pytest.approx(np.sqrt(np.mean(whole**2)), rel=1e-12)
        assert report.total[key].mae == pytest.approx(np.mean(np.abs(whole)), rel=1e-12)


def test_chunks_change_nothing(potential, systems, tmp_path, monkeypatch) -> None:
    whole = evaluate_systems(potential, tmp_path)
    monkeypatch.setenv("DP_TEST_CHUNK_ATOMS", "1")
    parts: list[int] = []
    pieces = evaluate_systems(potential, tmp_path, on_chunk=lambda part: parts.append(len(part.label["energy"])))
    assert parts == [1] * 7
    for name, error in whole.total.items():
        assert pieces.total[name].rmse == pytest.approx(error.rmse, rel=1e-12)
    monkeypatch.setenv("DP_TEST_CHUNK_ATOMS", "many")
    with pytest.raises(InputError, match="DP_TEST_CHUNK_ATOMS"):
        evaluate_systems(potential, tmp_path)


def test_some_frames(potential, systems, tmp_path) -> None:
    first = evaluate_systems(potential, tmp_path / "a", max_frames=2)
    out = potential.evaluate(*(systems["a"][key] for key in ("coord", "atype", "cell")))
    assert first.total["energy"].number == 2
    expected = np.mean(np.abs(out["energy"][:2] - systems["a"]["energy"][:2]))
    assert first.total["energy"].mae == pytest.approx(expected, rel=1e-12)
    again = [evaluate_systems(potential, tmp_path / "a", max_frames=2, shuffle=5).total["energy"].mae for _ in range(2)]
    assert again[0] == again[1]
    assert evaluate_systems(potential, tmp_path / "a", max_frames=99).total["energy"].number == 3
    with pytest.raises(InputError, match="max_frames"):
        evaluate_systems(potential, tmp_path / "a", max_frames=0)


def test_numpy_compares_energies_alone(systems, tmp_path) -> None:
    report = evaluate_systems(dpmodel.load(GOLDEN, "numpy"), tmp_path)
    assert report.total.keys() == {"energy", "energy_per_atom"}


def test_virtual_atoms_do_not_count(potential, tmp_path) -> None:
    coord, _, cell = frames(2, 4)
    atype = np.array([[0, 1, 1, -1], [1, 0, -1, -1]])
    force = np.where(atype[..., None] >= 0, 1.0, 1e6) * np.ones(3)
    energy = np.array([3.0, 4.0])
    write_system(tmp_path / "m", coord, atype, cell, type_map=["O", "H"], labels={"force": force, "energy": energy})
    report = evaluate_systems(potential, tmp_path)
    out = potential.evaluate(coord, atype, cell)
    assert report.total["force"].number == 15
    assert report.total["force"].rmse < 100
    per_atom = (out["energy"][:, 0] - energy) / np.array([3, 2])
    assert report.total["energy_per_atom"].mae == pytest.approx(np.mean(np.abs(per_atom)), rel=1e-12)


def test_nothing_to_compare(potential, tmp_path) -> None:
    coord, atype, cell = frames(1, 4)
    write_system(tmp_path / "bare", coord, atype, cell, type_map=["O", "H"])
    with pytest.raises(DataError, match="no system has labels"):
        evaluate_systems(potential, tmp_path)


def test_an_empty_sum_is_nan() -> None:
    assert np.isnan(ErrorSum().rmse)
    assert np.isnan(ErrorSum().mae)


def test_details(potential, systems, tmp_path) -> None:
    prefix = tmp_path / "details"
    detail_path(prefix, "atom_energy").write_text("of an earlier test\n")
    with DetailWriter(prefix) as writer:
        evaluate_systems(potential, tmp_path, on_chunk=writer)
        assert not detail_path(prefix, "energy").exists()
    assert sorted(path.name for path in tmp_path.glob("details*")) == [
        "details.e.out", "details.e_peratom.out", "details.f.out", "details.s.out", "details.v.out",
        "details.v_peratom.out",
    ]  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    pair = read_detail(prefix, "force")
    assert pair is not None
    expected = np.concatenate([systems[name]["force"].reshape(-1, 3) for name in "abc"])
    np.testing.assert_array_equal(pair[0], expected)
    out = potential.evaluate(*(systems["a"][key] for key in ("coord", "atype", "cell")))
    np.testing.assert_array_equal(pair[1][:12], out["force"].reshape(-1, 3))
    stress = read_detail(prefix, "stress")
    assert stress is not None
    volume = np.abs(np.linalg.det(systems["a"]["cell"]))[:, None]
    np.testing.assert_allclose(stress[1], -out["virial"] / volume, rtol=1e-14)
    lines = (tmp_path / "details.e.out").read_text().splitlines()
    assert lines[0].endswith("a: data_e pred_e")
    assert sum(line.startswith("#") for line in lines) == 3
    assert read_detail(prefix, "atom_energy") is None


def test_details_of_a_failed_test_leave_earlier_ones(potential, systems, tmp_path) -> None:
    prefix = tmp_path / "details"
    detail_path(prefix, "energy").write_text("# earlier: data_e pred_e\n1 2\n")

    def broken_off() -> None:
        with DetailWriter(prefix) as writer:
            evaluate_systems(potential, tmp_path / "a", on_chunk=writer)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken_off()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["details.e.out"]
    assert read_detail(prefix, "energy") is not None
    with pytest.raises(FileNotFoundError), DetailWriter(tmp_path / "nowhere" / "x"):
        pytest.fail("the folder does not exist")


@pytest.mark.parametrize("content", ["1 2 3\n", "one two\n", ""])
@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data")
def test_other_files_are_no_details(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.e.out").write_text(content)
    with pytest.raises(InputError, match=r"x\.e\.out: expected rows of 2 numbers"):
        read_detail(tmp_path / "x", "energy")
