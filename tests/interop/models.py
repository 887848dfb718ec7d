"""Model files of ours, read and evaluated by DeePMD-kit: the golden models, and every option of the family."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from consistent.cases import COMBINED, NAMES, model_of
from consistent.systems import random_system
from sides import Frames, Outputs, Peer, PeerError, differences, evaluate, inputs_of

import dpmodel
from dpmodel.models import Model
from dpmodel.op import walk

__all__ = [
    "EAGER",
    "GOLDEN",
    "NUMPY",
    "TORCH",
    "WAYS",
    "Differences",
    "Exchange",
    "exchange",
    "golden_models",
    "option_models",
    "probe",
    "tolerance_of",
    "worst",
]

FOLDER = Path(__file__).resolve().parents[1] / "data" / "golden"
NUMPY, TORCH, EAGER, GOLDEN = ".dp", ".pth", "eager", "golden"
WAYS = (NUMPY, TORCH)
"""How DeePMD-kit reads our `.dp`: its NumPy backend as it is, its PyTorch backend after `dp convert-backend`; and its
PyTorch backend without TorchScript where that does not compile the model."""
Differences = dict[str, float] | str
"""Of DeePMD-kit's outputs from ours, by output; or its message instead of outputs."""


@dataclasses.dataclass
class Exchange:
    """One model file of ours in DeePMD-kit."""

    name: str
    tolerance: float
    found: dict[str, Differences]
    """By way."""
    own: dict[str, Differences]
    """The same of DeePMD-kit's own file of the model, where that was asked for."""

    def holds(self) -> bool:
        """Whether some backend of DeePMD-kit has our numbers, or none has those of its own file."""
        return all(self.verdict(way) != "differs" for way in self.found)

    def verdict(self, way: str) -> str:
        """equal; "own" (as with DeePMD-kit's own file); "other" (another of its backends is equal); differs."""
        if self._equal(way):
            return "equal"
        found, own = self.found[way], self.own.get(way)
        if isinstance(found, dict) and isinstance(own, dict):
            return "own" if all(abs(found[k] - own[k]) <= self.tolerance for k in found) else "differs"
        if isinstance(found, str) and isinstance(own, str):
            return "own"
        if own is None and any(self._equal(other) for other in self.found if other not in (way, GOLDEN)):
            return "other"
        return "differs"

    def _equal(self, way: str) -> bool:
        found = self.found[way]
        return isinstance(found, dict) and worst(found) <= self.tolerance


def worst(found: dict[str, float]) -> float:
    """The largest difference."""
    return max(found.values(), default=np.inf)


def tolerance_of(model: Model) -> float:
    """Of float64, and of models with float32 anywhere."""
    single = any(array is not None and np.asarray(array).dtype == np.float32 for _, _, array, _ in walk(model))
    return 2e-5 if single else 1e-10


def golden_models(peer: Peer, scratch: Path, only: str) -> Iterator[Exchange]:
    """Every golden model whose name contains `only`, loaded here and saved here."""
    for source in sorted(path for path in FOLDER.glob("*.dp") if only in path.name):
        potential = dpmodel.load(source, backend="pt")
        with np.load(source.with_suffix(".npz")) as file:
            golden = dict(file)
        frames = inputs_of(golden)
        ours, path = evaluate(potential, frames), scratch / source.name
        dpmodel.save(potential, path)
        own: dict[str, Differences] = {}
        found = exchange(peer, path, potential, ours, frames)
        copy = scratch / f"own-{source.name}"
        copy.write_bytes(source.read_bytes())
        for way in WAYS:
            if not isinstance(found[way], dict) or worst(found[way]) > tolerance_of(potential.model):
                own |= exchange(peer, copy, potential, ours, frames, ways=(way,))
        expected = {
            key: value for key, value in golden.items() if key.split("/")[1] == "out" and not key.endswith("/mask")
        }
        found[GOLDEN] = differences(ours, expected, summed=potential.model.message_passing)
        yield Exchange(source.stem, tolerance_of(potential.model), found, own)


def option_models(peer: Peer, scratch: Path, only: str) -> Iterator[Exchange]:
    """Models of tests/consistent with random weights: by NumPy every option, by PyTorch every combination of options."""
    for name in NAMES:
        if only not in name:
            continue
        model, path = model_of(name), scratch / "option.dp"
        potential = dpmodel.Potential.from_model(model, "pt")
        dpmodel.save(potential, path)
        frames = probe(model)
        ways = WAYS if name in COMBINED else WAYS[:1]
        ours = evaluate(potential, frames)
        item = Exchange(name, tolerance_of(model), exchange(peer, path, potential, ours, frames, ways=ways), {})
        if ways == WAYS[:1] and not item.holds():
            item.found |= exchange(peer, path, potential, ours, frames, ways=(EAGER,))
        yield item


def probe(model: Model) -> Frames:
    """One frame in a small triclinic cell and one without a cell, with all inputs that the model takes.

    The first atom is of type 0: DeePMD-kit gives empty places of the neighbour list its type, dpmodel type 0.
    """
    found = {}
    for name, periodic in (("cell", True), ("open", False)):
        system = random_system(model, frames=1, atoms=13, virtual=0, periodic=periodic)
        system = system.atoms(np.argsort(system.atype[0] != 0, stable=True))
        given = {
            "coord": system.coord,
            "atype": system.atype,
            "box": None if system.cell is None else system.cell.reshape(-1, 9),
            "fparam": system.fparam,
            "aparam": system.aparam,
            "charge_spin": system.charge_spin,
        }
        if model.spin_scales is not None:
            given["spin"] = np.random.default_rng(1).normal(size=system.coord.shape)
        found.update({f"{name}/in/{key}": value for key, value in given.items() if value is not None})
    return found


def exchange(
    peer: Peer, path: Path, potential: dpmodel.Potential, ours: Outputs, frames: Frames, ways: tuple[str, ...] = WAYS
) -> dict[str, Differences]:
    """By way, what DeePMD-kit makes of a `.dp` file against our outputs."""
    model, found = potential.model, dict[str, Differences]()
    names = (model.output().reduced, model.output().atomic)
    for way in ways:
        try:
            if way == TORCH:
                peer.ask("convert", source=str(path), target=str(path.with_suffix(way)))
            source = path.with_suffix(TORCH) if way == TORCH else path
            theirs = peer.evaluate(source, frames, names, eager=way == EAGER)
            found[way] = differences(ours, theirs, summed=model.message_passing)
        except PeerError as problem:
            found[way] = str(problem)
            peer.stop()  # TorchScript keeps halves of what it could not compile
    if isinstance(found.get(TORCH), str) and EAGER not in found:
        found |= exchange(peer, path, potential, ours, frames, (EAGER,))
    return found
