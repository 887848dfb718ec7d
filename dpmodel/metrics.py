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
from dpmodel.fittings.base import Output
from dpmodel.graph import INPUTS
from dpmodel.potential import Potential

__all__ = [
    "QUANTITIES",
    "Comparison",
    "ErrorSum",
    "Report",
    "SystemReport",
    "add_errors",
    "chunk_atoms",
    "compare",
    "evaluate_systems",
    "requests_of",
    "title_of",
]

QUANTITIES: dict[str, tuple[str, str]] = {
    "energy": ("Energy", "eV"),
    "energy_per_atom": ("Energy/Natoms", "eV"),
    "force": ("Force", "eV/Å"),
    "virial": ("Virial", "eV"),
    "virial_per_atom": ("Virial/Natoms", "eV"),
    "atom_energy": ("Atomic energy", "eV"),
    "force_mag": ("Magnetic force", "eV per unit of spin"),
    "hessian": ("Hessian", "eV/Å^2"),
}
"""What is compared of models of energies: name in tables, unit. Others: `<name>`, `<name>_per_atom` where it is a sum, and
`atom_<name>`, with the name of the label, in its own unit."""

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
    `virial_per_atom` (f, 9), `stress` (f, 9) in eV/Å^3, `atom_energy` (real atoms, 1), `force_mag` (atoms of types with
    spin, 3), `hessian` (elements of all frames, 1). Of other models: `<name>` and `<name>_per_atom` (f, components),
    `atom_<name>` (real atoms, components).
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
        for name in dict.fromkeys(name for system in self.systems for name in system.errors):
            out[name] = sum((system.errors[name] for system in self.systems if name in system.errors), ErrorSum())
        return {name: out[name] for name in sorted(out, key=_place)}

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


def _place(name: str) -> int:
    """Where a quantity stands in tables."""
    return list(QUANTITIES).index(name) if name in QUANTITIES else len(QUANTITIES)


def title_of(name: str) -> tuple[str, str]:
    """(name in tables, unit) of a quantity."""
    if name in QUANTITIES:
        return QUANTITIES[name]
    plain = name.removesuffix("_per_atom")
    shown = f"Atomic {plain.removeprefix('atom_')}" if plain.startswith("atom_") else plain.capitalize()
    return f"{shown}/Natoms" if plain != name else shown, ""


def _rows(errors: Mapping[str, ErrorSum]) -> list[str]:
    rows = []
    for name, error in errors.items():
        title, unit = title_of(name)
        head, slash, per = title.partition("/")
        for kind, value in (("MAE", error.mae), ("RMSE", error.rmse)):
            rows.append(f"{head + ' ' + kind + slash + per:<20} : {value:e} {unit}".rstrip())
    return rows


def _plain(errors: Mapping[str, ErrorSum]) -> dict[str, Any]:
    return {
        name: {"mae": error.mae, "rmse": error.rmse, "number": error.number, "unit": title_of(name)[1]}
        for name, error in errors.items()
    }


def requests_of(potential: Potential, *, atomic: bool = False) -> tuple[LabelRequest, ...]:
    """What is read from data systems to test a potential: labels, and the parameters that it takes."""
    model, output = potential.model, potential.model.output()
    takes_spin = model.spin_scales is not None
    if output.loss == "ener":
        wanted = [labels.ENERGY, labels.FORCE, labels.VIRIAL]
        wanted += [labels.ATOM_ENER] if atomic else []
        wanted += [labels.FORCE_MAG] if takes_spin else []
        wanted += [labels.HESSIAN] if potential.has_hessian else []
    else:
        wanted = [
            LabelRequest(name=output.name, shape=output.shape),
            labels.of_included(
                LabelRequest(name=f"atom_{output.name}", shape=output.shape, atomic=True),
                model.ntypes,
                model.atom_exclude_types,
            ),
        ]
    # The zeros are never used: without labels the model's own default is.
    no_fparam = (0.0,) * potential.dim_fparam if model.has_default_fparam else None
    return (
        *wanted,
        *labels.inputs(
            fparam_dim=potential.dim_fparam,
            default_fparam=no_fparam,
            aparam_dim=potential.dim_aparam,
            takes_charge_spin=model.takes_charge_spin,
            default_charge_spin=model.default_charge_spin,
            takes_spin=takes_spin,
        ),
    )


