"""A checkpoint: everything that a run needs to go on exactly where it stopped, on any backend.

It is a valid model file (see `dpmodel.files.container`) with one more HDF5 group, `training`: its attribute `json`
holds what is plain data, and every array is a dataset named by its place, `training/state/descriptor.networks.0.w`
or `training/optimizer/exp_avg/descriptor.networks.0.w`. No framework is needed to read it. ::

    Checkpoint(step=1000, model=tree, state=op.state(), optimizer={"exp_avg": {...}, "step": 1000}).save("a-1000.dp")
    Checkpoint.load("a-1000.dp").step, dpmodel.load("a-1000.dp")
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpmodel import __version__
from dpmodel.errors import ModelFileError
from dpmodel.files.container import load_tree, store_tree, with_provenance
from dpmodel.files.hdf5 import MAGIC, check_dtype, open_hdf5, read_dataset, text_attribute, write_hdf5

__all__ = ["FORMAT_VERSION", "UPGRADES", "Checkpoint", "Upgrade", "check_whole", "upgraded"]

GROUP = "training"
REFERENCE = "@dataset"

FORMAT_VERSION = 2
"""Version of the group `training`; raised by every change that older readers would misread."""

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


def _by_task(content: dict[str, Any]) -> dict[str, Any]:
    """1 -> 2: the order of batches and the means since the last row are kept by task; a single one is ""."""
    sampler, schedule = content.get("sampler", {}), content.get("schedule", {})
    if sampler:
        content = {**content, "sampler": {"tasks": {"": sampler}}}
    if "average" in schedule:
        average = {"": schedule["average"]} if schedule["average"] else {}
        content = {**content, "schedule": {**schedule, "average": average}}
    return content


UPGRADES: dict[int, Upgrade] = {1: _by_task}
"""From version v, the pure function that makes the content of version v + 1. Each says why; tests keep an old file."""


@dataclass(kw_only=True)
class Checkpoint:
    """The state of a run. Arrays are NumPy's, of the types in `dpmodel.files.hdf5.DTYPES`; the rest is JSON-able.

    Dictionaries may nest arrays and plain data freely; keys are text. Tuples come back as lists and NumPy scalars as
    Python numbers: use arrays where a type matters.
    """

    step: int
    """Number of finished steps; the next one has this 0-based index."""
    model: dict[str, Any]
    """The tree of the model file, with the key `model` and below it the same numbers as in `state`."""
    state: dict[str, np.ndarray]
    """Parameters and buffers by field path."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Slots by name: arrays by field path (`exp_avg`), or plain data (`step`)."""
    schedule: dict[str, Any] = field(default_factory=dict)
    """Length of the run; `average`: by task, sums of metrics since the last row of the learning curve."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """`tasks`: by task ("" is a single one), the order of batches of training and validation."""
    random: dict[str, Any] = field(default_factory=dict)
    """`seed`: of the tasks of the steps."""
    ema: dict[str, Any] = field(default_factory=dict)
    """`decay`; `state`: averaged parameters by field path; `validation`: what their validation remembers. Empty without
    averaging. `averaged`: True where the model itself is the average, and the file has no optimizer."""
    validation: dict[str, Any] = field(default_factory=dict)
    """What full validation remembers, such as the best value so far."""
    input: dict[str, Any] = field(default_factory=dict)
    """The normalised input."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that wrote the file; those of dpmodel, Python, NumPy and h5py are added on saving."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the checkpoint, completely or not at all.

        Raises ModelFileError naming the place of anything that cannot be stored, OSError when the disk refuses; a
        previous file is then unchanged.
        """
        path = Path(path)
        if path.suffix.lower() != ".dp":
            raise ModelFileError(f"{path}: a checkpoint is a .dp file; give it that suffix")
        if self.step < 0:
            raise ModelFileError(f"{path}: the step of a checkpoint is at least 0, not {self.step!r}")
        own = {"dpmodel": __version__, "python": platform.python_version(), "numpy": np.__version__}
        content = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "model"}
        content["versions"] = {**self.versions, **own, "h5py": h5py.__version__}
        tree = with_provenance(self.model)

        def fill(file: h5py.File) -> None:
            store_tree(file, tree, str(path))
            group = file.create_group(GROUP)
            group.attrs["format_version"] = FORMAT_VERSION
            group.attrs["step"] = self.step
            group.attrs["json"] = json.dumps(_pack(content, group, (), str(path)))

        write_hdf5(path, fill)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint.

        Raises ModelFileError when the file is damaged, no checkpoint, or written by a newer version of the format.
        """
        path = Path(path)
        _check_kind(path)
        with open_hdf5(path) as file:
            group, version, plain = _open_group(file, path)
            content = _unpack(plain, group, str(path))
            model = load_tree(file, path)
        content = upgraded(content, version, str(path))
        wrong = {item.name for item in fields(cls)} ^ {*content, "model"}
        if wrong or not isinstance(content["step"], int):
            raise ModelFileError(
                f"{path}: the entries {sorted(wrong)} of the checkpoint are missing or unknown; it is damaged"
            )
        return cls(model=model, **content)


