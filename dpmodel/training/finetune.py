"""Fine-tuning: a run that begins with parts of a pre-trained model, of one task or of several.

What each task of the new run takes is a `Plan`:

========  =====================================================  ==================================================
kind      from the pre-trained head                              from the new data
========  =====================================================  ==================================================
inherit   everything                                             the output bias is changed by the fit of what the model
                                                                 is off by
random    the descriptor                                         the output bias, the statistics of fparam and aparam;
                                                                 the fitting net begins with random numbers
resume    everything                                             nothing
========  =====================================================  ==================================================

A run of one task inherits from the head that `--model-branch` or `finetune_head` names; without a name from a single model,
and of a model of several tasks it takes the descriptor alone, as it does with the name RANDOM. In a run of several tasks
`finetune_head` of each names the head; a task without is resumed where the model has a head of its name (or that alias), and
random where it has not.

Types are matched by symbol. Those that are new take the statistics of descriptor and bias from the data; those that the
run does not have are dropped. Parts that the new tasks share have one set of numbers: those of the first resumed task, else of
the first. All functions are pure; statistics come from functions that the caller gives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.model_file import ModelFile
from dpmodel.models import LinearModel, Model, SpinModel, StandardModel, ZBLModel
from dpmodel.models.multi_task import MultiTask
from dpmodel.models.spin import VIRTUAL
from dpmodel.op import Kind, Op, given_of
from dpmodel.statistics.change import bias_of, with_bias
from dpmodel.training.share import empty_types, with_empty_types
from dpmodel.training.start import adopt

__all__ = ["RANDOM", "SINGLE", "Origin", "Plan", "fine_tune", "plan_tasks", "source_of"]

logger = logging.getLogger(__name__)

RANDOM = "RANDOM"
"""The name of no head: the fitting net is not taken."""
SINGLE = "Default"
"""The head of a single model, as in DeePMD-kit."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A pre-trained model."""

    where: str
    """Its file, for messages."""
    heads: Mapping[str, ModelFile]
    """By name, in the order of the file; of a single model there is `SINGLE` alone."""

    @property
    def several(self) -> bool:
        """Whether it is a model of several tasks."""
        return list(self.heads) != [SINGLE]

    def find(self, name: str) -> str | None:
        """The head of that name or alias."""
        if name in self.heads:
            return name
        for head, file in self.heads.items():
            if name in (file.definition.get("model_branch_alias") or ()):
                return head
        return None

    def head(self, name: str, option: str) -> str:
        """The head of that name or alias. Raises InputError listing the heads."""
        found = self.find(name)
        if found is None:
            what = (
                f"has the heads {', '.join(self.heads)}" if self.several else "holds a single model, which has no heads"
            )
            raise InputError(
                f"{option}: there is no head {name!r}: {self.where} {what}; or give RANDOM for its descriptor alone"
            )
        return found


class Plan(NamedTuple):
    """What a task takes."""

    kind: str
    """"inherit", "random" or "resume"."""
    head: str
    """Of the pre-trained model; of "random" that of the descriptor."""


def plan_tasks(
    origin: Origin, finetune_heads: Mapping[str, str | None], model_branch: str | None = None
) -> dict[str, Plan]:
    """What every task takes. Reads nothing but names.

    finetune_heads: by task, `finetune_head` of its model section; a single task is "". model_branch: `--model-branch`.
    Raises InputError for heads that there are not, and for options that do not go together.
    """
    if "" in finetune_heads:
        asked, option = model_branch or finetune_heads[""], "--model-branch" if model_branch else "model.finetune_head"
        return {"": _plan_single(origin, asked, option)}
    if model_branch:
        raise InputError(
            "--model-branch: the input has several tasks; name the head of each in its model section, as "
            f"model.model_dict.{next(iter(finetune_heads))}.finetune_head"
        )
    if RANDOM in finetune_heads:
        raise InputError(f"model.model_dict.{RANDOM}: the name stands for a fresh fitting net; rename the task")
    return {name: _plan_one(origin, name, head) for name, head in finetune_heads.items()}


