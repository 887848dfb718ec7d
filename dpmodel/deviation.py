"""How far models disagree: the deviation by which structures for new labels are chosen, and trajectories are trusted.

With M models, <.> their mean and n the real atoms of a frame:

    force     d_i = sqrt(<|f_i - <f_i>|^2>)                   of every atom, eV/Å
    virial    s_c = sqrt(<(v_c - <v_c>)^2>),  v = virial / n  of every one of 9 components, eV
    energy    sqrt(<(e - <e>)^2>),            e = energy / n  eV

(Zhang et al., Phys. Rev. Materials 3, 023804, 2019). `relative` divides d_i by (|<f_i>| + relative), `relative_v` divides
s_c by (|<v_c>| + relative_v). With labels the label takes the place of the mean everywhere: the error of the models.

    deviation = model_deviation([dpmodel.load("a.dp"), dpmodel.load("b.dp")], coord, atype, box)
    deviation.force.max(axis=1)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dpmodel.data import labels
from dpmodel.data.dataset import Dataset
from dpmodel.data.labels import LabelRequest
from dpmodel.data.system import Batch, System
from dpmodel.errors import BackendError, DataError, InputError
from dpmodel.graph import INPUTS
from dpmodel.metrics import requests_of
from dpmodel.potential import Potential, check_parameters

__all__ = ["COLUMNS", "Deviation", "deviations_of_systems", "model_deviation", "write_deviations"]

COLUMNS = ("max_devi_v", "min_devi_v", "avg_devi_v", "max_devi_f", "min_devi_f", "avg_devi_f", "devi_e")
"""What `Deviation.table` holds: of the virial per atom over its components (avg: root of the mean square), of the forces
over the atoms, of the energy per atom."""

CHUNK_ATOMS = 100_000
"""Atoms of a system that are evaluated at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """Deviations of f frames with n atoms each."""

    force: np.ndarray
    """(f, n) eV/Å, or relative; NaN for padding (type -1)."""
    virial: np.ndarray
    """(f, 9) eV per atom, or relative; NaN where labels were asked for and there is no virial among them."""
    energy: np.ndarray
    """(f,) eV per atom."""

    def table(self) -> np.ndarray:
        """(f, 7): `COLUMNS`."""
        v, f = self.virial, self.force
        return np.stack(
            [
                v.max(axis=1), v.min(axis=1), np.linalg.norm(v, axis=1) / 3.0,
                np.nanmax(f, axis=1), np.nanmin(f, axis=1), np.nanmean(f, axis=1), self.energy,
            ],
            axis=1,
        )  # fmt: skip


