"""Artefacts that were damaged, changed or made elsewhere: refused before any code of them is loaded."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.backend import get_exporter
from dpmodel.backends.pt_expt.export import artefact as module
from dpmodel.backends.pt_expt.export.archive import METADATA, MODEL, pack, read_entries
from dpmodel.backends.pt_expt.export.artefact import hash_of, open_artefact
from dpmodel.backends.pt_expt.export.metadata import describe_model, describe_runtime
from dpmodel.errors import BackendError, InputError, ModelFileError
from dpmodel.files.model_file import ModelFile, write_model

CODE = "data/aotinductor/model/code.wrapper.so"
ROOT = "archive/"


@pytest.fixture(scope="module")
def content(models: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Entries of an artefact whose code is none."""
    path = tmp_path_factory.mktemp("content") / "model.dp"
    write_model(path, ModelFile(model=models.small_se_a()))
    image = path.read_bytes()
    metadata = {
        **describe_runtime(), **describe_model(models.small_se_a()), "precision": "float64", "model_hash": hash_of(image),
        "inputs": [], "outputs": [], "exchanges": [], "max_bytes_per_row": 0, "atomic_virial": False, "compared": [],
    }  # fmt: skip
    return {METADATA: json.dumps(metadata).encode(), MODEL: image}


@pytest.fixture
def whole(content: dict[str, bytes], tmp_path: Path) -> Path:
    """That artefact as a file."""
    code = tmp_path / "code.wrapper.so"
    code.write_bytes(b"\x7fELF")
    path = tmp_path / "model.pt2"
    path.write_bytes(pack([code], content))
    return path


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every archive whose code would have been loaded."""
    found: list[Path] = []
    monkeypatch.setattr(module, "load_code", found.append)
    return found


def rewritten(path: Path, change: Callable[[str, bytes], Any]) -> Path:
    """The archive with every entry passed through change(name, bytes) -> list of (name or ZipInfo, bytes)."""
    other = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.infolist():
            name = entry.filename.removeprefix(ROOT)
            for info, data in change(name, old.read(entry)) or [(name, old.read(entry))]:
                new.writestr(info if isinstance(info, zipfile.ZipInfo) else ROOT + info, data)
    return other


def with_metadata(path: Path, **changes: Any) -> Path:
    """The archive with other metadata; a value of None removes the key."""

    def change(name: str, data: bytes) -> Any:
        if name != METADATA:
            return None
        found = {**json.loads(data), **changes}
        return [(name, json.dumps({k: v for k, v in found.items() if v is not ...}).encode())]

    return rewritten(path, change)


def test_whole(whole: Path, content: dict[str, bytes], loaded: list[Path]) -> None:
    assert read_entries(whole) == (content[METADATA], content[MODEL])
    open_artefact(whole)
    assert loaded == [whole]
    assert open_artefact(rewritten(whole, lambda *_: None))  # what zipfile writes is read as well


def _entry(name: str, **options: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    for key, value in options.items():
        setattr(info, key, value)
    return info


BAD_ENTRIES = {
    "absolute": "/tmp/x.so",
    "parent": ROOT + "data/aotinductor/model/../../../../x.so",
    "parent_only": "../x.so",
    "backslash": ROOT + "data\\aotinductor\\x.so",
    "another_folder": "other/" + CODE,
    "no_folder": "x.so",
    "folder": ROOT + "data/aotinductor/model/sub/",
    "another_model": ROOT + "data/aotinductor/other/x.so",
    "weights_as_pickle": ROOT + "data/weights/weight_0",
    "link": _entry(ROOT + "data/aotinductor/model/x.so", external_attr=(stat.S_IFLNK | 0o777) << 16),
    "device": _entry(ROOT + "data/aotinductor/model/x.so", external_attr=(stat.S_IFCHR | 0o666) << 16),
    "compressed": _entry(ROOT + "data/aotinductor/model/x.so", compress_type=zipfile.ZIP_DEFLATED),
    "control_characters": ROOT + "data/aotinductor/model/x\n.so",
}


@pytest.mark.parametrize("what", BAD_ENTRIES)
def test_bad_entries(whole: Path, loaded: list[Path], what: str) -> None:
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(BAD_ENTRIES[what], b"x" * 100)
    with pytest.raises(ModelFileError, match=r"model\.pt2: the entry .*not loaded|expected one folder"):
        dpmodel.load(whole)
    assert not loaded


def test_duplicates(whole: Path, loaded: list[Path]) -> None:
    for name in (CODE, METADATA, MODEL):
        path = whole.with_name("twice.pt2")
        shutil.copy(whole, path)
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(ROOT + name, b"other")
        with pytest.raises(ModelFileError, match="occurs twice"):
            open_artefact(path)
    assert not loaded


def test_two_directories(whole: Path, loaded: list[Path]) -> None:
    """Python looks for the directory before the end record, torch where that says it is: other names for one file."""
    data = whole.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", data, end + 12)
    entries, harmless, record = data[:start], data[start : start + size], bytearray(data[end:])
    evil = bytearray(harmless.replace(b"model/code.wrapper.so", b"../../../../../bad.so"))
    place = 0
    while place < size:  # local headers lie behind as many bytes as the directory has
        (offset,) = struct.unpack_from("<I", evil, place + 42)
        struct.pack_into("<I", evil, place + 42, offset + size)
        place += 46 + sum(struct.unpack_from("<HHH", evil, place + 28))
    struct.pack_into("<I", record, 16, size + start)
    whole.write_bytes(bytes(size) + entries + evil + harmless + record)
    with zipfile.ZipFile(whole) as archive:  # nothing to be seen
        assert ROOT + CODE in archive.namelist() and archive.testzip() is None
    with pytest.raises(ModelFileError, match=r"readers of zip files disagree .*bad\.so.*not loaded"):
        open_artefact(whole)
    assert not loaded


def test_bombs(whole: Path, loaded: list[Path]) -> None:
    """An entry that claims to be larger than the file, and entries that share their bytes."""
    data = bytearray(whole.read_bytes())
    place = data.rindex(b"PK\x01\x02", 0, data.index(b"PK\x05\x06"))
    for offset in (20, 24):  # sizes in the central directory
        struct.pack_into("<I", data, place + offset, 2**31)
    whole.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"larger than the file|damaged"):
        open_artefact(whole)
    assert not loaded


@pytest.mark.parametrize("name", [CODE, METADATA, MODEL])
def test_missing_entries(whole: Path, loaded: list[Path], name: str) -> None:
    with pytest.raises(ModelFileError, match=r"is no artefact of `dpmodel freeze`"):
        open_artefact(rewritten(whole, lambda entry, data: [("version", b"3")] if entry == name else None))
    assert not loaded


def test_a_file_that_may_not_be_read(whole: Path, loaded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root: the error is made here."""

    def denied(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(whole))

    monkeypatch.setattr(zipfile, "ZipFile", denied)
    with pytest.raises(ModelFileError, match=r"model\.pt2 cannot be read: Permission denied. Expected an artefact"):
        open_artefact(whole)
    assert not loaded