def _plan_single(origin: Origin, asked: str | None, option: str) -> Plan:
    first = next(iter(origin.heads))
    if asked == RANDOM:
        return Plan("random", first)
    if asked:
        return Plan("inherit", origin.head(asked, option))
    if not origin.several:
        return Plan("inherit", first)
    logger.warning(
        "--finetune: %s has the heads %s and none is named: its descriptor is taken, and the fitting net begins with random "
        "numbers; name a head with --model-branch to take it too", origin.where, ", ".join(origin.heads),
    )  # fmt: skip
    return Plan("random", first)


def _plan_one(origin: Origin, name: str, asked: str | None) -> Plan:
    """Of one of several tasks."""
    if asked == RANDOM:
        return Plan("random", next(iter(origin.heads)))
    if asked:
        return Plan("inherit", origin.head(asked, f"model.model_dict.{name}.finetune_head"))
    found = origin.find(name) if origin.several else None
    return Plan("random", next(iter(origin.heads))) if found is None else Plan("resume", found)


# --- the model ---------------------------------------------------------------------------------------------


def fine_tune(
    model: Any,
    origin: Origin,
    plans: Mapping[str, Plan],
    *,
    fit: Callable[[Any], Any],
    change: Callable[[str, Model], Model],
    force: bool = False,
) -> Any:
    """The model that a run begins with.

    Args:
        model: a `Model`, or the `MultiTask` of several, with fresh weights.
        origin: the pre-trained one.
        plans: by task, see `plan_tasks`.
        fit: gives a fresh model the statistics of the data of all its tasks. Called once, where they are needed.
        change: gives the model of a task the output bias that fits the task's data, by what its predictions are off by.
        force: where the pre-trained model lacks arrays, or has others than the input's, those of the fresh model stay.

    Raises ModelFileError listing the arrays that are missing or unknown, or what else does not fit; and what the functions
    raise.
    """
    names = list(plans)
    fresh = dict(model.models()) if isinstance(model, MultiTask) else {"": model}
    sources = {name: source_of(origin, plans[name], fresh[name].type_map) for name in names}
    added = {
        name: [symbol for symbol in fresh[name].type_map if symbol not in origin.heads[plans[name].head].model.type_map]
        for name in names
    }
    fitted = fresh
    if any(plans[name].kind == "random" or added[name] for name in names):
        whole = fit(model)
        fitted = dict(whole.models()) if isinstance(model, MultiTask) else {"": whole}
    found: dict[str, Model] = {}
    for name in names:
        kind, head = plans[name]
        where = f"{origin.where}{f', head {head},' if origin.several else ''}"
        _say(name, kind, where, added[name])
        start = fitted[name] if kind == "random" else fresh[name]
        donor = _grafted(start, sources[name], where) if kind == "random" else _whole(start, sources[name], where)
        taken = adopt(start, _completed(start, donor, where) if force else donor, where, exact=False)
        found[name] = _with_new_types(taken, fitted[name], added[name]) if added[name] else taken
    result: Any = found[""] if not isinstance(model, MultiTask) else _joined(model, found, plans)
    for name in names:
        if plans[name].kind == "inherit":
            own = result.task(name) if isinstance(result, MultiTask) else result
            new = _with_bias_of(own, change(name, own))
            result = result.with_task(name, new) if isinstance(result, MultiTask) else new
    return result


def _say(task: str, kind: str, where: str, added: Sequence[str]) -> None:
    what = {
        "inherit": "weights from %s; the output bias is changed to fit the data",
        "random": "descriptor from %s; the fitting net begins with random numbers",
        "resume": "goes on with the weights of %s",
    }
    logger.info("Fine-tuning%s: %s", f" {task}" if task else "", what[kind] % where.rstrip(","))
    if added:
        logger.info("Types %s are new to the model: their statistics come from the data", ", ".join(added))


def source_of(origin: Origin, plan: Plan, type_map: Sequence[str]) -> Model:
    """The pre-trained model of a plan, for the types of the run. Raises ModelFileError."""
    try:
        return origin.heads[plan.head].model.with_type_map(type_map)
    except InputError as problem:
        raise ModelFileError(f"--finetune {origin.where}: {problem}") from problem


