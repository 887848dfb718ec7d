"""Training does not depend on the format that the data is in."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from dpmodel.cli import main
from dpmodel.errors import DataError, InputError
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.run import train


def to_hdf5(folder: Path, target: Path) -> str:
    """The system of a folder as the group /water."""
    with h5py.File(target, "w") as file:
        for item in folder.rglob("*.npy"):
            file[f"water/{item.relative_to(folder)}"] = np.load(item)
        file["water/type.raw"] = np.loadtxt(folder / "type.raw", dtype=int)
        file["water/type_map.raw"] = (folder / "type_map.raw").read_text().split()
    return f"{target}#/water"


def frame(coord, force, energy, pbc="T T T", names="ABABA"):
    rows = [
        " ".join([name, *(repr(float(x)) for x in (*r, *f))]) for name, r, f in zip(names, coord, force, strict=True)
    ]
    head = f'Lattice="6 0 0 0 6 0 0 0 6" Properties=species:S:1:pos:R:3:forces:R:3 energy={float(energy)!r} pbc="{pbc}"'
    return "\n".join(["5", head, *rows]) + "\n"


def to_xyz(folder: Path, target: Path, names: str = "HOHOH", pbc: str = "T T T") -> str:
    arrays = [np.load(folder / "set.000" / f"{name}.npy") for name in ("coord", "force", "energy")]
    text = ""
    for coord, force, energy in zip(*arrays, strict=True):
        text += frame(coord.reshape(-1, 3), force.reshape(-1, 3), energy[0], pbc, names)
    target.write_text(text)
    return str(target)


def trained(folder: Path, workshop, systems, monkeypatch, **changes):
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Checkpoint.load(train(workshop.input(*systems, **changes)))


def test_the_same_run_from_every_format(workshop, one_thread, monkeypatch):
    root = workshop.folder
    source = Path(workshop.system(names=("H", "O")))
    systems = {
        "npy": str(source), "hdf5": to_hdf5(source, root / "a.hdf5"), "xyz": to_xyz(source, root / "a.xyz"),
    }  # fmt: skip
    runs = {
        name: trained(root / name, workshop, [path], monkeypatch, model__type_map=["H", "O"], training__numb_steps=4)
        for name, path in systems.items()
    }
    for name in ("hdf5", "xyz"):
        assert runs[name].state.keys() == runs["npy"].state.keys()
        for path, value in runs["npy"].state.items():
            np.testing.assert_array_equal(runs[name].state[path], value)


def test_xyz_with_other_names_of_labels(workshop, one_thread, monkeypatch, capsys):
    """A table of names in the input, or on the command line, and the numbers are the same."""
    root = workshop.folder
    source = Path(workshop.system(names=("H", "O")))
    options = {"model__type_map": ["H", "O"], "training__numb_steps": 4, "training__save_freq": 2}
    plain = to_xyz(source, root / "plain.xyz")
    text = Path(plain).read_text()
    (root / "other.xyz").write_text(text.replace("energy=", "energy=77 REF_energy=").replace("force", "REF_force"))
    assert "REF_force" in (root / "other.xyz").read_text()
    names = {"energy": "REF_energy", "force": "REF_forces" if "forces" in text else "REF_force"}
    expected = trained(root / "a", workshop, [plain], monkeypatch, **options)
    section = workshop.input(plain)["training"]["training_data"]
    section |= {"systems": [str(root / "other.xyz")], "label_names": names}
    found = trained(root / "b", workshop, section["systems"], monkeypatch, training__training_data=section, **options)
    for path, value in expected.state.items():
        np.testing.assert_array_equal(found.state[path], value)
    monkeypatch.chdir(root / "b")
    tables = []
    for given in (
        ["-s", plain], ["--train-data", "out.json"],
        ["-s", section["systems"][0], "--label-names", *(f"{name}={own}" for name, own in names.items())],
    ):  # fmt: skip
        assert main(["test", "-m", "model.ckpt.dp", *given]) == 0
        tables.append([line for line in capsys.readouterr().out.splitlines() if "E " in line])
    assert tables[0] == tables[1] == tables[2] and len(tables[0]) > 3
    assert main(["test", "-m", "model.ckpt.dp", "-s", plain, "--label-names", "energy"]) != 0
    assert "--label-names: expected pairs such as energy=REF_energy, got 'energy'" in capsys.readouterr().err


def test_partial_periodicity_and_restarts(workshop, one_thread, monkeypatch):
    root = workshop.folder
    source = Path(workshop.system(names=("H", "O")))
    path = to_xyz(source, root / "slab.xyz", pbc="T T F")
    options = {"model__type_map": ["H", "O"], "training__numb_steps": 6}
    whole = trained(root / "a", workshop, [path], monkeypatch, **options)
    data = workshop.input(path, **options)
    shutil.rmtree(root / "a")
    (root / "b").mkdir()
    monkeypatch.chdir(root / "b")
    train(data, stop_at=2)
    last = Checkpoint.load(train(data, restart="model.ckpt"))
    bulk = trained(root / "c", workshop, [to_xyz(source, root / "bulk.xyz")], monkeypatch, **options)
    for name, value in whole.state.items():
        np.testing.assert_array_equal(last.state[name], value)
    assert any(np.any(bulk.state[name] != value) for name, value in whole.state.items())
    monkeypatch.chdir(root / "b")
    text = (root / "slab.xyz").read_text()
    (root / "slab.xyz").write_text(text + text)
    with pytest.raises(InputError, match="other systems, frames"):
        train({**data, "training": {**data["training"], "numb_steps": 7}}, restart="model.ckpt")


def test_xyz_without_what_the_loss_needs(workshop):
    source = Path(workshop.system(names=("H", "O")))
    text = Path(to_xyz(source, workshop.folder / "a.xyz")).read_text().replace("energy=", "dft_energy=")
    (workshop.folder / "a.xyz").write_text(text)
    with pytest.raises(
        DataError, match=r"needs the label 'energy'.*energy=\.\.\. in the comment lines \(first: .*a\.xyz\)"
    ):
        train(workshop.input(str(workshop.folder / "a.xyz"), model__type_map=["H", "O"]))