def evaluate_systems(
    potential: Potential,
    systems: str | Path | Sequence[str | Path],
    *,
    rglob_patterns: Sequence[str] | None = None,
    label_names: Mapping[str, str] | None = None,
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
        label_names: what XYZ files call labels, by their names.
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
    most = chunk_atoms()
    dataset = Dataset.from_config(
        systems, rglob_patterns=rglob_patterns, batch_size=1, type_map=potential.type_map,
        labels=requests_of(potential, atomic=atomic), sort_atoms=False, label_names=label_names,
    )  # fmt: skip
    generator = None if shuffle is None else np.random.default_rng(shuffle)
    reports = []
    for index, system in enumerate(dataset.systems):
        frames = np.arange(system.nframes) if generator is None else generator.permutation(system.nframes)
        frames = frames[:max_frames]
        step = max(1, most // system.natoms)
        errors: dict[str, ErrorSum] = {}
        for start in range(0, len(frames), step):
            part = compare(potential, system.batch(frames[start : start + step], index), system.path, atomic=atomic)
            add_errors(errors, part)
            if on_chunk is not None:
                on_chunk(part)
        ordered = {name: errors[name] for name in sorted(errors, key=_place)}
        reports.append(SystemReport(path=system.path, frames=len(frames), errors=ordered))
    if not any(report.errors for report in reports):
        output = potential.model.output()
        kinds = "energy.npy, force.npy or virial.npy" if potential.backend.has_gradients else "energy.npy"
        if output.loss != "ener":
            kinds = f"{output.name}.npy or atomic_{output.name}.npy"
        raise DataError(f"no system has labels to compare with: expected {kinds} in set.* (first: {reports[0].path})")
    return Report(systems=tuple(reports))


def compare(potential: Potential, batch: Batch, system: str, *, atomic: bool) -> Comparison:
    """Evaluate the frames of a batch; labels and predictions side by side."""
    given: dict[str, Any] = {name: batch.labels[name] for name in INPUTS if batch.found.get(name, 0.0) > 0}
    energies = potential.model.output().loss == "ener"
    hessian = batch.found.get("hessian", 0.0) > 0
    atomic = batch.found.get("atom_ener", 0.0) > 0 if energies else True
    try:
        out = potential.evaluate(
            batch.coord, batch.atype, batch.cell, pbc=batch.pbc, atomic=atomic, atomic_virial=False, hessian=hessian,
            forces=None if energies else False, **given,
        )  # fmt: skip
    except InputError as problem:
        first, last = int(batch.frames[0]), int(batch.frames[-1])
        raise DataError(f"{system}, frames {first} to {last}: {problem}") from problem
    sides = _of_energies(batch, out) if energies else _of_others(potential.model.output(), batch, out)
    return Comparison(system, *sides)


def add_errors(errors: dict[str, ErrorSum], part: Comparison) -> None:
    """Add the errors of some frames to the sums by quantity."""
    for name in part.label.keys() - {"stress"}:  # the virial again
        errors[name] = errors.get(name, ErrorSum()) + ErrorSum.of(part.prediction[name] - part.label[name])


_Sides = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
"""Labels and predictions by quantity."""


def _of_energies(batch: Batch, out: Mapping[str, np.ndarray]) -> _Sides:
    real = batch.atype >= 0
    natoms = np.sum(real, axis=1)[:, None]
    has = {name for name, flag in batch.found.items() if flag > 0}
    label: dict[str, np.ndarray] = {}
    prediction: dict[str, np.ndarray] = {}
    for side, source in ((label, batch.labels), (prediction, out)):
        if "energy" in has:
            side["energy"] = source["energy"]
            side["energy_per_atom"] = source["energy"] / natoms
        if "force" in has and "force" in out:
            side["force"] = source["force"][real]
        if "virial" in has and "virial" in out and batch.cell is not None:
            side["virial"] = source["virial"]
            side["virial_per_atom"] = source["virial"] / natoms
            if batch.pbc is True:  # a volume needs three periodic vectors
                side["stress"] = -source["virial"] / np.abs(np.linalg.det(batch.cell))[:, None]
        if "atom_ener" in has:
            side["atom_energy"] = source["atom_ener" if side is label else "atom_energy"][real]
        if "force_mag" in has and "force_mag" in out:
            side["force_mag"] = source["force_mag"][out["mask_mag"][..., 0] > 0]
        if "hessian" in has:
            square = np.repeat(real, 3, axis=1)
            side["hessian"] = source["hessian"][square[:, :, None] & square[:, None, :]][:, None]
    return label, prediction


def _of_others(output: Output, batch: Batch, out: Mapping[str, np.ndarray]) -> _Sides:
    real = batch.atype >= 0
    natoms = np.sum(real, axis=1)[:, None]
    label: dict[str, np.ndarray] = {}
    prediction: dict[str, np.ndarray] = {}
    name, size = output.name, math.prod(output.shape)
    for side, source in ((label, batch.labels), (prediction, out)):
        mine = side is label
        if batch.found[name] > 0:
            total = source[name if mine else output.reduced].reshape(len(real), size)
            side[name] = total
            if not output.intensive:
                side[f"{name}_per_atom"] = total / natoms
        if batch.found[f"atom_{name}"] > 0:
            of_atoms = source[f"atom_{name}" if mine else output.atomic]
            side[f"atom_{name}"] = of_atoms[real].reshape(-1, size)
    return label, prediction


def chunk_atoms() -> int:
    """How many atoms are evaluated and compared at a time: `DP_TEST_CHUNK_ATOMS`, else 10^6. Raises InputError."""
    text = os.environ.get("DP_TEST_CHUNK_ATOMS", str(DEFAULT_CHUNK_ATOMS))
    try:
        number = int(float(text))  # 1e6 is a usual way to write it
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise InputError(f"DP_TEST_CHUNK_ATOMS must be a number of atoms above 0, not {text!r}")
    return number
