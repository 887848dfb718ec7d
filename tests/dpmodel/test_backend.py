"""Which backend is chosen, what its absence says, and what `import dpmodel` offers."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel import backend as module
from dpmodel.backend import (
    ALIASES,
    INSTALL,
    NUMPY,
    PREFERENCE,
    REQUIRES,
    canonical_name,
    get_backend,
    get_trainer,
    installed,
)
from dpmodel.errors import BackendError, DPError
from dpmodel.files.model_file import read_model
from dpmodel.potential import Potential

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden" / "se_e2_a.dp"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DP_BACKEND", raising=False)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that these packages are installed, and that loading a backend gives its name."""
    real = importlib.util.find_spec

    def pretend(*packages: str) -> None:
        def find_spec(name: str, package: str | None = None) -> Any:
            return (object() if name in packages else None) if name in ("torch", "jax") else real(name, package)

        monkeypatch.setattr(module.importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(module, "_load", lambda key: SimpleNamespace(name=key, has_gradients=True))

    return pretend


# --- selection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packages", "best"),
    [((), "numpy"), (("jax",), "jax"), (("torch",), "pt"), (("torch", "jax"), "pt")],
)
def test_best_installed(packages: tuple[str, ...], best: str, only: Any) -> None:
    only(*packages)
    assert get_backend().name == best
    assert get_backend(None).name == best


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
@pytest.mark.parametrize("spelling", [str, str.upper, str.title, " {} ".format])
def test_aliases(alias: str, name: str, spelling: Any, only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    only("torch", "jax")
    assert canonical_name(spelling(alias)) == name
    assert get_backend(spelling(alias)).name == name
    monkeypatch.setenv("DP_BACKEND", spelling(alias))
    assert get_backend().name == name
    assert get_backend("np").name == "numpy"  # the argument wins


def test_the_names_of_the_peer_are_known() -> None:
    assert {
        "numpy",
        "dp",
        "dpmodel",
        "pt",
        "pytorch",
        "torch",
        "jax",
        "pt_expt",
        "pytorch-exportable",
    } <= ALIASES.keys()
    assert set(ALIASES.values()) == set(REQUIRES)
    assert set(PREFERENCE) | {"pt_expt"} == set(REQUIRES)


def test_an_empty_variable_is_none(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    only("jax")
    monkeypatch.setenv("DP_BACKEND", "")
    assert get_backend().name == "jax"


@pytest.mark.parametrize("name", ["tensorflow", "tf", "pd", "", "pt expt", 3, ("pt",)])
def test_unknown_names(name: Any, only: Any) -> None:
    only("jax")
    with pytest.raises(BackendError) as error:
        get_backend(name)
    text = str(error.value)
    assert text.startswith(
        f"unknown backend {name!r}; known are numpy, pt, jax, pt_expt. Installed: numpy, jax. To install: pt ("
    )
    assert "pip install torch" in text
    assert isinstance(error.value, DPError | ValueError)


def test_an_unknown_name_in_the_environment(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    only("torch", "jax")
    monkeypatch.setenv("DP_BACKEND", "tensorflow")
    for choose in (get_backend, get_trainer):
        with pytest.raises(
            BackendError, match="the environment variable DP_BACKEND: unknown backend 'tensorflow'"
        ) as error:
            choose()
        assert str(error.value).endswith("Installed: numpy, pt, jax, pt_expt.")  # nothing is left to install


@pytest.mark.parametrize(("name", "package"), [("pt", "torch"), ("pt_expt", "torch"), ("jax", "jax")])
def test_missing_packages(name: str, package: str, only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    only()
    message = f"backend {name!r} needs the package {package!r}, which is not installed. Installed: numpy. To install: "
    with pytest.raises(BackendError) as error:
        get_backend(name)
    assert str(error.value).startswith(message)
    for other, command in INSTALL.items():
        assert f"{other} ({command})" in str(error.value)
    monkeypatch.setenv("DP_BACKEND", name)
    with pytest.raises(BackendError, match=r"^the environment variable DP_BACKEND: backend"):
        get_backend()


def test_install_commands_name_the_missing_package() -> None:
    assert {name: f"pip install {REQUIRES[name]}" for name in INSTALL} == INSTALL
    assert INSTALL.keys() | {"numpy"} == REQUIRES.keys()


def test_training(only: Any) -> None:
    only()
    with pytest.raises(BackendError, match="backend 'pt' needs the package 'torch'"):
        get_trainer()  # never quietly another one
    with pytest.raises(BackendError, match="the numpy backend cannot train in this version; use --backend pt"):
        get_trainer("numpy")


# --- finding what was chosen -----------------------------------------------------------------------------------


def test_entry_points_are_those_that_a_checkout_would_take() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    points = {point.name: point.value for point in importlib.metadata.entry_points(group=module.GROUP)}
    assert declared[module.GROUP] == points
    assert points == {
        "numpy": "dpmodel.backend:NUMPY",
        **{name: f"dpmodel.backends.{name}:BACKEND" for name in ("pt", "jax", "pt_expt")},
    }


def point(value: str, name: str = "jax") -> tuple[importlib.metadata.EntryPoint, ...]:
    return (importlib.metadata.EntryPoint(name=name, value=value, group=module.GROUP),)


@pytest.mark.parametrize("points", [(), point("math:pi", "other"), point("dpmodel.backends.jax:BACKEND")])
def test_without_an_entry_point_the_usual_place_is_taken(points: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_entry_points", lambda: points)
    monkeypatch.setattr(module.importlib, "import_module", lambda name: SimpleNamespace(BACKEND=name))
    assert module._load("jax") == "dpmodel.backends.jax"


def test_an_entry_point_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_entry_points", lambda: point("dpmodel.backend:NUMPY"))
    assert module._load("jax") is NUMPY


def test_a_checkout_that_hides_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'dpmodel.backends'", name="dpmodel.backends")

    monkeypatch.setattr(module.importlib, "import_module", import_module)
    with pytest.raises(
        BackendError, match=r"inside a checkout of the sources, .* hides the installed package"
    ) as error:
        module._load("jax")
    assert "Run from another folder, or install the checkout with: pip install -e ." in str(error.value)


@pytest.mark.parametrize(
    "problem", [ImportError("libfoo.so.1: no such file"), ModuleNotFoundError("no bar", name="bar")]
)
def test_a_broken_installation(problem: ImportError, monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        raise problem

    monkeypatch.setattr(module.importlib, "import_module", import_module)
    with pytest.raises(
        BackendError, match=r"torch is installed, but importing .* fails \(.*\)\. Install it anew: pip"
    ) as error:
        module._load("pt")
    assert error.value.__cause__ is problem


def test_what_is_here() -> None:
    assert "numpy" in installed()
    assert set(installed()) <= set(REQUIRES)


# --- the NumPy backend -------------------------------------------------------------------------------------------


def test_numpy_options() -> None:
    model = read_model(GOLDEN).model
    for device in (None, "cpu"):
        assert NUMPY.evaluator(model, device=device).model() is model
    with pytest.raises(BackendError, match=r"runs on the CPU; device='cuda' needs backend='pt' or 'jax'"):
        dpmodel.load(GOLDEN, "numpy", device="cuda")
    with pytest.raises(BackendError, match="compile=True needs backend='pt_expt'; the numpy backend has nothing"):
        Potential.from_model(model, "numpy", compile=True)


def test_numpy_has_no_derivatives() -> None:
    evaluator = NUMPY.evaluator(read_model(GOLDEN).model)
    graph: Any = None
    with pytest.raises(BackendError, match="the numpy backend has no derivatives"):
        evaluator(graph, forces=True, atomic=False)


# --- the package ---------------------------------------------------------------------------------------------------


def test_public_names() -> None:
    assert dpmodel.__all__ == ["Potential", "__version__", "freeze", "load", "model_deviation", "save"]
    assert dir(dpmodel) == sorted(dpmodel.__all__)
    for name in dpmodel.__all__:
        assert getattr(dpmodel, name) is not None
    assert dpmodel.Potential is Potential
    assert dpmodel.load is importlib.import_module("dpmodel.potential").load
    star: dict[str, Any] = {}
    exec("from dpmodel import *", star)
    assert set(dpmodel.__all__) <= star.keys()


def test_unknown_names_of_the_package() -> None:
    with pytest.raises(AttributeError, match="module 'dpmodel' has no attribute 'Potenzial'"):
        dpmodel.Potenzial  # noqa: B018  # the look-up is the test
    with pytest.raises(ImportError, match="cannot import name 'evaluate'"):
        exec("from dpmodel import evaluate")


def test_the_example_of_the_package_runs() -> None:
    result = dpmodel.load(GOLDEN, backend="numpy").evaluate(np.eye(3), ["O", "H", "H"], 6 * np.eye(3))
    assert result["energy"].shape == (1, 1)
