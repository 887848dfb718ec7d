"""Models of other quantities: what is wrong with data and sections is said before any file is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.data.write import write_system
from dpmodel.errors import DataError, DPError, InputError
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

DPA1 = {"type": "dpa1", "sel": 12, "rcut": 3.0, "rcut_smth": 0.5, "neuron": [2, 4], "axis_neuron": 2, "attn_layer": 0}
SPIN = {
    "model__spin": {"use_spin": ["A"], "virtual_scale": 0.3},
    "loss": {"type": "ener_spin"},
    "model__descriptor__sel": [16, 16],
}


def of(kind: str, loss: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Changes of an input to a model of another quantity."""
    return {"model__fitting_net": {"type": kind, "neuron": [4, 4], **options}, "loss": loss}


DIPOLE = of("dipole", {"type": "tensor", "pref": 0.0, "pref_atomic": 1.0})
GAP = of("property", {"type": "property"}, property_name="gap", task_dim=2)
DOS = of("dos", {"type": "dos", "start_pref_dos": 1.0, "start_pref_ados": 0.0, "limit_pref_ados": 0.0}, numb_dos=3)
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(6, 5, 3))


def refuse(workshop: Any, data: dict[str, Any], message: str, kind: type[DPError] = DataError) -> None:
    before = {p: p.stat().st_mtime_ns for p in workshop.folder.rglob("*")}
    with pytest.raises(kind, match=message):
        train(data)
    assert {p: p.stat().st_mtime_ns for p in workshop.folder.rglob("*")} == before


# --- mixed types ------------------------------------------------------------------------------------------


def mixed(workshop: Any, name: str = "mixed") -> Path:
    """Frames of A and B in any order, one of four atoms."""
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:5] * 2.0
    coord = grid + RNG.uniform(0.0, 0.8, (6, 5, 3))
    types = RNG.integers(0, 2, (6, 5))
    types[2, 4] = -1
    labels = {"energy": RNG.normal(size=6), "force": RNG.normal(size=(6, 5, 3))}
    return write_system(workshop.folder / name, coord, types, np.eye(3) * 6.0, type_map=("A", "B"), labels=labels)


def set_type(value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        types = np.load(path / "set.000" / "real_atom_types.npy").astype(type(value))
        types[3, 1] = value
        np.save(path / "set.000" / "real_atom_types.npy", types)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_type(2), r"real_atom_types.npy.*\b2\b"),
        (set_type(-2), r"real_atom_types.npy.*-2"),
        (set_type(0.5), "real_atom_types.npy"),
        (lambda path: (path / "type_map.raw").write_text("A\nXx\n"), "Xx"),
        (lambda path: (path / "type_map.raw").unlink(), "type_map.raw"),
        (lambda path: np.save(path / "set.000" / "real_atom_types.npy", np.zeros((6, 4), int)), "real_atom_types.npy"),
    ],
)
def test_mixed_types(workshop: Any, damage: Callable[[Path], Any], message: str) -> None:
    data = workshop.input(str(mixed(workshop)), model__descriptor=DPA1)
    shutil.copytree(workshop.folder / "mixed", workshop.folder / "kept")
    damage(workshop.folder / "mixed")
    refuse(workshop, data, message)
    data["training"]["training_data"]["systems"] = [str(workshop.folder / "kept")]
    data["training"]["numb_steps"] = 2
    assert train(data).is_file()


def test_mixed_types_of_other_elements_in_another_set(workshop: Any) -> None:
    path = mixed(workshop)
    shutil.copytree(path / "set.000", path / "set.001")
    (path / "set.001" / "real_atom_types.npy").unlink()
    refuse(workshop, workshop.input(str(path), model__descriptor=DPA1), "real_atom_types")


# --- spins ------------------------------------------------------------------------------------------------


def test_spins(workshop: Any) -> None:
    whole = workshop.system("whole", labels={"spin": VECTORS, "force_mag": VECTORS})
    without = workshop.system("without", labels={"force_mag": VECTORS})
    refuse(workshop, workshop.input(whole, without, **SPIN), r"without.*spin\.npy|spin.*without")
    valid = {"training__validation_data": {"systems": [without]}}
    refuse(workshop, workshop.input(whole, **SPIN, **valid), r"without.*spin\.npy|spin.*without")
    plain = workshop.system("plain", labels={"spin": VECTORS})
    refuse(workshop, workshop.input(plain, **SPIN), "the loss needs the label 'force_mag'")
    assert train(workshop.input(whole, plain, **SPIN, training__numb_steps=2)).is_file()


@pytest.mark.parametrize("name", ["spin", "force_mag"])
@pytest.mark.parametrize("how", ["nan", "width"])
def test_values_of_spins(workshop: Any, name: str, how: str) -> None:
    path = Path(workshop.system(labels={"spin": VECTORS, "force_mag": VECTORS}))
    file = path / "set.000" / f"{name}.npy"
    values = np.load(file)
    if how == "nan":
        values[2, 3] = np.nan
    np.save(file, values if how == "nan" else values[:, :-3])
    refuse(workshop, workshop.input(str(path), **SPIN), rf"{name}\.npy")