def model_deviation(
    potentials: Sequence[Potential],
    coord: Any,
    atype: Any,
    box: Any = None,
    *,
    pbc: bool | Sequence[bool] = True,
    relative: float | None = None,
    relative_v: float | None = None,
    truth: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Deviation:
    """Evaluate frames with several models and compare.

    Args:
        potentials: at least two models of energies with one type_map, on backends with derivatives; with `truth` one is
            enough.
        coord: as for `Potential.evaluate`.
        atype: as there.
        box: as there.
        pbc: as there.
        relative: eV/Å; None: absolute deviations of forces.
        relative_v: eV; None: absolute deviations of virials.
        truth: labels `energy` (f, 1), `force` (f, n, 3) and perhaps `virial` (f, 9): errors instead of deviations.
        parameters: fparam, aparam, charge_spin, handed to every model that takes them.

    Raises:
        InputError: models that cannot be compared; and what `evaluate` raises.
        BackendError: a backend without derivatives.
    """
    _check(potentials, relative, relative_v, alone=truth is not None)
    if truth is not None and not {"energy", "force"} <= truth.keys():
        raise InputError(f"truth: expected the labels energy and force, got {sorted(truth)}")
    outputs = [
        each.evaluate(
            coord, atype, box, pbc=pbc, forces=True, atomic=True, atomic_virial=False, **_own(each, parameters)
        )
        for each in potentials
    ]
    nf, na = outputs[0]["force"].shape[:2]
    real = _real_atoms(atype, (nf, na))
    natoms = np.maximum(real.sum(axis=1), 1)[:, None]
    force = np.stack([out["force"] for out in outputs])
    virial, energy = (np.stack([out[key] for out in outputs]) / natoms for key in ("virial", "energy"))
    if truth is None:
        centre = {"force": force.mean(axis=0), "virial": virial.mean(axis=0), "energy": energy.mean(axis=0)}
    else:
        sizes = {"energy": (nf, 1), "virial": (nf, 9), "force": (nf, na, 3)}
        own = {key: _shaped(key, truth[key], shape) for key, shape in sizes.items() if key in truth}
        per_atom: dict[str, Any] = {key: own[key] / natoms for key in ("energy", "virial") if key in own}
        centre = {"virial": np.full((nf, 9), np.nan), **per_atom, "force": own["force"]}
    d = np.sqrt(np.mean(np.sum((force - centre["force"]) ** 2, axis=3), axis=0))
    s = np.sqrt(np.mean((virial - centre["virial"]) ** 2, axis=0))
    if relative is not None:
        d = d / (np.linalg.norm(centre["force"], axis=2) + relative)
    if relative_v is not None:
        s = s / (np.abs(centre["virial"]) + relative_v)
    e = np.sqrt(np.mean((energy - centre["energy"]) ** 2, axis=0))[:, 0]
    return Deviation(force=np.where(real, d, np.nan), virial=s, energy=e)


def deviations_of_systems(
    potentials: Sequence[Potential],
    systems: str | Path | Sequence[str | Path],
    *,
    relative: float | None = None,
    relative_v: float | None = None,
    real_error: bool = False,
    label_names: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, np.ndarray, Deviation]]:
    """(system, indices of frames, deviations of these), chunk by chunk; atoms keep the order of the files.

    Args:
        potentials: as for `model_deviation`.
        systems: as in `dpmodel.data.discovery.find_systems`.
        relative: as for `model_deviation`.
        relative_v: as there.
        real_error: compare with the labels energy, force and, where a system has it, virial.
        label_names: what XYZ files call labels, by their names.

    Raises what `model_deviation` raises, DataError for bad systems and for missing labels.
    """
    _check(potentials, relative, relative_v, alone=real_error)
    dataset = Dataset.from_config(
        systems, batch_size=1, type_map=potentials[0].type_map, labels=_requests(potentials), sort_atoms=False,
        label_names=label_names,
    )  # fmt: skip
    if real_error:
        for system in dataset.systems:
            _check_labels(system)
    for index, system in enumerate(dataset.systems):
        step = max(1, CHUNK_ATOMS // system.natoms)
        for start in range(0, system.nframes, step):
            frames = np.arange(start, min(start + step, system.nframes))
            batch = system.batch(frames, index)
            options: dict[str, Any] = {"relative": relative, "relative_v": relative_v}
            if real_error:
                options["truth"] = {k: batch.labels[k] for k in ("energy", "force", "virial") if batch.found[k] > 0}
            yield system.path, frames, _of_batch(potentials, batch, system.path, options)


def write_deviations(
    stream: TextIO,
    results: Iterator[tuple[str, np.ndarray, Deviation]],
    *,
    frequency: int = 1,
    atomic: bool = False,
) -> int:
    """Write the table that users of the family know; returns the number of frames.

    Every system begins with `# <system>` and the names of the columns. frequency: steps of the trajectory between two
    frames. atomic: the deviations of the forces of single atoms as further columns, 0 for padding.
    """
    names = (*COLUMNS, "atm_devi_f(N)") if atomic else COLUMNS
    header = f"#{'step':>11}" + "".join(f"{name:>19}" for name in names)
    last, count = None, 0
    for system, frames, deviation in results:
        if system != last:
            stream.write(f"# {system}\n{header}\n")
            last = system
        rows = deviation.table()
        if atomic:
            rows = np.concatenate([rows, np.nan_to_num(deviation.force)], axis=1)
        stream.writelines(
            f"{frame * frequency:12d}" + "".join(f"{value:19.6e}" for value in row) + "\n"
            for frame, row in zip(frames, rows, strict=True)
        )
        count += len(frames)
    return count


def _check(potentials: Sequence[Potential], relative: float | None, relative_v: float | None, *, alone: bool) -> None:
    if len(potentials) < (1 if alone else 2):
        count = "one model" if alone else "two models to compare"
        raise InputError(f"expected at least {count}, got {len(potentials)}")
    given: Sequence[Any] = potentials
    if wrong := [each for each in given if not isinstance(each, Potential)]:
        raise InputError(f"expected potentials, as dpmodel.load gives them; got {wrong[0]!r}")
    for name, level in (("relative", relative), ("relative_v", relative_v)):
        if level is not None and not (np.isfinite(level) and level > 0):
            raise InputError(f"{name}: expected a level above 0, or nothing for absolute deviations; got {level!r}")
    first = potentials[0]
    for each in potentials:
        if not each.backend.has_gradients:
            raise BackendError(
                f"the {each.backend.name} backend has no derivatives, and deviations are of forces: use 'pt' or 'jax'"
            )
        if each.model.output().name != "energy" or each.model.spin_scales is not None:
            raise InputError("expected models of energies without spin; other models have no deviations here")
        if each.type_map != first.type_map:
            raise InputError(
                f"models that are compared need one type_map: {list(first.type_map)} and {list(each.type_map)} differ"
            )


def _shaped(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Labels in a shape. Raises InputError for another number of them."""
    found = np.asarray(values, np.float64)
    if found.size != np.prod(shape):
        raise InputError(f"truth: expected {name} of shape {shape}, got {found.shape}")
    return found.reshape(shape)


def _own(potential: Potential, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that this model takes."""
    takes = {
        "fparam": potential.dim_fparam > 0,
        "aparam": potential.dim_aparam > 0,
        "charge_spin": potential.model.takes_charge_spin,
    }
    check_parameters(parameters, tuple(takes))
    return {name: value for name, value in parameters.items() if value is not None and takes[name]}


def _real_atoms(atype: Any, shape: tuple[int, int]) -> np.ndarray:
    """(f, n) bool: not padding."""
    kinds = np.asarray(atype)
    real = kinds >= 0 if kinds.dtype.kind in "iu" else np.ones(kinds.shape, np.bool_)
    return np.broadcast_to(real, shape)


def _requests(potentials: Sequence[Potential]) -> tuple[LabelRequest, ...]:
    """What is read: labels, and the parameters of every model."""
    found = {label.name: label for label in (labels.ENERGY, labels.FORCE, labels.VIRIAL)}
    for each in potentials:
        for request in requests_of(each):
            if request.name not in INPUTS:
                continue
            known = found.get(request.name, request)
            if known.shape != request.shape:
                raise InputError(
                    f"models that are compared need the same {request.name}: {known.shape} and {request.shape} numbers"
                )
            found[request.name] = known if known.everywhere else request
    return tuple(found.values())


def _check_labels(system: System) -> None:
    lacking = [name for name in ("energy", "force") if not system.found.get(name, 0.0)]
    if lacking:
        raise DataError(f"{system.path}: --real_error needs the labels energy and force; there is no {lacking[0]}")


def _of_batch(potentials: Sequence[Potential], batch: Batch, path: str, options: Mapping[str, Any]) -> Deviation:
    given: dict[str, Any] = {name: batch.labels[name] for name in INPUTS if batch.found.get(name, 0.0) > 0}
    try:
        return model_deviation(potentials, batch.coord, batch.atype, batch.cell, pbc=batch.pbc, **options, **given)
    except InputError as problem:
        raise DataError(f"{path}, frames {batch.frames[0]} to {batch.frames[-1]}: {problem}") from problem
