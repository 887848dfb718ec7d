"""The output bias of a trained model, fitted to other data.

mode "change": the least-squares fit of (label - prediction) to the types is added to the bias (of polarizabilities, whose
bias is multiplied by the scale of the type, divided by that); "set": the bias is that of the labels alone, as for a fresh
model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.data.dataset import Dataset, statistics_batches
from dpmodel.data.labels import LabelRequest, of_included
from dpmodel.data.system import Batch
from dpmodel.errors import DataError, InputError
from dpmodel.graph import INPUTS
from dpmodel.metrics import requests_of
from dpmodel.models import Model, SpinModel, StandardModel
from dpmodel.potential import Potential
from dpmodel.precision import global_dtype
from dpmodel.statistics.fit import bias_labels, bias_of_labels, preset_of

__all__ = ["MODES", "bias_change", "bias_of", "changed_bias", "with_bias"]

MODES = ("change", "set")

_ALL = 2**31
"""More batches than any system has."""


def changed_bias(
    potential: Potential,
    systems: str | Path | Sequence[str | Path],
    *,
    mode: str = "change",
    nbatch: int = 0,
    rglob_patterns: Sequence[str] | None = None,
    label_names: Mapping[str, str] | None = None,
) -> Model:
    """The potential's model with a bias that fits labelled systems; types that keep a preset bias keep it.

    nbatch: batches per system, of 32 atoms or one frame; 0: all frames. label_names: what XYZ files call labels.
    Raises InputError for another mode, DataError where no system has the label.
    """
    if mode not in MODES:
        raise InputError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if nbatch < 0:
        raise InputError(f"nbatch: expected a number of batches per system, or 0 for all; got {nbatch}")
    model = potential.model
    output = model.output()
    requests = {request.name: request for request in requests_of(potential) if request.name in INPUTS}
    for name, atomic in bias_labels(output).items():
        if name != "atom_ener":  # energies of atoms do not enter the bias
            wanted = LabelRequest(name=name, shape=output.shape, atomic=atomic, high_precision=not atomic)
            requests[name] = of_included(wanted, model.ntypes, model.atom_exclude_types)
    dataset = Dataset.from_config(
        systems, rglob_patterns=rglob_patterns, batch_size="auto", type_map=potential.type_map,
        labels=tuple(requests.values()), label_names=label_names,
    )  # fmt: skip
    return bias_change(potential, dataset, mode=mode, nbatch=nbatch)


def bias_change(potential: Potential, dataset: Dataset, *, mode: str = "change", nbatch: int = 0) -> Model:
    """`changed_bias` by data that is open already, with the labels and inputs of the model.

    nbatch: batches per system, of the dataset's size; 0: all frames. Raises DataError where no system has the label.
    """
    model = potential.model
    output = model.output()
    batches = list(statistics_batches(dataset, nbatch or _ALL))
    if mode == "change":
        batches = [_residual(potential, batch, dataset.systems[batch.system].path) for batch in batches]
    target: Any = model.backbone if isinstance(model, SpinModel) else model
    old = np.asarray(target.out_bias, np.float64)
    preset = preset_of(target, output.name)
    if mode == "change" and preset is not None:
        preset = [None if value is None else np.zeros(old.shape[1]).tolist() for value in preset]
    found = bias_of_labels(target, batches, preset)
    if found is None:
        names = " or ".join(f"{name}.npy" for name in bias_labels(output) if name != "atom_ener")
        raise DataError(f"no system has the label of {output.name!r}: expected {names} in set.*")
    bias = found[0] if mode == "set" else old + found[0] / _share(target)
    # The deviation scales the outputs of properties: it changes only together with the bias that it was found with.
    deviation = found[1] if mode == "set" else np.asarray(target.out_std)
    return with_bias(model, bias, deviation)


def _share(model: Any) -> np.ndarray:
    """(types, 1): by how much outputs change per unit of bias; 1 where they do not."""
    share = model.fitting.bias_share() if isinstance(model, StandardModel) else np.ones((model.ntypes, 1))
    return np.where(share == 0.0, 1.0, share)


def bias_of(model: Model) -> np.ndarray:
    """(types, size): the output bias; of models with spin, that of the virtual types follows."""
    target: Any = model.backbone if isinstance(model, SpinModel) else model
    return np.asarray(target.out_bias)


def with_bias(model: Model, bias: np.ndarray, deviation: np.ndarray | None = None) -> Model:
    """The model with another output bias (ntypes, size); types of spins keep theirs where `bias` has none for them.

    Raises InputError for another shape, or numbers that are not finite.
    """
    target: Any = model.backbone if isinstance(model, SpinModel) else model
    old = np.asarray(target.out_bias)
    new = np.array(old, np.float64)
    given = np.asarray(bias, np.float64)
    if given.ndim != 2 or given.shape[1] != old.shape[1] or given.shape[0] not in (model.ntypes, old.shape[0]):
        raise InputError(
            f"bias: expected {model.ntypes} rows (one per type of {list(model.type_map)}) of {old.shape[1]}, got "
            f"{' x '.join(map(str, given.shape))}"
        )
    if not np.all(np.isfinite(given)):
        raise InputError("bias: expected finite numbers")
    new[: len(given)] = given
    changes = {"out_bias": new.astype(global_dtype())}
    if deviation is not None:
        changes["out_std"] = np.asarray(deviation).astype(global_dtype())
    target = target.replace(**changes)
    return model.replace(backbone=target) if isinstance(model, SpinModel) else target


def _residual(potential: Potential, batch: Batch, path: str) -> Batch:
    """The batch with label - prediction in place of the labels."""
    given: dict[str, Any] = {name: batch.labels[name] for name in INPUTS if batch.found.get(name, 0.0) > 0}
    output = potential.model.output()
    try:
        out = potential.evaluate(
            batch.coord, batch.atype, batch.cell, pbc=batch.pbc, forces=False, atomic=True, atomic_virial=False, **given
        )
    except InputError as problem:
        raise DataError(f"{path}, frames {int(batch.frames[0])} to {int(batch.frames[-1])}: {problem}") from problem
    names = {of_atoms: name for name, of_atoms in bias_labels(output).items()}
    labels = dict(batch.labels)
    for atomic, key in ((False, output.reduced), (True, output.atomic)):
        name = names[atomic]
        if batch.found.get(name, 0.0) > 0:
            shape = (batch.nframes, batch.natoms) if atomic else (batch.nframes,)
            size = math.prod(output.shape)
            labels[name] = batch.labels[name].reshape(*shape, size) - out[key].reshape(*shape, size)
    return dataclasses.replace(batch, labels=labels)
