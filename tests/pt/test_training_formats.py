"""Training does not depend on the format that the data is in."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

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
