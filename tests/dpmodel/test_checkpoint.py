"""Checkpoints: whole or not there, exact, readable as models; and which of them are kept."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpmodel.errors import ModelFileError
from dpmodel.files import atomic
from dpmodel.files.container import read_tree
from dpmodel.files.hdf5 import DTYPES
from dpmodel.training.checkpoint import FORMAT_VERSION, UPGRADES, Checkpoint, check_whole, upgraded
from dpmodel.training.rotation import Family, averaged_name, keep_count, latest

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "se_e2_a.dp"


def example(step: int = 1000) -> Checkpoint:
    generator = np.random.default_rng(7)
    names = ["descriptor.networks.0.layers.0.w", "fitting.layers.1.b"]
    slots = {name: generator.normal(size=(2, 3)) for name in names}
    return Checkpoint(
        step=step,
        model={"model": {"type_map": ["O", "H"], "@variables": {"out_bias": np.arange(2.0)}}, "time": "once"},
        state={name: generator.normal(size=(2, 3)).astype("f4") for name in names} | {"scalar": np.array(0.5)},
        optimizer={"exp_avg": slots, "step": 1000, "betas": (0.9, 0.999)},
        schedule={"type": "exp", "step": step},
        sampler={"epoch": 2, "order": np.arange(5), "systems": [{"cursor": 3, "left": np.array([], dtype="i8")}]},
        random={"numpy": generator.bit_generator.state, "torch": np.arange(4, dtype="u1")},
        ema={"decay": 0.999, "state": slots},
        validation={"best": 1e-17},
        input={"model": {"descriptor": {"rcut": 6.0}}, "_a/b": {"..": None, "": True}},
        versions={"torch": "2.13.0"},
    )


def same(a: Any, b: Any) -> None:
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert isinstance(b, list)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt-1000.dp"
    before = example()
    before.save(path)
    after = Checkpoint.load(path)
    for name in ("step", "state", "optimizer", "schedule", "sampler", "random", "ema", "validation", "input"):
        same(getattr(before, name), getattr(after, name))
    assert after.versions["torch"] == "2.13.0"
    assert after.versions["numpy"] == np.__version__
    generator = np.random.default_rng()
    generator.bit_generator.state = after.random["numpy"]
    assert check_whole(path) == 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_is_a_model_file(tmp_path: Path) -> None:
    path = tmp_path / "m.dp"
    checkpoint = example()
    checkpoint.model = read_tree(GOLDEN)
    checkpoint.save(path)
    tree, golden = read_tree(path), read_tree(GOLDEN)
    assert tree["time"] == golden["time"]
    weights = [t["model"]["fitting"]["nets"]["networks"][1]["layers"][0]["@variables"]["w"] for t in (tree, golden)]
    assert np.array_equal(*weights)


def test_readable_with_h5py_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.dp"
    example().save(path)
    with h5py.File(path) as file:
        group = file["training"]
        assert group["state/descriptor.networks.0.layers.0.w"].dtype == np.float32
        assert group["optimizer/exp_avg/fitting.layers.1.b"].shape == (2, 3)
        assert group.attrs["format_version"] == FORMAT_VERSION
        assert group.attrs["step"] == 1000
        assert json.loads(group.attrs["json"])["input"]["model"]["descriptor"]["rcut"] == 6.0


KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | KEYS
    | st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0))
    )
)
CONTENT = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES, lambda leaf: st.lists(leaf, max_size=3) | st.dictionaries(KEYS, leaf, max_size=3), max_leaves=6
    ),
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(content=CONTENT)
def test_any_content(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.dp"
    Checkpoint(step=0, model={"model": {}}, state={}, sampler=content).save(path)
    same(content, Checkpoint.load(path).sampler)


# --- bad content and bad files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "at least 0"),
        ({"state": {"w": np.array([None])}}, "training/state/w.*object"),
        ({"optimizer": {"state": {0: 1.0}}}, "keys must be text"),
        ({"sampler": {"x": object()}}, "training/sampler/x: a object"),
        ({"sampler": {"@dataset": "x"}}, "keys must be text other than"),
        ({"model": {}}, "key 'model'"),
    ],
)
def test_content_that_cannot_be_stored(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = example()
    for name, value in changes.items():
        setattr(checkpoint, name, value)
    with pytest.raises(ModelFileError, match=message):
        checkpoint.save(tmp_path / "m.dp")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelFileError, match="suffix"):
        example().save(tmp_path / "m.ckpt")


def refused(path: Path, message: str) -> None:
    for read in (Checkpoint.load, check_whole):
        with pytest.raises(ModelFileError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "m.dp"
    refused(path, "No such file")
    path.write_bytes(b"")
    refused(path, "empty")
    path.write_bytes(b"PK\x03\x04 torch archive")
    refused(path, r"not HDF5.*--init-model")
    shutil.copy(GOLDEN, path)
    refused(path, "model without training state")
    with h5py.File(path, "w") as file:
        file["coord"] = np.ones(3)
    refused(path, "another kind of HDF5")
    example().save(path)
    image = path.read_bytes()
    for size in (7, 8, 500, len(image) // 2, len(image) - 1):
        path.write_bytes(image[:size])
        refused(path, "truncated|not HDF5")


def edit(path: Path, change: Callable[[h5py.Group], None]) -> None:
    example().save(path)
    with h5py.File(path, "a") as file:
        change(file["training"])


def test_damaged_content(tmp_path: Path) -> None:
    path = tmp_path / "m.dp"
    edit(path, lambda group: group.__delitem__("state/scalar"))
    refused(path, "missing|no dataset")
    edit(path, lambda group: group.__delitem__("sampler/systems/0/left"))
    refused(path, "missing|no dataset")
    edit(path, lambda group: group.attrs.__setitem__("json", "{"))
    refused(path, "damaged")
    edit(path, lambda group: group.attrs.__setitem__("json", json.dumps({"step": 1})))
    with pytest.raises(ModelFileError, match="missing or unknown"):
        Checkpoint.load(path)
    edit(path, lambda group: group.attrs.__setitem__("format_version", FORMAT_VERSION + 1))
    refused(path, "newer dpmodel")


def test_upgrades() -> None:
    """Steps are applied in order; the table covers every version that was ever written."""
    upgrades = {1: lambda data: {**data, "b": data["a"]}, 2: lambda data: {**data, "c": data["b"]}}
    assert upgraded({"a": 1}, 1, "x", upgrades=upgrades, current=3) == {"a": 1, "b": 1, "c": 1}
    assert upgraded({"b": 2}, 2, "x", upgrades=upgrades, current=3) == {"b": 2, "c": 2}
    assert upgraded({}, 3, "x", upgrades=upgrades, current=3) == {}
    with pytest.raises(ModelFileError, match="newer dpmodel"):
        upgraded({}, 4, "x", upgrades=upgrades, current=3)
    with pytest.raises(ModelFileError, match="no longer be read"):
        upgraded({}, 0, "x", upgrades=upgrades, current=3)
    assert sorted(UPGRADES) == list(range(1, FORMAT_VERSION))


# --- safety -----------------------------------------------------------------------------------------------


def full_disk(*_args: Any, **_options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    family = Family("model.ckpt", keep=1)
    first = family.save(1, example(1).save)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        family.save(2, example(2).save)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert latest("model.ckpt") == first
    assert Path("checkpoint").read_text() == "model.ckpt-1.dp\n"


SAVE_FOREVER = """
import sys
import numpy as np
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.rotation import Family

