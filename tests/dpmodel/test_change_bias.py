"""Output biases fitted to other data: against plain least squares, for every kind of model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.cli import main
from dpmodel.data.write import write_system
from dpmodel.errors import DataError, InputError
from dpmodel.files.model_file import read_model, write_model
from dpmodel.statistics.change import changed_bias, with_bias

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NAMES = ("se_e2_a", "spin_sea", "zbl_dpa1", "property_sea", "dos_sea", "polar_sea")

pytestmark = pytest.mark.filterwarnings("ignore::dpmodel.geometry.build.TruncationWarning")  # tri14 cuts off on purpose


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dpmodel.Potential, np.ndarray, Path]:
    """A model, (frames, types) counts, and data whose labels are its predictions plus what the types add."""
    potential = dpmodel.load(GOLDEN / f"{request.param}.dp", backend="numpy")
    rng = np.random.default_rng(3)
    types = potential.model.ntypes
    counts = rng.integers(1, 4, (4, types))
    for k, row in enumerate(counts):
        atype = np.repeat(np.arange(types), row)
        n = len(atype)
        coord, cell = rng.uniform(0, 9, (1, n, 3)), 9.0 * np.eye(3)[None]
        given: dict[str, Any] = {"spin": rng.normal(size=(1, n, 3))} if potential.model.spin_scales else {}
        output = potential.model.output()
        out = potential.evaluate(coord, atype, cell, **given)[output.reduced].reshape(1, -1)
        shift = shifts(types, out.shape[1])
        weights = row / n if output.intensive else row
        out = out + weights @ shift
        write_system(
            tmp_path / f"s{k}", coord, atype, cell, type_map=list(potential.type_map),
            labels={output.name: out, **{name: value.reshape(1, -1) for name, value in given.items()}},
        )  # fmt: skip
    return potential, counts, tmp_path


def shifts(types: int, size: int) -> np.ndarray:
    """(types, size)."""
    return np.arange(1.0, 1.0 + types * size).reshape(types, size)


def test_change_adds_what_the_labels_have_more(case: tuple[dpmodel.Potential, np.ndarray, Path]) -> None:
    potential, _, folder = case
    model = changed_bias(potential, folder)
    old, new = (getattr(part, "backbone", part) for part in (potential.model, model))
    types, size = potential.model.ntypes, np.asarray(old.out_bias).shape[1]
    added = np.asarray(new.out_bias)[:types] - np.asarray(old.out_bias)[:types]
    if potential.model.output().by_type:
        np.testing.assert_allclose(added, shifts(types, size), atol=1e-9)
    assert np.array_equal(new.out_std, old.out_std)
    again = changed_bias(dpmodel.load(saved(potential, model, folder), backend="numpy"), folder)
    drift = np.asarray(getattr(again, "backbone", again).out_bias) - np.asarray(new.out_bias)
    if potential.model.output().name != "polarizability":  # of which the mean of the diagonal acts
        np.testing.assert_allclose(drift, 0.0, atol=1e-9)


def saved(potential: dpmodel.Potential, model: Any, folder: Path) -> Path:
    from dpmodel.files.model_file import ModelFile, write_model

    write_model(folder / "changed.dp", ModelFile(model=model))
    return folder / "changed.dp"


def test_set_is_the_fit_of_the_labels(tmp_path: Path) -> None:
    potential = dpmodel.load(GOLDEN / "se_e2_a.dp", backend="numpy")
    atypes = [[0, 0, 1], [0, 1, 1, 1]]
    for k, atype in enumerate(atypes):
        coord = np.random.default_rng(k).uniform(0, 9, (1, len(atype), 3))
        energy = np.array([[sum(2.0 if t == 0 else -5.0 for t in atype)]])
        write_system(
            tmp_path / str(k), coord, atype, 9.0 * np.eye(3)[None], type_map=list(potential.type_map),
            labels={"energy": energy},
        )  # fmt: skip
    model = changed_bias(potential, tmp_path, mode="set")
    np.testing.assert_allclose(np.ravel(model.out_bias)[:2], [2.0, -5.0], atol=1e-12)  # type: ignore[attr-defined]  # a standard model


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model.dp"
    source.write_bytes((GOLDEN / "se_e2_a.dp").read_bytes())
    before = source.read_bytes()
    assert main(["change-bias", str(source), "--bias-value", "1.5", "-2.5"]) == 0
    found = dpmodel.load(tmp_path / "model_updated.dp", backend="numpy").model
    assert np.ravel(found.out_bias).tolist() == [1.5, -2.5]  # type: ignore[attr-defined]  # a standard model
    assert source.read_bytes() == before
    for args, says in (
        (["--bias-value", "1.0"], "--bias-value: expected 2 numbers, for the types"),
        (["--bias-value", "1", "2", "-s", "x"], "--bias-value: excludes --system and --datafile"),
        (["-o", str(source), "--bias-value", "1", "2"], "--output"),
        (
            ["-o", "other.pt", "--bias-value", "1", "2"],
            "--output: give a name that ends in .dp, .yaml, .yml, .json; other.pt does not",
        ),
        (["-n", "-1"], "nbatch: expected a number of batches per system"),
    ):
        assert main(["change-bias", str(source), *args]) != 0
        assert says in capsys.readouterr().err


def test_polarizabilities_with_a_scale(tmp_path: Path) -> None:
    """Their bias is multiplied by the scale of the type: what is added is divided by it."""
    model: Any = dpmodel.load(GOLDEN / "polar_sea.dp", backend="numpy").model
    scale = np.array([[0.5], [4.0]])
    potential = dpmodel.Potential.from_model(model.replace(fitting=model.fitting.replace(scale=scale)), "numpy")
    rng, types = np.random.default_rng(3), len(potential.type_map)
    counts, shift = rng.integers(1, 4, (5, types)), np.array([3.0, -1.0])[:types]
    frames = [(rng.uniform(0, 9, (1, int(row.sum()), 3)), np.repeat(np.arange(types), row)) for row in counts]
    cell, unit = 9.0 * np.eye(3)[None], np.eye(3).reshape(9)

    def predicted(own: dpmodel.Potential) -> np.ndarray:
        return np.array([own.evaluate(coord, atype, cell)["global_polar"].reshape(9) for coord, atype in frames])

    labels = predicted(potential) + (counts @ shift)[:, None] * unit
    for k, ((coord, atype), label) in enumerate(zip(frames, labels, strict=True)):
        write_system(
            tmp_path / f"s{k}", coord, atype, cell, type_map=list(potential.type_map),
            labels={"polarizability": label[None]},
        )  # fmt: skip
    after = predicted(dpmodel.Potential.from_model(changed_bias(potential, tmp_path), "numpy"))
    np.testing.assert_allclose(after, labels, atol=1e-9)


def test_models_whose_bias_has_no_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = GOLDEN / "dipole_sea.dp"
    numbers = ["0"] * dpmodel.load(model, "numpy").model.ntypes * 3
    assert main(["change-bias", str(model), "-o", str(tmp_path / "m.dp"), "--bias-value", *numbers]) != 0
    assert "its output bias has no effect, as" in capsys.readouterr().err
    shared = read_model(GOLDEN / "property_sea.dp")
    net: Any = shared.model
    config = net.fitting.config.replace(distinguish_types=False)
    one = net.replace(fitting=net.fitting.replace(config=config))
    write_model(tmp_path / "one.dp", dataclasses.replace(shared, model=one))
    size = np.asarray(one.out_bias).size
    for numbers, works in (([str(k) for k in range(size)], False), (["2"] * size, True)):
        code = main(["change-bias", str(tmp_path / "one.dp"), "--bias-value", *numbers])
        assert (code == 0) == works
        assert works or "all types of this model have one bias" in capsys.readouterr().err


def test_bad_input(tmp_path: Path) -> None:
    potential = dpmodel.load(GOLDEN / "se_e2_a.dp", backend="numpy")
    write_system(
        tmp_path / "s", np.zeros((1, 1, 3)), [0], None, type_map=list(potential.type_map),
        labels={"force": np.zeros((1, 3))},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"no system has the label of 'energy': expected energy\.npy in set"):
        changed_bias(potential, tmp_path)
    with pytest.raises(InputError, match="mode: expected one of change, set, got 'add'"):
        changed_bias(potential, tmp_path, mode="add")
    with pytest.raises(InputError, match="bias: expected 2 rows"):
        with_bias(potential.model, np.zeros((3, 1)))
    with pytest.raises(InputError, match="bias: expected finite numbers"):
        with_bias(potential.model, np.full((2, 1), np.nan))
