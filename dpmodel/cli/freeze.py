"""`dpmodel freeze`: a model as one compiled file."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from dpmodel.errors import InputError, ModelFileError
from dpmodel.input.sections import CHECKPOINT_NAME
from dpmodel.lammps import installed_versions, plugin_folder
from dpmodel.potential import freeze
from dpmodel.training.rotation import POINTER, latest

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> None:
    """Compile, compare, write; the target is complete or as it was."""
    if args.model is not None and args.checkpoint is not None:
        raise InputError(f"freeze: the model is named twice, {args.model} and -c {args.checkpoint}; give one")
    source = find_source(Path(args.model or args.checkpoint or "."))
    logger.info("Compiling %s; this takes a minute or two", source)
    start = time.monotonic()
    freeze(source, args.output, head=args.head, atomic_virial=args.atomic_virial)
    seconds = time.monotonic() - start
    print(f"{source} -> {args.output} (compiled and compared with the model in {seconds:.0f} s)")
    lammps = Path(args.output).suffix.lower() == ".pt2" and all(installed_versions().values())
    if lammps and not plugin_folder().exists():
        print("LAMMPS reads it with `pair_style dpmodel`, which `dpmodel lammps build` installs once")


def find_source(path: Path) -> Path:
    """The model file that is meant: itself, or the newest checkpoint of a run's folder or of that name.

    Raises ModelFileError where there is none.
    """
    if path.is_dir():
        pointer = path / POINTER
        if pointer.is_file():
            named = path / pointer.read_text(encoding="utf-8", errors="replace").strip()
            if named.is_file():
                return named
        path /= CHECKPOINT_NAME
    elif path.is_file():
        return path
    found = latest(path)
    if found is None:
        raise ModelFileError(
            f"{path}: there is no such model or checkpoint; give a .dp, .yaml or .json file, or the folder of a run"
        )
    return found
