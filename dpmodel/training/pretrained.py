"""Pre-trained models: opening the file of one, and taking the sections of its descriptor and fitting net."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dpmodel.config import thaw
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.model_file import ModelFile, read_heads
from dpmodel.input import Input, load_model
from dpmodel.input.checks import check_all
from dpmodel.models import Model, StandardModel
from dpmodel.models.config import ModelSection
from dpmodel.training.finetune import SINGLE, Origin, Plan, fine_tune, plan_tasks, source_of

__all__ = ["FineTuning", "open_origin", "with_pretrained_section", "with_sections"]


class FineTuning:
    """What a run takes of a pre-trained model; the chief has it. To weights it is an origin, see `dpmodel.training.weights`."""

    exact = False

    def __init__(self, path: str | Path, inp: Input, *, model_branch: str | None = None, force: bool = False) -> None:
        """Open the file and make the plans. Raises ModelFileError, InputError, BackendError."""
        heads = {name: task.finetune_head for name, task in inp.tasks.items()}
        self.pretrained = open_origin(path)
        self.plans = plan_tasks(self.pretrained, heads, model_branch)
        self.force = force
        types = {name: task.model.type_map for name, task in inp.tasks.items()}
        self.models = {name: source_of(self.pretrained, plan, types[name]) for name, plan in self.plans.items()}
        """By task, the pre-trained model for the types of the run."""
        self.min_nbor_dist: dict[str, float | None] = {}

    def sections(self, inp: Input) -> dict[str, dict[str, Any]]:
        """By task, the model section with the pre-trained descriptor and fitting net, as plain data."""
        return {
            name: with_pretrained_section(task.model, self.pretrained, self.plans[name]).to_dict()
            for name, task in inp.tasks.items()
        }

    def tuned(self, model: Any, *, fit: Callable[[Any], Any], change: Callable[[str, Model], Model]) -> Any:
        """See `fine_tune`."""
        return fine_tune(model, self.pretrained, self.plans, fit=fit, change=change, force=self.force)


def with_sections(inp: Input, sections: Mapping[str, Mapping[str, Any]]) -> Input:
    """The input with other model sections, checked as an input is. Raises InputError."""
    tasks = {name: dataclasses.replace(task, model=load_model(sections[name])) for name, task in inp.tasks.items()}
    found = dataclasses.replace(inp, tasks=tasks)
    check_all(found)
    return found


def open_origin(path: str | Path) -> Origin:
    """A model file, a checkpoint, or a `.pt` of DeePMD-kit, of one task or of several.

    The suffix may be left out, as in `model.ckpt`, which is then `model.ckpt.dp` or `model.ckpt.pt`.
    Raises ModelFileError, and BackendError where torch is missing that reads a `.pt`.
    """
    named = [Path(path), Path(f"{path}.dp"), Path(f"{path}.pt")]
    found = next((each for each in named if each.is_file()), None)
    if found is None:
        raise ModelFileError(f"--finetune {path}: there is no such file")
    heads = read_heads(found)
    return Origin(where=str(found), heads={name or SINGLE: file for name, file in heads.items()})


def with_pretrained_section(section: ModelSection, origin: Origin, plan: Plan) -> ModelSection:
    """The model section of a run with the descriptor and fitting net of what it begins with (`--use-pretrain-script`).

    Whether they are trained is said by `section`, and its seeds stay; so does the fitting net where it begins with random
    numbers. Raises InputError for models that have not one of each.
    """
    file, where = origin.heads[plan.head], origin.where
    own, its = section.to_dict(), _sections(file, section, where)
    if "descriptor" not in own:
        raise InputError("--use-pretrain-script: goes with models of one descriptor and one fitting net, not with sums")
    for key in ("descriptor",) if plan.kind == "random" else ("descriptor", "fitting_net"):
        found = dict(its[key])
        for name in ("trainable", "seed"):
            if name in own[key]:
                found[name] = own[key][name]
        own[key] = found
    return load_model(own)


def _sections(file: ModelFile, section: ModelSection, where: str) -> dict[str, Any]:
    """`descriptor` and `fitting_net` of the model, for the types of the run."""
    model: Model = file.model
    changed = model.type_map != section.type_map
    if isinstance(model, StandardModel):
        try:
            own = model.with_type_map(section.type_map)
        except InputError as problem:
            raise ModelFileError(f"--use-pretrain-script: {where}: {problem}") from problem
        return {"descriptor": own.descriptor.config.to_dict(), "fitting_net": own.fitting.config.to_dict()}
    definition = thaw(file.definition)
    if changed or "descriptor" not in definition or "fitting_net" not in definition:
        raise InputError(
            f"--use-pretrain-script: {where} does not say its sections"
            f"{' for other types than its own' if changed else ''}; write them into the input"
        )
    return {key: definition[key] for key in ("descriptor", "fitting_net")}
