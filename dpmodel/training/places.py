"""Where a run writes: checked before it does anything else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpmodel.errors import InputError
from dpmodel.input import Input
from dpmodel.training.rotation import SUFFIX, Family, averaged_name

__all__ = ["averaged_family", "check_places", "regular_family"]


def regular_family(inp: Input, keep: int = 5) -> Family:
    """The checkpoints of the run."""
    return Family(inp.training.save_ckpt, inp.training.save_dir, keep)


def averaged_family(inp: Input, keep: int = 5) -> Family:
    """Those of the averaged weights: no pointer names them."""
    return Family(averaged_name(inp.training.save_ckpt), inp.training.save_dir, keep, pointer=None)


def check_places(
    inp: Input, *, input_path: str | os.PathLike[str] | None = None, output: str | Path | None = None
) -> None:
    """Raise InputError where the run could not write its files, or would write two to one place.

    Folders need not exist yet, except that of `output`. input_path: the input file, which nothing may overwrite.
    """
    training = inp.training
    names = {"training.save_ckpt": training.save_ckpt, **_names(inp)}
    names |= {} if output is None else {"--output": str(output)}
    for name, value in names.items():
        if not Path(value).name:
            raise InputError(f"{name}: expected the name of a file, got {value!r}")
        if name != "training.save_ckpt" and Path(value).is_dir():
            raise InputError(f"{name}: {value} is a folder; give the name of a file")
    families = [regular_family(inp)]
    links = {"training.save_ckpt": families[0].link}
    if training.enable_ema:
        families.append(averaged_family(inp))
        links["the averaged weights (training.enable_ema)"] = families[1].link
    read_only = _statistics(inp, modes=("read",))
    files = {**links, **{name: Path(value) for name, value in _names(inp).items()}, **_statistics(inp)}
    places = {name: path.parent for name, path in files.items() if name not in read_only}
    places["training.save_dir"] = families[0].folder
    if inp.validating.save_best_dir is not None:
        places["validating.save_best_dir"] = Path(inp.validating.save_best_dir)
    if training.tensorboard or training.enable_profiler:
        places["training.tensorboard_log_dir"] = Path(training.tensorboard_log_dir)
    if output is not None:
        files["--output"] = Path(output)
        places["--output"] = Path(output).parent
        if not Path(output).parent.exists():
            raise InputError(f"--output: there is no folder {Path(output).parent}; make it, or choose another place")
    for name, folder in places.items():
        existing = next((path for path in (folder, *folder.parents) if path.exists()), Path())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            what = "is no folder" if not existing.is_dir() else "may not be written to"
            raise InputError(f"{name}: {existing} {what}; choose another place for the files of the run")
    if families[0].pointer is not None:
        files["the file that names the newest checkpoint"] = Path(families[0].pointer)
    if input_path is not None:
        files["the input file"] = Path(input_path)
    _check_apart(files, families, links)


def _names(inp: Input) -> dict[str, str]:
    """What the run writes besides checkpoints, statistics and the normalised input."""
    training, validating = inp.training, inp.validating
    files = {"training.disp_file": training.disp_file}
    if training.metrics_file is not None:
        files["training.metrics_file"] = training.metrics_file
    if training.profiling:
        files["training.profiling_file"] = training.profiling_file
    if validating.full_validation:
        files["validating.full_val_file"] = validating.full_val_file
    if validating.ema_full_validation:
        files["the log of ema_full_validation"] = (
            averaged_name(validating.full_val_file) if Path(validating.full_val_file).name else ""
        )
    return files


def _statistics(inp: Input, modes: Sequence[str] = ("read", "update")) -> dict[str, Path]:
    """Files of statistics, by option."""
    found = {}
    for name, task in inp.tasks.items():
        if task.data.stat_file is not None and task.data.stat_file_mode in modes:
            prefix = f"training.data_dict.{name}" if name else "training"
            found[f"{prefix}.stat_file"] = Path(task.data.stat_file)
    return found


def _check_apart(files: Mapping[str, Path], families: Sequence[Family], links: Mapping[str, Path]) -> None:
    """Raise InputError where two of the files are one, or one of them is a numbered checkpoint."""
    taken: dict[Path, str] = {}
    for name, path in files.items():
        # As it is written, and where it leads: the name of the checkpoints is a link to the newest.
        for place in dict.fromkeys((path.parent.resolve() / path.name, path.resolve())):
            if (other := taken.setdefault(place, name)) != name:
                raise InputError(f"{name}: {path} is also {other}; choose another place for one of them")
        for family in families:
            numbered = re.fullmatch(rf"{re.escape(family.link.stem)}-\d+{re.escape(SUFFIX)}", path.resolve().name)
            if name not in links and numbered and path.resolve().parent == family.folder.resolve():
                raise InputError(f"{name}: {path} is the name of a checkpoint of training.save_ckpt; choose another")
