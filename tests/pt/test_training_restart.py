"""An interrupted run ends exactly where the undisturbed one does; and what else a run may begin with."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.cli import main
from dpmodel.errors import DPError, InputError, ModelFileError
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

N, STEPS = 7, 14


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Nested data, arrays bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), where
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path, name: str = f"model.ckpt-{STEPS}.dp") -> None:
    one, two = Checkpoint.load(a / name), Checkpoint.load(b / name)
    for part in ("step", "state", "optimizer", "schedule", "sampler", "input"):
        assert_same(getattr(one, part), getattr(two, part), part)
    assert (a / "lcurve.out").read_text() == (b / "lcurve.out").read_text()


def in_folder(folder: Path, action: Callable[[], Any]) -> Any:
    folder.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return action()
    finally:
        os.chdir(before)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "disp_avg": {"training__disp_avg": True, "training__disp_freq": 5},
    "validation": {"validation": True},
    "several": {"systems": 3, "training__training_data__batch_size": "auto:9"},
    "random_seed": {"training__seed": None, "validation": True},
    "seeds": {"training__seed": [3, 4], "validation": True},
    "auto": {"model__descriptor__sel": "auto:1.5"},
    "float32": {"model__descriptor__precision": "float32", "model__fitting_net__precision": "float32"},
    "adamw": {"optimizer": {"type": "AdamW", "weight_decay": 0.1}},
    "weight_decay": {"optimizer": {"type": "Adam", "weight_decay": 0.1, "adam_beta1": 0.7}},
    "cosine_warmup": {"learning_rate": {"type": "cosine", "start_lr": 0.01, "warmup_steps": 10}},
    "wsd": {"learning_rate": {"type": "wsd", "start_lr": 0.01, "stop_lr": 1e-4, "warmup_ratio": 0.2}},
    "clip": {"training__gradient_max_norm": 0.01},
    "two_sided_frozen": {"model__descriptor__trainable": False, "model__fitting_net__trainable": [True, False, True]},
    "parameters": {"parameters": True, "model__fitting_net__numb_fparam": 2, "model__fitting_net__numb_aparam": 1},
    "virial": {"parameters": True, "loss__start_pref_v": 1.0, "loss__limit_pref_v": 1.0},
}


def make(workshop: Any, *, systems: int = 1, validation: bool = False, parameters: bool = False, **changes: Any) -> Any:
    rng = np.random.default_rng(7)
    paths = []
    for k in range(systems + validation):
        more = {"fparam": rng.normal(size=(6, 2)), "aparam": rng.normal(size=(6, 5 + k, 1)), "virial": np.ones((6, 9))}
        paths.append(workshop.system(f"sys{k}", natoms=5 + k, seed=k, labels=more if parameters else {}))
    if validation:
        changes["training__validation_data"] = {"systems": paths[-1:], "batch_size": 1, "numb_btch": 2}
    return workshop.input(*paths[:systems], **changes)


@pytest.mark.parametrize("name", CASES)
def test_exact(workshop: Any, name: str) -> None:
    data = make(workshop, **CASES[name])
    if name == "random_seed":  # the same draw for both runs
        in_folder(workshop.folder / "parts", lambda: train(data, stop_at=N))
        (workshop.folder / "whole").mkdir()
        for entry in ("model.ckpt-7.dp", "lcurve.out"):
            (workshop.folder / "whole" / entry).write_bytes((workshop.folder / "parts" / entry).read_bytes())
        in_folder(workshop.folder / "whole", lambda: train(data, restart="model.ckpt"))
    else:
        in_folder(workshop.folder / "whole", lambda: train(data))
        assert in_folder(workshop.folder / "parts", lambda: train(data, stop_at=N)) == Path(f"model.ckpt-{N}.dp")
    final = in_folder(workshop.folder / "parts", lambda: train(data, restart="model.ckpt"))
    assert final == Path(f"model.ckpt-{STEPS}.dp")
    assert_same_run(workshop.folder / "whole", workshop.folder / "parts")
    curve = read_lcurve(workshop.folder / "parts" / "lcurve.out")
    freq = data["training"]["disp_freq"]
    assert list(curve["step"]) == [1, *range(freq, STEPS + 1, freq)]
    assert ("rmse_val" in curve) == ("validation_data" in data["training"])


def test_one_step_at_a_time_and_from_older_checkpoints(workshop: Any) -> None:
    data = workshop.input(training__max_ckpt_keep=0, training__disp_avg=True)
    in_folder(workshop.folder / "whole", lambda: train(data))
    for stop in (1, 2, 6, 6, STEPS):
        in_folder(workshop.folder / "parts", lambda s=stop: train(data, restart="model.ckpt", stop_at=s))
    assert_same_run(workshop.folder / "whole", workshop.folder / "parts")
    # From the middle of a finished run: rows and checkpoints beyond it go.
    in_folder(workshop.folder / "parts", lambda: train(data, restart="model.ckpt-2", stop_at=3))
    assert list(read_lcurve(workshop.folder / "parts" / "lcurve.out")["step"]) == [1]
    assert sorted(p.name for p in (workshop.folder / "parts").glob("model.ckpt-*.dp")) == [
        "model.ckpt-1.dp", "model.ckpt-2.dp", "model.ckpt-3.dp",
    ]  # fmt: skip
    in_folder(workshop.folder / "parts", lambda: train(data, restart="model.ckpt-3.dp"))
    assert_same_run(workshop.folder / "whole", workshop.folder / "parts")


def test_from_another_folder(workshop: Any) -> None:
    data = workshop.input()
    in_folder(workshop.folder / "a", lambda: train(data))
    final = in_folder(workshop.folder / "b", lambda: train(data, restart=f"../a/model.ckpt-{STEPS}"))
    assert (workshop.folder / "b" / final).is_file()


def test_folders_and_rotation(workshop: Any) -> None:
    changes = {"training__save_dir": "kept", "training__save_ckpt": "run/m", "training__max_ckpt_keep": 2}
    data = workshop.input(**changes)
    assert train(data, stop_at=8) == Path("kept/m-8.dp")
    assert sorted(p.name for p in Path("kept").iterdir()) == ["m-6.dp", "m-8.dp"]
    assert Path("run/m.dp").resolve() == Path("kept/m-8.dp").resolve()
    assert Path("checkpoint").read_text().split() == ["kept/m-8.dp"]
    # A damaged newest one: the one before it, whichever way the run's name is spelled.
    Path("kept/m-8.dp").write_bytes(b"half")
    for name in ("run/m", "run/m.dp"):
        assert train(data, restart=name, stop_at=8) == Path("kept/m-8.dp")
        Path("kept/m-8.dp").write_bytes(b"half")
    data["training"]["ckpt_keep_ratio"] = 0.6
    train(data, restart="run/m")
    assert sorted(int(p.stem[2:]) for p in Path("kept").iterdir()) == [9, 12, 14]


def test_epochs_and_no_steps(workshop: Any) -> None:
    data = workshop.input()
    del data["training"]["numb_steps"]
    data["training"]["numb_epoch"] = 0.7  # of 3 batches
    assert train(data) == Path("model.ckpt-3.dp")
    none = workshop.input(workshop.system("more"), training__numb_steps=0)
    assert in_folder(workshop.folder / "none", lambda: train(none)) == Path("model.ckpt-0.dp")
    model = dpmodel.load(workshop.folder / "none" / "model.ckpt-0.dp", backend="numpy").model
    assert not np.array_equal(np.asarray(model.state()["out_bias"]), np.zeros((2, 1)))


def test_the_checkpoint_is_the_model(workshop: Any) -> None:
    data = make(workshop, validation=True)
    final = train(data)
    checkpoint = Checkpoint.load(final)
    loaded = dpmodel.load(final, backend="numpy").model
    assert_same({k: np.asarray(v) for k, v in loaded.state().items()}, checkpoint.state)
    assert checkpoint.input == json.loads(Path("out.json").read_text())
    assert {"dpmodel", "numpy", "torch", "h5py", "python"} <= checkpoint.versions.keys()
    # The last link and the normalised input can be used again.
    assert dpmodel.load("model.ckpt.dp", backend="numpy").type_map == ("A", "B")
    assert_same(checkpoint.state, Checkpoint.load(train("out.json", restart="model.ckpt", output=None)).state)


def test_without_checkpoint_a_restart_starts_afresh(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = workshop.input()
    in_folder(workshop.folder / "whole", lambda: train(data))
    Path("lcurve.out").write_text("# step rmse_trn lr\n 1 1.0 1.0\n")
    train(data, restart="model.ckpt")
    assert "no such checkpoint yet" in caplog.text
    assert_same_run(workshop.folder / "whole", workshop.folder)


def test_init_model(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = workshop.input()
    first = Checkpoint.load(train(data))
    data["model"]["descriptor"]["sel"] = "auto"  # taken from the model
    data["training"]["training_data"]["systems"] = [workshop.system("other", natoms=9)]
    start = in_folder(
        workshop.folder / "b", lambda: Checkpoint.load(train(data, init_model="../model.ckpt.dp", stop_at=0))
    )
    assert start.step == 0
    assert_same(start.state, first.state)
    assert not any(start.optimizer.values())
    assert start.input["model"]["descriptor"]["sel"] == [12, 12]
    end = in_folder(
        workshop.folder / "c", lambda: Checkpoint.load(train(data, init_model="../model.ckpt.dp", stop_at=2))
    )
    assert set(map(float, end.optimizer["step"].values())) == {2.0}
    # Numbers of another type are converted, and other options are said.
    data["model"]["descriptor"].update(precision="float32", rcut_smth=0.6)
    part = in_folder(
        workshop.folder / "d", lambda: Checkpoint.load(train(data, init_model="../model.ckpt.dp", stop_at=1))
    )
    assert part.state["descriptor.davg"].dtype == np.float32
    assert part.state["out_bias"].dtype == np.float64
    assert "descriptor.rcut_smth is 0.6 (was 0.5)" in caplog.text


def test_init_model_with_other_options_of_the_model(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = workshop.input()
    first = Checkpoint.load(train(data, stop_at=1))
    data["model"] |= {"pair_exclude_types": [[0, 1]], "atom_exclude_types": [1], "preset_out_bias": {"energy": [9, 9]}}
    second = Checkpoint.load(train(data, init_model="model.ckpt.dp", stop_at=0))
    assert_same(first.state, second.state)
    model = dpmodel.load("model.ckpt-0.dp", backend="numpy").model
    assert model.pair_exclude_types == ((0, 1),) and model.atom_exclude_types == (1,)
    for part in (
        "pair_exclude_types is ((0, 1),) (was ())", "atom_exclude_types is (1,) (was ())", "output bias stays",
    ):  # fmt: skip
        assert part in caplog.text


FRAMES, ATOMS = 6, 5
MOMENTS = np.random.default_rng(0).normal(size=(FRAMES, ATOMS, 3))


def test_init_model_with_another_displacement_of_virtual_atoms(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What the run trains with is what its file has."""
    path = workshop.system(labels={"spin": MOMENTS, "force_mag": MOMENTS})
    data = workshop.input(
        path, model__spin={"use_spin": ["A"], "virtual_scale": [0.1, 0.0]}, loss={"type": "ener_spin"},
        model__descriptor__sel=[16, 16],
    )  # fmt: skip
    old = train(data, stop_at=1).resolve().rename("old.dp")
    data["model"]["spin"]["virtual_scale"] = [0.3, 0.0]
    for how in ("init_model", "finetune"):
        caplog.clear()
        train(data, **{how: old}, stop_at=0, output=f"{how}.json")
        assert dpmodel.load("model.ckpt-0.dp", backend="numpy").model.spin_scales == (0.3, 0.0)
        assert "virtual_scale is [0.3, 0.0] (was [0.1, 0.0])" in caplog.text