def test_every_truncation(whole: Path, loaded: list[Path]) -> None:
    data = whole.read_bytes()
    for size in {*range(0, len(data), max(1, len(data) // 60)), len(data) - 1, 1, 4}:
        whole.write_bytes(data[:size])
        with pytest.raises(ModelFileError, match=r"model\.pt2"):
            open_artefact(whole)
    assert not loaded


def test_changed_bytes(whole: Path, loaded: list[Path], content: dict[str, bytes]) -> None:
    """One flipped byte in the code, the metadata or the model."""
    data = whole.read_bytes()
    for needle in (b"\x7fELF", content[METADATA][50:90], content[MODEL][500:540]):
        other = bytearray(data)
        other[data.index(needle) + 1] ^= 0xFF
        whole.write_bytes(other)
        with pytest.raises(ModelFileError, match="is damaged"):
            open_artefact(whole)
    assert not loaded


@pytest.mark.parametrize("data", [b"", b"PK", b"no zip at all", np.random.default_rng(0).bytes(5000)])
def test_no_archive(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt2").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"x\.pt2 is no artefact"):
        dpmodel.load(tmp_path / "x.pt2")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no such file"):
        dpmodel.load(tmp_path / "x.pt2")
    with pytest.raises(ModelFileError, match="is a folder"):
        dpmodel.load(_folder(tmp_path / "y.pt2"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_foreign_archive(tmp_path: Path) -> None:
    """An archive of torch itself."""
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("model/data.pkl", b"code that nobody runs")
    with pytest.raises(ModelFileError, match=r"model/data\.pkl"):
        dpmodel.load(tmp_path / "x.pt2")


# --- metadata ----------------------------------------------------------------------------------------------

BAD_METADATA: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "format": ({"format": "other"}, ModelFileError, "no format 'dpmodel.pt2'"),
    "newer": ({"format_version": 3}, ModelFileError, "format version 3, this program reads 2: freeze the model anew"),
    "no_version": ({"format_version": ...}, ModelFileError, "format version None"),
    "missing": ({"rcut": ...}, ModelFileError, r"missing \['rcut'\]"),
    "unknown": ({"colour": "red"}, ModelFileError, r"unknown \['colour'\]"),
    "kind": ({"atomic_virial": 1}, ModelFileError, "atomic_virial should be bool, got 1"),
    "flag": ({"ntypes": True}, ModelFileError, "ntypes should be int, got True"),
    "item": ({"inputs": [{"name": "x"}]}, ModelFileError, r"inputs\[0\]: missing \['axes', 'dtype', 'static'\]"),
    "no_item": ({"exchanges": [3]}, ModelFileError, r"exchanges\[0\]: expected a dictionary, got int"),
    "torch": ({"torch_version": "2.0.0"}, BackendError, "compiled for torch 2.0.0, here is 2.*freeze the model anew"),
    "abi": ({"op_abi": 7}, BackendError, "version of the ghost exchange 7, here is 1"),
    "device": ({"device": "cuda"}, BackendError, "device cuda, here is cpu"),
    "processor": ({"instruction_set": "AVX1024"}, BackendError, "compiled for processors with AVX1024"),
    "hash": ({"model_hash": "0" * 64}, ModelFileError, "not the one that was compiled"),
    "other_model": ({"rcut": 7.0}, ModelFileError, r"rcut = 7.0, the model inside 4.0: the file was changed"),
    "other_types": ({"type_map": ["O", "C"]}, ModelFileError, "type_map"),
    "other_requests": ({"requests": []}, ModelFileError, "requests"),
}


@pytest.mark.parametrize("what", BAD_METADATA)
def test_bad_metadata(whole: Path, loaded: list[Path], what: str) -> None:
    changes, kind, message = BAD_METADATA[what]
    with pytest.raises(kind, match=message):
        dpmodel.load(with_metadata(whole, **changes))
    assert not loaded


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b"[" * 100000, b"{}", b"null"])
def test_metadata_that_is_no_dictionary(whole: Path, text: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"changed\.pt2"):
        open_artefact(rewritten(whole, lambda name, _: [(name, text)] if name == METADATA else None))


def test_older_processors(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for a part of what this processor has runs here."""
    import torch

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    open_artefact(with_metadata(whole, instruction_set="AVX2"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(BackendError, match="processors with AVX512, this one has AVX2"):
        open_artefact(with_metadata(whole, instruction_set="AVX512"))


# --- how it is asked for -----------------------------------------------------------------------------------


def test_backends_and_options(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pt", "jax", "numpy"):
        with pytest.raises(BackendError, match=rf"run on the backend 'pt_expt', not on '{name}'"):
            dpmodel.load(whole, backend=name)
    with pytest.raises(InputError, match="is compiled already"):
        dpmodel.load(whole, compile=True)
    with pytest.raises(InputError, match="holds a single model, which has no heads"):
        dpmodel.load(whole, head="water")
    with pytest.raises(BackendError, match="compiled for the CPU, not for 'meta'"):
        dpmodel.load(whole, device="meta")
    with pytest.raises(BackendError, match="device 'abc'"):
        dpmodel.load(whole, device="abc")
    monkeypatch.setenv("DP_BACKEND", "numpy")
    assert dpmodel.load(whole).backend.name == "pt_expt"
    assert dpmodel.load(str(whole), backend="pt-expt", device="cpu").type_map == ("O", "H")
    assert get_exporter().name == "pt_expt"


def test_the_model_inside(whole: Path, models: Any, tmp_path: Path) -> None:
    pot = dpmodel.load(whole)
    dpmodel.save(pot, tmp_path / "back.dp")
    expected = models.small_se_a().state()
    for state in (pot.model.state(), dpmodel.load(tmp_path / "back.dp", backend="numpy").model.state()):
        assert state.keys() == expected.keys()
        assert all(np.array_equal(state[key], value) for key, value in expected.items())
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
