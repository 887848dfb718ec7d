"""Native libraries, compiled on the user's machine by torch's build functions, once per set of versions.

An entry of the cache is a folder `<name>-<what is built>-<compiler>` that holds `<name>.so`. It is built in a temporary
folder and renamed, under a lock of the operating system: a build that is killed releases its lock and leaves nothing
that the next one could mistake for a library. (torch's own lock is a file that outlives its owner.)

    path = build_library("libexample", [Path("example.cpp")])

The cache is `DPMODEL_CACHE_DIR`, else `$XDG_CACHE_HOME/dpmodel`, else `~/.cache/dpmodel`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dpmodel.cache import cache_folder
from dpmodel.errors import BackendError

__all__ = ["CSRC", "build_library", "built_for", "cache_folder"]

logger = logging.getLogger(__name__)

CSRC = Path(__file__).parent / "csrc"
"""Sources of the operator library, and the header of its contract."""


def build_library(
    name: str,
    sources: Sequence[Path],
    *,
    include: Sequence[Path] = (),
    cflags: Sequence[str] = (),
    ldflags: Sequence[str] = (),
    libraries: Sequence[Path] = (),
    key: Sequence[str] = (),
) -> Path:
    """Path of the shared library `<name>.so`, built if the cache does not hold it.

    Args:
        name: of the library; also what the linker knows it by.
        sources: C++ files.
        include: folders of headers; those directly inside take part in the key.
        cflags: for the compiler, shell-quoted where needed.
        ldflags: for the linker, shell-quoted where needed.
        libraries: files to link, found again at load time by their folder, needed even where no symbol is used.
        key: further versions that the library depends on.

    Raises BackendError where compiler or ninja are missing, the cache cannot be written, or the build fails.
    """
    what = _key(name, sources, include, cflags, ldflags, libraries, key)
    folder, compiler = cache_folder(), _compiler_version()
    if compiler is None:  # a machine without compiler may use what another one built into a shared cache
        known = sorted(folder.glob(f"{name}-{what}-*/{name}.so"))
        if known:
            return known[0]
        raise BackendError(
            f"{name} must be compiled, and there is no C++ compiler {_compiler()!r}: install one (Debian, Ubuntu: "
            f"apt install g++; conda: conda install gxx), or name one by the environment variable CXX. Looked for a "
            f"built one in {folder}"
        )
    entry = folder / f"{name}-{what}-{compiler}"
    library = entry / f"{name}.so"
    if not library.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f".{entry.name}.lock", name):
                if not library.is_file():
                    _build(entry, name, sources, include, cflags, ldflags, libraries)
        except OSError as problem:
            raise BackendError(
                f"{name} cannot be built in {folder}: {problem}. Name a folder that can be written by the environment "
                "variable DPMODEL_CACHE_DIR"
            ) from problem
    return library


def built_for(library: Path) -> str:
    """The version of torch that a library of the cache was built for, as its folder says."""
    try:
        return (library.parent / _NOTE).read_text(encoding="utf-8").strip()
    except OSError:
        return "an unknown version"


_NOTE = "built_for.txt"


def _build(
    entry: Path,
    name: str,
    sources: Sequence[Path],
    include: Sequence[Path],
    cflags: Sequence[str],
    ldflags: Sequence[str],
    libraries: Sequence[Path],
) -> None:
    """Build into the entry's folder. The caller holds its lock."""
    for left in entry.parent.glob(f".{entry.name}-*"):  # of builds that were killed: their lock is ours now
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(entry, ignore_errors=True)  # a folder without its library
    logger.info("compiling %s into %s (once; about a minute)", name, entry.parent)
    work = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        with _ninja_on_path(name):
            built = _compile(work, name, sources, include, cflags, ldflags, libraries)
        done = work / "done"
        done.mkdir()
        shutil.move(built, done / f"{name}.so")
        (done / _NOTE).write_text(f"torch {torch.__version__}\n", encoding="utf-8")
        with (done / f"{name}.so").open("rb") as file:
            os.fsync(file.fileno())
        os.replace(done, entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _compile(
    work: Path,
    name: str,
    sources: Sequence[Path],
    include: Sequence[Path],
    cflags: Sequence[str],
    ldflags: Sequence[str],
    libraries: Sequence[Path],
) -> Path:
    from torch.utils.cpp_extension import load  # noqa: PLC0415 - looks for compilers on import

    # `is_standalone` without Python's libraries, and `-shared`: a library that programs without Python load too, and
    # that is not loaded here, from a place that it does not stay in.
    link = ["-shared", f"-Wl,-soname,{name}.so", "-Wl,-z,nodelete", *ldflags]
    for library in libraries:
        folder = shlex.quote(str(library.parent))
        link += ["-Wl,--no-as-needed", shlex.quote(str(library)), f"-Wl,-rpath,{folder}", "-Wl,--as-needed"]
    try:
        built = load(
            name=name.replace("-", "_"),
            sources=[str(source) for source in sources],
            extra_cflags=["-O2", "-fPIC", *cflags],
            extra_ldflags=link,
            extra_include_paths=[str(folder) for folder in include],
            build_directory=str(work),
            with_cuda=False,
            is_python_module=False,
            is_standalone=True,
        )
    except (RuntimeError, subprocess.SubprocessError) as problem:
        raise BackendError(f"compiling {name} failed:\n{_shortened(str(problem))}") from problem
    # A second build in one process gets a suffix from torch: the path that it reports is the one to believe.
    return Path(str(built))


def _shortened(text: str) -> str:
    """The lines that say what is wrong, of a compiler's output."""
    lines = text.splitlines()
    telling = [line for line in lines if "error" in line.lower() or "undefined reference" in line]
    return "\n".join((telling or lines)[:20])


# --- keys ------------------------------------------------------------------------------------------------


def _key(
    name: str,
    sources: Sequence[Path],
    include: Sequence[Path],
    cflags: Sequence[str],
    ldflags: Sequence[str],
    libraries: Sequence[Path],
    key: Sequence[str],
) -> str:
    """Changes with everything that the library is made of, but the compiler."""
    digest = hashlib.sha256()

    def add(*parts: str | bytes) -> None:
        for part in parts:
            raw = part.encode() if isinstance(part, str) else part
            digest.update(f"{len(raw)}:".encode() + raw)

    add(name, str(torch.__version__), str(Path(torch.__file__).parent), *key)
    for title, flags in (("cflags", cflags), ("ldflags", ldflags), ("libraries", map(str, libraries))):
        add(title, *flags)
    for file in [*sources, *(header for folder in include for header in sorted(folder.glob("*.h")))]:
        add(file.name, file.read_bytes())
    add("include", *map(str, include))
    return digest.hexdigest()[:16]


def _compiler() -> str:
    """The command that torch builds with."""
    return os.environ.get("CXX", "c++")


def _compiler_version() -> str | None:
    """A short name of the compiler's version; None where there is none."""
    return _version_of(_compiler(), os.environ.get("PATH", ""))


@functools.cache
def _version_of(command: str, path: str) -> str | None:  # noqa: ARG001 - another PATH may hold another compiler
    try:
        done = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True, check=True)  # noqa: S603 - the user's CXX
    except (OSError, subprocess.SubprocessError):
        return None
    return hashlib.sha256(done.stdout.encode()).hexdigest()[:8]


# --- what a build needs around it -----------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock; the system releases it when the process ends, however it ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that compiles %s", name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _ninja_on_path(name: str) -> Iterator[None]:
    """Find ninja beside the interpreter too, where pip puts it and PATH may not look."""
    before = os.environ.get("PATH", "")
    beside = f"{before}{os.pathsep}{Path(sys.executable).parent}"
    if shutil.which("ninja", path=beside) is None:
        raise BackendError(f"{name} must be compiled, which needs ninja: pip install ninja")
    os.environ["PATH"] = beside
    try:
        yield
    finally:
        os.environ["PATH"] = before
