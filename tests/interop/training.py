"""Models trained here and read there; trained there and read here; inputs of DeePMD-kit run here unchanged."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inputs import STEPS, input_files, write_input
from models import WAYS, Differences, Exchange, exchange, probe, tolerance_of, worst
from sides import Peer, PeerError, differences, evaluate

import dpmodel
from dpmodel.cli import main as dpmodel_command

__all__ = ["Training", "trained_models"]


ERROR = "dpmodel: error"
"""How our messages begin."""


class CommandError(RuntimeError):
    """What our command line said instead of doing its work."""


@dataclasses.dataclass
class Training:
    """One input, trained by both."""

    name: str
    ours: Exchange
    """The model that we trained, in DeePMD-kit."""
    theirs: Differences
    """The checkpoint that DeePMD-kit trained (`.pt`), converted here, against DeePMD-kit; or its message."""
    normalised: str
    """What came of running DeePMD-kit's own normalised input (`out.json`) here."""
    tolerance: float

    def holds(self) -> bool:
        """Whether all that DeePMD-kit can do holds. A kind of model that it neither loads nor trains is not one of its."""
        theirs = self.theirs
        equal = not theirs.startswith(ERROR) if isinstance(theirs, str) else worst(theirs) <= self.tolerance
        unknown = isinstance(theirs, str) and all(isinstance(found, str) for found in self.ours.found.values())
        unknown = unknown and ERROR not in str(self.ours.found)
        return equal and (self.ours.holds() or unknown) and not self.normalised.startswith(ERROR)


def trained_models(peer: Peer, scratch: Path, only: str) -> Iterator[Training]:
    """Every input whose name contains `only`."""
    for name, section in input_files(scratch).items():
        if only in name:
            yield _train(peer, scratch / name, section)


def _train(peer: Peer, folder: Path, section: dict[str, Any]) -> Training:
    folder.mkdir()
    try:
        ours = _ours(peer, write_input(section, folder / "ours"), folder.name)
    except CommandError as problem:
        ours = Exchange(folder.name, 0.0, dict.fromkeys(WAYS, f"trained here: {problem}"), {})
    path = write_input(section, folder / "theirs")
    normalised, tolerance = "-", ours.tolerance
    theirs: Differences
    try:
        checkpoint = Path(peer.ask("train", input=str(path))["checkpoint"])
        theirs = _theirs(peer, checkpoint)
    except (PeerError, CommandError) as problem:
        theirs = f"{problem}"
    if (output := path.with_name("out.json")).exists():
        again = write_input(json.loads(output.read_text(encoding="utf-8")), folder / "again")
        try:
            command("train", again, backend="pt")
            normalised = f"{STEPS} steps"
        except CommandError as problem:
            normalised = str(problem)
    return Training(folder.name, ours, theirs, normalised, tolerance)


def command(name: str, path: Path, *arguments: str, **options: str) -> None:
    """`dpmodel NAME FILE ...` in the folder of the file. Raises CommandError where it fails, with what it says."""
    more = [word for key, value in options.items() for word in (f"--{key}", value)]
    said = io.StringIO()
    with contextlib.chdir(path.parent), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = dpmodel_command([name, path.name, *arguments, *more, "-v", "ERROR"])
    if status:
        raise CommandError(said.getvalue().strip().splitlines()[-1])


def _ours(peer: Peer, path: Path, name: str) -> Exchange:
    """Train here, convert, evaluate there."""
    command("train", path, backend="pt")
    checkpoint = path.with_name("model.ckpt.dp")
    command("convert", checkpoint, "model.dp")
    potential = dpmodel.load(path.with_name("model.dp"), backend="pt")
    frames = probe(potential.model)
    found = exchange(peer, path.with_name("model.dp"), potential, evaluate(potential, frames), frames)
    return Exchange(name, tolerance_of(potential.model), found, {})


def _theirs(peer: Peer, checkpoint: Path) -> dict[str, float]:
    """Convert a checkpoint of DeePMD-kit here, and evaluate it on both sides."""
    command("convert", checkpoint, "converted.dp")
    potential = dpmodel.load(checkpoint.with_name("converted.dp"), backend="pt")
    model, frames = potential.model, probe(potential.model)
    expected = peer.evaluate(checkpoint, frames, (model.output().reduced, model.output().atomic))
    hessian = any(key.endswith("/hessian") for key in expected)
    return differences(evaluate(potential, frames, hessian=hessian), expected, summed=model.message_passing)