# --- other labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "wrong", "needed"),
    [(DIPOLE, {"dipole": VECTORS[:, 0]}, "atom_dipole"), (GAP, {}, "gap"), (DOS, {"atom_dos": VECTORS}, "dos")],
    ids=["dipole", "property", "dos"],
)
def test_labels_that_the_loss_needs(workshop: Any, changes: Any, wrong: Any, needed: str) -> None:
    refuse(workshop, workshop.input(workshop.system(labels=wrong), **changes), f"the loss needs the label '{needed}'")


@pytest.mark.parametrize(
    ("changes", "name", "shape"),
    [(DIPOLE, "atomic_dipole", (6, 5, 3)), (GAP, "gap", (6, 2)), (DOS, "dos", (6, 3))],
    ids=["dipole", "property", "dos"],
)
def test_values_of_labels(workshop: Any, changes: Any, name: str, shape: tuple[int, ...]) -> None:
    path = Path(workshop.system(labels={name: RNG.normal(size=shape)}))
    file, data = path / "set.000" / f"{name}.npy", workshop.input(str(path), **changes)
    values = np.load(file)
    for wrong in (np.where(np.arange(values.shape[1]) == 1, np.inf, values), values[:, :-1], values[:4]):
        np.save(file, wrong)
        refuse(workshop, data, rf"{name}\.npy")
    np.save(file, values)
    data["training"]["numb_steps"] = 2
    assert train(data).is_file()


def test_a_property_that_is_the_same_everywhere(workshop: Any) -> None:
    path = workshop.system(labels={"gap": np.ones((6, 2))})
    refuse(workshop, workshop.input(path, **GAP), "labels of 'gap' are the same in all frames", InputError)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({**DIPOLE, "loss": {"type": "ener"}}, 'expected "tensor", which goes with models that predict .dipole.'),
        ({**GAP, "loss": {"type": "tensor", "pref": 1.0, "pref_atomic": 1.0}}, 'expected "property"'),
        ({**DOS, "loss": {"type": "property"}}, 'expected "dos"'),
        ({**SPIN, "loss": {"type": "ener"}}, 'expected "ener_spin", which goes with models with spin; got "ener"'),
        ({"loss": {"type": "ener_spin"}}, 'expected "ener", which goes with models that predict .energy.'),
    ],
)
def test_losses_of_other_models(workshop: Any, changes: dict[str, Any], wanted: str) -> None:
    refuse(workshop, workshop.input(**changes), rf"loss\.type: {wanted}", InputError)


# --- pair tables ------------------------------------------------------------------------------------------


def test_a_table_that_does_not_reach(workshop: Any) -> None:
    r = np.linspace(0.1, 1.0, 10)
    np.savetxt(workshop.folder / "short.txt", np.stack([r, 1.0 / r, 2.0 / r, 3.0 / r], axis=1))
    changes = {"model__use_srtab": "short.txt", "model__sw_rmin": 0.5, "model__sw_rmax": 1.5}
    message = r"short.txt ends at 1 Å, before sw_rmax \(1.5 Å\) where the net takes over alone; extend the table"
    refuse(workshop, workshop.input(**changes), message, InputError)


def test_a_table_that_ends_before_the_cutoff(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    r = np.linspace(0.1, 2.0, 20)
    np.savetxt(workshop.folder / "short.txt", np.stack([r, 1.0 / r, 2.0 / r, 3.0 / r], axis=1))
    changes = {"model__use_srtab": "short.txt", "model__sw_rmin": 0.5, "model__sw_rmax": 1.5}
    train(workshop.input(**changes, training__numb_steps=2))
    assert "short.txt ends at 2 Å with energies that are not 0, before the cutoff of 3 Å" in caplog.text


# --- hybrids ----------------------------------------------------------------------------------------------


def test_hybrids(workshop: Any) -> None:
    path = workshop.system(labels={"atomic_dipole": VECTORS})
    sea = dict(workshop.input(path)["model"]["descriptor"])
    for part, message in (
        ({**DPA1, "rcut_smth": 3.0}, r"model.descriptor.list.1.rcut_smth: expected a number below rcut"),
        ({**sea, "sel": [12]}, r"model.descriptor.list.1.sel: expected 2 numbers, one per type of type_map"),
        ({**DPA1, "use_econf_tebd": True}, r"model.type_map"),
    ):
        data = workshop.input(path, model__descriptor={"type": "hybrid", "list": [sea, part]})
        refuse(workshop, data, message, InputError)
    vectors = workshop.input(path, **DIPOLE, model__descriptor={"type": "hybrid", "list": [{**sea, "type": "se_e3"}]})
    del vectors["model"]["descriptor"]["list"][0]["axis_neuron"]
    refuse(workshop, vectors, "needs a descriptor with vectors", InputError)
