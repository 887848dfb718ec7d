"""The sections of an input file that no other part of the library owns, and the file as a whole."""

from __future__ import annotations

import re
from typing import Any

from dpmodel import losses
from dpmodel.config import Config, FrozenDict, at_least, named_sections, option, positive, section
from dpmodel.input.optimizers import OPTIMIZERS, AdamConfig, AdamWConfig
from dpmodel.losses import EnerLossConfig
from dpmodel.models.config import LinearConfig, ModelConfig, ModelSection
from dpmodel.training import schedules

__all__ = [
    "CHECKPOINT_NAME",
    "OPTIMIZERS",
    "AdamConfig",
    "AdamWConfig",
    "DataConfig",
    "InputFile",
    "ModelConfig",
    "ModelFile",
    "MultiInputFile",
    "MultiModelConfig",
    "MultiTrainingConfig",
    "RunConfig",
    "TaskDataConfig",
    "TrainingConfig",
    "TrainingDataConfig",
    "ValidatingConfig",
    "ValidationDataConfig",
]

MODELS = (ModelConfig, LinearConfig)
"""Every kind of `model`."""
CHECKPOINT_NAME = "model.ckpt"
"""Of checkpoints where an input gives none."""

# --- checks -------------------------------------------------------------------------------------------


def _between(low: float, high: float, *, closed: bool) -> Any:
    text = f"a number of at least {low} and below {high}" if closed else f"a number above {low} and below {high}"
    return lambda value: None if (low <= value if closed else low < value) and value < high else text


def _filled(value: Any) -> str | None:
    return None if value and all(value) else "at least one path, none empty"


def _batch_size(value: Any) -> str | None:
    if isinstance(value, str):
        form = re.fullmatch(r"auto|(auto|max|filter|mixed):([1-9]\d*)", value)
        return None if form else '"auto", "auto:n", "max:n", "filter:n" or "mixed:n" with an integer n above 0'
    sizes = value if isinstance(value, tuple) else (value,)
    return None if sizes and all(size > 0 for size in sizes) else "integers above 0, one or one per system"


def _auto_prob(value: str) -> str | None:
    block = r"-?\d*:-?\d*:(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
    fits = re.fullmatch(rf"prob_uniform|prob_sys_size(;{block})*", value.replace(" ", ""))
    return None if fits else '"prob_uniform", "prob_sys_size" or "prob_sys_size;first:end:weight;..."'


def _sys_probs(value: tuple[float, ...]) -> str | None:
    fits = bool(value) and sum(p for p in value if p > 0) <= 1 + 1e-9
    return None if fits else "one probability per system with a sum of at most 1 (negative: share the rest by size)"


def _filled_or_none(value: tuple[str, ...]) -> str | None:
    return None if all(value) else "patterns of parameter paths, none empty"


def _metrics_file(value: str) -> str | None:
    return None if value.lower().endswith((".csv", ".jsonl")) else "the name of a file that ends in .csv or .jsonl"


def _weights_by_task(value: FrozenDict) -> str | None:
    fits = all(isinstance(x, int | float) and not isinstance(x, bool) and x >= 0 for x in value.values())
    return None if fits else "a number of at least 0 for every task"


def _metric(value: str) -> str | None:
    fits = re.fullmatch(r"(e|f|v|fr|fm|g|l):(mae|rmse)", value, re.IGNORECASE)
    return None if fits else "E, F or V (with spin E, FR, FM; of other models G, L), a colon, MAE or RMSE; as in E:MAE"


# --- training -----------------------------------------------------------------------------------------


