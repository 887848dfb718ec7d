"""Statistics of the training data, put into a fresh model: descriptor, parameters, output bias."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dpmodel.data.dataset import Dataset, statistics_batches
from dpmodel.data.system import Batch
from dpmodel.errors import DataError, InputError
from dpmodel.fittings.base import Output
from dpmodel.geometry.build import GraphBuilder
from dpmodel.graph import Graph
from dpmodel.models import LinearModel, Model, SpinModel, StandardModel, ZBLModel
from dpmodel.op import Op
from dpmodel.precision import global_dtype
from dpmodel.statistics.cache import StatCache
from dpmodel.statistics.options import check_finite, pairs
from dpmodel.statistics.output_bias import Bias, atomic_bias, common_bias, frame_bias, merge_bias, type_counts
from dpmodel.statistics.parameters import mean_and_inverse_deviation, parameter_items

__all__ = ["bias_labels", "bias_of_labels", "fit_statistics", "preset_of"]

logger = logging.getLogger(__name__)

_ATOMIC_LABELS = {"energy": "atom_ener"}
"""Labels of atoms that are not called atom_<output>."""


def bias_labels(output: Output) -> dict[str, bool]:
    """Labels that the output bias is taken from where a system has them, and whether they are those of atoms."""
    return {output.name: False, _ATOMIC_LABELS.get(output.name, f"atom_{output.name}"): True}


def fit_statistics(
    model: Model,
    dataset: Dataset,
    builder: GraphBuilder,
    *,
    nbatch: int,
    protect: float,
    cache: StatCache | None = None,
) -> Model:
    """The model with the statistics of up to `nbatch` batches per system; the cache answers what it knows.

    builder: makes the graphs that the model asks for.

    Without any label of the output the bias stays, with a warning. Raises DataError for labels or statistics that are
    not finite.
    """
    batches: list[Batch] = list(statistics_batches(dataset, nbatch))

    def graphs() -> Iterable[Graph]:
        for batch in batches:
            cell = batch.cell if batch.pbc else None
            given = {"spin": batch.labels["spin"]} if model.spin_scales is not None else {}
            try:
                graph = builder.build(
                    batch.coord, batch.atype, cell, pbc=batch.pbc, numbers=batch.frames.tolist(), **given
                )
            except InputError as problem:
                path = dataset.systems[batch.system].path
                raise DataError(f"{path}, {problem} (atoms are counted sorted by type)") from problem
            yield graph

    if cache is not None:
        cache.graph_options = {
            "pair_exclude_types": pairs(model.graph_model.pair_exclude_types),
            "spin_scales": list(model.spin_scales or ()),
        }
    fitted = _fit_inputs(model, _Sample(batches, graphs, protect, cache))
    if isinstance(fitted, SpinModel):
        fitted = fitted.replace(backbone=_fit_outputs(fitted.backbone, batches, cache))
    else:
        fitted = _fit_outputs(fitted, batches, cache)
    check_finite({name: np.asarray(value) for name, value in fitted.state().items()}, str)
    if cache is not None and cache.observed_types() is None:
        seen = {int(t) for batch in batches for t in np.unique(batch.atype) if t >= 0}
        cache.store_observed_types([model.type_map[t] for t in sorted(seen)])
    return fitted


@dataclasses.dataclass(frozen=True)
class _Sample:
    """What statistics of inputs are taken from."""

    batches: Sequence[Batch]
    graphs: Callable[[], Iterable[Graph]]
    protect: float
    cache: StatCache | None


def _fit_inputs(model: Any, sample: _Sample) -> Any:
    """The model with the statistics of what its descriptors and fitting nets read."""
    if isinstance(model, SpinModel):
        return model.replace(backbone=_fit_inputs(model.backbone, sample))
    if isinstance(model, LinearModel):
        graphs = [functools.partial(_graphs_of, model, k, sample.graphs) for k in range(len(model.parts))]
        samples = [dataclasses.replace(sample, graphs=each) for each in graphs]
        return model.replace(parts=tuple(map(_fit_inputs, model.parts, samples)))
    if not isinstance(model, StandardModel):
        return model
    descriptor = model.descriptor.with_statistics(sample.graphs, protect=sample.protect, cache=sample.cache)
    fitting = _fit_parameters(model.fitting, sample.batches, sample.protect, sample.cache)
    return model.replace(descriptor=descriptor, fitting=fitting)


def _graphs_of(model: LinearModel, part: int, graphs: Callable[[], Iterable[Graph]]) -> Iterable[Graph]:
    return (model.part_graphs(graph)[part] for graph in graphs())


def _fit_outputs(model: Any, batches: Sequence[Batch], cache: StatCache | None) -> Any:
    """The model with the statistics of the labels."""
    bias, deviation = _fit_bias(model, batches, cache)
    dtype = global_dtype()
    return model.replace(out_bias=bias.astype(dtype), out_std=deviation.astype(dtype))


def _fit_parameters(fitting: Any, batches: Sequence[Batch], protect: float, cache: StatCache | None) -> Op:
    """fparam and aparam: (x - avg) * inverse deviation."""
    changes: dict[str, np.ndarray] = {}
    for name, dim in (("fparam", fitting.config.numb_fparam), ("aparam", fitting.config.numb_aparam)):
        if not dim:
            continue
        items = None if cache is None else cache.parameters(name, dim)
        if items is None:
            found = [b for b in batches if b.found.get(name, 0.0) > 0]
            if not found and name == "fparam" and fitting.default_fparam is not None:
                continue  # every evaluation uses the default
            blocks = [
                (b.labels[name].reshape(-1, dim), None if name == "fparam" else b.atype.reshape(-1) >= 0) for b in found
            ]
            items = parameter_items(blocks, dim, name)
            if cache is not None:
                cache.store_parameters(name, items)
        average, inverse = mean_and_inverse_deviation(items, protect)
        dtype = getattr(fitting, f"{name}_avg").dtype
        changes[f"{name}_avg"], changes[f"{name}_inv_std"] = average.astype(dtype), inverse.astype(dtype)
    result: Op = fitting.replace(**changes)
    return result


def _fit_bias(model: Any, batches: Sequence[Batch], cache: StatCache | None) -> Bias:
    """(ntypes, dim) bias and deviation of the model's output."""
    output = model.output()
    options = _bias_options(model, output.name)
    known = None if cache is None else cache.output_bias(output.name, dim=math.prod(output.shape), options=options)
    if known is not None:
        return known
    bias = bias_of_labels(model, batches, preset_of(model, output.name))
    if bias is None:
        logger.warning("no system has labels of %r: the output bias stays as it is", output.name)
        return np.asarray(model.out_bias), np.asarray(model.out_std)
    if cache is not None:
        cache.store_output_bias({output.name: bias}, options)
    return bias