def _whole(model: Model, source: Model, where: str) -> Model:
    """A model like `model` whose numbers are those of the source."""
    if isinstance(model, ZBLModel) and isinstance(source, StandardModel):
        return model.replace(parts=(source, *model.parts[1:]))  # a pair table is put beside a net
    _check_kind(model, source, where)
    return source


def _grafted(model: Any, source: Any, where: str) -> Any:
    """`model` with the descriptors of the source."""
    if isinstance(model, ZBLModel) and isinstance(source, StandardModel):
        return model.replace(parts=(_grafted(model.parts[0], source, where), *model.parts[1:]))
    _check_kind(model, source, where)
    if isinstance(model, StandardModel):
        return model.replace(descriptor=source.descriptor)
    if isinstance(model, SpinModel):
        return model.replace(backbone=_grafted(model.backbone, source.backbone, where))
    if isinstance(model, LinearModel):
        parts = zip(model.parts, source.parts, strict=True)
        return model.replace(parts=tuple(_grafted(own, its, where) for own, its in parts))
    return model


def _check_kind(model: Model, source: Any, where: str) -> None:
    same = type(model) is type(source)
    if isinstance(model, LinearModel) and same:
        same = len(model.parts) == len(source.parts)
    if not same:
        raise ModelFileError(
            f"{where} is a {type(source).__name__}, the input describes a {type(model).__name__}; they must be of one kind"
        )


def _completed(model: Model, donor: Any, where: str) -> Model:
    """`donor` with the arrays of `model` where it has none, and without those that `model` does not have."""
    own, its = model.state(), donor.state()
    options = given_of(model).keys() | given_of(donor).keys()  # `adopt` takes those of the input
    missing, unknown = (
        [name for name in some if name not in others and name not in options]
        for some, others in ((own, its), (its, own))
    )
    if not missing and not unknown:
        return donor
    if donor.requests() != model.requests():
        raise ModelFileError(f"--force-load: {where} has other cutoffs or sel than the input; make them equal")
    logger.warning(
        "--force-load: %s; these keep their initial values: %s; these are not used: %s",
        where, ", ".join(missing) or "none", ", ".join(unknown) or "none",
    )  # fmt: skip
    common = {
        name: np.asarray(its[name]).astype(own[name].dtype) for name in own if name in its and name not in options
    }
    try:
        found = model.with_state(common, strict=False)
    except ValueError as problem:
        raise ModelFileError(
            f"--force-load: {where} does not fit the model section of the input: {problem}"
        ) from problem
    known = empty_types(found)
    return with_empty_types(found, {path: value for path, value in empty_types(donor).items() if path in known})


def _standards(model: Any, prefix: str = "") -> Iterator[tuple[str, StandardModel]]:
    """The standard models inside, by the paths of their state."""
    if isinstance(model, StandardModel):
        yield prefix, model
    elif isinstance(model, SpinModel):
        yield from _standards(model.backbone, f"{prefix}backbone.")
    elif isinstance(model, LinearModel):
        for k, part in enumerate(model.parts):
            yield from _standards(part, f"{prefix}parts.{k}.")


def _with_new_types(model: Model, fitted: Model, added: Sequence[str]) -> Model:
    """The model with the statistics of `fitted` for types that are new: of the environment, and of the outputs."""
    state, its = {name: np.asarray(value) for name, value in model.state().items()}, fitted.state()
    rows: dict[str, list[int]] = {}
    with_virtual = [*added, *(f"{symbol}{VIRTUAL}" for symbol in added)]  # those of models with spin
    for prefix, part in _standards(model):
        types = [part.type_map.index(symbol) for symbol in with_virtual if symbol in part.type_map]
        rows |= {
            n: types for n in state if n.startswith(f"{prefix}descriptor.") and n.split(".")[-1] in ("davg", "dstd")
        }
    if model.output().by_type:  # else all types have the bias of the old ones
        own = "backbone." if isinstance(model, SpinModel) else ""  # its first types are those of the whole
        rows[f"{own}out_std"] = rows[f"{own}out_bias"] = [model.type_map.index(symbol) for symbol in added]
    for name, types in rows.items():
        if types and name in state:
            state[name] = state[name].copy()
            state[name][types] = np.asarray(its[name])[types]
    return model.with_state(state)