class DataConfig(Config):
    """Which systems, and how batches are drawn from them."""

    systems: str | tuple[str, ...] = option(
        ".",
        "A folder that is searched for systems (folders with type.raw), or a list of systems and such folders. Files of "
        "HDF5 (x.hdf5#/group), LMDB and extended XYZ are systems too.",
        check=_filled,
    )
    rglob_patterns: tuple[str, ...] | None = option(None, "Patterns that replace the search below `systems`.")
    label_names: FrozenDict = option(
        FrozenDict(),
        'What extended XYZ files call labels, as in {"energy": "REF_energy", "force": "REF_forces"}; a stress may stand '
        "for the virial.",
    )
    batch_size: int | str | tuple[int, ...] = option(
        "auto",
        'Frames per batch: a number, one per system, or "auto:n" (at least n atoms; "auto" is "auto:32"), "max:n" (at '
        'most n atoms), "filter:n" (that, and no system above n atoms), "mixed:n" (n frames, each from any system).',
        check=_batch_size,
    )
    auto_prob: str = option(
        "prob_sys_size",
        'How often a system is drawn: "prob_uniform", "prob_sys_size" (by its number of batches), or '
        '"prob_sys_size;first:end:weight;..." (weights of blocks of systems).',
        aliases=("auto_prob_style",),
        check=_auto_prob,
    )
    sys_probs: tuple[float, ...] | None = option(
        None, "Probability of each system, instead of auto_prob; negative ones share the rest.",
        aliases=("sys_weights",), check=_sys_probs,
    )  # fmt: skip


class TrainingDataConfig(DataConfig):
    """The data that parameters are fitted to."""

    min_pair_dist: float = option(0.0, "Frames with a closer pair of atoms are left out.", unit="Å", check=at_least(0))


class ValidationDataConfig(DataConfig):
    """The data that the learning curve's validation columns are computed from."""

    numb_btch: int = option(1, "Batches per validation value.", aliases=("numb_batch",), check=positive)


class RunConfig(Config):
    """The run: length, display, checkpoints, processes. Common to inputs of one task and of several."""

    numb_steps: int | None = option(
        None, "Number of optimizer steps; this or a length in epochs.",
        aliases=("stop_batch", "num_step", "num_steps", "numb_step"), check=at_least(0),
    )  # fmt: skip
    seed: int | tuple[int, ...] | None = option(None, "Seed of the order of batches; null is random.")
    gradient_max_norm: float | None = option(
        None, "Gradients are scaled down to this norm; null or not above 0: never."
    )
    acc_freq: int = option(
        1, "Batches of a step: their gradients are averaged before the parameters change once.", check=positive
    )
    freeze_parameters: tuple[str, ...] = option(
        (),
        'Parameters that are not trained, by patterns of their paths with * and ?, as in "descriptor.*" or '
        '"fitting.networks.0.layers.?.w"; with several tasks "tasks.0.descriptor.*" or "water.descriptor.*".',
        check=_filled_or_none,
    )
    disp_file: str = option("lcurve.out", "The learning curve.")
    disp_freq: int = option(1000, "Steps between rows of the learning curve.", check=positive)
    disp_avg: bool = option(False, "Rows hold means over the steps since the last row, instead of the last batch.")
    metrics_file: str | None = option(
        None,
        "Every row of the learning curve and of full validation again, for other trackers to read: one JSON object per "
        "line (.jsonl), or a table (.csv).",
        check=_metrics_file,
    )
    save_freq: int = option(1000, "Steps between checkpoints.", check=positive)
    save_ckpt: str = option(CHECKPOINT_NAME, "Name of checkpoints; the step is added.")
    save_dir: str | None = option(None, "Folder of checkpoints; null: that of save_ckpt.")
    max_ckpt_keep: int = option(5, "Checkpoints that are kept; below 1: all.")
    ckpt_keep_ratio: float | None = option(
        None, "Share of a run's checkpoints that is kept, instead of max_ckpt_keep and ema_ckpt_keep.",
        check=_between(0, 1, closed=False),
    )  # fmt: skip
    enable_ema: bool = option(
        False,
        "Keep a moving average of the parameters beside them, with checkpoints of its own (model_ema.ckpt).",
    )
    ema_decay: float = option(
        0.999, "Decay of that average: each step adds 1 - ema_decay times the difference to the parameters.",
        check=_between(0, 1, closed=True),
    )  # fmt: skip
    ema_ckpt_keep: int | None = option(
        None, "Checkpoints of the average that are kept; null: max_ckpt_keep.", check=positive
    )
    zero_stage: int = option(
        0,
        "What the processes of a run share out instead of holding it whole. 1: optimizer state, 2: gradients too, 3: "
        "parameters too. Without effect on one process.",
        choices=(0, 1, 2, 3),
    )
    change_bias_after_training: bool = option(
        False, "At the end, add to the output bias what the model is off by on the training data, type by type."
    )
    enable_compile: bool = option(
        False,
        "Compile the model and its gradients on the first step: a minute or two, then faster steps for systems of any "
        "size. Needs the backend pt_expt.",
    )
    enable_tf32: bool = option(
        False, "Let a GPU round the factors of float32 matrix products to TF32 (10 bits of mantissa), for speed."
    )
    enable_bf16: bool = option(
        False,
        "Compute float32 matrix products of training steps in bfloat16, where the model has precision float32. "
        "Parameters, derivatives, sums and losses keep their precision. On the backend pt.",
    )
    profiling: bool = option(False, "Write a trace of a few steps for chrome://tracing or Perfetto to profiling_file.")
    profiling_file: str = option("timeline.json", "The trace of profiling.")
    enable_profiler: bool = option(False, "Write the trace of a few steps to tensorboard_log_dir, for TensorBoard.")
    tensorboard: bool = option(False, "Write metrics for TensorBoard.")
    tensorboard_log_dir: str = option("log", "Folder of what TensorBoard reads.")
    tensorboard_freq: int = option(1, "Steps between what TensorBoard reads.", check=positive)

    disp_training: bool = option(True, "The learning curve is always written.", effect="ignored")
    time_training: bool = option(True, "Times are always shown.", effect="ignored")
    compile_options: FrozenDict | None = option(
        None, "The library chooses the options of the compiler.", effect="ignored"
    )

    neighbor_graph_method: str = option("auto", "The neighbour search is chosen by the library.", effect="refused")
    mixed_precision: FrozenDict | None = option(
        None, "It is TensorFlow's alone; set `precision` in the descriptor and the fitting net.", effect="refused"
    )


