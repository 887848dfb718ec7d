"""Statistics of models of other quantities, with spin, with pair tables and of sums, against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel import Potential
from dpmodel.data import Dataset, LabelRequest
from dpmodel.data.write import write_system
from dpmodel.errors import DataError
from dpmodel.input import load_input
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.statistics.fit import bias_labels, fit_statistics

TABLE = Path(__file__).parents[1] / "data" / "golden" / "zbl.txt"

SEA: dict[str, Any] = {
    "type": "se_e2_a", "sel": [10, 12], "rcut": 3.0, "rcut_smth": 0.5, "neuron": [3, 6], "axis_neuron": 2, "seed": 1,
}  # fmt: skip
DPA1: dict[str, Any] = {
    "type": "dpa1", "sel": 14, "rcut": 2.5, "rcut_smth": 0.5, "neuron": [3, 6], "axis_neuron": 2, "attn_layer": 0, "seed": 2,
}  # fmt: skip
NET: dict[str, Any] = {"neuron": [5, 5], "seed": 3}
LOSSES = {
    "dipole": {"type": "tensor", "pref": 1.0, "pref_atomic": 1.0},
    "dos": {"type": "dos"},
    "property": {"type": "property"},
}
LOSSES["polar"] = LOSSES["dipole"]


def section(**changes: Any) -> dict[str, Any]:
    """Of a standard model."""
    return {"type_map": ["O", "H"], "descriptor": dict(SEA), "fitting_net": dict(NET), **changes}


def load(model: dict[str, Any]) -> Any:
    """The `model` section as the input is read. Raises InputError."""
    kind = model.get("fitting_net", {}).get("type", "ener")
    loss = {"type": "ener_spin"} if "spin" in model else LOSSES.get(kind, {"type": "ener"})
    training = {"training_data": {"systems": ["data"]}, "numb_steps": 1}
    rate = {"start_lr": 1e-3, "stop_lr": 1e-5}
    return load_input({"model": model, "loss": loss, "learning_rate": rate, "training": training}).model


def atoms(seed: int = 0, nframes: int = 2, natoms: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """(frames, atoms, 3) Å in a box of 6 Å, no two close to each other, and types."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:natoms] * 2.0
    return grid + rng.uniform(0.0, 0.8, (nframes, natoms, 3)), np.arange(natoms) % 2


BOX = np.eye(3) * 6.0
SPIN = {"use_spin": [True, False], "virtual_scale": 0.3}
LINEAR = {
    "type": "linear_ener", "type_map": ["O", "H"], "weights": "mean",
    "models": [
        {"descriptor": SEA, "fitting_net": NET},
        {"type_map": ["H", "B", "O"], "descriptor": DPA1, "fitting_net": NET},
    ],
}  # fmt: skip


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """The table of O and H."""
    rows = np.loadtxt(TABLE)[:, [0, 1, 2, 4]]
    np.savetxt(tmp_path / "two.txt", rows)
    return tmp_path / "two.txt"


def fitted(model: dict[str, Any], folder: Path, labels: dict[str, np.ndarray]) -> Any:
    """The model with statistics of four frames of six atoms with `labels`; O and H in other numbers in a second system."""
    rng = np.random.default_rng(9)
    output = load(model).output()
    shapes = {
        name: LabelRequest(name=name, shape=output.shape, atomic=of_atoms)
        for name, of_atoms in bias_labels(output).items()
    }
    spin = LabelRequest(name="spin", shape=(3,), atomic=True)
    wanted = tuple(shapes.values()) + ((spin,) if "spin" in model else ())
    for k, types in enumerate(KINDS):
        coord, _ = atoms(seed=k, nframes=4)
        mine = {name: value[k] for name, value in labels.items()} | {"spin": rng.normal(size=(4, 6, 3))}
        write_system(folder / f"data_{k}", coord, np.array(types), BOX, type_map=("O", "H"), labels=mine)
    data = Dataset.from_config(folder, batch_size=1, type_map=("O", "H"), labels=wanted)
    built = build_model(load(model), seed=5)
    return fit_statistics(built, data, builder_of(built), nbatch=10, protect=0.01)


KINDS = ([0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1])
COUNTS = np.repeat(np.array([[2, 4], [3, 3]]), 4, axis=0)


def frames(width: int, seed: int = 0) -> np.ndarray:
    """(systems, frames, width)."""
    return np.random.default_rng(seed).normal(3.0, 1.0, size=(2, 4, width))


