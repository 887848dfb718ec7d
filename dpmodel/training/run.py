"""`dpmodel train`: from an input file to a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpmodel.backend import get_trainer
from dpmodel.data import Sampler
from dpmodel.errors import InputError
from dpmodel.files.atomic import atomic_write
from dpmodel.files.model_file import models_from_tree
from dpmodel.input import Input, load_input
from dpmodel.statistics.change import bias_of
from dpmodel.training.bias import change_biases
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.feed import Feed
from dpmodel.training.freezing import frozen_paths
from dpmodel.training.lcurve import LearningCurve
from dpmodel.training.length import TaskDraw
from dpmodel.training.loop import Loop
from dpmodel.training.observers import check_observers, make_observers
from dpmodel.training.places import averaged_family, check_places, regular_family
from dpmodel.training.pretrained import FineTuning, with_sections
from dpmodel.training.progress import Progress
from dpmodel.training.rotation import keep_count
from dpmodel.training.saving import Saver
from dpmodel.training.schedules import build_schedule
from dpmodel.training.share import listening, shared, shared_weights
from dpmodel.training.signals import save_and_leave
from dpmodel.training.start import by_task, check_same_run, checksums, find_checkpoint, find_model, seeds
from dpmodel.training.stepper import StepOptions
from dpmodel.training.tasks import extent_of, length_of, make_tasks
from dpmodel.training.validation import FullValidation, ValidationTask, validates
from dpmodel.training.weights import Origin, make_model, resolve_capacities
from dpmodel.training.world import World

__all__ = ["train"]

logger = logging.getLogger(__name__)


def train(
    input_path: str | Path | Mapping[str, Any],
    *,
    restart: str | Path | None = None,
    init_model: str | Path | None = None,
    finetune: str | Path | None = None,
    model_branch: str | None = None,
    use_pretrain_script: bool = False,
    force_load: bool = False,
    stop_at: int | None = None,
    output: str | Path | None = "out.json",
    backend: str | None = None,
    device: str | None = None,
    skip_neighbor_stat: bool = False,
    all_ranks_log: bool = False,
) -> Path:
    """Train a model. Started by `torchrun`, the processes train one model together.

    Args:
        input_path: the input file (or its content).
        restart: a checkpoint, or the name of a family ("model.ckpt"): go on exactly where it stopped. Without any
            checkpoint the run starts afresh and says so.
        init_model: a model file or checkpoint whose weights and statistics are the start of a new run.
        finetune: a pre-trained model (file or checkpoint, of one task or several) that a new run begins with, see
            `dpmodel.training.finetune`.
        model_branch: its head that weights are taken of, or "RANDOM" for its descriptor alone; of inputs of one task.
        use_pretrain_script: the sections of descriptor and fitting net are those of the pre-trained model.
        force_load: what the pre-trained model lacks begins with fresh numbers, instead of ending the run.
        stop_at: stop after so many steps in all, with a checkpoint, as if interrupted.
        output: where the normalised input goes, not the input file itself; None: nowhere.
        backend: None: `DP_BACKEND`, else pt.
        device: None: the best there is.
        skip_neighbor_stat: do not compare `sel` with the data.
        all_ranks_log: processes other than the first log everything too, not warnings alone.

    Returns:
        The last checkpoint, which is also a model file.

    Raises:
        InputError, DataError, ModelFileError, BackendError: before any step, for whatever is wrong.
        NonFiniteError: a gradient became NaN or infinite; the last checkpoint is whole.
        RankError: another process could not go on.
    """
    starts = {"--restart": restart, "--init-model": init_model, "--finetune": finetune}
    if len(given := [name for name, value in starts.items() if value is not None]) > 1:
        raise InputError(f"{' and '.join(given)} exclude each other: --restart goes on, the others begin anew")
    options = {"--model-branch": model_branch, "--use-pretrain-script": use_pretrain_script, "--force-load": force_load}
    if finetune is None and (given := [name for name, value in options.items() if value]):
        raise InputError(f"{given[0]}: belongs to --finetune; give the pre-trained model with it")
    if stop_at is not None and stop_at < 0:
        raise InputError(f"--stop-at: expected a step of at least 0, got {stop_at}")
    # What is wrong with an input is said before a framework is loaded; by one of several processes.
    alone = os.environ.get("WORLD_SIZE", "").strip() in ("", "1")
    inp = load_input(input_path) if alone else None
    trainer = get_trainer(backend)
    with trainer.join(device) as world, listening(world, everyone=all_ranks_log):
        with world.agreement("reading the input"):
            inp = load_input(input_path) if inp is None else inp
            if world.chief:
                for note in inp.notes:
                    logger.warning("%s", note)
                path = None if isinstance(input_path, Mapping) else input_path
                check_places(inp, input_path=path, output=output)
            run = _Run(inp, trainer, device, world)
        run.compare(
            restart=restart is not None, init_model=init_model is not None, finetune=finetune is not None,
            use_pretrain_script=use_pretrain_script, output=output is not None, stop_at=-1 if stop_at is None else stop_at,
        )  # fmt: skip
        run.find_start(restart, init_model)
        if finetune is not None:
            run.fine_tune(finetune, model_branch, force=force_load, sections=use_pretrain_script)
        run.open_data()
        run.make_model(skip_neighbor_stat)
        run.prepare()
        with world.agreement("writing the normalised input"):
            if output is not None and world.chief:
                text = json.dumps(run.normalised, indent=2) + "\n"
                atomic_write(Path(output), lambda path: path.write_text(text, encoding="utf-8"))
        return run.go(stop_at)


class _Run:
    """What a run is made of, in the order in which it is put together; the methods are collective."""

    def __init__(self, inp: Input, trainer: Any, device: str | None, world: World) -> None:
        self.inp, self.trainer, self.device, self.world = inp, trainer, device, world
        if inp.training.enable_compile and not trainer.compiles_training:
            raise InputError(
                f"training.enable_compile needs the backend pt_expt, and this run is on {trainer.name}: add "
                "--backend pt_expt (or set DP_BACKEND=pt_expt), or remove enable_compile"
            )
        if inp.optimizer.key not in trainer.optimizers:
            raise InputError(
                f"optimizer.type: expected one of {', '.join(sorted(trainer.optimizers))} on the backend {trainer.name}, got "
                f"{inp.optimizer.key}; use one of them, or --backend pt"
            )
        if inp.multi and not trainer.several_tasks:
            raise InputError(
                f"model.model_dict: the backend {trainer.name} trains one task; for several use --backend pt, or --backend "
                "pt_expt to compile them"
            )
        check_observers(inp.training, trainer)
        self.normalised = json.loads(json.dumps(inp.normalised))
        self.tasks = make_tasks(inp, world.size)
        self.checkpoint: Checkpoint | None = None
        """To go on from."""
        self.origin: Origin | FineTuning | None = None
        """Whose weights are the start."""

    @property
    def start(self) -> int:
        """Steps that are done."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    # --- what it begins with ----------------------------------------------------------------------------

    def compare(self, **options: int) -> None:
        """All processes must have the same input and options, before any of them decides what they do next."""
        self.world.same(**checksums(self.normalised), **options)

    def find_start(self, restart: str | Path | None, init_model: str | Path | None) -> None:
        """Read the checkpoint or the model that the run begins with: the chief does, and tells the others."""
        training, world = self.inp.training, self.world
        found = None
        with world.agreement("reading what the run begins with"):
            if world.chief and restart is not None:
                found = find_checkpoint(restart, training.save_ckpt, training.save_dir)
            elif world.chief and init_model is not None:
                types = next(iter(self.inp.models.values())).type_map
                self.origin = Origin(find_model(init_model, types), str(init_model), exact=False)
            if found is not None:
                name = "the checkpoint"
                self.origin = Origin(models_from_tree(found.model, name), name, exact=True)
        content = {} if found is None else {name: getattr(found, name) for name in _SHARED}
        content = shared(world, content)
        if content:
            self.checkpoint = found if found is not None else Checkpoint(model={}, state={}, **content)
        seed = training.seed
        if seed is None:
            (seed,) = world.integers([int.from_bytes(os.urandom(7))])
        self.seed, self.validation_seed = seeds(seed)
        self.task_seed = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        if self.checkpoint is not None and self.checkpoint.random.get("seed"):
            self.task_seed = tuple(self.checkpoint.random["seed"])

    def fine_tune(self, path: str | Path, branch: str | None, *, force: bool, sections: bool) -> None:
        """Read the pre-trained model, and take its sections where asked for: the chief does, and tells the others."""
        found: dict[str, Any] = {}
        with self.world.agreement("reading the pre-trained model"):
            if self.world.chief:
                self.origin = FineTuning(path, self.inp, model_branch=branch, force=force)
                found = self.origin.sections(self.inp) if sections else {}
        found = self.world.plain(found)
        with self.world.agreement("taking the sections of the pre-trained model"):
            if found:
                self.inp = with_sections(self.inp, found)
                self.tasks = make_tasks(self.inp, self.world.size)

    def open_data(self) -> None:
        """Open and check all systems, and fix the length of the run; all processes must have the same."""
        with self.world.agreement("opening the data"):
            for task in self.tasks.values():
                task.open_data()
        self.length = length_of(self.inp, self.tasks, self.world, self.checkpoint)
        self.num_steps = self.length.num_steps
        self._check_validation()
        self.draw = TaskDraw(self.length.shares, self.task_seed)
        self.schedule = build_schedule(self.inp.learning_rate, self.num_steps, workers=self.world.size)  # type: ignore[arg-type]  # a schedule's section
        self.world.same(
            num_steps=self.num_steps, warmup_steps=self.schedule.warmup_steps, first_step=self.start,
            **{f"the_data{f'_of_{name}' if name else ''}": extent_of(task) for name, task in self.tasks.items()},
            **{f"probability_of_{name or 'the_task'}": edge for name, edge in zip(self.tasks, self.draw.edges, strict=True)},
        )  # fmt: skip

    def _check_validation(self) -> None:
        """Say where full validation is asked for and no step is one of it. Raises InputError where a stop depends on it."""
        given = self.inp.validating
        off = not (given.full_validation or given.ema_full_validation) or given.full_val_start == 1
        if off or validates(given.full_val_start, given.validation_freq, self.num_steps):
            return
        what = (
            f"none of the {self.num_steps} steps is one of full validation (validation_freq {given.validation_freq}, "
            f"full_val_start {given.full_val_start:g})"
        )
        if given.early_stop_patience is not None and self.num_steps:
            raise InputError(f"validating.early_stop_patience: {what}, and nothing would be counted; lower them")
        if self.world.chief:
            logger.warning("validating: %s; no best checkpoints are kept", what)

    def make_model(self, skip_neighbor_stat: bool) -> None:
        """Build the model and give it weights: restored, taken over, or fresh with the statistics of the data."""
        models = resolve_capacities(self.inp, self.tasks, self.world, origin=self.origin, skip=skip_neighbor_stat)
        self.normalised["model"] = self.inp.model_section(models)
        if self.checkpoint is not None:
            with self.world.agreement("comparing the input with the checkpoint"):
                if self.world.chief:
                    check_same_run(self.checkpoint, self.normalised, self.num_steps)
        self.model = make_model(
            self.inp, self.tasks, models, self.world, seed=self.seed, origin=self.origin,
            probabilities=self.length.probabilities, backend=self.trainer.name, device=self.device,
        )  # fmt: skip

    # --- the loop ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make everything that steps need, restored where there is a checkpoint. Writes nothing."""
        training, world = self.inp.training, self.world
        decay = training.ema_decay if training.enable_ema else None
        options = StepOptions(
            gradient_max_norm=training.gradient_max_norm,
            compile=training.enable_compile,
            ema_decay=decay,
            zero_stage=training.zero_stage,
            num_steps=self.num_steps,
            start_lr=self.schedule.start_lr,
            seed=self.task_seed,
            frozen=frozen_paths(self.model, training.freeze_parameters),
            norms=training.tensorboard,
            tf32=training.enable_tf32,
            amp=training.enable_bf16,
        )
        losses = {name: task.loss for name, task in self.tasks.items()}
        self.stepper = self.trainer.stepper(
            self.model, losses, self.inp.optimizer, options=options, device=self.device, world=world
        )
        self.validations = self._validations()
        self.loop = self._loop()
        if self.checkpoint is not None:
            self._restore(self.checkpoint, decay)
        self.saver = self._saver(decay)
        self.loop.save_best = self.saver.save_best
        # Their numbers are the stepper's now, which may share them out.
        self.origin = self.model = None
        if self.checkpoint is not None:
            self.checkpoint = dataclasses.replace(self.checkpoint, model={}, state={}, optimizer={}, ema={})

    def _restore(self, checkpoint: Checkpoint, decay: float | None) -> None:
        """Optimizer, averages, batches: as they were."""
        self.stepper.load_optimizer_state(checkpoint.optimizer)
        ema = checkpoint.ema
        if decay is not None and ema.get("state"):
            if ema.get("decay") != decay and self.world.chief:
                logger.warning("--restart: training.ema_decay is %g (was %s); the average goes on with %g", decay,
                               ema.get("decay"), decay)  # fmt: skip
            self.stepper.load_averaged_state(ema["state"])
        elif self.world.chief and (decay is None) != (not ema.get("state")):
            logger.warning(
                "--restart: %s", "the checkpoint has no averaged weights; the average begins with its weights"
                if decay is not None else "the averaged weights of the checkpoint end here: training.enable_ema is false",
            )  # fmt: skip
        with self.world.agreement("restoring the order of batches"):
            self.loop.restore(
                {"tasks": checkpoint.sampler.get("tasks", {}), "average": checkpoint.schedule.get("average")}
            )
        before = {int(each["training"]["world"]) for each in checkpoint.sampler.get("tasks", {}).values()}
        if before - {self.world.size} and self.world.chief:
            logger.warning(
                "--restart: the run goes on with %d processes (was %s): a step has other batches than it would have had; "
                "no frame is left out or comes twice", self.world.size, ", ".join(map(str, sorted(before))),
            )  # fmt: skip

    def _feed(self, name: str) -> Feed:
        task, world = self.tasks[name], self.world
        own, checks = self.seed, self.validation_seed
        if name:  # tasks draw independently
            parts = self.seed if isinstance(self.seed, tuple) else (self.seed,)
            own = (*parts, 2, int.from_bytes(name.encode()))
            checks = (*own, 1)
        validation = task.given.data.validation_data
        return Feed(
            builder=task.builder,
            atomic_labels=frozenset(label.name for label in task.labels() if label.atomic),
            training=Sampler(task.data, own, world.rank, world.size),
            validation=None if task.valid is None else Sampler(task.valid, checks, world.rank, world.size),
            validation_batches=0 if validation is None else validation.numb_btch,
        )

    def _loop(self) -> Loop:
        training = self.inp.training
        return Loop(
            stepper=self.stepper,
            tasks={name: self._feed(name) for name in self.tasks},
            draw=self.draw,
            accumulate=training.acc_freq,
            schedule=self.schedule,
            num_steps=self.num_steps,
            disp_freq=training.disp_freq,
            save_freq=training.save_freq,
            disp_avg=training.disp_avg,
            curve=None,
            display=Progress(
                self.num_steps, start_step=self.start, disp_freq=training.disp_freq, enabled=self.world.chief
            ),
            save=self._save,
            validations=self.validations,
            world=self.world,
            stopped_early=any(each.patience is not None and each.since >= each.patience for each in self.validations),
        )

    def _validations(self) -> list[FullValidation]:
        """Full validation, of the weights and of their average."""
        options, checkpoint = self.inp.validating, self.checkpoint
        switches = {False: options.full_validation, True: options.ema_full_validation}
        wanted = [averaged for averaged, on in switches.items() if on]
        if not wanted or not validates(options.full_val_start, options.validation_freq, self.num_steps):
            return []
        models = by_task(self.model)
        tasks = {
            name: ValidationTask(
                model=models[name], data=task.given.data.validation_data, loss=task.given.loss,  # type: ignore[arg-type]  # a loss's section
                weight=self.length.probabilities[name],
            )
            for name, task in self.tasks.items()
            if task.given.data.validation_data is not None
        }  # fmt: skip
        before = {False: {}, True: {}} if checkpoint is None else {
            False: checkpoint.validation, True: checkpoint.ema.get("validation", {})
        }  # fmt: skip
        return [
            FullValidation(
                options, tasks, backend=self.trainer, world=self.world, num_steps=self.num_steps,
                save_ckpt=self.inp.training.save_ckpt, averaged=averaged, state=before[averaged],
                restored_step=None if checkpoint is None else checkpoint.step,
            )
            for averaged in wanted
        ]  # fmt: skip

    def _saver(self, decay: float | None) -> Saver:
        training = self.inp.training

        def keep(count: int) -> int:
            return keep_count(count, training.ckpt_keep_ratio, self.num_steps, training.save_freq)

        averaged = None
        if decay is not None:
            own = training.max_ckpt_keep if training.ema_ckpt_keep is None else training.ema_ckpt_keep
            averaged = averaged_family(self.inp, keep(own))
        return Saver(
            world=self.world,
            stepper=self.stepper,
            tasks=self.tasks,
            normalised=self.normalised,
            num_steps=self.num_steps,
            versions=self.trainer.versions(),
            family=regular_family(self.inp, keep(training.max_ckpt_keep)),
            averaged=averaged,
            ema_decay=decay,
            first_step=self.start,
            bias_changed_at=self.start
            if self.checkpoint is not None and self.checkpoint.schedule.get("bias_changed")
            else None,
            seed=self.task_seed,
            progress=self.loop.state,
            validation=self._validation_state,
        )

    def _save(self, step: int) -> None:
        self.saver.save(step)

    def _validation_state(self, averaged: bool) -> dict[str, Any]:
        return next((each.state() for each in self.validations if each.averaged is averaged), {})

    def go(self, stop_at: int | None) -> Path:
        """Run the loop; returns the last checkpoint."""
        training, world, saver, start = self.inp.training, self.world, self.saver, self.start
        restored = None if self.checkpoint is None else start
        with contextlib.ExitStack() as stack:
            with world.agreement("opening the files of the run"):
                if world.chief:
                    self.loop.curve = LearningCurve(training.disp_file, restored_step=restored)
                    self.loop.observers = make_observers(
                        training, self.trainer, restored_step=restored, validations=self.validations,
                        norms=lambda: (
                            getattr(self.stepper, "gradient_norm", math.nan),
                            getattr(self.stepper, "gradient_norms", {}),
                        ),
                    )  # fmt: skip
                    for observer in self.loop.observers:
                        stack.callback(observer.close)
                    for validation in self.validations:
                        validation.begin()
            if self.checkpoint is not None and start >= self.num_steps:
                logger.info("All %d steps are done: nothing is left to do", self.num_steps)
            request = stack.enter_context(save_and_leave(several=world.size > 1))
            stack.enter_context(self.loop.display)  # type: ignore[arg-type]  # Progress
            # A checkpoint that was restored from another place is not one of this run's files yet.
            files = [saver.family] if saver.averaged is None else [saver.family, saver.averaged]
            (saved,) = world.integers(
                [self.checkpoint is not None and all(each.path(start).is_file() for each in files)]
            )
            finished = self.loop.go(start, None if stop_at is None else stop_at, request, saved=bool(saved))
        ended = finished >= self.num_steps or self.loop.stopped_early
        if not ended:
            why = f"{request.name} came" if request.name else "--stop-at"
            logger.info(
                "Stopped after %d of %d steps (%s); go on with --restart %s", finished, self.num_steps, why,
                saver.family.link,
            )  # fmt: skip
        elif self.loop.stopped_early:
            logger.info("Stopped after %d of %d steps: validation has not become better", finished, self.num_steps)
        if ended and training.change_bias_after_training and finished and saver.bias_changed_at != finished:
            self._change_bias(finished)
        return saver.family.path(finished)

    def _change_bias(self, step: int) -> None:
        """Fit the output bias to the training data, and write both checkpoints again."""
        before: Any = self.stepper.model()
        model = before
        with self.world.agreement("fitting the output bias"):
            if self.world.chief:
                model = change_biases(
                    before,
                    {name: task.data for name, task in self.tasks.items()},
                    nbatch={name: task.given.model.data_stat_nbatch for name, task in self.tasks.items()},
                    backend=self.trainer.name,
                    device=self.device,
                )
                for (name, old), new in zip(by_task(before).items(), by_task(model).values(), strict=True):
                    logger.info(
                        "The output bias%s was fitted to the training data; the largest change is %.4g",
                        f" of {name}" if name else "", abs(bias_of(new) - bias_of(old)).max(),
                    )  # fmt: skip
        # The others get its numbers, so that all go on with the same model.
        model = shared_weights(self.world, model)
        self.stepper.load_buffers(model)
        self.saver.bias_changed_at = step
        self.saver.save(step)


_SHARED = ("step", "optimizer", "schedule", "sampler", "random", "ema", "validation", "input")
"""What other processes need of a checkpoint."""
