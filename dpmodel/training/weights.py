"""The model that a run begins with: of the checkpoint, of another model, or fresh with the statistics of the data.

The chief makes it; the other processes build the same structure and get the numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from dpmodel.descriptors.base import Capacity
from dpmodel.files.model_file import ModelFile, TasksFile
from dpmodel.input import Input
from dpmodel.models import builder_of
from dpmodel.models.build import known_capacities
from dpmodel.models.config import ModelSection
from dpmodel.models.multi_task import MultiTask, build_tasks, with_common_capacities
from dpmodel.statistics.cache import StatCache
from dpmodel.statistics.fit import fit_statistics, fit_tasks
from dpmodel.statistics.neighbour import neighbour_statistics, resolve_sel
from dpmodel.training.bias import change_bias
from dpmodel.training.pretrained import FineTuning
from dpmodel.training.share import shared_weights
from dpmodel.training.start import adopt, by_task, observed_types
from dpmodel.training.tasks import Task
from dpmodel.training.world import World

__all__ = ["Origin", "make_model", "resolve_capacities"]

logger = logging.getLogger(__name__)

Values = dict[str, list[tuple[int, ...]]]
"""By task, numbers for the capacities (`sel`) of its model."""


class Origin:
    """Where weights come from, where they are not fresh."""

    def __init__(self, file: ModelFile | TasksFile, name: str, *, exact: bool) -> None:
        """exact: a checkpoint that is gone on from. name: for messages."""
        self.file, self.name, self.exact = file, name, exact
        self.models = by_task(file.model)
        distances = file.min_nbor_dist
        self.min_nbor_dist = distances if isinstance(distances, Mapping) else {"": distances}


def resolve_capacities(
    inp: Input, tasks: Mapping[str, Task], world: World, *, origin: Origin | FineTuning | None, skip: bool
) -> dict[str, ModelSection]:
    """The model sections with numbers for `sel`, by the chief's origin and data; collective.

    `sel: auto` becomes that of the origin, or numbers from the data. Without an origin that is gone on from, numbers are
    compared with the data, unless `skip`.
    """
    values: Values = {}
    with world.agreement("counting neighbours"):
        if world.chief:
            values = {name: _capacities(task, origin, skip) for name, task in tasks.items()}
    found = {name: [tuple(value) for value in own] for name, own in world.plain(values).items()}
    return with_common_capacities(inp.models, inp.shared, found)


def _capacities(task: Task, origin: Origin | FineTuning | None, skip: bool) -> list[tuple[int, ...]]:
    model = task.given.model
    capacities = model.capacities()
    known = () if origin is None or task.name not in origin.models else known_capacities(origin.models[task.name])
    values: list[Any] = [
        known[k] if isinstance(each.value, str) and len(known) == len(capacities) else each.value
        for k, each in enumerate(capacities)
    ]
    goes_on = origin is not None and origin.exact
    if goes_on and origin is not None:
        task.min_nbor_dist = origin.min_nbor_dist.get(task.name)
    if any(isinstance(value, str) for value in values) or not (skip or goes_on):
        values = [_counted(task, each, value) for each, value in zip(capacities, values, strict=True)]
    return [(value,) if isinstance(value, int) else tuple(value) for value in values]


def _counted(task: Task, capacity: Capacity, value: Any) -> tuple[int, ...]:
    """The value as numbers, compared with the data."""
    model = task.given.model
    found = neighbour_statistics(
        task.data, capacity.rcut, len(model.type_map), allow_overlap=model.tolerates_overlap(),
        spin_scales=model.spin_scales(),
    )  # fmt: skip
    task.min_nbor_dist = found.min_distance
    logger.info(
        "%sNeighbours within %g Å: at most %s, closest pair %.3f Å", task.title("") if task.name else "", capacity.rcut,
        f"{list(found.by_type)} per type" if capacity.typed else found.total, found.min_distance,
    )  # fmt: skip
    return resolve_sel(value, found, typed=capacity.typed, name=capacity.option)


def make_model(
    inp: Input,
    tasks: Mapping[str, Task],
    models: Mapping[str, ModelSection],
    world: World,
    *,
    seed: Any,
    origin: Origin | FineTuning | None,
    probabilities: Mapping[str, float],
    backend: str,
    device: str | None = None,
) -> Any:
    """The model (or `MultiTask`), the same on all processes; collective. Sets builders and observed types of the tasks.

    backend, device: of predictions that biases are fitted to, where the run fine-tunes.
    """
    model: Any = build_tasks(inp, models, seed=seed)
    for name, own in by_task(model).items():
        tasks[name].builder = builder_of(own)
    with world.agreement("making the model"):
        if world.chief:
            for name, task in tasks.items():
                task.observed = observed_types(task.data, models[name].type_map)
            if isinstance(origin, FineTuning):
                model = origin.tuned(
                    model, fit=lambda fresh: _fitted(fresh, tasks, models, probabilities),
                    change=lambda name, own: change_bias(
                        own, tasks[name].data, nbatch=models[name].data_stat_nbatch, backend=backend, device=device
                    ),
                )  # fmt: skip
            elif origin is not None:
                model = adopt(model, origin.file.model, origin.name, exact=origin.exact)
            else:
                model = _fitted(model, tasks, models, probabilities)
    model = shared_weights(world, model)
    for name, own in by_task(model).items():
        tasks[name].loss = tasks[name].loss.bound(own)
        _describe(name, own, models[name])
    return model


def _fitted(
    model: Any, tasks: Mapping[str, Task], models: Mapping[str, ModelSection], probabilities: Mapping[str, float]
) -> Any:
    """The model with the statistics of the data."""
    caches = {}
    for name, own in by_task(model).items():
        place = tasks[name].given.data
        if place.stat_file is not None:
            caches[name] = StatCache(place.stat_file, own.graph_model.type_map, place.stat_file_mode)
    protect = next(iter(models.values())).data_stat_protect  # equal in all tasks
    if not isinstance(model, MultiTask):
        task, nbatch = tasks[""], models[""].data_stat_nbatch
        return fit_statistics(model, task.data, task.builder, nbatch=nbatch, protect=protect, cache=caches.get(""))
    return fit_tasks(
        model,
        {name: task.data for name, task in tasks.items()},
        {name: task.builder for name, task in tasks.items()},
        probabilities,
        nbatch={name: config.data_stat_nbatch for name, config in models.items()},
        protect=protect,
        caches=caches,
    )


def _describe(name: str, model: Any, config: ModelSection) -> None:
    count = sum(int(value.size) for value in model.state().values())
    sel = ", ".join(str(list(request.sel)) for request in model.requests())
    kinds = " + ".join(part.environment.key for part in config.standard_parts().values())
    logger.info("Model%s: %s, %d numbers, sel %s", f" of {name}" if name else "", kinds, count, sel)
