"""Model files: what was written comes back bit for bit, and every bad file is named."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpmodel.errors import ModelFileError
from dpmodel.files import atomic, hdf5
from dpmodel.files.atomic import atomic_symlink, atomic_write
from dpmodel.files.container import read_tree, write_tree
from dpmodel.files.hdf5 import DTYPES

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "se_e2_a.dp"
WRITABLE = ("dp", "yaml", "yml", "json")


def same(a: Any, b: Any) -> None:
    """Equal types, order of keys and every bit of the numbers."""
    if isinstance(a, np.ndarray | np.generic):
        assert type(a) is type(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if a.dtype.kind == "f":
            # The payload of a NaN has no spelling in text.
            assert np.array_equal(np.isnan(a), np.isnan(b))
            a, b = np.where(np.isnan(a), a.dtype.type(0), a), np.where(np.isnan(b), b.dtype.type(0), b)
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b or (math.isnan(a) and math.isnan(b))


def body(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != "dpmodel"}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_tree(GOLDEN)


# --- round trips ------------------------------------------------------------------------------------------


def test_golden_file(golden: dict[str, Any]) -> None:
    assert golden["software"] == "deepmd-kit"
    assert golden["version"] == "3.2.0"
    assert golden["model"]["type_map"] == ["O", "H"]
    with h5py.File(GOLDEN) as file:
        davg = file["variable_0014"][()]
    assert np.array_equal(golden["model"]["descriptor"]["@variables"]["davg"], davg)
    assert golden["model"]["descriptor"]["embeddings"]["networks"][0]["layers"][0]["@variables"]["idt"] is None


@pytest.mark.parametrize("suffix", WRITABLE)
def test_golden_round_trip(golden: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    write_tree(path, golden, provenance={"input": {"rcut": 6.0}})
    back = read_tree(path)
    same(golden, body(back))
    assert back["time"] == golden["time"]
    assert back["dpmodel"]["input"] == {"rcut": 6.0}
    assert back["dpmodel"]["version"]
    write_tree(path, back)
    assert read_tree(path)["dpmodel"]["input"] == {"rcut": 6.0}
    assert list(tmp_path.iterdir()) == [path]


def test_layout_of_hdf5(golden: dict[str, Any], tmp_path: Path) -> None:
    """The same datasets under the same names as in the file that DeePMD-kit wrote."""
    write_tree(tmp_path / "m.dp", golden)
    with h5py.File(GOLDEN) as a, h5py.File(tmp_path / "m.dp") as b:
        assert sorted(a) == sorted(b)
        assert all(np.array_equal(a[name][()], b[name][()]) and a[name].dtype == b[name].dtype for name in a)
        ours, theirs = json.loads(b.attrs["json"]), json.loads(a.attrs["json"])
        ours.pop("dpmodel")
        assert ours == theirs
        assert ": " not in b.attrs["json"].replace(theirs["time"], "")


def test_new_file_says_who_wrote_it(tmp_path: Path) -> None:
    write_tree(tmp_path / "m.json", {"model": {}})
    tree = read_tree(tmp_path / "m.json")
    assert list(tree) == ["software", "version", "time", "model", "dpmodel"]
    assert tree["software"] == "dpmodel"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = (
    st.integers() | st.floats() | st.booleans() | st.sampled_from([1e-17, 5e-324, -0.0, 1e22, 1.7976931348623157e308])
)
PLAIN = st.recursive(
    st.none()
    | TEXT
    | NUMBERS
    | st.sampled_from(["No", "on", "1e5", "1e-17", "1_0", "=", "null", "1:30", "2020-01-01", "~"]),
    lambda leaf: (
        st.lists(leaf, max_size=3) | st.dictionaries(TEXT.filter(lambda key: key[:1] != "@"), leaf, max_size=3)
    ),
    max_leaves=8,
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
ARRAYS = (
    st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)).map(lambda a: a[()] if a.ndim == 0 else a)
)
VARIABLES = st.recursive(
    st.none() | ARRAYS, lambda leaf: st.lists(leaf, max_size=3) | st.dictionaries(TEXT, leaf, max_size=3), max_leaves=6
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(WRITABLE), PLAIN, VARIABLES)
def test_any_tree(suffix: str, plain: Any, variables: Any) -> None:
    tree = {"software": "x", "version": "0", "time": "", "model": {"plain": plain, "@variables": {"nested": variables}}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m.{suffix}"
        write_tree(path, tree)
        same(tree, body(read_tree(path)))


@pytest.mark.parametrize("suffix", WRITABLE)
def test_numpy_scalars_and_tuples(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m.{suffix}"
    variables = {"min_nbor_dist": np.float64(0.1), "n": 3, "x": 1e-17}
    write_tree(path, {"model": {"rcut": np.float64(1e-17), "sel": (np.int64(3), 4)}, "@variables": variables})
    tree = read_tree(path)
    assert tree["model"] == {"rcut": 1e-17, "sel": [3, 4]}
    assert type(tree["model"]["rcut"]) is float
    assert tree["@variables"] == {"min_nbor_dist": 0.1, "n": 3, "x": 1e-17}
    assert type(tree["@variables"]["min_nbor_dist"]) is np.float64
    assert type(tree["@variables"]["n"]) is np.int64


def test_big_endian_becomes_native(tmp_path: Path) -> None:
    path = tmp_path / "m.dp"
    with h5py.File(path, "w") as file:
        file["variable_0000"] = np.arange(3, dtype=">f8")
        file.attrs["json"] = json.dumps({"model": {"@variables": {"w": "/variable_0000"}}})
    w = read_tree(path)["model"]["@variables"]["w"]
    assert w.dtype.isnative
    assert w.tolist() == [0.0, 1.0, 2.0]


def test_opaque_bytes_stay_in_hdf5(tmp_path: Path) -> None:
    tree = {"model": {}, "@variables": {"stablehlo": np.void(b"\x00ML\x00")}}
    write_tree(tmp_path / "m.dp", tree)
    shutil.copy(tmp_path / "m.dp", tmp_path / "m.hlo")
    assert read_tree(tmp_path / "m.hlo")["@variables"]["stablehlo"].tobytes() == b"\x00ML\x00"
    with pytest.raises(ModelFileError, match=r"stablehlo.*\.dp"):
        write_tree(tmp_path / "m.yaml", tree)
    with pytest.raises(ModelFileError, match=r"dpmodel freeze -o m\.hlo"):
        write_tree(tmp_path / "m.hlo", tree)


def test_foreign_yaml(tmp_path: Path) -> None:
    """Anchors, YAML 1.2 floats and an unquoted time are read as what they mean."""
    path = tmp_path / "m.yaml"
    path.write_text("time: 2026-11-21 01:09:59\nmodel: {a: &a [1e-17, 2E3], b: *a}\n")
    tree = read_tree(path)
    assert tree["model"] == {"a": [1e-17, 2000.0], "b": [1e-17, 2000.0]}
    assert tree["time"] == "2026-11-21 01:09:59"


# --- bad files --------------------------------------------------------------------------------------------


def write_hdf5_model(path: Path, tree: Any, **datasets: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
        file.attrs["json"] = json.dumps(tree)


W = {"model": {"@variables": {"w": "/variable_0000"}}}
ARRAY = {"@class": "np.ndarray", "@is_variable": True, "dtype": "float64"}
TEXTS = {
    "not-json": ("m.json", '{"model": ', "not JSON"),
    "not-yaml": ("m.yaml", "model: [1, 2", "not YAML"),
    "list": ("m.yaml", "- 1", "dictionary"),
    "no-model": ("m.json", '{"a": 1}', "key 'model'"),
    "paddle": ("m.json", '{"base_code": {"magic": "pir"}, "program": {}}', "Paddle"),
    "code": ("m.yaml", "model: !!python/object/apply:os.system ['echo']", "not YAML"),
    "ragged": (
        "m.json",
        json.dumps({"model": {"@variables": {"w": {**ARRAY, "value": [[1.0], [1.0, 2.0]]}}}}),
        "equal lengths",
    ),
    "object": ("m.json", json.dumps({"model": {"w": {**ARRAY, "dtype": "object", "value": [1]}}}), "dtype"),
    "none": ("m.json", json.dumps({"model": {"@variables": {"w": {**ARRAY, "value": [None]}}}}), "do not fit"),
    "fraction": (
        "m.json",
        json.dumps({"model": {"@variables": {"w": {**ARRAY, "dtype": "int64", "value": [1.5]}}}}),
        "fit",
    ),
    "overflow": (
        "m.json",
        json.dumps({"model": {"@variables": {"w": {**ARRAY, "dtype": "int8", "value": [300]}}}}),
        "fit",
    ),
    "shape": ("m.json", json.dumps({"model": {"@variables": {"w": {**ARRAY, "value": [], "shape": [2, 3]}}}}), "shape"),
    "text": ("m.json", json.dumps({"model": {"@variables": {"w": "/variable_0000"}}}), "only numbers"),
    "deep": ("m.json", '{"model": ' + "[" * 100_000, "nested too deeply"),
    "bomb": (
        "m.yaml",
        "model:\n  a0: &a0 [x]\n" + "".join(f"  a{k + 1}: &a{k + 1} [{f'*a{k}, ' * 9}]\n" for k in range(9)),
        "unfolds",
    ),
    "loop": ("m.yaml", "model: &a [*a]", "nested too deeply|unfolds"),
    "keys": ("m.yaml", "model: {1: 2}", "keys must be text"),
    "latin": ("m.yaml", b"model: \xff\xfe", "not YAML"),
    "empty": ("m.yaml", "", "empty"),
    "zip": ("m.dp", b"PK\x03\x04rest", "zip archive"),
    "zip-json": ("m.json", b"PK\x03\x04rest", "zip archive"),
    "pickle": ("m.dp", b"\x80\x02}q", "pickle"),
    "noise": ("m.dp", b"some text", "not HDF5"),
    "hdf5-named-yaml": ("m.yaml", b"\x89HDF\r\n\x1a\n", "but it is HDF5"),
    "cut-head": ("m.dp", b"\x89HDF\r\n\x1a\n", "truncated or damaged"),
    "torch": ("m.pth", b"PK\x03\x04", "TorchScript"),
    "unknown": ("m.txt", "x", "model files end in"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_bad_files(case: str, tmp_path: Path) -> None:
    name, content, message = TEXTS[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelFileError, match=message) as error:
        read_tree(path)
    assert str(path) in str(error.value)


def test_bad_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "m.dp"

    def refused(message: str) -> None:
        with pytest.raises(ModelFileError, match=message):
            read_tree(path)

    write_hdf5_model(path, W)
    refused("no dataset '/variable_0000'")
    write_hdf5_model(path, W, variable_0000="text")
    refused("text or objects")
    write_hdf5_model(path, W, variable_0000=np.ones(2, dtype=complex))
    refused("not of complex128")
    write_hdf5_model(path, {"model": {"@variables": {"w": 1}}})
    refused("name of a dataset")
    write_hdf5_model(path, [1])
    refused("should be a dictionary")
    with h5py.File(path, "w") as file:
        file["coord"] = np.ones(3)
    refused("no text attribute 'json' .*coord")
    with h5py.File(path, "w") as file:
        file.attrs["json"] = "{"
    refused("not JSON")
    write_hdf5_model(path, W)
    with h5py.File(path, "a") as file:
        file["variable_0000"] = h5py.ExternalLink("other.h5", "/x")
    refused("no dataset")
    write_hdf5_model(path, W)
    with h5py.File(path, "a") as file:
        file.create_dataset("variable_0000", shape=(10**12,), dtype="f8")
    refused("never written")
    image = GOLDEN.read_bytes()
    for size in (9, 100, 2000, len(image) // 2, len(image) - 1):
        path.write_bytes(image[:size])
        refused("truncated or damaged")


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        read_tree(tmp_path / "m.dp")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_tree(tmp_path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "key 'model'"),
        ({"model": {"a": np.ones(2)}}, "model/a: a ndarray"),
        ({"model": {"a": object()}}, "model/a: a object"),
        ({"model": {1: 2}}, "keys must be text"),
        ({"model": {"@variables": {"w": "text"}}}, "only numbers"),
        ({"model": {"@variables": {"w": np.array([None])}}}, "not of object"),
        ({"model": {"@variables": {"w": np.array(["a"])}}}, "not of str"),
    ],
)
@pytest.mark.parametrize("suffix", ["dp", "yaml", "json"])
def test_bad_trees_leave_nothing(tree: Any, message: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=message):
        write_tree(tmp_path / f"m.{suffix}", tree)
    assert not list(tmp_path.iterdir())


# --- writing completely or not at all ---------------------------------------------------------------------


def full_disk(*_args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(suffix: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"m.{suffix}"
    write_tree(path, {"model": {"old": True}})
    before = path.read_bytes()
    monkeypatch.setattr(atomic.os, call, full_disk)
    with pytest.raises(OSError, match=r"cannot write .*No space left on device") as error:
        write_tree(path, {"model": {"old": False}})
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no resource limits")
def test_write_cut_short_by_the_system(tmp_path: Path) -> None:
    """A real short write: the system allows files of 16 kB only."""
    path = tmp_path / "m.dp"
    write_tree(path, {"model": {}})
    before = path.read_bytes()
    script = (
        "import resource, sys\n"
        "from dpmodel.files.container import read_tree, write_tree\n"
        "tree = read_tree(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))\n"
        "try:\n    write_tree(sys.argv[2], tree)\n"
        "except OSError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, GOLDEN, path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert "unchanged" in done.stdout
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_the_writer_pass_through(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", write)
    assert not list(tmp_path.iterdir())


def test_odd_targets(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no folder"):
        write_tree(tmp_path / "none" / "m.dp", {"model": {}})
    (tmp_path / "m.dp").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_tree(tmp_path / "m.dp", {"model": {}})
    if os.name != "nt":
        os.mkfifo(tmp_path / "fifo.dp")
        with pytest.raises(OSError, match="neither a plain file"):
            write_tree(tmp_path / "fifo.dp", {"model": {}})


def test_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "sub" / "a-1"
    target.parent.mkdir()
    target.write_text("1")
    link = tmp_path / "a"
    atomic_symlink(link, target)
    assert link.readlink() == Path("sub", "a-1")
    assert link.read_text() == "1"
    atomic_write(link, lambda temporary: temporary.write_text("2"))
    assert not link.is_symlink()
    assert target.read_text() == "1"
    atomic_symlink(link, target)
    monkeypatch.setattr(atomic.os, "symlink", full_disk)
    atomic_symlink(link, target)
    assert not link.is_symlink()
    assert link.read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 2


def test_hdf5_writer_passes_its_errors_on(tmp_path: Path) -> None:
    def fill(_file: h5py.File) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hdf5.write_hdf5(tmp_path / "a.h5", fill)
    assert not list(tmp_path.iterdir())