def upgraded(
    content: dict[str, Any],
    version: int,
    where: str,
    *,
    upgrades: Mapping[int, Upgrade] = UPGRADES,
    current: int = FORMAT_VERSION,
) -> dict[str, Any]:
    """The content of a checkpoint of format `version`, brought to the `current` one.

    Raises ModelFileError for a version newer than `current` or too old to be upgraded.
    """
    if version > current:
        raise ModelFileError(
            f"{where}: written in version {version} of the checkpoint format, this library reads up to {current}. "
            "Install a newer dpmodel, or start from the model in the file with --init-model."
        )
    for old in range(version, current):
        if old not in upgrades:
            raise ModelFileError(
                f"{where}: version {version} of the checkpoint format can no longer be read; use --init-model"
            )
        content = upgrades[old](content)
    return content


def check_whole(path: Path) -> int:
    """The step of a checkpoint after a look at its structure, without reading the arrays.

    Raises ModelFileError as `Checkpoint.load` does for a damaged or foreign file.
    """
    _check_kind(path)
    with open_hdf5(path) as file:
        group, version, plain = _open_group(file, path)
        if version > FORMAT_VERSION:
            upgraded({}, version, str(path))

        def visit(value: Any) -> None:
            if isinstance(value, dict) and REFERENCE in value and value[REFERENCE] not in group:
                raise ModelFileError(
                    f"{path}: the dataset {GROUP}/{value[REFERENCE]} is missing; use another checkpoint"
                )
            for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
                visit(item)

        visit(plain)
        return int(group.attrs["step"])


def _check_kind(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            head = stream.read(len(MAGIC))
    except OSError as error:
        raise ModelFileError(f"{path}: this checkpoint cannot be read: {error.strerror or error}") from error
    if head != MAGIC:
        what = "it is empty" if not head else "it is not HDF5"
        hint = " A .pt file can be given to --init-model or --finetune." if head[:2] == b"PK" else ""
        raise ModelFileError(f"{path}: a checkpoint (.dp, HDF5) was expected, but {what}; use another one.{hint}")


def _open_group(file: h5py.File, path: Path) -> tuple[h5py.Group, int, Any]:
    """The group `training`, the version of its format, and its plain content."""
    group = file.get(GROUP)
    if not isinstance(group, h5py.Group) or "format_version" not in group.attrs:
        what = (
            "a model without training state; use it with --init-model or --finetune"
            if "json" in file.attrs
            else ("another kind of HDF5 file (data, statistics?); give the checkpoint, such as model.ckpt-1000.dp")
        )
        raise ModelFileError(f"{path}: a checkpoint was expected, this is {what}")
    try:
        plain = json.loads(text_attribute(group, "json") or "")
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the checkpoint is damaged ({error}); use an older one") from error
    return group, int(group.attrs["format_version"]), plain


# --- arrays anywhere in plain data ------------------------------------------------------------------------


def _pack(value: Any, group: h5py.Group, place: tuple[str, ...], where: str) -> Any:
    """Plain data with every array replaced by a reference to a dataset named by its place."""
    here = f"{where}: {'/'.join((GROUP, *place))}"
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == REFERENCE:
                raise ModelFileError(f"{here}: keys must be text other than {REFERENCE!r}, not {key!r}")
        return {key: _pack(item, group, (*place, key), where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item, group, (*place, str(k)), where) for k, item in enumerate(value)]
    if isinstance(value, np.ndarray):
        name = "/".join(_escaped(key) for key in place)
        group.create_dataset(name, data=check_dtype(value, here))
        return {REFERENCE: name}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ModelFileError(f"{here}: a {type(value).__name__} cannot be stored; NumPy arrays and plain data can")


def _unpack(value: Any, group: h5py.Group, where: str) -> Any:
    if isinstance(value, dict):
        if set(value) == {REFERENCE} and isinstance(value[REFERENCE], str):
            return np.asarray(read_dataset(group, value[REFERENCE], where))
        return {key: _unpack(item, group, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, group, where) for item in value]
    return value


def _escaped(key: str) -> str:
    """A key as one HDF5 name: not empty, no slash, no NUL, not "." or ".."."""
    if key in ("", ".", ".."):
        return "%" + key
    return key.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