family, weights = Family("model.ckpt", keep=2), np.ones(200_000)
for step in range(1, 100_000):
    state = {"w": weights * step}
    checkpoint = Checkpoint(step=step, model={"model": {"@variables": state}}, state=state)
    if sys.argv[1] == "numbered":
        family.save(step, checkpoint.save)
    else:
        checkpoint.save("model.ckpt.dp")
    print(step, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("how", ["numbered", "one name"])
def test_killed_while_saving(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment of the kill, the newest checkpoint is whole and the link leads to a whole one."""
    monkeypatch.chdir(tmp_path)
    generator = random.Random(3)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(4):
        command = [sys.executable, "-c", SAVE_FOREVER, how]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            for _ in range(3):
                assert process.stdout.readline()
            time.sleep(generator.uniform(0, 0.03))
            process.kill()
        newest = latest("model.ckpt")
        assert newest is not None
        for path in (newest, Path("model.ckpt.dp")):
            checkpoint = Checkpoint.load(path)
            assert np.all(checkpoint.state["w"] == checkpoint.step)
            assert np.all(read_tree(path)["model"]["@variables"]["w"] == checkpoint.step)
    Family("model.ckpt", keep=1).save(1, example(1).save)
    assert names(tmp_path) == ["checkpoint", "model.ckpt-1.dp", "model.ckpt.dp"]


# --- rotation ---------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(path: Path) -> None:
    path.write_text(path.name)


def test_newest_by_step_are_kept(here: Path) -> None:
    """By the number in the name, whatever the times of the files say; 1000 is above 200."""
    family = Family("model.ckpt", keep=2, pointer=None)
    for step in (100, 200):
        family.save(step, put)
    os.utime("model.ckpt-100.dp", (2e9, 2e9))
    family.save(1000, put)
    assert names(here) == ["model.ckpt-1000.dp", "model.ckpt-200.dp", "model.ckpt.dp"]
    assert [step for step, _ in family.existing()] == [200, 1000]
    assert Path("model.ckpt.dp").readlink() == Path("model.ckpt-1000.dp")


def test_rerun_below_an_older_run(here: Path) -> None:
    """Files of greater steps go, once the new file is there; the new one stays even if it is the only one to keep."""
    for step in (5000, 6000, 7000):
        Family("model.ckpt", keep=0).save(step, put)
    assert len(names(here)) == 5

    def fails(_path: Path) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        Family("model.ckpt", keep=1).save(1000, fails)
    assert len(names(here)) == 5
    assert Family("model.ckpt", keep=1).save(1000, put) == Path("model.ckpt-1000.dp")
    assert names(here) == ["checkpoint", "model.ckpt-1000.dp", "model.ckpt.dp"]
    assert Path("checkpoint").read_text() == "model.ckpt-1000.dp\n"


def test_foreign_names_and_links_are_left_alone(here: Path) -> None:
    foreign = [
        "model.ckpt-best.dp",
        "model.ckpt-1.dp.bak",
        "my-model.ckpt-1.dp",
        "model.ckpt-1.pt",
        "modelxckpt-1.dp",
        "x.tmp",
    ]
    for name in foreign:
        Path(name).write_text("")
    Path("model.ckpt-2.dp").mkdir()
    Path("model.ckpt-3.dp").symlink_to("x.tmp")
    Path(".model.ckpt-4.dp.0123abcd.tmp").write_text("left by a killed run")
    family = Family("model.ckpt", keep=1)
    family.save(10, put)
    assert names(here) == sorted(
        [*foreign, "model.ckpt-2.dp", "model.ckpt-3.dp", "model.ckpt-10.dp", "model.ckpt.dp", "checkpoint"]
    )


def test_save_dir_and_averages(here: Path) -> None:
    """Own names, link and retention for averages; the pointer belongs to the regular family."""
    Family("out/model.ckpt", save_dir="deep/er", keep=1).save(1, put)
    averages = Family(averaged_name("out/model.ckpt"), save_dir="deep/er", keep=2, pointer=None)
    for step in (1, 2, 3):
        averages.save(step, put)
    assert names(here / "deep/er") == ["model.ckpt-1.dp", "model_ema.ckpt-2.dp", "model_ema.ckpt-3.dp"]
    assert names(here / "out") == ["model.ckpt.dp", "model_ema.ckpt.dp"]
    assert Path("out/model_ema.ckpt.dp").read_text() == "model_ema.ckpt-3.dp"
    assert Path("checkpoint").read_text() == f"{Path('deep/er/model.ckpt-1.dp')}\n"
    assert Family("model.dp").path(3) == Path("model-3.dp")
    assert Family("model.dp").link == Path("model.dp")
    assert [averaged_name(name) for name in ("val.log", "best.ckpt", "a")] == ["val_ema.log", "best_ema.ckpt", "a_ema"]


@pytest.mark.usefixtures("here")
def test_without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.os, "symlink", full_disk)
    Family("model.ckpt").save(1, put)
    assert not Path("model.ckpt.dp").is_symlink()
    assert Path("model.ckpt.dp").read_text() == "model.ckpt-1.dp"


@pytest.mark.usefixtures("here")
def test_a_file_that_cannot_be_removed_does_not_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    family = Family("model.ckpt", keep=1)
    family.save(1, put)
    monkeypatch.setattr(Path, "unlink", full_disk)
    family.save(2, put)
    assert "cannot remove the old checkpoint model.ckpt-1.dp" in caplog.text


@pytest.mark.parametrize(
    ("ratio", "num_steps", "expected"), [(None, 100, 5), (0.5, 100, 5), (0.01, 100, 1), (0.5, 101, 6), (0.07, 1000, 7)]
)
def test_keep_count(ratio: float | None, num_steps: int, expected: int) -> None:
    assert keep_count(5, ratio, num_steps, 10) == expected


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["model.ckpt", "model.ckpt.dp"])
def test_latest(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert latest(name) is None
    family = Family("model.ckpt")
    for step in (9, 10, 100):
        family.save(step, example(step).save)
    assert latest(name) == Path("model.ckpt-100.dp")
    assert latest(Path(name)) == Path("model.ckpt-100.dp")
    Path("model.ckpt-100.dp").write_bytes(Path("model.ckpt-100.dp").read_bytes()[:3000])
    assert latest(name) == Path("model.ckpt-10.dp")
    assert "model.ckpt-100.dp" in caplog.text
    assert "Trying the one before" in caplog.text
    assert latest("model.ckpt-9") == latest("model.ckpt-9.dp") == Path("model.ckpt-9.dp")
    with pytest.raises(ModelFileError, match="truncated"):
        latest("model.ckpt-100.dp")
    with pytest.raises(ModelFileError, match=r"model\.ckpt-11\.dp.*No such file"):
        latest("model.ckpt-11.dp")
    for step in (9, 10):
        Path(f"model.ckpt-{step}.dp").write_bytes(b"")
    with pytest.raises(ModelFileError, match="no checkpoint of"):
        latest(name)


@pytest.mark.usefixtures("here")
def test_latest_elsewhere() -> None:
    Family("a/m", save_dir="b").save(3, example(3).save)
    assert latest("a/m", "b") == Path("b/m-3.dp")
    assert latest("a/m") == Path("a/m.dp")
    shutil.copy("b/m-3.dp", "moved.dp")
    assert latest("moved") == latest("moved.dp") == Path("moved.dp")
    Family("run-2").save(5, example(5).save)
    assert latest("run-2") == Path("run-2-5.dp")
    assert latest("none/m") is None