def _with_bias_of(model: Model, changed: Model) -> Model:
    """The model itself, its parts still shared with those of other tasks, with the output bias of another copy of it."""
    target: Any = changed.backbone if isinstance(changed, SpinModel) else changed
    return with_bias(model, bias_of(changed), np.asarray(target.out_std))


# --- what tasks share --------------------------------------------------------------------------------------


def _joined(model: MultiTask, tasks: Mapping[str, Model], plans: Mapping[str, Plan]) -> MultiTask:
    """The tasks put together, sharing what those of `model` share.

    A part in common has the numbers of the first resumed task that has it, else of the first task. Raises ModelFileError
    where two tasks cannot both be resumed unchanged.
    """
    ops: dict[int, tuple[str, Op, Op]] = {}
    arrays: dict[int, Any] = {}
    lost: dict[tuple[str, str], list[str]] = {}

    def visit(old: Op, new: Op, task: str, path: str) -> Op:
        if id(old) in ops:
            first, done, before = ops[id(old)]
            if _differ(before, new):
                lost.setdefault((first, task), []).append(path)
            return done
        changes: dict[str, Any] = {}
        for name, kind in old.fields():
            was, now, place = getattr(old, name), getattr(new, name), f"{path}.{name}".lstrip(".")
            if kind is Kind.STATIC or was is None:
                continue
            if kind is not Kind.CHILD:
                changes[name] = arrays.setdefault(id(was), now)
            elif isinstance(was, Op):
                changes[name] = visit(was, now, task, place)
            else:
                pairs = enumerate(zip(was, now, strict=True))
                changes[name] = tuple(None if a is None else visit(a, b, task, f"{place}.{k}") for k, (a, b) in pairs)
        ops[id(old)] = task, new.replace(**changes), new
        return ops[id(old)][1]

    order = sorted(tasks, key=lambda name: plans[name].kind != "resume")  # stable
    fresh = model.models()
    found = {name: visit(fresh[name], tasks[name], name, "") for name in order}
    for (first, task), paths in lost.items():
        what = (
            f"the tasks {first} and {task} share {', '.join(paths[:3])}, which differ in the heads that they come from"
        )
        if plans[task].kind == "resume":
            raise ModelFileError(f"--finetune: {what}: they cannot both go on; share less, or give one a finetune_head")
        logger.warning("%s: those of %s are taken", what, first)
    return _with_cases(model.replace(tasks=tuple(found[name] for name in model.names)), plans)


def _with_cases(model: MultiTask, plans: Mapping[str, Plan]) -> MultiTask:
    """The tasks that share a fitting net told apart by their rows of the case embedding.

    Rows belong to the numbers that were trained with them: tasks that take a fitting net keep the row of their head, and
    random ones whose row is taken get one that is free. Raises ModelFileError where two heads have the same.
    """
    state = model.state()
    shared: dict[int, list[tuple[str, str]]] = {}
    for path in state:
        if path.endswith(".case_embd"):
            net = next(name for name in state if name.startswith(f"{path.removesuffix('case_embd')}networks."))
            shared.setdefault(id(state[net]), []).append((model.names[int(path.split(".")[1])], path))
    changed: dict[str, np.ndarray] = {}
    for rows in shared.values():
        taken: dict[tuple[float, ...], str] = {}
        for task, path in sorted(rows, key=lambda each: plans[each[0]].kind == "random"):  # stable
            row = np.asarray(state[path])
            other = taken.setdefault(tuple(row.tolist()), task)
            if other == task:
                continue
            if plans[task].kind != "random":
                raise ModelFileError(
                    f"--finetune: the tasks {other} and {task} share a fitting net and come from heads with the same row "
                    f"{row.tolist()} of the case embedding, which could not tell them apart; take different heads, or give "
                    "one a fitting net of its own"
                )
            unit = next(
                each for each in np.eye(row.size, dtype=row.dtype) if taken.get(tuple(each.tolist()), task) == task
            )
            taken[tuple(unit.tolist())] = task
            changed[path] = unit
    return model.with_state({**state, **changed}) if changed else model


def _differ(one: Op, other: Op) -> bool:
    a, b = one.state(), other.state()
    return a.keys() != b.keys() or any(not np.array_equal(np.asarray(a[k]), np.asarray(b[k])) for k in a)
