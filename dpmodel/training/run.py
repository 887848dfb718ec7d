"""`dpmodel train`: from an input file to a trained model."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpmodel import __version__
from dpmodel.backend import get_trainer
from dpmodel.data import Dataset, LabelRequest, Sampler
from dpmodel.data import labels as standard_labels
from dpmodel.data.labels import as_request
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.atomic import atomic_write
from dpmodel.files.model_file import ModelFile, from_tree, read_model, to_tree
from dpmodel.geometry.build import GraphBuilder
from dpmodel.input import Input, load_input
from dpmodel.losses import build_loss
from dpmodel.models import StandardModel
from dpmodel.models.build import build_model
from dpmodel.statistics.cache import StatCache
from dpmodel.statistics.fit import fit_statistics
from dpmodel.statistics.neighbour import neighbour_statistics, resolve_sel
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import LearningCurve
from dpmodel.training.loop import Loop, RunningMean
from dpmodel.training.progress import Progress
from dpmodel.training.rotation import Family, keep_count, latest
from dpmodel.training.schedules import build_schedule
from dpmodel.training.signals import save_and_leave

__all__ = ["train"]

logger = logging.getLogger(__name__)


def train(
    input_path: str | Path | Mapping[str, Any],
    *,
    restart: str | Path | None = None,
    init_model: str | Path | None = None,
    stop_at: int | None = None,
    output: str | Path | None = "out.json",
    backend: str | None = None,
    device: str | None = None,
    skip_neighbor_stat: bool = False,
) -> Path:
    """Train a model.

    Args:
        input_path: the input file (or its content).
        restart: a checkpoint, or the name of a family ("model.ckpt"): go on exactly where it stopped. Without any
            checkpoint the run starts afresh and says so.
        init_model: a model file or checkpoint whose weights and statistics are the start of a new run.
        stop_at: stop after so many steps in all, with a checkpoint, as if interrupted.
        output: where the normalised input goes; None: nowhere.
        backend: None: `DP_BACKEND`, else pt.
        device: None: the best there is.
        skip_neighbor_stat: do not compare `sel` with the data.

    Returns:
        The last checkpoint, which is also a model file.

    Raises:
        InputError, DataError, ModelFileError, BackendError: before any step, for whatever is wrong.
        NonFiniteError: a gradient became NaN or infinite; the last checkpoint is whole.
    """
    if restart is not None and init_model is not None:
        raise InputError("--restart and --init-model exclude each other: the one goes on, the other begins anew")
    inp = load_input(input_path)
    for note in inp.notes:
        logger.warning("%s", note)
    run = _Run(inp, get_trainer(backend), device)
    run.open_data()
    checkpoint = _find_checkpoint(restart, inp) if restart is not None else None
    run.make_model(checkpoint, init_model, skip_neighbor_stat)
    if output is not None:
        text = json.dumps(run.normalised, indent=2) + "\n"
        atomic_write(Path(output), lambda path: path.write_text(text, encoding="utf-8"))
    return run.go(checkpoint, stop_at)


def _find_checkpoint(restart: str | Path, inp: Input) -> Checkpoint | None:
    save_dir = inp.training.save_dir if str(restart) == inp.training.save_ckpt else None
    path = latest(restart, save_dir)
    if path is None:
        logger.warning("--restart %s: there is no such checkpoint yet; the run starts from the beginning", restart)
        return None
    checkpoint = Checkpoint.load(path)
    logger.info("Restarting from %s after %d steps", path, checkpoint.step)
    return checkpoint


class _Run:
    """What a run is made of, in the order in which it is put together."""

    def __init__(self, inp: Input, trainer: Any, device: str | None) -> None:
        self.inp, self.trainer, self.device = inp, trainer, device
        self.normalised = json.loads(json.dumps(inp.normalised))
        self.min_nbor_dist: float | None = None
        self.loss = build_loss(inp.loss, inp.learning_rate.start_lr)  # type: ignore[attr-defined]  # all schedules have it

    # --- data -------------------------------------------------------------------------------------------

    def open_data(self) -> None:
        """Open and check all systems, and fix the length of the run."""
        training = self.inp.training
        self.data = self._open(training.training_data)
        self.data.require()
        logger.info("%s", self.data.summary("training"))
        self.valid = None if training.validation_data is None else self._open(training.validation_data)
        if self.valid is not None:
            logger.info("%s", self.valid.summary("validation"))
        if training.numb_steps is not None:
            self.num_steps = training.numb_steps
        else:
            batches = self.data.total_batches()
            self.num_steps = math.ceil(training.numb_epoch * batches)
            logger.info("numb_epoch %g of %d batches: %d steps", training.numb_epoch, batches, self.num_steps)
        self.schedule = build_schedule(self.inp.learning_rate, self.num_steps)  # type: ignore[arg-type]  # a schedule's section

    def _open(self, section: Any) -> Dataset:
        return Dataset.from_config(
            section.systems,
            rglob_patterns=section.rglob_patterns,
            batch_size=section.batch_size,
            auto_prob=section.auto_prob,
            sys_probs=section.sys_probs,
            type_map=self.inp.model.type_map,
            labels=self.labels(),
            min_pair_dist=getattr(section, "min_pair_dist", 0.0),
        )

    def labels(self) -> tuple[LabelRequest, ...]:
        """What the loss, the statistics and the model read from the data."""
        fitting: Any = self.inp.model.fitting_net
        found = {label.name: as_request(label) for label in self.loss.labels}
        found.setdefault("energy", dataclasses.replace(standard_labels.ENERGY, required=False))  # for the bias
        if fitting.numb_fparam:
            found["fparam"] = standard_labels.fparam(fitting.numb_fparam, fitting.default_fparam)
        if fitting.numb_aparam:
            found["aparam"] = standard_labels.aparam(fitting.numb_aparam)
        return tuple(found.values())

    # --- model ------------------------------------------------------------------------------------------

    def make_model(self, checkpoint: Checkpoint | None, init_model: str | Path | None, skip_neighbor_stat: bool) -> None:
        """Build the model and give it weights: restored, taken over, or fresh with the statistics of the data."""
        config, training = self.inp.model, self.inp.training
        config = self._resolve_sel(config, checkpoint, skip_neighbor_stat)
        seed = training.seed
        model = build_model(config, seed=seed)
        if checkpoint is not None:
            self.model = _adopt(model, from_tree(checkpoint.model, "the checkpoint").model, "the checkpoint")
        elif init_model is not None:
            logger.info("Weights and statistics from %s", init_model)
            self.model = _adopt(model, read_model(init_model).model, str(init_model))
        else:
            cache = None
            if training.stat_file is not None:
                cache = StatCache(training.stat_file, config.type_map, training.stat_file_mode)
            self.model = fit_statistics(
                model, self.data, nbatch=config.data_stat_nbatch, protect=config.data_stat_protect, cache=cache
            )
        count = sum(int(value.size) for value in model.state().values())
        logger.info("Model: %s, %d numbers, sel %s", config.descriptor.key, count, list(config.descriptor.sel))  # type: ignore[attr-defined]  # typed descriptors have it

    def _resolve_sel(self, config: Any, checkpoint: Checkpoint | None, skip: bool) -> Any:
        """Replace `sel: auto` by numbers from the data (or from the checkpoint), and compare given ones with the data."""
        descriptor = config.descriptor
        automatic = isinstance(descriptor.sel, str)
        if checkpoint is not None:
            stored = from_tree(checkpoint.model, "the checkpoint")
            self.min_nbor_dist = stored.min_nbor_dist
            sel = tuple(stored.model.requests()[0].sel) if automatic else descriptor.sel
        elif skip and not automatic:
            return config
        else:
            found = neighbour_statistics(self.data, descriptor.rcut, len(config.type_map))
            self.min_nbor_dist = found.min_distance
            sel = resolve_sel(descriptor.sel, found, typed=True)
            logger.info(
                "Neighbours within %g Å: at most %s per type, closest pair %.3f Å", descriptor.rcut, list(found.by_type),
                found.min_distance,
            )  # fmt: skip
        self.normalised["model"]["descriptor"]["sel"] = list(sel)
        return config.replace(descriptor=descriptor.replace(sel=tuple(sel)))

    # --- the loop ---------------------------------------------------------------------------------------

    def go(self, checkpoint: Checkpoint | None, stop_at: int | None) -> Path:
        """Run the loop; returns the last checkpoint."""
        training = self.inp.training
        stepper = self.trainer.stepper(
            self.model, self.loss, self.inp.optimizer, device=self.device, gradient_max_norm=training.gradient_max_norm
        )
        sampler = Sampler(self.data, seed=training.seed)
        checks = None if self.valid is None else Sampler(self.valid, seed=_other(training.seed))
        start = 0
        average = RunningMean()
        if checkpoint is not None:
            start = checkpoint.step
            stepper.load_optimizer_state(checkpoint.optimizer)
            sampler.restore(checkpoint.sampler["training"])
            if checks is not None and checkpoint.sampler.get("validation") is not None:
                checks.restore(checkpoint.sampler["validation"])
            average = RunningMean(checkpoint.schedule.get("average"))
        if start > self.num_steps:
            raise InputError(f"the checkpoint has {start} steps, but this input asks for {self.num_steps}; raise numb_steps")
        keep = keep_count(training.max_ckpt_keep, training.ckpt_keep_ratio, self.num_steps, training.save_freq)
        family = Family(training.save_ckpt, training.save_dir, keep)
        loop = Loop(
            stepper=stepper,
            builder=GraphBuilder(
                requests=self.model.requests(), ntypes=self.model.ntypes, exclude_pairs=self.model.pair_exclude_types,
                group_by_type=self.model.groups_types(),
            ),
            atomic_labels=frozenset(label.name for label in self.labels() if label.atomic),
            training=sampler,
            validation=checks,
            validation_batches=0 if training.validation_data is None else training.validation_data.numb_btch,
            schedule=self.schedule,
            num_steps=self.num_steps,
            disp_freq=training.disp_freq,
            save_freq=training.save_freq,
            disp_avg=training.disp_avg,
            curve=LearningCurve(training.disp_file, restored_step=start if checkpoint is not None else None),
            display=Progress(self.num_steps, start_step=start, disp_freq=training.disp_freq),
            save=lambda step: self._save(family, step, loop),
            average=average,
        )  # fmt: skip
        with save_and_leave() as request, loop.display:
            finished = loop.go(start, stop_at, request)
        if finished < self.num_steps:
            why = f"{request.name} came" if request.name else "--stop-at"
            logger.info("Stopped after %d of %d steps (%s); go on with --restart %s", finished, self.num_steps, why, family.link)
        return family.path(finished)

    def _save(self, family: Family, step: int, loop: Loop) -> None:
        model = loop.stepper.model()
        file = ModelFile(
            model=model, definition=self.normalised["model"], min_nbor_dist=self.min_nbor_dist,
            provenance={"dpmodel_input": self.normalised},
        )  # fmt: skip
        checkpoint = Checkpoint(
            step=step,
            model=to_tree(file),
            state=model.state(),
            optimizer=loop.stepper.optimizer_state(),
            schedule={"num_steps": self.num_steps, "average": loop.average.state()},
            sampler={
                "training": loop.training.state(),
                "validation": None if loop.validation is None else loop.validation.state(),
            },
            input=self.normalised,
            versions={"dpmodel": __version__, **self.trainer.versions()},
        )
        path = family.save(step, checkpoint.save)
        logger.info("Saved model to %s", path)


def _adopt(model: StandardModel, other: Any, where: str) -> StandardModel:
    """The model that the input describes with the weights and statistics of another of the same shape."""
    if tuple(other.type_map) != tuple(model.type_map):
        raise ModelFileError(f"{where} has type_map {list(other.type_map)}, the input has {list(model.type_map)}; they must be equal")
    if other.requests() != model.requests():
        raise ModelFileError(f"{where} has other cutoffs or sel ({other.requests()}) than the input ({model.requests()})")
    try:
        return model.with_state(other.state())
    except ValueError as problem:
        raise ModelFileError(f"{where} does not fit the model section of the input: {problem}") from problem


def _other(seed: Any) -> Any:
    """A seed for validation that gives another stream than that of training."""
    if seed is None:
        return None
    return (*seed, 1) if isinstance(seed, tuple) else (int(seed), 1)