def bias_of_labels(model: Any, batches: Sequence[Batch], preset: Sequence[Any] | None) -> Bias | None:
    """Bias and deviation (ntypes, dim) that the labels ask for, those of `preset` kept; None without any label."""
    output = model.output()
    dim = math.prod(output.shape)
    framed = [b for b in batches if b.found.get(output.name, 0.0) > 0]
    name = next(name for name, of_atoms in bias_labels(output).items() if of_atoms)
    atomic = [b for b in batches if b.found.get(name, 0.0) > 0]
    if not framed and not atomic:
        return None
    by_frame = by_atom = None
    if framed:
        counts = np.concatenate([_counts(b, model.ntypes) for b in framed])
        values = np.concatenate([b.labels[output.name].reshape(b.nframes, dim) for b in framed])
        if output.by_type:
            by_frame = frame_bias(
                values, counts, preset=preset, exclude_types=model.atom_exclude_types, intensive=output.intensive
            )
        else:
            by_frame = common_bias(values, counts, intensive=output.intensive)
    if atomic:
        values = np.concatenate([b.labels[name].reshape(-1, dim) for b in atomic])
        by_atom = atomic_bias(values, np.concatenate([b.atype.reshape(-1) for b in atomic]), model.ntypes)
    bias = merge_bias(by_atom, by_frame)
    for t, value in enumerate((preset or ()) if output.by_type else ()):
        if value is not None:  # labels of atoms do not change what the input fixes
            bias[0][t] = value
    return bias


def _bias_options(model: Any, name: str) -> dict[str, Any]:
    """What the bias depends on besides the labels."""
    given = model.preset_out_bias is not None and name in model.preset_out_bias
    preset = [] if (values := preset_of(model, name)) is None or all(v is None for v in values) else list(values)
    common = {} if model.output().by_type else {"one_for_all_types": True}
    return {
        **common,
        "preset_out_bias" if given else "atom_ener": preset,
        "atom_exclude_types": sorted(set(model.atom_exclude_types)),
    }


def _counts(batch: Batch, ntypes: int) -> np.ndarray:
    frame = np.repeat(np.arange(batch.nframes), batch.natoms)
    return type_counts(batch.atype.reshape(-1), frame, batch.nframes, ntypes)


def preset_of(model: Any, name: str) -> Sequence[Any] | None:
    """Biases that the input fixes: preset_out_bias, else the numbers of atom_ener."""
    if model.preset_out_bias is not None and name in model.preset_out_bias:
        preset: Sequence[Any] = model.preset_out_bias[name]
        return preset
    net = model.parts[0] if isinstance(model, ZBLModel) else model
    if not isinstance(net, StandardModel):
        return None
    vacuum = net.fitting.vacuum()
    return net.fitting.config.atom_ener if vacuum is not None else None
