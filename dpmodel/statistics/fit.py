"""Statistics of the training data, put into a fresh model: descriptor, parameters, output bias."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from dpmodel.data.dataset import Dataset, statistics_batches
from dpmodel.data.system import Batch
from dpmodel.descriptors.base import Descriptor
from dpmodel.errors import DataError, InputError
from dpmodel.fittings.base import Fitting, Output
from dpmodel.geometry.build import GraphBuilder
from dpmodel.graph import Graph
from dpmodel.models import LinearModel, Model, SpinModel, StandardModel, ZBLModel
from dpmodel.models.multi_task import MultiTask
from dpmodel.op import Op
from dpmodel.precision import global_dtype
from dpmodel.statistics.cache import StatCache
from dpmodel.statistics.items import StatItem
from dpmodel.statistics.options import check_finite, pairs
from dpmodel.statistics.output_bias import Bias, atomic_bias, common_bias, frame_bias, merge_bias, type_counts
from dpmodel.statistics.parameters import mean_and_inverse_deviation, parameter_items

__all__ = ["bias_labels", "bias_of_labels", "fit_statistics", "fit_tasks", "preset_of"]

logger = logging.getLogger(__name__)

_Graphs: TypeAlias = Callable[[], Iterable[Graph]]

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
    fitted, sums = _fit_task(model, dataset, builder, nbatch=nbatch, cache=cache)
    return _with_sums(fitted, _merged({"": sums}, {"": 1.0}), protect)


def fit_tasks(
    model: MultiTask,
    data: Mapping[str, Dataset],
    builders: Mapping[str, GraphBuilder],
    probabilities: Mapping[str, float],
    *,
    nbatch: Mapping[str, int],
    protect: float,
    caches: Mapping[str, StatCache | None] | None = None,
) -> MultiTask:
    """`fit_statistics` of every task. What tasks share is normalised by the sums of all of them, weighted by probability.

    With the probability p_t that a step is one of task t, and the running sums (number, sum, sum of squares) s_t of what
    task t reads, a shared descriptor or fitting net has the mean and deviation of s_base + sum_t s_t p_t / p_base: those of
    an atom (frame) that training meets. Output biases are of every task alone.

    data, builders, probabilities, nbatch, caches: by task.
    """
    caches = caches or {}
    sums: dict[str, _Sums] = {}
    models: dict[str, Model] = {}
    for name, own in model.models().items():
        fitted, sums[name] = _fit_task(own, data[name], builders[name], nbatch=nbatch[name], cache=caches.get(name))
        models[name] = fitted
    whole: MultiTask = model.replace(tasks=tuple(models.values()))
    return _with_sums(whole, _merged(sums, probabilities), protect)


_Sums: TypeAlias = dict[tuple[int, str], dict[str, StatItem]]
"""By identity of who is normalised by them, and what they are of (environment, fparam, aparam): running sums by name."""

T = TypeVar("T", bound=Op)


def _fit_task(
    model: Model, dataset: Dataset, builder: GraphBuilder, *, nbatch: int, cache: StatCache | None
) -> tuple[Model, _Sums]:
    """(model with the statistics of the labels, sums of what its parts read)."""
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
    sums: _Sums = {}
    for part, own in _standard_models(model, graphs):
        for descriptor, its in part.descriptor.measured(own):
            sums[id(descriptor), "environment"] = descriptor.sums(its, cache)
        for name, items in _parameter_sums(part.fitting, batches, cache):
            sums[id(part.fitting.networks[0]), name] = items
    fitted: Any = model
    if isinstance(fitted, SpinModel):
        fitted = fitted.replace(backbone=_fit_outputs(fitted.backbone, batches, cache))
    else:
        fitted = _fit_outputs(fitted, batches, cache)
    check_finite({name: np.asarray(value) for name, value in fitted.state().items()}, str)
    if cache is not None and cache.observed_types() is None:
        seen = {int(t) for batch in batches for t in np.unique(batch.atype) if t >= 0}
        cache.store_observed_types([model.type_map[t] for t in sorted(seen)])
    return fitted, sums


def _standard_models(model: Any, graphs: _Graphs) -> Iterator[tuple[StandardModel, _Graphs]]:
    """Every descriptor with its fitting net, and the graphs as they see them."""
    if isinstance(model, SpinModel):
        yield from _standard_models(model.backbone, graphs)
    elif isinstance(model, LinearModel):
        for k, part in enumerate(model.parts):
            yield from _standard_models(part, functools.partial(_graphs_of, model, k, graphs))
    elif isinstance(model, StandardModel):
        yield model, graphs


def _graphs_of(model: LinearModel, part: int, graphs: _Graphs) -> Iterable[Graph]:
    return (model.part_graphs(graph)[part] for graph in graphs())


def _merged(sums: Mapping[str, _Sums], probabilities: Mapping[str, float]) -> _Sums:
    """The sums of tasks added where their parts are one, relative to the first task that is ever drawn."""
    found: dict[tuple[int, str], list[tuple[float, dict[str, StatItem]]]] = {}
    for task, own in sums.items():
        for key, items in own.items():
            found.setdefault(key, []).append((probabilities[task], items))
    out: _Sums = {}
    for key, several in found.items():
        drawn = [(weight, items) for weight, items in several if weight > 0] or [(1.0, items) for _, items in several]
        (base, total), *others = drawn
        for weight, items in others:
            total = {name: total[name] + items[name].scaled(weight / base) for name in total}
        out[key] = total
    return out


def _with_sums(model: T, sums: _Sums, protect: float) -> T:
    """The model or models normalised by the sums."""

    def change(op: Op, copy: Op) -> Op:
        if isinstance(copy, Descriptor) and (id(op), "environment") in sums:
            return copy.with_sums(sums[id(op), "environment"], protect=protect)
        if not isinstance(op, Fitting):
            return copy
        changes: dict[str, np.ndarray] = {}
        for name in ("fparam", "aparam"):
            items = sums.get((id(op.networks[0]), name))
            if items is None:
                continue
            average, inverse = mean_and_inverse_deviation(list(items.values()), protect)
            dtype = getattr(op, f"{name}_avg").dtype
            changes[f"{name}_avg"], changes[f"{name}_inv_std"] = average.astype(dtype), inverse.astype(dtype)
        return copy.replace(**changes)

    fitted = model.map_ops(change)
    check_finite({name: np.asarray(value) for name, value in fitted.state().items()}, str)
    return fitted


def _fit_outputs(model: Any, batches: Sequence[Batch], cache: StatCache | None) -> Any:
    """The model with the statistics of the labels."""
    bias, deviation = _fit_bias(model, batches, cache)
    dtype = global_dtype()
    return model.replace(out_bias=bias.astype(dtype), out_std=deviation.astype(dtype))


def _parameter_sums(
    fitting: Any, batches: Sequence[Batch], cache: StatCache | None
) -> Iterator[tuple[str, dict[str, StatItem]]]:
    """Name and sums by component of fparam and aparam: nets see (x - avg) * inverse deviation."""
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
        yield name, {str(c): item for c, item in enumerate(items)}


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
            by_frame = common_bias(values, counts, exclude_types=model.atom_exclude_types, intensive=output.intensive)
    if atomic:
        values = np.concatenate([b.labels[name].reshape(-1, dim) for b in atomic])
        kinds = np.concatenate([b.atype.reshape(-1) for b in atomic])
        if output.by_type:
            by_atom = atomic_bias(values, kinds, model.ntypes)
        else:
            included = (kinds >= 0) & ~np.isin(kinds, model.atom_exclude_types)
            bias, deviation = atomic_bias(values, np.where(included, 0, -1), 1)
            by_atom = np.repeat(bias, model.ntypes, axis=0), np.repeat(deviation, model.ntypes, axis=0)
    found = merge_bias(by_atom, by_frame)
    for t, value in enumerate((preset or ()) if output.by_type else ()):
        if value is not None:  # labels of atoms do not change what the input fixes
            found[0][t] = value
    return found


def _bias_options(model: Any, name: str) -> dict[str, Any]:
    """What the bias depends on besides the labels."""
    given = model.preset_out_bias is not None and name in model.preset_out_bias
    preset = [] if (values := preset_of(model, name)) is None or all(v is None for v in values) else list(values)
    common = {} if model.output().by_type else {"one_for_all_types": "of the atoms that count"}
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