def by_types(values: np.ndarray, counts: np.ndarray = COUNTS) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of the least-squares problem."""
    y, a = values.reshape(8, -1), counts.astype(float)
    bias = np.linalg.solve(a.T @ a, a.T @ y)
    return bias, np.std(y - a @ bias, axis=0)


@pytest.mark.parametrize("kind", ["spin", "zbl", "linear"])
def test_energies(kind: str, tmp_path: Path, two: Path) -> None:
    sections = {
        "spin": section(spin=SPIN),
        "zbl": section(use_srtab=str(two), sw_rmin=0.2, sw_rmax=0.4),
        "linear": LINEAR,
    }
    energy = frames(1)
    model = fitted(sections[kind], tmp_path / "data", {"energy": energy})
    bias, deviation = by_types(energy)
    whole = model.backbone if kind == "spin" else model
    np.testing.assert_allclose(whole.out_bias[:2], bias, rtol=1e-10)
    np.testing.assert_allclose(whole.out_std, np.broadcast_to(deviation, whole.out_std.shape), rtol=1e-10)
    if kind == "spin":
        assert not np.any(whole.out_bias[2:])
        assert np.ptp(whole.descriptor.state()["davg"]) > 0.0
    else:  # the parts keep biases of 0, and have their own statistics of neighbours
        assert all(not np.any(part.out_bias) for part in model.parts)
        assert np.ptp(model.parts[0].descriptor.state()["davg"]) > 0.0


def test_energies_of_isolated_atoms_in_zbl_models(tmp_path: Path, two: Path) -> None:
    net = {**NET, "atom_ener": [-3.0, None]}
    energy = frames(1)
    model = fitted(
        section(
            use_srtab=str(two), sw_rmin=0.2, sw_rmax=0.4, fitting_net=net, descriptor={**SEA, "set_davg_zero": True}
        ),
        tmp_path / "data",
        {"energy": energy},
    )
    assert model.out_bias[0, 0] == -3.0
    rest = energy.reshape(8) + 3.0 * COUNTS[:, 0]
    np.testing.assert_allclose(model.out_bias[1, 0], np.dot(rest, COUNTS[:, 1]) / np.sum(COUNTS[:, 1] ** 2), rtol=1e-10)
    alone = Potential.from_model(model, "numpy").evaluate(np.zeros((1, 1, 3)), np.array([0]), None)["energy"]
    np.testing.assert_allclose(alone, -3.0, rtol=1e-12)


@pytest.mark.parametrize("intensive", [True, False])
@pytest.mark.parametrize("by_type", [True, False])
def test_properties(intensive: bool, by_type: bool, tmp_path: Path) -> None:
    net = {
        **NET, "type": "property", "property_name": "gap", "task_dim": 2, "intensive": intensive,
        "distinguish_types": by_type,
    }  # fmt: skip
    gap = frames(2)
    model = fitted(section(fitting_net=net), tmp_path / "data", {"gap": gap})
    if by_type:
        bias, deviation = by_types(gap, COUNTS / 6 if intensive else COUNTS)
    else:
        values = gap.reshape(8, 2) / (1 if intensive else 6)
        bias, deviation = np.tile(np.mean(values, axis=0), (2, 1)), np.std(values, axis=0)
    np.testing.assert_allclose(model.out_bias, bias, rtol=1e-9)
    np.testing.assert_allclose(model.out_std, np.tile(deviation, (2, 1)), rtol=1e-10)


@pytest.mark.parametrize(
    ("kind", "name", "width"), [("dipole", "dipole", 3), ("polar", "polarizability", 9), ("dos", "dos", 4)]
)
@pytest.mark.parametrize("labels", ["frames", "atoms", "both"])
def test_other_quantities(kind: str, name: str, width: int, labels: str, tmp_path: Path) -> None:
    net = {**NET, "type": kind, **({"numb_dos": 4} if kind == "dos" else {})}
    of_frames = frames(width)
    of_atoms = np.random.default_rng(1).normal(1.0, 1.0, size=(2, 4, 6, width))
    given = {}
    if labels != "atoms":
        given[name] = of_frames
    if labels != "frames":
        given[f"atomic_{name}" if kind != "dos" else "atom_dos"] = of_atoms.reshape(2, 4, 6 * width)
    model = fitted(section(fitting_net=net), tmp_path / "data", given)
    if labels == "frames":
        bias, deviation = by_types(of_frames)
        deviation = np.tile(deviation, (2, 1))
    else:  # atoms' labels come first
        kinds = np.array([[types] * 4 for types in KINDS])
        bias, deviation = (np.stack([f(of_atoms[kinds == t], axis=0) for t in (0, 1)]) for f in (np.mean, np.std))
    np.testing.assert_allclose(model.out_bias, bias, rtol=1e-9)
    np.testing.assert_allclose(model.out_std, deviation, rtol=1e-9)


def test_without_labels_the_bias_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = fitted(section(spin=SPIN), tmp_path / "data", {})
    assert "no system has labels of 'energy': the output bias stays as it is" in caplog.text
    assert not np.any(model.backbone.out_bias)


@pytest.mark.parametrize("name", ["dos", "atom_dos"])
def test_labels_that_are_no_numbers(name: str, tmp_path: Path) -> None:
    values = frames(4) if name == "dos" else np.ones((2, 4, 24))
    values[1, 2, 3] = np.nan
    with pytest.raises(DataError, match=rf"{name}"):
        fitted(section(fitting_net={**NET, "type": "dos", "numb_dos": 4}), tmp_path / "data", {name: values})
