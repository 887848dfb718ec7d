"""Batches of several systems: drawn frame by frame, filled up, restored exactly, and refused where systems differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.backend import get_trainer
from dpmodel.data import Dataset, Sampler, labels, write_system
from dpmodel.errors import DataError, InputError
from dpmodel.files.container import read_tree
from dpmodel.geometry.build import GraphBuilder
from dpmodel.input import load_input
from dpmodel.losses import build_loss
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.training.batches import Prepared, prepare
from dpmodel.training.run import train
from dpmodel.training.stepper import StepOptions

LABELS = (labels.ENERGY, labels.FORCE)


def system(path: Path, natoms: int, frames: int, *, cell: bool = True, force: bool = True) -> str:
    """Atoms near the points of a grid; the energy of frame k of a system is natoms + k / 100."""
    rng = np.random.default_rng(natoms)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[:natoms] * 2.0
    found: dict[str, Any] = {"energy": natoms + np.arange(frames) / 100}
    if force:
        found["force"] = rng.normal(size=(frames, natoms, 3))
    write_system(
        path, grid + rng.uniform(-0.3, 0.3, (frames, natoms, 3)), np.sort(np.arange(natoms) % 2), type_map=["O", "H"],
        cell=np.tile(np.eye(3) * 6.0, (frames, 1, 1)) if cell else None, labels=found,
    )  # fmt: skip
    return str(path)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [system(tmp_path / f"s{n}", n, frames) for n, frames in ((3, 7), (8, 4), (5, 9))]


def dataset(paths: list[str], batch_size: Any = "mixed:4", **options: Any) -> Dataset:
    return Dataset.from_config(paths, batch_size=batch_size, type_map=["O", "H"], labels=LABELS, **options)


def test_frames_are_those_of_their_systems(paths: list[str]) -> None:
    data = dataset(paths)
    sampler = Sampler(data, 1)
    seen = np.zeros(3, int)
    for _ in range(50):
        batch = sampler.next()
        assert batch.nframes == 4 and batch.systems is not None
        for k, (index, frame) in enumerate(zip(batch.systems, batch.frames, strict=True)):
            alone, n = data.systems[index].batch(np.array([frame])), data.systems[index].natoms
            seen[index] += 1
            assert (batch.atype[k, n:] == -1).all() and (batch.labels["force"][k, n:] == 0).all()
            for ours, own in (
                (batch.coord, alone.coord), (batch.atype, alone.atype), (batch.labels["force"], alone.labels["force"])
            ):  # fmt: skip
                np.testing.assert_array_equal(ours[k, :n], own[0])
            assert batch.labels["energy"][k, 0] == alone.labels["energy"][0, 0]
            np.testing.assert_array_equal(batch.cell[k], alone.cell[0])
    # As often as there are frames, within five standard deviations of a binomial count.
    np.testing.assert_allclose(seen / 200, np.array([7, 4, 9]) / 20, atol=0.18)


def test_a_system_shows_all_its_frames_before_any_comes_again(paths: list[str]) -> None:
    sampler, shown = Sampler(dataset(paths, "mixed:3"), 5), [[], [], []]
    for _ in range(60):
        batch = sampler.next()
        for index, frame in zip(batch.systems, batch.frames, strict=True):
            shown[index].append(int(frame))
    for frames, count in zip(shown, (7, 4, 9), strict=True):
        for k in range(len(frames) // count):
            assert sorted(frames[k * count : (k + 1) * count]) == list(range(count))


@pytest.mark.parametrize("before", [0, 1, 33])
def test_a_restored_sampler_continues(paths: list[str], before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpmodel.data.sampler._REPLAY", 16)
    first, second = Sampler(dataset(paths), 3, 1, 2), Sampler(dataset(paths), 9, 1, 2)
    for _ in range(before):
        first.next()
    second.restore(json.loads(json.dumps(first.state())))
    for _ in range(20):
        a, b = first.next(), second.next()
        assert np.array_equal(a.systems, b.systems) and np.array_equal(a.coord, b.coord)
    for other in ("mixed:5", 1):
        with pytest.raises(InputError, match="other systems, frames, batch sizes"):
            Sampler(dataset(paths, other), 3, 1, 2).restore(first.state())


def test_length_of_an_epoch(paths: list[str]) -> None:
    assert dataset(paths, "mixed:4").total_batches() == 5  # 20 frames
    assert dataset(paths, "mixed:6").total_batches() == 4
    assert "batches of 6 frames, each from any of the systems" in dataset(paths, "mixed:6").summary()


def test_what_cannot_be_mixed(paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"same labels in all systems, got 'force' in .*/s3 and none in .*/bare"):
        dataset([*paths, system(tmp_path / "bare", 4, 2, force=False)])
    with pytest.raises(InputError, match=r"one kind of boundary, got pbc True in .*/s3 and False in .*/open"):
        dataset([*paths, system(tmp_path / "open", 4, 2, cell=False)])
    with pytest.raises(InputError, match=r"batches of several systems have no hessian"):
        Dataset.from_config(paths, batch_size="mixed:2", type_map=["O", "H"], labels=(*LABELS, labels.HESSIAN))


def section(paths: list[str], folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "model": {
            "type_map": ["O", "H"], "descriptor": {"type": "se_e2_r", "sel": [20, 20], "rcut": 4.0, "neuron": [3, 6], "seed": 1},
            "fitting_net": {"neuron": [4], "seed": 1},
        },
        "learning_rate": {"start_lr": 0.001}, "loss": {"start_pref_v": 0, "start_pref_f": 10},
        "training": {
            "training_data": {"systems": paths, "batch_size": "mixed:3"}, "numb_steps": 4, "seed": 1, "disp_freq": 1,
            "validation_data": {"systems": paths, "batch_size": "mixed:2"}, "save_freq": 3,
            "save_ckpt": str(folder / "m"), "disp_file": str(folder / "lcurve.out"), **options,
        },
    }  # fmt: skip


def test_the_loss_is_the_mean_of_those_of_single_frames(paths: list[str], tmp_path: Path) -> None:
    """On both backends, with frames of other sizes beside them."""
    inp = load_input(section(paths, tmp_path))
    model, data = build_model(inp.model, seed=1), dataset(paths, "mixed:5")
    batch, builder = Sampler(data, 2).next(), builder_of(model)
    assert len(set(batch.systems.tolist())) > 1
    for backend in ("pt", "jax"):
        loss = build_loss(inp.loss, 0.001, inp.model.output()).bound(model)
        stepper = get_trainer(backend).stepper(model, {"": loss}, inp.optimizer, options=StepOptions(), device="cpu")

        def measured(prepared: Prepared) -> dict[str, float]:
            return stepper.measure(prepared, 0.001)  # noqa: B023  # called within the turn

        alone = [
            measured(prepare(data.systems[k].batch(np.array([frame])), builder, frozenset({"force"})))
            for k, frame in zip(batch.systems, batch.frames, strict=True)
        ]
        together = measured(prepare(batch, builder, frozenset({"force"})))
        for key, value in together.items():
            if key.startswith("rmse"):
                np.testing.assert_allclose(value**2, np.mean([each[key] ** 2 for each in alone]), rtol=1e-10)


def test_a_bad_frame_is_found(paths: list[str]) -> None:
    """By system and number, though it comes among others."""
    sampler = Sampler(dataset(paths, "mixed:2"), 1)
    batch = sampler.next()
    batch.coord[1, 1] = batch.coord[1, 0]
    builder: GraphBuilder = builder_of(build_model(load_input(section(paths, Path())).model))
    with pytest.raises(DataError, match=rf"a batch of .*/s\d frame \d, .*/s\d frame \d, frame {batch.frames[1]}: "):
        prepare(batch, builder, frozenset({"force"}), sampler.place(batch))


@pytest.mark.parametrize("backend", ["pt", "jax"])
def test_training_and_restart(paths: list[str], tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, with a stop between checkpoints."""
    monkeypatch.chdir(tmp_path)  # runs leave a file "checkpoint" where they are
    found = []
    for name, stop in (("whole", None), ("parts", 2)):
        folder = tmp_path / name
        folder.mkdir()
        given = section(paths, folder)
        last = train(given, backend=backend, device="cpu", output=None, stop_at=stop)
        if stop is not None:
            last = train(given, backend=backend, device="cpu", output=None, restart=last)
        found.append((read_tree(last)["model"], (folder / "lcurve.out").read_text()))
    (one, curve), (two, other) = found
    assert curve == other and curve.count("\n") >= 5 and "nan" not in curve.split("\n", 2)[2]
    assert flat(one) == flat(two)


def flat(tree: Any) -> list[bytes]:
    """The arrays of a tree."""
    if isinstance(tree, dict):
        return [part for key in sorted(tree) for part in flat(tree[key])]
    if isinstance(tree, list):
        return [part for each in tree for part in flat(each)]
    return [tree.tobytes()] if isinstance(tree, np.ndarray) else []