class TaskDataConfig(Config):
    """The data of one task."""

    training_data: TrainingDataConfig = section(
        lambda: (TrainingDataConfig,), "The data that parameters are fitted to."
    )
    validation_data: ValidationDataConfig | None = section(
        lambda: (ValidationDataConfig,), "The data for validation columns of the learning curve.", default=None
    )
    stat_file: str | None = option(None, "Folder or HDF5 file (.h5, .hdf5) that keeps the statistics of the data.")
    stat_file_mode: str = option(
        "update",
        "update: read what is there, compute and add the rest. read: nothing may be missing.",
        choices=("update", "read"),
    )


_MULTI = "It belongs to inputs with model.model_dict."


class TrainingConfig(RunConfig, TaskDataConfig):
    """The run: data, length, display, checkpoints."""

    numb_epoch: float | None = option(
        None, "Length of the run in passes through the training data.",
        aliases=("num_epoch", "num_epochs", "numb_epochs"), check=positive,
    )  # fmt: skip
    data_dict: FrozenDict = option(FrozenDict(), _MULTI, effect="refused")
    model_prob: FrozenDict = option(FrozenDict(), _MULTI, effect="refused")
    num_epoch_dict: FrozenDict = option(FrozenDict(), _MULTI, effect="refused")


class _ByTask(Config):
    """What is said by task."""

    data_dict: FrozenDict = named_sections(lambda: (TaskDataConfig,), "By task, its data.")
    numb_epoch: float | None = option(
        None, "num_epoch_dict has a number for each task.",
        aliases=("num_epoch", "num_epochs", "numb_epochs"), effect="refused",
    )  # fmt: skip
    model_prob: FrozenDict = option(
        FrozenDict(),
        "By task: how often a step is one of it; normalised to a sum of 1. Without, as many as it has systems.",
        check=_weights_by_task,
    )
    num_epoch_dict: FrozenDict = option(
        FrozenDict(),
        "By task: passes through its training data, instead of numb_steps and model_prob.",
        check=_weights_by_task,
    )


class MultiTrainingConfig(RunConfig, _ByTask):
    """The run of several tasks: data by task, length, display, checkpoints."""


