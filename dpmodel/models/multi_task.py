"""Several tasks trained together: models that have some parts in common.

A part in common is one `Op` in several models, so bridges, optimizers and statistics treat it as one. What is shared is
said by `Shared`: a definition's name and its links, each a place in the section of a task and a level.

==============  ==============================================================  ============================
part            level 0                                                         level 1
==============  ==============================================================  ============================
descriptor      everything: nets and statistics                                 the type embedding
of a hybrid     the same, of that part alone                                    its type embedding
fitting net     nets, and the statistics of fparam and aparam; every task has   -
                its own biases and its own row of the case embedding
==============  ==============================================================  ============================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dpmodel.config import Config
from dpmodel.descriptors import HybridConfig
from dpmodel.descriptors.base import Descriptor
from dpmodel.errors import InputError
from dpmodel.fittings.base import Fitting
from dpmodel.graph import Graph
from dpmodel.models.base import Model
from dpmodel.models.build import build_model
from dpmodel.models.config import ModelSection
from dpmodel.models.linear import ZBLModel
from dpmodel.models.spin import SpinModel
from dpmodel.models.standard import StandardModel
from dpmodel.nn import child_seed
from dpmodel.nn.mlp import Seed
from dpmodel.op import Array, Op, child

__all__ = [
    "Link",
    "MultiTask",
    "Place",
    "Shared",
    "build_tasks",
    "levels_of",
    "linked",
    "part_at",
    "section_at",
    "what_levels",
    "with_common_capacities",
    "with_part",
]

Place = tuple[str | int, ...]
"""Keys and numbers below a `model` section: ("descriptor",), ("descriptor", "list", 0), ("models", 1, "fitting_net")."""


class MultiTask(Op):
    """The models of several tasks. One task's model is computed at a time."""

    names: tuple[str, ...]
    """Of the tasks, in the order of the input."""
    tasks: tuple[Model, ...] = child()

    def task(self, name: str) -> Model:
        """The model of a task. Raises InputError listing the tasks where there is none of that name."""
        if name not in self.names:
            raise InputError(f"expected one of the tasks {', '.join(self.names)}, got {name!r}")
        return self.tasks[self.names.index(name)]

    def models(self) -> dict[str, Model]:
        """All models by the name of their task."""
        return dict(zip(self.names, self.tasks, strict=True))

    def with_task(self, name: str, model: Model) -> MultiTask:
        """A copy with another model for one task, as `change-bias` makes it."""
        self.task(name)
        return self.replace(tasks=tuple(model if own == name else old for own, old in self.models().items()))

    def call(self, graph: Graph, task: str) -> dict[str, Array]:
        """The outputs of one task's model."""
        outputs: dict[str, Array] = self.task(task)(graph)
        return outputs


# --- what is shared ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A task that uses a shared definition."""

    task: str
    place: Place
    level: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """A definition and who uses it; the first link's parts are those of the others."""

    name: str
    kind: str
    """"descriptor" or "fitting_net"."""
    links: tuple[Link, ...]


def section_at(section: ModelSection, place: Place) -> Config:
    """The `Config` at a place of a model section."""
    here: Any = section
    for key in place:
        here = here[key] if isinstance(key, int) else getattr(here, key)
    found: Config = here
    return found


def _standard(model: Any, place: Place) -> tuple[Any, StandardModel, Place]:
    """(how to put a changed standard model back, the standard model, the rest of the place)."""
    if place[0] == "models":
        number = int(place[1])
        put, inner, rest = _standard(model.parts[number], place[2:])

        def into(new: Any) -> Any:
            return model.replace(parts=tuple(put(new) if k == number else p for k, p in enumerate(model.parts)))

        return into, inner, rest
    if isinstance(model, SpinModel):
        return lambda new: model.replace(backbone=new), model.backbone, place
    if isinstance(model, ZBLModel):
        net: Any = model.parts[0]
        return lambda new: model.replace(parts=(new, *model.parts[1:])), net, place
    return lambda new: new, model, place


def part_at(model: Model, place: Place) -> Any:
    """The descriptor or fitting of a built model at the place of its section."""
    _, standard, rest = _standard(model, place)
    here: Any = standard.fitting if rest[0] == "fitting_net" else standard.descriptor
    return here.parts[rest[2]] if len(rest) > 1 else here


def with_part(model: Model, place: Place, part: Any) -> Model:
    """The model with another descriptor or fitting at a place."""
    put, standard, rest = _standard(model, place)
    new: Model
    if rest[0] == "fitting_net":
        new = put(standard.replace(fitting=part))
    elif len(rest) > 1:
        hybrid: Any = standard.descriptor
        parts = tuple(part if k == rest[2] else old for k, old in enumerate(hybrid.parts))
        new = put(standard.replace(descriptor=hybrid.replace(parts=parts)))
    else:
        new = put(standard.replace(descriptor=part))
    return new


def linked(part: Any, base: Any, level: int) -> Any:
    """What a task has in place of `part`, where `base` is what the first task of a link has.

    Raises InputError for a level that the kind of part does not have.
    """
    if level == 0 and isinstance(base, Descriptor):
        return base
    if level == 0 and isinstance(base, Fitting):
        own, other = ([np.shape(array) for array in net.state().values()] for net in _first_nets(part, base))
        if own != other or len(part.networks) != len(base.networks):
            raise InputError(
                f"its nets have the shapes {own} here and {other} in the first task: the descriptors must have equal widths"
            )
        names = ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")
        return part.replace(networks=base.networks, **{name: getattr(base, name) for name in names})
    if level == 1 and getattr(base, "type_embedding", None) is not None:
        return part.replace(type_embedding=base.type_embedding)
    raise InputError(f"level {level}: {what_levels(base.config)}")


