"""What is wrong is said before any file is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.cli.arguments import make_parser
from dpmodel.errors import BackendError, DataError, DPError, InputError
from dpmodel.statistics import StatItem
from dpmodel.statistics.environment import item_names
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.run import train
from dpmodel.training.stepper import NonFiniteError

pytestmark = pytest.mark.usefixtures("one_thread")


def refuse(workshop: Any, data: dict[str, Any], message: str, kind: type[DPError] = InputError, **options: Any) -> None:
    before = {p: p.stat().st_mtime_ns for p in workshop.folder.rglob("*")}
    with pytest.raises(kind, match=message):
        train(data, **options)
    assert {p: p.stat().st_mtime_ns for p in workshop.folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("leave_out", "changes"),
    [
        (("force",), {}),
        (("energy",), {}),
        ((), {"loss__start_pref_v": 1.0}),
        ((), {"loss__limit_pref_ae": 1.0}),
        ((), {"loss__start_pref_pf": 1.0}),
        ((), {"loss__start_pref_gf": 1.0, "loss__numb_generalized_coord": 2}),
    ],
)
def test_labels_that_the_loss_needs(workshop: Any, leave_out: tuple[str, ...], changes: dict[str, Any]) -> None:
    data = workshop.input(workshop.system(leave_out=leave_out), **changes)
    refuse(workshop, data, "the loss needs the label", DataError)


@pytest.mark.parametrize("name", ["energy", "force", "virial"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_no_numbers(workshop: Any, name: str, value: float) -> None:
    path = Path(workshop.system(labels={"virial": np.zeros((6, 9))}))
    array = np.load(path / "set.000" / f"{name}.npy")
    array.flat[-1] = value
    np.save(path / "set.000" / f"{name}.npy", array)
    changes = {"loss__start_pref_v": 1.0}
    refuse(workshop, workshop.input(str(path), **changes), rf"{name}\.npy", DataError)


def test_systems(workshop: Any) -> None:
    refuse(workshop, workshop.input(workshop.system("c", names=("A", "C"))), "C", DataError)
    (workshop.folder / "empty").mkdir()
    refuse(workshop, workshop.input(str(workshop.folder / "empty")), "empty", DataError)
    refuse(workshop, workshop.input("nowhere"), "nowhere", DataError)
    good = workshop.system("good")
    refuse(workshop, workshop.input(good, training__validation_data={"systems": ["nowhere"]}), "nowhere", DataError)
    (Path(good) / "type.raw").write_text("0 7 0 1 0")
    refuse(workshop, workshop.input(good), "type", DataError)


def test_parameters_that_the_model_needs(workshop: Any) -> None:
    path = workshop.system()
    refuse(workshop, workshop.input(path, model__fitting_net__numb_fparam=2), "fparam", DataError)
    refuse(workshop, workshop.input(path, model__fitting_net__numb_aparam=2), "aparam", DataError)


def test_the_input_itself(workshop: Any) -> None:
    path = workshop.system()
    refuse(workshop, workshop.input(path, training__numb_stepz=2), "numb_stepz: unknown key; did you mean")
    refuse(
        workshop,
        workshop.input(path, loss={"start_pref_e": 0, "limit_pref_e": 0, "start_pref_f": 0, "limit_pref_f": 0}),
        "all prefactors are 0",
    )
    refuse(workshop, workshop.input(path, learning_rate__warmup_steps=20), "warm-up")
    refuse(
        workshop,
        workshop.input(path, model__descriptor__trainable=False, model__fitting_net__trainable=False),
        "nothing to train",
    )
    refuse(workshop, workshop.input(path), "--stop-at", stop_at=-1)
    epochs = workshop.input(path, training__numb_epoch=1e30, training__numb_steps=None)
    refuse(workshop, epochs, r"training.numb_epoch: 1e\+30 passes")
    stat = workshop.input(path, training__stat_file="nowhere", training__stat_file_mode="read")
    refuse(workshop, stat, "nowhere", DPError)


def test_places_to_write(workshop: Any) -> None:
    path = workshop.system()
    (workshop.folder / "file").touch()
    for key in ("save_ckpt", "disp_file"):
        refuse(workshop, workshop.input(path, **{f"training__{key}": "file/x"}), rf"training\.{key}: file is no folder")
    for key in ("save_ckpt", "disp_file"):
        refuse(
            workshop, workshop.input(path, **{f"training__{key}": ""}), f"training.{key}: expected the name of a file"
        )
    refuse(workshop, workshop.input(path, training__disp_file="data"), "disp_file: data is a folder")
    refuse(workshop, workshop.input(path), "--restart: expected the name", restart="")
    refuse(workshop, workshop.input(path, training__save_dir="file"), r"training\.save_dir: file is no folder")
    refuse(workshop, workshop.input(path, training__stat_file="file/s"), r"training\.stat_file: file is no folder")
    refuse(workshop, workshop.input(path), "--output: there is no folder nowhere", output="nowhere/out.json")
    refuse(workshop, workshop.input(path), "--output: file is no folder", output="file/out.json")
    refuse(workshop, workshop.input(path), "--output: data is a folder", output="data")
    assert sorted(p.name for p in workshop.folder.iterdir()) == ["data", "file"]


def test_places_that_are_the_same(workshop: Any) -> None:
    data = workshop.input(workshop.system())
    Path("in.json").write_text(json.dumps(data))
    Path("link.json").symlink_to("in.json")
    for output in ("in.json", "link.json", "data/../in.json", str(Path("in.json").absolute())):
        with pytest.raises(InputError, match=r"the input file: in\.json is also --output"):
            train("in.json", output=output)
    for key, value, message in (
        ("disp_file", "model.ckpt.dp", "disp_file: model.ckpt.dp is also training.save_ckpt"),
        ("disp_file", "out.json", "--output: out.json is also training.disp_file"),
        ("disp_file", "checkpoint", "newest checkpoint: checkpoint is also training.disp_file"),
        ("disp_file", "model.ckpt-3.dp", "disp_file: model.ckpt-3.dp is the name of a checkpoint"),
        ("stat_file", "lcurve.out", "stat_file: lcurve.out is also training.disp_file"),
        ("stat_file", "checkpoint", "newest checkpoint: checkpoint is also training.stat_file"),
    ):
        refuse(workshop, workshop.input("data", **{f"training__{key}": value}), message)
    Path("in.json").write_text(json.dumps(workshop.input("data", training__disp_file="in.json")))
    refuse(workshop, "in.json", "the input file: in.json is also training.disp_file")  # type: ignore[arg-type]
    train(data, stop_at=2)
    Path("curve").symlink_to("model.ckpt.dp")  # rows must not be appended to a checkpoint
    before = Path("model.ckpt.dp").read_bytes()
    refuse(workshop, workshop.input("data", training__disp_file="curve"), "curve is also training.save_ckpt")
    assert Path("model.ckpt.dp").read_bytes() == before


def test_statistics_that_are_not_finite(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workshop.system()

    def overflown(*args: Any, **options: Any) -> dict[str, StatItem]:
        return {name: StatItem(1.0, np.inf, np.inf) for name in item_names(2)}

    monkeypatch.setattr("dpmodel.statistics.environment.environment_items", overflown)
    with np.errstate(all="ignore"):
        for stat_file in (None, "stat", "stat.h5"):
            data = workshop.input(path, training__stat_file=stat_file)
            refuse(workshop, data, "NaN or infinite", DataError)
        # Should such numbers come through, the learning rate is not to blame.
        monkeypatch.setattr("dpmodel.statistics.fit.check_finite", lambda *_: None)
        with pytest.raises(NonFiniteError, match=r"after step 0 .* wrong frames in the data") as caught:
            train(workshop.input(path), stop_at=0)
    assert "start_lr" not in str(caught.value)


def test_stat_file_of_other_options(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = workshop.system()

    def state(stat_file: str | None = "stat", mode: str = "update", **changes: Any) -> dict[str, Any]:
        changes |= {"training__stat_file": stat_file, "training__stat_file_mode": mode}
        return dict(Checkpoint.load(train(workshop.input(path, **changes), stop_at=0)).state)

    state()
    for key, value in (
        ("model__preset_out_bias", {"energy": [1.5, None]}),
        ("model__fitting_net__atom_ener", [-2.0, None]),
        ("model__atom_exclude_types", [1]),
        ("model__pair_exclude_types", [[0, 1]]),
        ("model__descriptor__exclude_types", [[1, 1]]),
        ("model__descriptor__env_protection", 0.3),
    ):
        caplog.clear()
        refused = workshop.input(path, training__stat_file="stat", training__stat_file_mode="read", **{key: value})
        refuse(workshop, refused, key.split("__")[-1], DataError)
        kept, fresh = state(**{key: value}), state(None, **{key: value})
        assert all(np.array_equal(kept[name], fresh[name]) for name in fresh), key
        assert key.split("__")[-1] in caplog.text
        again = state("stat", "read", **{key: value})
        assert all(np.array_equal(again[name], fresh[name]) for name in fresh), key
        state()


def test_backends(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = workshop.input()
    refuse(workshop, data, "unknown backend 'tf'", BackendError, backend="tf")
    refuse(workshop, data, "cannot train", BackendError, backend="numpy")
    refuse(workshop, data, "device 'nonsense'", BackendError, device="nonsense")
    if not torch.cuda.is_available():
        refuse(workshop, data, "device 'cuda'", BackendError, device="cuda")
    monkeypatch.setenv("DP_BACKEND", "numpy")
    refuse(workshop, data, "cannot train", BackendError)
    assert train(data, backend="pytorch", stop_at=0).is_file()


def test_a_checkpoint_that_is_damaged(workshop: Any) -> None:
    data = workshop.input()
    final = train(data, stop_at=3)
    whole = final.read_bytes()
    Path("half.dp").write_bytes(whole[: len(whole) // 2])
    Path("text.dp").write_text("no model")
    for name in ("half.dp", "text.dp"):
        refuse(workshop, data, name, DPError, restart=name)
        refuse(workshop, data, name, DPError, init_model=name)


@pytest.mark.parametrize("seed", [None, 0, -3, [1, 2, 3], 2**40])
def test_seeds(workshop: Any, seed: Any) -> None:
    data = workshop.input(training__seed=seed, training__validation_data={"systems": "data", "batch_size": 1})
    for section in ("descriptor", "fitting_net"):  # the seed of training decides
        del data["model"][section]["seed"]
    one, two = (Checkpoint.load(train(data, stop_at=2)) for _ in range(2))
    equal = all(np.array_equal(one.state[name], two.state[name]) for name in one.state)
    assert equal == (seed is not None)
    assert one.sampler["tasks"][""]["training"]["seed"] != one.sampler["tasks"][""]["validation"]["seed"]


def test_notes_are_logged_once(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = workshop.input(
        optimizer={"type": "AdamW"},
        training__time_training=False,
        training__disp_training=False,
        nvnmd={"enable": False},
    )
    with caplog.at_level(logging.INFO):
        train(data, stop_at=1)
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    for part in ("optimizer.weight_decay: not given; AdamW's default 0.001", "disp_training", "time_training", "nvnmd"):
        assert sum(part in message for message in messages) == 1, part
    assert len(messages) == len(set(messages))


def test_truncation_is_said_once(workshop: Any) -> None:
    data = workshop.input(model__descriptor__sel=[2, 2])
    with pytest.warns(UserWarning, match="more neighbours within") as record:
        train(data, stop_at=2, skip_neighbor_stat=True)
    assert len(record) == 1


def test_the_normalised_input_describes_the_same_run(workshop: Any) -> None:
    data = workshop.input(model__descriptor__sel="auto")
    one = Checkpoint.load(train(data, stop_at=3, output="norm.json"))
    two = Checkpoint.load(train("norm.json", stop_at=3, output=None))
    assert all(np.array_equal(one.state[name], two.state[name]) for name in one.state)
    assert json.loads(Path("norm.json").read_text()) == two.input
    assert not Path("out.json").exists()


def test_skipping_the_comparison_still_resolves_sel(workshop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = workshop.input(model__descriptor__sel="auto")
    sel = [
        Checkpoint.load(train(data, stop_at=0, skip_neighbor_stat=skip)).input["model"]["descriptor"]["sel"]
        for skip in (False, True)
    ]
    assert sel[0] == sel[1] != "auto"
    with pytest.raises(SystemExit):
        make_parser().parse_args(["train", "--help"])
    assert '("auto" is still resolved)' in " ".join(capsys.readouterr().out.split())
