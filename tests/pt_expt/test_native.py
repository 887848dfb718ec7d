"""The build cache of native libraries: keys, faults, processes that build at once, builds that are killed."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpmodel.backends.pt_expt import native
from dpmodel.backends.pt_expt.native import build_library, built_for, cache_folder
from dpmodel.errors import BackendError

SOURCE = '#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n'
COMPILER = os.environ.get("CXX", "c++")

BUILD = """
import sys
from pathlib import Path
from dpmodel.backends.pt_expt.native import build_library
folder = Path(sys.argv[1])
print(build_library("libanswer", [folder / "answer.cpp"], include=[folder]))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "source with a blank"
    folder.mkdir()
    (folder / "answer.cpp").write_text(SOURCE)
    (folder / "answer.h").write_text("#define ANSWER 42\n")
    return folder


def build(folder, **options):
    return build_library("libanswer", [folder / "answer.cpp"], include=[folder], **options)


def answer(path):
    return ctypes.CDLL(str(path)).answer()


def visible(cache):
    return sorted(file.name for file in cache.iterdir() if not file.name.endswith(".lock"))


def compiler(folder, before):
    """A compiler that runs some shell before every compilation."""
    script = folder / "cxx"
    script.write_text(f'#!/bin/sh\ncase "$*" in *" -c "*)\n{before}\n;; esac\nexec {COMPILER} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


def start(folder, cache, **variables):
    environment = {**os.environ, "DPMODEL_CACHE_DIR": str(cache), **variables}
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path, process):
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)


# --- what is built, and when anew ------------------------------------------------------------------------


def test_builds_once(cache, folder, monkeypatch):
    path = build(folder)
    assert path == cache / path.parent.name / "libanswer.so"
    assert answer(path) == 42
    assert built_for(path).startswith("torch 2.")
    monkeypatch.setattr(native, "_build", None)  # whatever builds now fails
    assert build(folder) == path
    assert visible(cache) == [path.parent.name]


def test_everything_that_matters_is_in_the_key(cache, folder, monkeypatch):
    monkeypatch.setattr(native, "_build", lambda *args: None)
    paths = [build(folder), build(folder, cflags=["-DX"]), build(folder, ldflags=["-lm"]), build(folder, key=["1"])]
    paths += [build(folder, key=["2"]), build(folder, cflags=["-lm"]), build(folder, libraries=[folder / "libm.so"])]
    paths.append(build_library("libother", [folder / "answer.cpp"], include=[folder]))
    monkeypatch.setattr(native.torch, "__version__", "9.9.9")
    paths.append(build(folder))
    monkeypatch.undo()
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(cache))
    monkeypatch.setattr(native, "_build", lambda *args: None)
    monkeypatch.setattr(native, "_compiler_version", lambda: "other")
    paths.append(build(folder))
    monkeypatch.undo()
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(cache))
    monkeypatch.setattr(native, "_build", lambda *args: None)
    (folder / "answer.h").write_text("#define ANSWER 43\n")
    paths.append(build(folder))
    (folder / "answer.cpp").write_text(SOURCE + "\n")
    paths.append(build(folder))
    assert len(set(paths)) == len(paths)


def test_a_library_that_needs_another(cache, folder):
    first = build(folder)
    source = folder / "twice.cpp"
    source.write_text('extern "C" int answer();\nextern "C" int twice() { return 2 * answer(); }\n')
    second = build_library("libtwice", [source], libraries=[first])
    code = f"import ctypes; print(ctypes.CDLL({str(second)!r}).twice())"  # found without anybody's help
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "84\n"


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("DPMODEL_CACHE_DIR")
    assert cache_folder() == tmp_path / "xdg" / "dpmodel"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "dpmodel"
    assert not list(tmp_path.iterdir())


# --- faults ----------------------------------------------------------------------------------------------


def test_a_fault_in_the_source_is_shown_and_leaves_nothing(cache, folder):
    (folder / "answer.h").write_text("")
    with pytest.raises(BackendError, match=r"(?s)compiling libanswer failed.*answer\.cpp:2:.*ANSWER.* not declared"):
        build(folder)
    assert visible(cache) == []


def test_no_ninja(cache, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(native.shutil, "which", lambda *args, **options: None)
    with pytest.raises(BackendError, match="libanswer must be compiled, which needs ninja: pip install ninja"):
        build(folder)
    assert visible(cache) == []


def test_no_compiler(cache, folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendError, match=r"no C\+\+ compiler 'no-such-compiler': install one .*CXX"):
        build(folder)
    monkeypatch.undo()
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(cache))
    path = build(folder)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build(folder) == path  # built on a machine that has one


def test_a_cache_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPMODEL_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(BackendError, match=r"libanswer cannot be built in .*file: .*DPMODEL_CACHE_DIR"):
        build(folder)


def test_path_is_as_before(cache, folder, monkeypatch):
    before = os.environ["PATH"]
    build(folder)
    assert os.environ["PATH"] == before


# --- processes -------------------------------------------------------------------------------------------


def test_processes_that_build_at_once_build_once(cache, folder, tmp_path):
    log = tmp_path / "log"
    slow = compiler(tmp_path, f"echo x >> {log}; sleep 2")
    runs = [start(folder, cache, CXX=slow) for _ in range(2)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert log.read_text() == "x\n"
    assert answer(said[0][0].strip()) == 42


def test_a_killed_build_blocks_nobody(cache, folder, tmp_path):
    """The killed process leaves a compiler that runs on, a temporary folder, and the lock's file."""
    begun, stuck = tmp_path / "begun", tmp_path / "stuck"
    stuck.touch()
    hangs = compiler(tmp_path, f"if mkdir {begun} 2>/dev/null; then while [ -e {stuck} ]; do sleep 0.2; done; fi")
    first = start(folder, cache, CXX=hangs)
    try:
        wait_for(begun, first)
        first.kill()
        first.wait(timeout=10)
        assert len([name for name in visible(cache) if name.startswith(".libanswer-")]) == 1
        second = start(folder, cache, CXX=hangs)
        said = second.communicate(timeout=120)
    finally:
        stuck.unlink()  # ninja and the compiler end
        first.communicate()
    assert second.returncode == 0, said
    assert visible(cache) == [Path(said[0].strip()).parent.name]
    assert answer(said[0].strip()) == 42


def test_importing_builds_and_loads_nothing(cache):
    code = (
        "import dpmodel, dpmodel.backends.pt_expt, dpmodel.backends.pt_expt.ghosts, sys, torch;"
        "assert not hasattr(torch.ops.dpmodel, 'ghost_forward'); assert 'mpi4py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert not cache.exists()
