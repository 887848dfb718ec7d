"""Where the LAMMPS plugin is, for the entry point by which the `lammps` package finds it. Imports neither torch nor LAMMPS.

`dpmodel lammps build` compiles the plugin into the cache, into a folder whose name changes with everything that it
depends on: versions and places of torch, lammps and mpich, and its sources. A plugin of other versions is never loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dpmodel.cache import cache_folder

__all__ = ["LOADER", "REQUIRES", "THREADS", "installed_versions", "package_folder", "plugin_folder", "plugins"]

LOADER = "dpmodelplugin.so"
"""What LAMMPS loads; it does so with every file of the folder whose name ends in `plugin.so`."""

REQUIRES: tuple[str, ...] = ("lammps", "mpich", "torch")
"""Packages that the plugin is built for."""

THREADS: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""Environment for LAMMPS, where the user has not set it: torch's threads sleep when they wait. Spinning, they would take
the processor from LAMMPS and from other ranks."""

_SOURCES = ("lammps/csrc", "csrc")


def installed_versions() -> dict[str, str | None]:
    """The version of each of `REQUIRES`; None: not installed."""
    found: dict[str, str | None] = {}
    for name in REQUIRES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def package_folder(name: str) -> Path | None:
    """Where a package lies, without importing it; None: not installed."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@functools.cache
def _sources() -> Path:
    """The folder of the backend that the plugin belongs to."""
    spec = importlib.util.find_spec("dpmodel.backends")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("dpmodel.backends")
    return Path(spec.origin).parent / "pt_expt"


def plugin_folder() -> Path:
    """The folder of the plugin for what is installed; it exists once the plugin is built."""
    digest = hashlib.sha256()
    for name, version in installed_versions().items():
        digest.update(f"{name} {version} {package_folder(name) if name != 'mpich' else ''}\n".encode())
    for part in _SOURCES:
        for file in sorted((_sources() / part).glob("*.*")):
            digest.update(file.name.encode() + b"\n" + file.read_bytes())
    return cache_folder() / f"lammps-{digest.hexdigest()[:16]}"


def plugins() -> str:
    """Entry point `lammps.plugins`: the folder of the plugin, where LAMMPS looks for it.

    Sets `THREADS` in the environment, which LAMMPS inherits, and loads MPI, which the package's library does not find by
    itself in a Python that has not yet loaded it. Where the plugin is not built, says how to, and returns the
    folder all the same, which LAMMPS skips. Never raises: it runs at every start of LAMMPS, whether or not our pair
    style is used.
    """
    try:
        return str(_prepared())
    except Exception as problem:  # noqa: BLE001 - whatever it is, LAMMPS starts
        print(f"dpmodel: there is no pair style dpmodel, its plugin cannot be looked for: {problem}", file=sys.stderr)  # noqa: T201 - nobody has set up logging here
        return str(Path(__file__).parent)  # in which LAMMPS finds no plugin


def _prepared() -> Path:
    """The plugin's folder, after what `plugins` promises."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    _load_mpi()
    folder = plugin_folder()
    if not (folder / LOADER).is_file():
        missing = [name for name, version in installed_versions().items() if version is None]
        how = f"pip install {' '.join(missing)}, then `dpmodel lammps build`" if missing else "`dpmodel lammps build`"
        print(f"dpmodel: the pair style dpmodel is not built for this LAMMPS and torch; {how}", file=sys.stderr)  # noqa: T201 - nobody has set up logging here
    return folder


def _load_mpi() -> None:
    """Load mpich's library, unless the process has one of that name."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(_MPI, mode=os.RTLD_NOLOAD | os.RTLD_GLOBAL)
        return
    with contextlib.suppress(OSError, importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("mpich") or ():
            if file.name == _MPI:
                ctypes.CDLL(str(file.locate()), mode=os.RTLD_GLOBAL)


_MPI = "libmpi.so.12"
