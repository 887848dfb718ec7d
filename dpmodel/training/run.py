"""`dpmodel train`: from an input file to a trained model."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel import __version__
from dpmodel.backend import get_trainer
from dpmodel.data import Dataset, LabelRequest, Sampler
from dpmodel.data import labels as standard_labels
from dpmodel.data.labels import as_request
from dpmodel.descriptors.base import Capacity
from dpmodel.errors import InputError
from dpmodel.files.atomic import atomic_write
from dpmodel.files.model_file import ModelFile, from_tree, to_tree
from dpmodel.input import Input, load_input
from dpmodel.losses import build_loss
from dpmodel.models import builder_of
from dpmodel.models.build import build_model, known_capacities
from dpmodel.statistics.cache import StatCache
from dpmodel.statistics.fit import bias_labels, fit_statistics
from dpmodel.statistics.neighbour import neighbour_statistics, resolve_sel
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.lcurve import LearningCurve
from dpmodel.training.loop import Loop, RunningMean
from dpmodel.training.progress import Progress
from dpmodel.training.rotation import Family, keep_count
from dpmodel.training.schedules import build_schedule
from dpmodel.training.signals import save_and_leave
from dpmodel.training.start import (
    adopt,
    check_places,
    check_same_run,
    find_checkpoint,
    find_model,
    observed_types,
    restore_sampler,
    seeds,
)
from dpmodel.training.stepper import NonFiniteError, Stepper

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
        output: where the normalised input goes, not the input file itself; None: nowhere.
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
    if stop_at is not None and stop_at < 0:
        raise InputError(f"--stop-at: expected a step of at least 0, got {stop_at}")
    inp = load_input(input_path)
    for note in inp.notes:
        logger.warning("%s", note)
    path = None if isinstance(input_path, Mapping) else input_path
    check_places(inp.training, input_path=path, output=output)
    run = _Run(inp, get_trainer(backend), device)
    if restart is not None:
        run.checkpoint = find_checkpoint(restart, inp.training.save_ckpt, inp.training.save_dir)
    elif init_model is not None:
        run.origin, run.origin_name = find_model(init_model, inp.model.type_map), str(init_model)
    run.open_data()
    run.make_model(skip_neighbor_stat)
    run.prepare()
    if output is not None:
        text = json.dumps(run.normalised, indent=2) + "\n"
        atomic_write(Path(output), lambda path: path.write_text(text, encoding="utf-8"))
    return run.go(stop_at)


class _Run:
    """What a run is made of, in the order in which it is put together."""

    def __init__(self, inp: Input, trainer: Any, device: str | None) -> None:
        self.inp, self.trainer, self.device = inp, trainer, device
        if inp.training.enable_compile and not trainer.compiles_training:
            raise InputError(
                f"training.enable_compile needs the backend pt_expt, and this run is on {trainer.name}: add "
                "--backend pt_expt (or set DP_BACKEND=pt_expt), or remove enable_compile"
            )
        self.normalised = json.loads(json.dumps(inp.normalised))
        self.seed, self.validation_seed = seeds(inp.training.seed)
        self.min_nbor_dist: float | None = None
        self.checkpoint: Checkpoint | None = None
        """To go on from."""
        self.origin: ModelFile | None = None
        """Whose weights are the start."""
        self.origin_name = "the checkpoint"
        start_lr: float = inp.learning_rate.start_lr  # type: ignore[attr-defined]  # all schedules have it
        self.loss = build_loss(inp.loss, start_lr, inp.model.output())
        if not self.loss.terms:
            raise InputError(
                "loss: all prefactors are 0, so there is nothing to learn; set start_pref_e or start_pref_f"
            )

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
            # In decimal arithmetic: 0.1 epochs of 30 batches are 3 steps, not 4.
            self.num_steps = math.ceil(Fraction(str(training.numb_epoch)) * batches)
            if self.num_steps >= 2**53:
                raise InputError(
                    f"training.numb_epoch: {training.numb_epoch:g} passes are {self.num_steps:.3g} steps; lower it"
                )
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
        model = self.inp.model
        found = {label.name: as_request(label) for label in self.loss.labels}
        for name, atomic in bias_labels(model.output()).items():  # of the output bias
            if atomic and name == "atom_ener":
                continue  # energies of atoms are a matter of the loss alone
            shape = model.output().shape
            found.setdefault(name, LabelRequest(name=name, shape=shape, atomic=atomic, high_precision=not atomic))
        (fparam, default_fparam), (charge_spin, default_charge_spin) = model.fparam(), model.charge_spin()
        for request in standard_labels.inputs(
            fparam_dim=fparam,
            default_fparam=default_fparam,
            aparam_dim=model.numb_aparam(),
            takes_charge_spin=charge_spin,
            default_charge_spin=default_charge_spin,
            takes_spin=model.has_spin(),
        ):
            found[request.name] = request
        return tuple(found.values())

    # --- model ------------------------------------------------------------------------------------------

    def make_model(self, skip_neighbor_stat: bool) -> None:
        """Build the model and give it weights: restored, taken over, or fresh with the statistics of the data."""
        training = self.inp.training
        if self.checkpoint is not None:
            self.origin = from_tree(self.checkpoint.model, self.origin_name)
        config = self._resolve_sel(skip_neighbor_stat)
        if self.checkpoint is not None:
            check_same_run(self.checkpoint, self.normalised, self.num_steps)
        model = build_model(config, seed=self.seed)
        # One for statistics and steps: it warns once of neighbours that it cuts off.
        self.builder = builder_of(model)
        self.observed = observed_types(self.data, config.type_map)
        if self.origin is not None:
            self.model = adopt(model, self.origin.model, self.origin_name, exact=self.checkpoint is not None)
        else:
            cache = None
            if training.stat_file is not None:
                cache = StatCache(training.stat_file, model.graph_model.type_map, training.stat_file_mode)
            self.model = fit_statistics(
                model,
                self.data,
                self.builder,
                nbatch=config.data_stat_nbatch,
                protect=config.data_stat_protect,
                cache=cache,
            )
        count = sum(int(value.size) for value in model.state().values())
        sel = ", ".join(str(list(request.sel)) for request in model.requests())
        kinds = " + ".join(part.environment.key for part in config.standard_parts().values())
        logger.info("Model: %s, %d numbers, sel %s", kinds, count, sel)
        self.loss = self.loss.bound(self.model)

    def _resolve_sel(self, skip: bool) -> Any:
        """The model section with `sel: auto` replaced by that of the origin, or by numbers from the data.

        Without an origin, given numbers are compared with the data.
        """
        config, origin = self.inp.model, self.origin
        capacities = config.capacities()
        known = () if origin is None else known_capacities(origin.model)
        values = [
            known[k] if isinstance(each.value, str) and len(known) == len(capacities) else each.value
            for k, each in enumerate(capacities)
        ]
        open_ones = any(isinstance(value, str) for value in values)
        if self.checkpoint is not None:
            self.min_nbor_dist = None if origin is None else origin.min_nbor_dist
        if open_ones or not (skip or self.checkpoint is not None):
            values = [self._count_neighbours(each, value) for each, value in zip(capacities, values, strict=True)]
        config = config.with_capacities([(value,) if isinstance(value, int) else tuple(value) for value in values])
        self.normalised["model"] = config.to_dict()
        return config

    def _count_neighbours(self, capacity: Capacity, value: Any) -> tuple[int, ...]:
        """The value as numbers, compared with the data."""
        model = self.inp.model
        found = neighbour_statistics(
            self.data, capacity.rcut, len(model.type_map), allow_overlap=model.tolerates_overlap(),
            spin_scales=model.spin_scales(),
        )  # fmt: skip
        self.min_nbor_dist = found.min_distance
        logger.info(
            "Neighbours within %g Å: at most %s, closest pair %.3f Å", capacity.rcut,
            f"{list(found.by_type)} per type" if capacity.typed else found.total, found.min_distance,
        )  # fmt: skip
        return resolve_sel(value, found, typed=capacity.typed, name=capacity.option)

    # --- the loop ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the optimizer and the order of batches, restored where there is a checkpoint. Writes nothing."""
        training, checkpoint = self.inp.training, self.checkpoint
        self.stepper: Stepper = self.trainer.stepper(
            self.model, self.loss, self.inp.optimizer, device=self.device, gradient_max_norm=training.gradient_max_norm,
            compile=training.enable_compile,
        )  # fmt: skip
        self.sampler = Sampler(self.data, seed=self.seed)
        self.checks = None if self.valid is None else Sampler(self.valid, seed=self.validation_seed)
        self.average = RunningMean()
        if checkpoint is not None:
            self.stepper.load_optimizer_state(checkpoint.optimizer)
            restore_sampler(self.sampler, checkpoint.sampler.get("training"), "training_data")
            if self.checks is not None and checkpoint.sampler.get("validation") is not None:
                restore_sampler(self.checks, checkpoint.sampler["validation"], "validation_data")
            self.average = RunningMean(checkpoint.schedule.get("average"))
        keep = keep_count(training.max_ckpt_keep, training.ckpt_keep_ratio, self.num_steps, training.save_freq)
        self.family = Family(training.save_ckpt, training.save_dir, keep)

    def go(self, stop_at: int | None) -> Path:
        """Run the loop; returns the last checkpoint."""
        training, family = self.inp.training, self.family
        start = 0 if self.checkpoint is None else self.checkpoint.step
        progress = Progress(self.num_steps, start_step=start, disp_freq=training.disp_freq)
        loop = Loop(
            stepper=self.stepper,
            builder=self.builder,
            atomic_labels=frozenset(label.name for label in self.labels() if label.atomic),
            training=self.sampler,
            validation=self.checks,
            validation_batches=0 if training.validation_data is None else training.validation_data.numb_btch,
            schedule=self.schedule,
            num_steps=self.num_steps,
            disp_freq=training.disp_freq,
            save_freq=training.save_freq,
            disp_avg=training.disp_avg,
            curve=LearningCurve(training.disp_file, restored_step=None if self.checkpoint is None else start),
            display=progress,
            save=lambda step: self._save(step, loop.average),
            average=self.average,
        )  # fmt: skip
        if self.checkpoint is not None and start >= self.num_steps:
            logger.info("All %d steps are done: nothing is left to do", self.num_steps)
        with save_and_leave() as request, progress:
            # A checkpoint that was restored from another place is not one of this run's files yet.
            saved = self.checkpoint is not None and family.path(start).is_file()
            finished = loop.go(start, stop_at, request, saved=saved)
        if finished < self.num_steps:
            why = f"{request.name} came" if request.name else "--stop-at"
            link = family.link
            logger.info(
                "Stopped after %d of %d steps (%s); go on with --restart %s", finished, self.num_steps, why, link
            )
        return family.path(finished)

    def _save(self, step: int, average: RunningMean) -> None:
        model = self.stepper.model()
        state = model.state()
        bad = [name for name, value in state.items() if not np.isfinite(value).all()]
        if bad:
            first = 0 if self.checkpoint is None else self.checkpoint.step
            why = "Lower learning_rate.start_lr, or set training.gradient_max_norm"
            if step == first:  # nothing was learned yet
                why = "Look for wrong frames in the data, and for wrong values in the model that was the start"
            raise NonFiniteError(
                f"after step {step} the model holds NaN or infinite numbers in {', '.join(bad[:8])}; that was not saved. "
                f"{why}"
            )
        section = self.normalised["model"]
        file = ModelFile(
            model=model, definition={**section, "info": {**section["info"], "observed_type": self.observed}}, min_nbor_dist=self.min_nbor_dist,
            provenance={"dpmodel_input": self.normalised},
        )  # fmt: skip
        checkpoint = Checkpoint(
            step=step,
            model=to_tree(file),
            state=state,
            optimizer=self.stepper.optimizer_state(),
            schedule={"num_steps": self.num_steps, "average": average.state()},
            sampler={
                "training": self.sampler.state(),
                "validation": None if self.checks is None else self.checks.state(),
            },
            input=self.normalised,
            versions={"dpmodel": __version__, **self.trainer.versions()},
        )
        path = self.family.save(step, checkpoint.save)
        logger.info("Saved model to %s", path)
