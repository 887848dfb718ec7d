"""How far models differ: definitions, the table, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.cli import main
from dpmodel.data import write_system
from dpmodel.deviation import COLUMNS, deviations_of_systems
from dpmodel.errors import BackendError, DataError, InputError
from dpmodel.op import walk
from dpmodel.potential import Potential

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FILE = GOLDEN / "se_e2_a.dp"
RNG = np.random.default_rng(3)
NF, NA = 3, 5
COORD = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[:NA] * 2.0 + RNG.uniform(-0.3, 0.3, (NF, NA, 3))
ATYPE = np.array([1, 0, 1, 1, 0])
BOX = np.eye(3) * 7.0 + 0.1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models whose weights differ a little."""
    folder, original = tmp_path_factory.mktemp("models"), dpmodel.load(FILE, "numpy").model
    paths = []
    for k in range(3):
        rng = np.random.default_rng(k)
        state = {
            path: x + 0.01 * rng.normal(size=x.shape) for path, kind, x, _ in walk(original) if kind.value == "param"
        }
        changed = original.with_state({**original.state(), **state})
        dpmodel.save(Potential.from_model(changed, "numpy"), folder / f"{k}.dp")
        paths.append(folder / f"{k}.dp")
    return paths


@pytest.fixture(scope="module")
def potentials(models: list[Path]) -> list[Potential]:
    return [dpmodel.load(path, "pt") for path in models]


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One periodic with labels, one open without a virial."""
    root = tmp_path_factory.mktemp("data")
    made = {"energy": RNG.normal(size=(NF, 1)), "force": RNG.normal(size=(NF, NA, 3))}
    box = np.broadcast_to(BOX, (NF, 3, 3))
    write_system(
        root / "a", COORD, ATYPE, box, type_map=["O", "H"], labels={**made, "virial": RNG.normal(size=(NF, 9))}
    )
    write_system(root / "b", COORD, ATYPE, None, type_map=["O", "H"], labels=made)
    return root


def outputs(potentials: list[Potential]) -> dict[str, np.ndarray]:
    found = [each.evaluate(COORD, ATYPE, BOX) for each in potentials]
    return {key: np.stack([out[key] for out in found]) for key in found[0]}


def test_deviations(potentials) -> None:
    found, out = dpmodel.model_deviation(potentials, COORD, ATYPE, BOX), outputs(potentials)
    assert (found.force.shape, found.virial.shape, found.energy.shape) == ((NF, NA), (NF, 9), (NF,))
    np.testing.assert_allclose(found.energy, np.std(out["energy"] / NA, axis=0)[:, 0], rtol=1e-12)
    np.testing.assert_allclose(found.virial, np.std(out["virial"] / NA, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.force, np.linalg.norm(np.std(out["force"], axis=0), axis=2), rtol=1e-12)
    assert found.force.min() > 1e-6
    table = found.table()
    expected = [
        found.virial.max(1), found.virial.min(1), np.sqrt(np.mean(found.virial**2, axis=1)),
        found.force.max(1), found.force.min(1), found.force.mean(1), found.energy,
    ]  # fmt: skip
    assert len(expected) == len(COLUMNS)
    np.testing.assert_allclose(table, np.transpose(expected), rtol=1e-14)


def test_relative(potentials) -> None:
    plain, out = dpmodel.model_deviation(potentials, COORD, ATYPE, BOX), outputs(potentials)
    found = dpmodel.model_deviation(potentials, COORD, ATYPE, BOX, relative=0.2, relative_v=0.1)
    size = np.linalg.norm(out["force"].mean(axis=0), axis=2)
    np.testing.assert_allclose(found.force, plain.force / (size + 0.2), rtol=1e-12)
    np.testing.assert_allclose(found.virial, plain.virial / (np.abs(out["virial"].mean(axis=0)) / NA + 0.1), rtol=1e-12)
    np.testing.assert_array_equal(found.energy, plain.energy)


def test_errors_against_labels(potentials) -> None:
    truth = {
        "energy": RNG.normal(size=(NF, 1)),
        "force": RNG.normal(size=(NF, NA, 3)),
        "virial": RNG.normal(size=(NF, 9)),
    }
    found, out = dpmodel.model_deviation(potentials, COORD, ATYPE, BOX, truth=truth, relative=0.3), outputs(potentials)
    expected = np.sqrt(np.mean(np.sum((out["force"] - truth["force"]) ** 2, axis=3), axis=0))
    np.testing.assert_allclose(found.force, expected / (np.linalg.norm(truth["force"], axis=2) + 0.3), rtol=1e-12)
    for key in ("energy", "virial"):
        expected = np.sqrt(np.mean(((out[key] - truth[key]) / NA) ** 2, axis=0))
        np.testing.assert_allclose(getattr(found, key), expected[:, 0] if key == "energy" else expected, rtol=1e-12)
    one = dpmodel.model_deviation(potentials[:1], COORD, ATYPE, BOX, truth={k: truth[k] for k in ("energy", "force")})
    assert np.isnan(one.virial).all() and np.isfinite(one.force).all()
    for name, wrong in (("force", (1, 3, 3)), ("virial", (1, 8)), ("energy", (2,))):
        with pytest.raises(InputError, match=f"truth: expected {name} of shape"):
            dpmodel.model_deviation(potentials, COORD, ATYPE, BOX, truth={**truth, name: np.zeros(wrong)})
    with pytest.raises(InputError, match=r"truth: expected the labels energy and force, got \['energy'\]"):
        dpmodel.model_deviation(potentials, COORD, ATYPE, BOX, truth={"energy": truth["energy"]})


def test_padding_counts_nowhere(potentials) -> None:
    more = np.concatenate([COORD, np.zeros((NF, 2, 3))], axis=1)
    found = dpmodel.model_deviation(potentials, more, [*ATYPE, -1, -1], BOX)
    plain = dpmodel.model_deviation(potentials, COORD, ATYPE, BOX)
    assert np.isnan(found.force[:, NA:]).all()
    np.testing.assert_allclose(found.table(), plain.table(), rtol=1e-10)


def test_systems_come_in_parts(potentials, systems, monkeypatch) -> None:
    whole = list(deviations_of_systems(potentials, systems))
    assert [Path(path).name for path, _, _ in whole] == ["a", "b"]
    np.testing.assert_allclose(
        whole[0][2].table(), dpmodel.model_deviation(potentials, COORD, ATYPE, BOX).table(), rtol=1e-9
    )
    monkeypatch.setattr("dpmodel.deviation.CHUNK_ATOMS", 2 * NA)
    parts = [part for part in deviations_of_systems(potentials, systems) if Path(part[0]).name == "b"]
    assert [list(frames) for _, frames, _ in parts] == [[0, 1], [2]]
    np.testing.assert_allclose(np.concatenate([each.force for _, _, each in parts]), whole[1][2].force, rtol=1e-12)


def run(models: list[Path], systems: Path, target: Path, *options: str) -> int:
    given = ["model-devi", "-m", *map(str, models), "-s", str(systems), "-o", str(target), "-b", "pt", "-v", "ERROR"]
    return main([*given, *options])


def test_table(models, potentials, systems, tmp_path) -> None:
    target = tmp_path / "devi.out"
    assert run(models, systems, target, "-f", "10", "--atomic", "--relative", "0.5") == 0
    lines = target.read_text().splitlines()
    assert lines[0] == f"# {systems / 'a'}" and lines[NF + 2] == f"# {systems / 'b'}"
    assert lines[1].split() == ["#", "step", *COLUMNS, "atm_devi_f(N)"]
    assert all(len(line) == 12 + 19 * (7 + NA) for line in lines[2 : NF + 2])
    expected = dpmodel.model_deviation(potentials, COORD, ATYPE, BOX, relative=0.5)
    table = np.loadtxt(target)
    np.testing.assert_array_equal(table[:, 0], [0, 10, 20, 0, 10, 20])
    np.testing.assert_allclose(table[:NF, 1:], np.hstack([expected.table(), expected.force]), rtol=1e-5)


def test_errors_on_the_command_line(models, systems, tmp_path) -> None:
    """An open system has no virial, and says so with nan."""
    assert run(models[:1], systems, tmp_path / "o", "--real_error") == 0
    table = np.loadtxt(tmp_path / "o")
    assert np.isnan(table[NF:, 1:4]).all() and np.isfinite(np.delete(table, np.s_[1:4], axis=1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-f", "0"), "--frequency: expected a number of steps above 0, got 0"),
        (("--relative", "-1"), "relative: expected a level above 0, or nothing for absolute deviations; got -1.0"),
        (("--relative_v", "nan"), "relative_v: expected a level above 0"),
    ],
)
def test_bad_options(models, systems, tmp_path, capsys, options, message) -> None:
    target = tmp_path / "devi.out"
    target.write_text("earlier")
    assert run(models, systems, target, *options) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["devi.out"] and target.read_text() == "earlier"


def test_what_cannot_be_compared(potentials, systems, models, tmp_path, capsys) -> None:
    def fails(given: list[Any], kind: type[Exception], message: str, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            dpmodel.model_deviation(given, COORD, ATYPE, BOX, **options)

    fails(potentials[:1], InputError, "expected at least two models to compare, got 1")
    fails([], InputError, "expected at least one model, got 0", truth={"energy": 0.0, "force": 0.0})
    fails([FILE, FILE], InputError, "expected potentials, as dpmodel.load gives them; got ")
    fails([*potentials, dpmodel.load(GOLDEN / "se_e2_a_3types.dp", "pt")], InputError, "need one type_map")
    fails([dpmodel.load(FILE, "numpy")] * 2, BackendError, "the numpy backend has no derivatives")
    fails(potentials, InputError, "unknown argument 'colour'; models take fparam", colour=1)
    with pytest.raises(InputError, match="expected at least two models"):
        list(deviations_of_systems(potentials[:1], systems))
    write_system(tmp_path / "c", COORD, ATYPE, None, type_map=["O", "H"], labels={"energy": np.zeros((NF, 1))})
    with pytest.raises(DataError, match="c: --real_error needs the labels energy and force; there is no force"):
        list(deviations_of_systems(potentials, tmp_path / "c", real_error=True))
    assert run(models[:1], systems, tmp_path / "o") == 1
    assert "expected at least two models" in capsys.readouterr().err and not (tmp_path / "o").exists()
