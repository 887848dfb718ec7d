"""Full validation on ranks, run in one process and on two: see `test_full_validation`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.backend import get_backend
from dpmodel.errors import DPError
from dpmodel.input.sections import ValidatingConfig, ValidationDataConfig
from dpmodel.losses import EnerLossConfig
from dpmodel.training.validation import FullValidation, ValidationTask


def _cells() -> Any:
    spec = importlib.util.spec_from_file_location("cells", Path(__file__).with_name("cells.py"))
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


cells = _cells()


def validated(world: Any, folder: str, *, stage: int, multi: bool, averaged: bool) -> dict[str, Any]:
    """Two validations with steps between them: what was found, and the parameters at the end."""
    stepper = cells.stepper_of(world, multi=multi, zero_stage=stage, ema_decay=0.5)
    model = cells.model_of(multi)
    models = model.models() if multi else {"": model}
    data = ValidationDataConfig(systems=folder)
    tasks = {
        name: ValidationTask(model=own, data=data, loss=EnerLossConfig(), weight=1.0 + (name == "b"))
        for name, own in models.items()
    }
    options = ValidatingConfig(
        full_validation=True, validation_freq=1, full_val_start=0.0, validation_metric="F:RMSE", early_stop_patience=1,
        save_best_dir=folder, full_val_file=f"{folder}/val.log",
    )  # fmt: skip
    validation = FullValidation(options, tasks, backend=get_backend("pt"), world=world, num_steps=9, averaged=averaged)
    saved: list[str] = []
    outcomes = []
    for step in (1, 2):
        stepper.step(
            [cells.batch_of(multi, step, frames) for frames in cells.share(world)],
            cells.LR,
            cells.TASKS[step] if multi else "",
        )
        before = stepper.model().state()
        assert validation.due(step)
        outcomes.append(
            validation.run(step, stepper, lambda path: saved.append(path.name) or stepper.model(averaged=averaged))
        )
        after = stepper.model().state()
        assert all(np.array_equal(before[name], after[name]) for name in before)  # the average was taken away again
    return {
        "values": [outcome.value for outcome in outcomes], "stops": [outcome.stop for outcome in outcomes], "saved": saved,
        "errors": [
            {f"{task}:{key}": (e.number, e.mae, e.rmse) for task, own in outcome.errors.items() for key, e in own.items()}
            for outcome in outcomes
        ], "state": validation.state(), "parameters": stepper.model().state(),
    }  # fmt: skip


def failing(world: Any, folder: str) -> str:
    """One rank cannot read a frame: all end with its message."""
    stepper = cells.stepper_of(world)
    options = ValidatingConfig(full_validation=True, save_best=False, full_val_file=f"{folder}/val.log")
    task = ValidationTask(model=cells.model_of(False), data=ValidationDataConfig(systems=folder), loss=EnerLossConfig())
    validation = FullValidation(options, {"": task}, backend=get_backend("pt"), world=world, num_steps=9)
    if world.rank == 1:
        validation.tasks[""].errors = _broken
    try:
        validation.run(1, stepper, lambda path: None)
    except (DPError, OSError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return "nothing was raised"


def _broken(*given: Any) -> Any:
    raise OSError("the disk has gone")
