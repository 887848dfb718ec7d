"""How far predictions are from labels: `evaluate_systems`, the engine behind `dpmodel test`.

    report = evaluate_systems(dpmodel.load("model.dp"), "water/data_3")
    report.total["force"].rmse          # eV/Å
    print(report.table())

Errors are sums over elements, so errors of several systems add up to that of all data at once: the weight of a
system is its number of elements. Atoms keep the order of the files.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.data import labels
from dpmodel.data.dataset import Dataset
from dpmodel.data.labels import LabelRequest
from dpmodel.data.system import Batch
from dpmodel.errors import DataError, InputError
from dpmodel.graph import PARAMETERS
from dpmodel.potential import Potential

__all__ = ["QUANTITIES", "Comparison", "ErrorSum", "Report", "SystemReport", "evaluate_systems", "requests_of"]

QUANTITIES: dict[str, tuple[str, str]] = {
    "energy": ("Energy", "eV"),
    "energy_per_atom": ("Energy/Natoms", "eV"),
    "force": ("Force", "eV/Å"),
    "virial": ("Virial", "eV"),
    "virial_per_atom": ("Virial/Natoms", "eV"),
    "atom_energy": ("Atomic energy", "eV"),
}
"""What is compared: name in tables, unit."""

DEFAULT_CHUNK_ATOMS = 1_000_000


@dataclasses.dataclass(frozen=True)
class ErrorSum:
    """Running sums of differences. They add."""

    number: int = 0
    absolute: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, difference: np.ndarray) -> ErrorSum:
        """The sums of an array's elements."""
        flat = np.asarray(difference, np.float64).ravel()
        return cls(flat.size, float(np.sum(np.abs(flat))), float(np.dot(flat, flat)))

    def __add__(self, other: ErrorSum) -> ErrorSum:
        return ErrorSum(self.number + other.number, self.absolute + other.absolute, self.squares + other.squares)

    @property
    def mae(self) -> float:
        """Mean absolute error; NaN for no elements."""
        return self.absolute / self.number if self.number else math.nan

    @property
    def rmse(self) -> float:
        """Root of the mean squared error; NaN for no elements."""
        return math.sqrt(self.squares / self.number) if self.number else math.nan


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Labels and predictions of some frames of one system; what a system has no label for is not there.

    Both by quantity: `energy` and `energy_per_atom` (f, 1), `force` (real atoms of all frames, 3), `virial` and
    `virial_per_atom` (f, 9), `stress` (f, 9) in eV/Å^3, `atom_energy` (real atoms, 1).
    """

    system: str
    label: Mapping[str, np.ndarray]
    prediction: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemReport:
    """Errors of one system by quantity."""

    path: str
    frames: int
    errors: Mapping[str, ErrorSum]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Errors of all systems."""

    systems: tuple[SystemReport, ...]

    @property
    def total(self) -> dict[str, ErrorSum]:
        """Errors by quantity over all systems that have the label."""
        out: dict[str, ErrorSum] = {}
        for name in QUANTITIES:
            parts = [system.errors[name] for system in self.systems if name in system.errors]
            if parts:
                out[name] = sum(parts, ErrorSum())
        return out

    def table(self) -> str:
        """The table that users of the family know: errors of every system, then of all of them."""
        lines: list[str] = []
        for system in self.systems:
            lines += [_rule("output of dpmodel test"), f"# testing system : {system.path}"]
            lines += [f"# number of test data : {system.frames}", *_rows(system.errors), _rule()]
        lines += [_rule("weighted average of errors"), f"# number of systems : {len(self.systems)}"]
        lines += [*_rows(self.total), _rule()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `systems` and `total`, errors as mae, rmse, number of elements, unit."""
        systems = [{"path": s.path, "frames": s.frames, "errors": _plain(s.errors)} for s in self.systems]
        return {"systems": systems, "total": _plain(self.total)}


def _rule(title: str = "") -> str:
    return "# " + title.center(48, "-")


def _rows(errors: Mapping[str, ErrorSum]) -> list[str]:
    rows = []
    for name, error in errors.items():
        title, unit = QUANTITIES[name]
        head, slash, per = title.partition("/")
        for kind, value in (("MAE", error.mae), ("RMSE", error.rmse)):
            rows.append(f"{head + ' ' + kind + slash + per:<20} : {value:e} {unit}")
    return rows


def _plain(errors: Mapping[str, ErrorSum]) -> dict[str, Any]:
    return {
        name: {"mae": error.mae, "rmse": error.rmse, "number": error.number, "unit": QUANTITIES[name][1]}
        for name, error in errors.items()
    }


def requests_of(potential: Potential, *, atomic: bool = False) -> tuple[LabelRequest, ...]:
    """What is read from data systems to test a potential: labels, and the parameters that it takes."""
    wanted = [labels.ENERGY, labels.FORCE, labels.VIRIAL]
    if atomic:
        wanted.append(labels.ATOM_ENER)
    if potential.dim_fparam:
        # The zeros are never used: without labels the model's own default is.
        optional = (0.0,) * potential.dim_fparam if potential.model.has_default_fparam else None
        wanted.append(labels.fparam(potential.dim_fparam, optional))
    if potential.dim_aparam:
        wanted.append(labels.aparam(potential.dim_aparam))
    if potential.model.takes_charge_spin:
        wanted.append(labels.charge_spin(potential.model.default_charge_spin))
    return tuple(wanted)


def evaluate_systems(
    potential: Potential,
    systems: str | Path | Sequence[str | Path],
    *,
    rglob_patterns: Sequence[str] | None = None,
    max_frames: int | None = None,
    shuffle: int | np.random.Generator | None = None,
    atomic: bool = False,
    on_chunk: Callable[[Comparison], None] | None = None,
) -> Report:
    """Evaluate labelled systems and compare.

    Args:
        potential: of a backend with derivatives; without, energies alone are compared.
        systems: as in `dpmodel.data.discovery.find_systems`.
        rglob_patterns: as there.
        max_frames: frames of each system; None: all.
        shuffle: a seed or a generator: take the frames at random, instead of the first ones.
        atomic: compare energies of atoms too, where systems have the label atom_ener.
        on_chunk: called with labels and predictions as they are made, systems in order.

    At most `DP_TEST_CHUNK_ATOMS` atoms (default 10^6) are held at a time.

    Raises:
        DataError: bad systems, or no label to compare with.
        InputError: bad options.
    """
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames: expected a number of frames above 0 (or None for all), got {max_frames}")
    if potential.model.output().name != "energy":
        raise InputError(f"expected a model of energies, got one of {potential.model.output().name!r}")
    chunk_atoms = _chunk_atoms()
    dataset = Dataset.from_config(
        systems, rglob_patterns=rglob_patterns, batch_size=1, type_map=potential.type_map,
        labels=requests_of(potential, atomic=atomic), sort_atoms=False,
    )  # fmt: skip
    generator = None if shuffle is None else np.random.default_rng(shuffle)
    reports = []
    for index, system in enumerate(dataset.systems):
        frames = np.arange(system.nframes) if generator is None else generator.permutation(system.nframes)
        frames = frames[:max_frames]
        step = max(1, chunk_atoms // system.natoms)
        errors: dict[str, ErrorSum] = {}
        for start in range(0, len(frames), step):
            part = compare(potential, system.batch(frames[start : start + step], index), system.path, atomic=atomic)
            for name in QUANTITIES.keys() & part.label.keys():
                errors[name] = errors.get(name, ErrorSum()) + ErrorSum.of(part.prediction[name] - part.label[name])
            if on_chunk is not None:
                on_chunk(part)
        ordered = {name: errors[name] for name in QUANTITIES if name in errors}
        reports.append(SystemReport(path=system.path, frames=len(frames), errors=ordered))
    if not any(report.errors for report in reports):
        kinds = "energy.npy, force.npy or virial.npy" if potential.backend.has_gradients else "energy.npy"
        raise DataError(f"no system has labels to compare with: expected {kinds} in set.* (first: {reports[0].path})")
    return Report(systems=tuple(reports))


def compare(potential: Potential, batch: Batch, system: str, *, atomic: bool) -> Comparison:
    """Evaluate the frames of a batch; labels and predictions side by side."""
    given: dict[str, Any] = {name: batch.labels[name] for name in PARAMETERS if batch.found.get(name, 0.0) > 0}
    atomic = atomic and batch.found.get("atom_ener", 0.0) > 0
    try:
        out = potential.evaluate(
            batch.coord, batch.atype, batch.cell, pbc=batch.pbc, atomic=atomic, atomic_virial=False,
            **given,
        )  # fmt: skip
    except InputError as problem:
        first, last = int(batch.frames[0]), int(batch.frames[-1])
        raise DataError(f"{system}, frames {first} to {last}: {problem}") from problem
    real = batch.atype >= 0
    natoms = np.sum(real, axis=1)[:, None]
    label: dict[str, np.ndarray] = {}
    prediction: dict[str, np.ndarray] = {}
    for side, source in ((label, batch.labels), (prediction, out)):
        if batch.found["energy"] > 0:
            side["energy"] = source["energy"]
            side["energy_per_atom"] = source["energy"] / natoms
        if batch.found["force"] > 0 and "force" in out:
            side["force"] = source["force"][real]
        if batch.found["virial"] > 0 and "virial" in out and batch.cell is not None:
            side["virial"] = source["virial"]
            side["virial_per_atom"] = source["virial"] / natoms
            if batch.pbc is True:  # a volume needs three periodic vectors
                side["stress"] = -source["virial"] / np.abs(np.linalg.det(batch.cell))[:, None]
        if atomic:
            side["atom_energy"] = source["atom_ener" if side is label else "atom_energy"][real]
    return Comparison(system, label, prediction)


def _chunk_atoms() -> int:
    text = os.environ.get("DP_TEST_CHUNK_ATOMS", str(DEFAULT_CHUNK_ATOMS))
    try:
        number = int(float(text))  # 1e6 is a usual way to write it
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise InputError(f"DP_TEST_CHUNK_ATOMS must be a number of atoms above 0, not {text!r}")
    return number
