"""DeePMD-kit's numbers through the public face, on every backend (see tests/data/golden/README.md)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

import dpmodel
from dpmodel.geometry import TruncationWarning

from .test_bridges import assert_same
from .tolerance import distance

FOLDER = Path(__file__).parents[1] / "data" / "golden"
MODELS = sorted(path.stem for path in FOLDER.glob("*.npz"))
JAX = ("dpa3_dynamic_b", "dpa3_sequential")
"""Of the models whose compilation takes long, those that are evaluated on JAX every day; the others are nightly."""
GRADIENTS = {"force", "virial", "atom_virial", "force_mag"}
UNCUT = ("se_e2_r", "se_e3", "spin")
"""Models whose `sel` holds all neighbours of every system."""

pytestmark = pytest.mark.filterwarnings("ignore::dpmodel.geometry.build.TruncationWarning")  # tri14 cuts off on purpose
each_model = pytest.mark.parametrize("name", MODELS)


def evaluate(path: Path, data: dict[str, np.ndarray], backend: str) -> dict[str, np.ndarray]:
    """Outputs by the names of the golden file."""
    return evaluate_all(dpmodel.load(path, backend=backend), data)


def evaluate_all(potential: dpmodel.Potential, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same of a loaded model."""
    results = {}
    for system in sorted({key.split("/")[0] for key in data}):
        given = {key.split("/")[2]: value for key, value in data.items() if key.startswith(f"{system}/in/")}
        coord, atype, box = given.pop("coord"), given.pop("atype"), given.pop("box", None)
        out = potential.evaluate(coord, atype, box, **given, atomic=True)
        results.update({f"{system}/out/{key}": value for key, value in out.items()})
    return results


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as data:
        return dict(data)


@functools.cache
def passes_messages(name: str) -> bool:
    return dpmodel.load(FOLDER / f"{name}.dp", backend="numpy").model.message_passing


def is_single(name: str) -> bool:
    return "fp32" in name or "mixed_precision" in name


BACKENDS = [
    *("numpy", "pt", "pt_expt"),
    pytest.param("jax", marks=pytest.mark.nightly),  # seconds for every size
]


@each_model
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(name: str, backend: str) -> None:
    check(name, backend, golden(name))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.nightly] * (n.startswith("dpa3") and n not in JAX)) for n in MODELS],
)
def test_golden_on_jax(name: str) -> None:
    """The systems with images, several frames, too many neighbours and padding."""
    check(name, "jax", {key: value for key, value in golden(name).items() if key.startswith(("tri14", "pad8"))})


def check(name: str, backend: str, data: dict[str, np.ndarray]) -> None:
    """Against the file, and against torch."""
    path = FOLDER / f"{name}.dp"
    ours = evaluate(path, data, backend)
    check_against_golden(name, ours, data, hidden=GRADIENTS if backend == "numpy" else set())
    if not is_single(name) and backend != "pt":
        for key, value in evaluate(path, data, "pt").items():
            if key in ours:
                assert distance(ours[key], value) <= (1e-11 if key.split("/")[2] in GRADIENTS else 1e-12), key


def check_against_golden(
    name: str, ours: dict[str, np.ndarray], data: dict[str, np.ndarray], *, hidden: Collection[str] = ()
) -> None:
    """Every output of the file but the hidden ones."""
    expected = {key: value for key, value in data.items() if "/out/" in key and key.split("/")[2] not in hidden}
    passing = passes_messages(name)
    assert expected
    for key, value in expected.items():
        found, golden = ours[key], value
        if key.endswith("/atom_virial") and passing:  # of another definition: the sums agree
            found, golden = found.sum(axis=1), data[key.replace("atom_virial", "virial")]
        assert distance(found, golden) <= (2e-5 if is_single(name) else 1e-10), key


COMPILED = (
    "se_e2_a", "se_e2_r", "se_e3", "se_e3_tebd", "dpa1", "se_atten_v2", "dpa2_min", "dpa3", "dpa3_dynamic", "dpa3_excl",
    "hybrid_dpa3_dpa1", "spin_sea",
)  # fmt: skip
"""One of every descriptor, and more of what passes messages."""
FROZEN = (
    *COMPILED, "hybrid_dpa2_dpa3", "spin_dpa3", "zbl_dpa1", "linear_sea_pairtab", "dipole_sea", "polar_sea", "dos_sea",
    "property_sea",
)  # fmt: skip
"""And one of every fitting net and kind of model."""


@pytest.mark.nightly
@pytest.mark.parametrize("name", COMPILED)
def test_golden_compiled(name: str) -> None:
    """By torch's own compiler, which takes minutes; every day the traced graphs run as they are."""
    potential = dpmodel.load(FOLDER / f"{name}.dp", backend="pt_expt", device="cpu", compile=True)
    check_against_golden(name, evaluate_all(potential, golden(name)), golden(name))


@pytest.mark.nightly
@pytest.mark.parametrize("name", FROZEN)
def test_golden_frozen(name: str, tmp_path: Path) -> None:
    """Frozen, loaded, evaluated."""
    dpmodel.freeze(FOLDER / f"{name}.dp", tmp_path / "model.pt2", atomic_virial=True)
    check_against_golden(name, evaluate_all(dpmodel.load(tmp_path / "model.pt2"), golden(name)), golden(name))


@pytest.mark.nightly
@pytest.mark.parametrize("name", FROZEN)
def test_golden_exported(name: str, tmp_path: Path) -> None:
    """As programs of JAX."""
    dpmodel.freeze(FOLDER / f"{name}.dp", tmp_path / "model.hlo")
    check_against_golden(name, evaluate_all(dpmodel.load(tmp_path / "model.hlo"), golden(name)), golden(name))


@each_model
@pytest.mark.parametrize("suffix", [".dp", ".yaml", ".json"])
def test_round_trip(name: str, suffix: str, tmp_path: Path) -> None:
    path, saved = FOLDER / f"{name}.dp", tmp_path / f"model{suffix}"
    before = dpmodel.load(path, backend="pt")
    dpmodel.save(before, saved)
    after = dpmodel.load(saved, backend="pt")
    assert_same(before.model, after.model)
    data = golden(name)
    first, second = evaluate(path, data, "pt"), evaluate(saved, data, "pt")
    assert all(np.array_equal(second[key], value) for key, value in first.items())


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith(UNCUT)])
def test_truncation_is_said_once(name: str) -> None:
    """The triclinic system cuts neighbours off: one warning, with the numbers."""
    data = golden(name)
    potential = dpmodel.load(FOLDER / f"{name}.dp", backend="numpy")
    given = {key.split("/")[2]: value for key, value in data.items() if key.startswith("tri14/in/")}
    coord, atype, box = given.pop("coord"), given.pop("atype"), given.pop("box")
    with pytest.warns(TruncationWarning, match="sel = "):
        potential.evaluate(coord, atype, box, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential.evaluate(coord, atype, box, **given)