class ValidatingConfig(Config):
    """Full validation during training: errors on all validation data, and the best checkpoints."""

    full_validation: bool = option(False, "Test the model on all validation data from time to time.")
    ema_full_validation: bool = option(
        False, "The same of the averaged parameters (training.enable_ema), with files of its own."
    )
    validation_freq: int = option(5000, "Steps between two validations.", check=positive)
    save_best: bool = option(True, "Keep the checkpoints that were best.")
    save_best_dir: str | None = option(None, "Folder of the best checkpoints; null: that of training.save_ckpt.")
    max_best_ckpt: int = option(1, "How many of the best checkpoints are kept.", check=positive)
    validation_metric: str = option(
        "E:MAE",
        "What is best: the quantity (E, F, V; with spin E, FR, FM; of other models G for frames, L for atoms), a colon, MAE "
        "or RMSE.",
        check=_metric,
    )
    full_val_file: str = option("val.log", "Table of the validations.")
    full_val_start: float = option(
        0.5,
        "First validation. 0: from the beginning; below 1: this share of the run; 1: never; above 1: this step.",
        check=at_least(0),
    )
    early_stop_patience: int | None = option(
        None, "End the run after so many validations without a better one; null: never.", check=positive
    )
    compiled_infer: bool = option(False, "Validation runs as training does.", effect="ignored")
    tf32_infer: bool = option(False, "Validation has the precision of training (enable_tf32).", effect="ignored")
    amp_infer: bool = option(False, "Validation on whole systems is never in bfloat16.", effect="ignored")


# --- the file -----------------------------------------------------------------------------------------


class ModelFile(Config):
    """An input that describes a model and no training."""

    model: ModelSection = section(lambda: MODELS, "The model.", default_kind="standard")


class InputFile(ModelFile):
    """A training input: model, learning_rate, optimizer, loss, training, validating."""

    learning_rate: Config = section(lambda: schedules.CONFIGS, "The learning rate over the run.", default_kind="exp")
    optimizer: Config = section(lambda: OPTIMIZERS, "The optimizer.", default=AdamConfig(), default_kind="Adam")
    loss: Config = section(lambda: losses.CONFIGS, "What is minimised.", default=EnerLossConfig(), default_kind="ener")
    training: TrainingConfig = section(lambda: (TrainingConfig,), "The run.")
    validating: ValidatingConfig = section(lambda: (ValidatingConfig,), "Full validation.", default=ValidatingConfig())
    nvnmd: FrozenDict | None = option(None, "Of training for the NVNMD hardware.", effect="ignored")


class MultiModelConfig(Config):
    """The models of several tasks. Other keys beside these are those of every model that does not say otherwise."""

    shared_dict: FrozenDict = option(
        FrozenDict(),
        "By name, what tasks share: a type_map, a descriptor, a part of a hybrid descriptor, a fitting net. A model has the "
        'name in its place, "name" or "name:level": level 0 shares everything, level 1 of a descriptor its type embedding.',
    )
    model_dict: FrozenDict = named_sections(lambda: MODELS, "By task, its model.", default_kind="standard")


class MultiInputFile(Config):
    """A training input of several tasks: model, learning_rate, optimizer, loss_dict, training, validating."""

    model: MultiModelConfig = section(lambda: (MultiModelConfig,), "The models.")
    learning_rate: Config = section(lambda: schedules.CONFIGS, "The learning rate over the run.", default_kind="exp")
    optimizer: Config = section(lambda: OPTIMIZERS, "The optimizer.", default=AdamConfig(), default_kind="Adam")
    loss_dict: FrozenDict = named_sections(
        lambda: losses.CONFIGS, "By task, what is minimised; without, ener for all.", default=FrozenDict(),
        default_kind="ener",
    )  # fmt: skip
    training: MultiTrainingConfig = section(lambda: (MultiTrainingConfig,), "The run.")
    validating: ValidatingConfig = section(lambda: (ValidatingConfig,), "Full validation.", default=ValidatingConfig())
    nvnmd: FrozenDict | None = option(None, "Of training for the NVNMD hardware.", effect="ignored")