def test_init_model_with_other_defaults_and_statistics(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = workshop.system(labels={"fparam": np.arange(FRAMES * 1.0)[:, None]})
    data = workshop.input(path, model__fitting_net__numb_fparam=1)
    first = Checkpoint.load(train(data, stop_at=1))
    data["model"]["fitting_net"]["default_fparam"] = [2.0]
    data["model"]["descriptor"]["set_davg_zero"] = True
    second = Checkpoint.load(train(data, init_model="model.ckpt-1.dp", stop_at=0))
    assert dpmodel.load("model.ckpt-0.dp", backend="numpy").model.default_fparam == (2.0,)
    assert_same({**first.state, "fitting.default_fparam": np.array([2.0])}, second.state)
    assert "statistics, which stay as they are whatever the input says: descriptor.set_davg_zero is True" in caplog.text
    assert "which are used: descriptor.set_davg_zero" not in caplog.text


def test_another_pair_table(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A table is an option of the input: a new run takes it, a restart goes on with the one it had."""
    rows = np.stack([np.linspace(0.0, 3.0, 61)] * 4, axis=1)
    rows[:, 1:] = (3.0 - rows[:, 1:]) ** 2
    np.savetxt("t.txt", rows)
    data = workshop.input(model__use_srtab=str(Path("t.txt").absolute()), model__sw_rmin=0.5, model__sw_rmax=1.0)
    train(data, stop_at=1)
    rows[:, 1:] *= 2.0
    np.savetxt("t.txt", rows)
    with pytest.raises(ModelFileError, match=r"has another pair table \(parts.1.rows\) than the file that the input"):
        train(data, restart="model.ckpt")
    train(data, init_model="model.ckpt-1.dp", stop_at=0)
    found: Any = dpmodel.load("model.ckpt-0.dp", backend="numpy").model
    np.testing.assert_allclose(found.parts[1].rows, rows, rtol=1e-12)
    assert "which are used: parts.1.rows is another table" in caplog.text


def test_observed_types(workshop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = workshop.input()
    data["model"]["type_map"] = ["A", "B", "H"]
    data["model"]["descriptor"]["sel"] = [12, 12, 1]
    main(["show", str(train(data, stop_at=1)), "observed-type"])
    main(["show", str(train(data, restart="model.ckpt", stop_at=2)), "observed-type"])
    # By atomic number: boron, then what is no element.
    shown = "The observed types are 2 of 3: ['B', 'A']"
    assert capsys.readouterr().out.splitlines() == [shown, shown]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"model__descriptor__activation_function": "gelu"}, "activation_function is 'gelu'"),
    "smooth": ({"model__descriptor__rcut_smth": 1.0}, "rcut_smth is 1.0"),
    "widths": ({"model__fitting_net__neuron": [8, 8]}, "model.fitting_net.neuron"),
    "precision": ({"model__descriptor__precision": "float32"}, "precision is 'float32'"),
    "sel": ({"model__descriptor__sel": [11, 12]}, "sel is"),
    "types": ({"model__type_map": ["B", "A"]}, "model.type_map"),
    "frozen": ({"model__descriptor__trainable": False}, "trainable is False"),
    "steps": ({"training__numb_steps": 5}, "has 14 steps, but the input asks for 5"),
    "batches": ({"training__training_data__batch_size": 3}, "training_data.*other systems, frames, batch sizes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_restart_with_another_input_is_refused(workshop: Any, name: str) -> None:
    data = workshop.input()
    train(data)
    before = {p: p.stat().st_mtime_ns for p in workshop.folder.rglob("*")}
    changes, message = WRONG[name]
    other = workshop.input(*data["training"]["training_data"]["systems"], **changes)
    with pytest.raises(InputError, match=message):
        train(other, restart="model.ckpt")
    assert {p: p.stat().st_mtime_ns for p in workshop.folder.rglob("*")} == before


def test_a_restart_with_other_data_is_refused(workshop: Any) -> None:
    data = workshop.input()
    train(data)
    with pytest.raises(InputError, match=r"--restart: training.training_data.*other systems"):
        train(workshop.input(workshop.system("new", nframes=5)), restart="model.ckpt")


def test_a_restart_with_another_interface_precision_is_refused(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = workshop.input()
    train(data, stop_at=2)
    monkeypatch.setenv("DP_INTERFACE_PREC", "low")
    with pytest.raises(DPError, match="DP_INTERFACE_PREC"):
        train(data, restart="model.ckpt")


def test_a_restart_may_go_further_and_says_what_changed(workshop: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = workshop.input()
    train(data)
    data["training"]["numb_steps"], data["learning_rate"]["stop_lr"] = 16, 1e-5
    with caplog.at_level(logging.WARNING):
        assert train(data, restart="model.ckpt") == Path("model.ckpt-16.dp")
    assert "the run has 16 steps (was 14)" in caplog.text and "learning_rate.stop_lr is 1e-05" in caplog.text
    caplog.clear()
    data["training"] |= {"seed": 6, "gradient_max_norm": 2.0, "disp_avg": True, "numb_steps": 17}
    data["training"]["training_data"]["auto_prob"] = "prob_uniform"
    before = Checkpoint.load("model.ckpt-16.dp").sampler["tasks"][""]["training"]["seed"]
    after = Checkpoint.load(train(data, restart="model.ckpt")).sampler["tasks"][""]["training"]["seed"]
    assert after == before
    assert "training.seed is 6 (was 5); that of the checkpoint goes on" in caplog.text
    for name in ("gradient_max_norm is 2.0", "disp_avg is True", "training_data.auto_prob is 'prob_uniform'"):
        assert f"training.{name}" in caplog.text


def test_both_ways_to_begin(workshop: Any) -> None:
    with pytest.raises(InputError, match="exclude"):
        train(workshop.input(), restart="a", init_model="b")


def test_init_model_that_does_not_fit(workshop: Any) -> None:
    data = workshop.input()
    final = train(data, output=None)
    more: list[tuple[dict[str, Any], str]] = [
        ({"model__type_map": ["B", "H"]}, "another order alone"),
        ({"model__descriptor__rcut": 2.9}, "other cutoffs or sel"),
        ({"model__fitting_net__neuron": [4, 4, 4]}, "does not fit the model section"),
        ({"model__fitting_net__neuron": [4, 5]}, "does not fit the model section"),
    ]
    for changes, message in more:
        other = workshop.input(*data["training"]["training_data"]["systems"], **changes)
        with pytest.raises(ModelFileError, match=message):
            train(other, init_model=final)
    with pytest.raises(ModelFileError, match="no such file"):
        train(data, init_model="nowhere.dp")
    with pytest.raises(ModelFileError, match=r"cannot be read: No such file"):
        train(data, restart="nowhere-7.dp")
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("first", "then"), [("HybridMuon", "Adam"), ("AdaMuon", "AdamW"), ("Adam", "AdaMuon"), ("Adam", "LKF")]
)
def test_the_state_of_another_optimizer(workshop: Any, first: str, then: str) -> None:
    """Said before anything is loaded, on every backend; Adam and AdamW have the same state."""
    data = workshop.input(training__numb_steps=4, optimizer={"type": first})
    train(data, stop_at=2)
    before = Path("model.ckpt-2.dp").read_bytes()
    for backend in ("pt", "jax"):
        if backend == "jax" and then not in ("Adam", "AdamW"):
            continue
        with pytest.raises(
            InputError, match=f"optimizer.type is '{then}', and the checkpoint has the state of {first}"
        ):
            train({**data, "optimizer": {"type": then}}, restart="model.ckpt", backend=backend)
    assert Path("model.ckpt-2.dp").read_bytes() == before
    train({**data, "optimizer": {"type": "AdamW" if first == "Adam" else first}}, restart="model.ckpt")
