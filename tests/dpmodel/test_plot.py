"""Pictures: they are drawn from what the other commands write, in every format, or there is a clear error."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from dpmodel import plotting  # after importorskip
from dpmodel.cli import main  # after importorskip
from dpmodel.errors import DPError, InputError  # after importorskip
from dpmodel.plotting import plot_lcurve, plot_parity  # after importorskip
from dpmodel.training.lcurve import LearningCurve  # after importorskip

HEADS = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<?xml"}


def write_curve(path: Path, *, rows: int = 4, validation: bool = True) -> Path:
    curve = LearningCurve(path)
    for k in range(1, rows + 1):
        metrics = {"rmse": 9.0 / k, "rmse_e": 0.1 / k, "rmse_f": 1.0 / k, "rmse_v": np.nan}
        valid = {name: 1.1 * value for name, value in metrics.items()} if validation else None
        curve.write(10 * k, metrics, valid, 1e-3 / k)
    return path


def write_details(prefix: Path, *, points: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for name, width in (("e_peratom", 1), ("f", 3), ("v_peratom", 9)):
        label = rng.normal(size=(points, width))
        np.savetxt(f"{prefix}.{name}.out", np.concatenate([label, label + 0.1], axis=1), header="system: data pred")
    return prefix


def texts(path: Path) -> str:
    """What is written in an SVG picture, as matplotlib comments its glyphs."""
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"picture.{suffix}"
    assert plot_lcurve(write_curve(tmp_path / "lcurve.out"), target, title="a title") == target
    assert target.read_bytes().startswith(HEADS[suffix])
    plot_parity(write_details(tmp_path / "details"), target)
    assert target.read_bytes().startswith(HEADS[suffix])
    assert target.stat().st_size > 5000


def test_panels_of_a_learning_curve(tmp_path: Path) -> None:
    target = tmp_path / "x.svg"
    plot_lcurve(write_curve(tmp_path / "lcurve.out"), target)
    found = texts(target)
    for text in ("Energy RMSE, eV/atom", "Force RMSE, eV/Å", "Learning rate", "training", "validation"):
        assert f"<!-- {text} -->" in found
    # The virial column is all nan, and the total is no quantity of its own.
    assert "Virial" not in found
    assert "<!-- rmse -->" not in found
    plot_lcurve(write_curve(tmp_path / "other.out", rows=1, validation=False), target)
    assert "<!-- validation -->" not in texts(target)


def test_panels_of_a_parity_plot(tmp_path: Path) -> None:
    target = tmp_path / "x.svg"
    plot_parity(write_details(tmp_path / "details"), target)
    found = texts(target)
    for text in ("Energy about the mean of labels", "Force components", "Virial components", "RMSE 0.1 eV/Å"):
        assert f"<!-- {text} -->" in found
    assert "<!-- RMSE 100 meV/atom -->" in found
    # Many points are drawn as a density, in a picture that stays small.
    plot_parity(write_details(tmp_path / "many", points=20000), target)
    assert target.stat().st_size < 5_000_000


def test_the_same_picture_twice(tmp_path: Path) -> None:
    curve = write_curve(tmp_path / "lcurve.out")
    for name in ("a", "b"):
        plot_lcurve(curve, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = write_curve(tmp_path / "lcurve.out")
    with pytest.raises(InputError, match=r"end in \.png, \.svg, \.pdf; got '\.jpg'"):
        plot_lcurve(curve, tmp_path / "x.jpg")
    (tmp_path / "text.out").write_text("no curve\n")
    with pytest.raises(InputError, match=r"text\.out"):
        plot_lcurve(tmp_path / "text.out", tmp_path / "x.png")
    curve.write_text("".join(curve.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(InputError, match="no rows yet"):
        plot_lcurve(curve, tmp_path / "x.png")
    with pytest.raises(InputError, match=r"no details to draw: .*nix\.f\.out"):
        plot_parity(tmp_path / "nix", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(plotting, "import_module", missing)
    with pytest.raises(DPError, match="pip install matplotlib"):
        plot_lcurve(write_curve(tmp_path / "good.out"), tmp_path / "x.png")
    assert importlib.import_module("matplotlib")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_curve(tmp_path / "lcurve.out")
    write_details(tmp_path / "details")
    assert main(["plot"]) == 0
    assert main(["plot", "lcurve.out", "-o", "curve.pdf", "--title", "water"]) == 0
    assert main(["plot", "--parity", "details"]) == 0
    assert capsys.readouterr().out.split() == ["lcurve.png", "curve.pdf", "details.parity.png"]
    assert all(Path(name).exists() for name in ("lcurve.png", "curve.pdf", "details.parity.png"))
    assert main(["plot", "lcurve.out", "--parity", "details"]) == 1
    assert "got both" in capsys.readouterr().err


def test_other_quantities(tmp_path: Path) -> None:
    """Of models with spin, and of models of no energies: all that there is, sums per atom."""
    rng = np.random.default_rng(0)
    for name, width in (("fm", 3), ("h", 1)):
        np.savetxt(tmp_path / f"spins.{name}.out", rng.normal(size=(5, 2 * width)))
    for name in ("dipole", "dipole_peratom", "atom_dipole"):
        np.savetxt(tmp_path / f"water.{name}.out", rng.normal(size=(5, 6)))
    target = tmp_path / "x.svg"
    plot_parity(tmp_path / "spins", target)
    for text in ("Magnetic force components", "Hessian elements", "label, eV per unit of spin"):
        assert f"<!-- {text} -->" in texts(target)
    plot_parity(tmp_path / "water", target)
    for text in ("Dipole/Natoms", "Atomic dipole", "prediction"):
        assert f"<!-- {text} -->" in texts(target)
    assert "<!-- Dipole -->" not in texts(target)
    np.savetxt(tmp_path / "odd.dipole.out", rng.normal(size=(5, 5)))
    with pytest.raises(InputError, match=r"odd\.dipole\.out: expected rows of twice as many"):
        plot_parity(tmp_path / "odd", target)


def test_panels_of_several_tasks(tmp_path: Path) -> None:
    """A task whose metrics have no title has panels too, without its total; each task has a line of its own kind."""
    curve = LearningCurve(tmp_path / "lcurve.out")
    for k in (1, 2, 3):
        energies = {"rmse": 9.0 / k, "rmse_e": 0.1 / k}
        metrics = {"water": energies, "ice": energies, "dipole": {"rmse": 3.0 / k, "rmse_local_dipole": 0.1 / k}}
        curve.write(k, metrics, metrics, 1e-3)
    target = tmp_path / "x.svg"
    plot_lcurve(tmp_path / "lcurve.out", target)
    found = texts(target)
    for text in ("Energy RMSE, eV/atom", "rmse_local_dipole", "training water", "validation ice", "training dipole"):
        assert f"<!-- {text} -->" in found
    assert "<!-- rmse -->" not in found
    assert found.count("stroke-dasharray") > 2