def _first_nets(*fittings: Any) -> tuple[Any, ...]:
    return tuple(fitting.networks[0] for fitting in fittings)


def levels_of(config: Config) -> tuple[int, ...]:
    """The levels that a section may be shared at."""
    return (0, 1) if embeds_types(config) else (0,)


def what_levels(config: Config) -> str:
    """The levels of a section, in words."""
    if isinstance(config, HybridConfig):
        return "expected level 0, as a hybrid descriptor is shared whole; share its parts for more"
    if embeds_types(config):
        return "expected level 0 (everything) or 1 (the type embedding)"
    return f"expected level 0 (everything), as {config.key} has nothing to share by itself"


def embeds_types(config: Config) -> bool:
    """Whether a descriptor has a type embedding of its own."""
    return any(hasattr(config, name) for name in ("use_econf_tebd", "tebd_dim"))


# --- capacities --------------------------------------------------------------------------------------------


def with_common_capacities(
    models: Mapping[str, ModelSection], shared: Sequence[Shared], values: Mapping[str, Sequence[tuple[int, ...]]]
) -> dict[str, ModelSection]:
    """The sections with numbers for `capacities()`, the largest that any of the tasks needs where they share a descriptor.

    values: by task, what `with_capacities` takes.
    """
    found = {name: [tuple(value) for value in own] for name, own in values.items()}
    groups = [group for one in shared if one.kind == "descriptor" for group in _groups(models, one)]
    for _ in groups:  # a part may be in several definitions, so that maxima have to wander
        before = {name: list(own) for name, own in found.items()}
        for group in groups:
            largest = tuple(max(numbers) for numbers in zip(*(found[task][k] for task, k in group), strict=True))
            for task, k in group:
                found[task][k] = largest
        if found == before:
            break
    return {name: model.with_capacities(found[name]) for name, model in models.items()}


def _groups(models: Mapping[str, ModelSection], shared: Shared) -> Iterator[list[tuple[str, int]]]:
    """(task, position in `capacities()`) of one option in all tasks that share a descriptor."""
    groups: dict[str, list[tuple[str, int]]] = {}
    for link in shared.links:
        inside = ".".join(map(str, link.place[1:] if link.place[0] == "descriptor" else link.place))
        for k, each in enumerate(models[link.task].capacities()):
            if not inside or each.option.startswith(f"{inside}."):
                groups.setdefault(each.option.removeprefix(inside).lstrip("."), []).append((link.task, k))
    yield from groups.values()


# --- building ----------------------------------------------------------------------------------------------


class _Several(Protocol):
    """What of an `Input` is needed here."""

    @property
    def shared(self) -> Sequence[Shared]: ...
    @property
    def multi(self) -> bool: ...


def build_tasks(inp: _Several, models: Mapping[str, ModelSection], seed: Seed = None) -> Model | MultiTask:
    """Fresh weights and neutral statistics for the model of every task, shared parts shared.

    inp: the input, which says what is shared. models: by task, the section with `sel` resolved to numbers, the same for
    all that share a descriptor. seed: for parts whose sections name none; None is random. Every task draws its own numbers.

    An input of one task gives that model. Raises InputError as `build_model` does, and where tasks cannot share.
    """
    if not inp.multi:
        (section,) = models.values()
        return build_model(section, seed=seed)
    order = sorted(models)
    built: dict[str, Model] = {}
    for k, (name, section) in enumerate(models.items()):
        try:
            model = build_model(section, seed=child_seed(seed, k))
        except InputError as problem:
            raise InputError(f"model.model_dict.{name}.{str(problem).removeprefix('model.')}") from problem
        built[name] = _with_case(model, order.index(name))
    for shared in inp.shared:
        first = shared.links[0]
        for link in shared.links[1:]:
            base = part_at(built[first.task], first.place)
            part = part_at(built[link.task], link.place)
            _check_equal(models, shared, first, link)
            try:
                part = linked(part, base, link.level)
            except InputError as problem:
                raise InputError(f"model.shared_dict.{shared.name}, in task {link.task}: {problem}") from None
            built[link.task] = with_part(built[link.task], link.place, part)
    return MultiTask(names=tuple(built), tasks=tuple(built.values()))


def _check_equal(models: Mapping[str, ModelSection], shared: Shared, first: Link, link: Link) -> None:
    """Raise InputError where the sections of a shared part have become different, as by other `sel`."""
    one, other = (section_at(models[each.task], each.place) for each in (first, link))
    if one != other:
        raise InputError(
            f"model.shared_dict.{shared.name}: the tasks {first.task} and {link.task} share it, and have different "
            f"options: {one.to_dict()} and {other.to_dict()}"
        )


def _with_case(model: Model, number: int) -> Model:
    """The model with its row of the case embedding: 1 at the task's position among the sorted names."""

    def change(_: Op, copy: Op) -> Op:
        if isinstance(copy, Fitting) and copy.case_embd is not None:
            row = np.zeros_like(np.asarray(copy.case_embd))
            row[number] = 1.0
            return copy.replace(case_embd=row)
        return copy

    return model.map_ops(change)
