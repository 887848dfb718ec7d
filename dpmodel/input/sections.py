"""The sections of an input file that no other part of the library owns, and the file as a whole."""

from __future__ import annotations

import re
from typing import Any

from dpmodel import losses
from dpmodel.config import Config, FrozenDict, at_least, option, positive, section
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


def _metric(value: str) -> str | None:
    fits = re.fullmatch(r"(e|f|v|fr|fm):(mae|rmse)", value, re.IGNORECASE)
    return None if fits else "E, F or V (with spin E, FR, FM), a colon, MAE or RMSE; as in E:MAE"


# --- optimizer ----------------------------------------------------------------------------------------


class AdamConfig(Config, key="Adam"):
    """Adam (Kingma and Ba, ICLR 2015)."""

    adam_beta1: float = option(0.9, "Decay of the mean of the gradient.", check=_between(0, 1, closed=True))
    adam_beta2: float = option(0.999, "Decay of the mean of its square.", check=_between(0, 1, closed=True))
    weight_decay: float = option(0.0, "Times the parameter, added to the gradient.", check=at_least(0))


class AdamWConfig(Config, key="AdamW"):
    """Adam with decoupled decay of the parameters (Loshchilov and Hutter, ICLR 2019)."""

    adam_beta1: float = option(0.9, "Decay of the mean of the gradient.", check=_between(0, 1, closed=True))
    adam_beta2: float = option(0.999, "Decay of the mean of its square.", check=_between(0, 1, closed=True))
    weight_decay: float = option(
        0.001, "Parameters are multiplied by 1 - (learning rate) * (this) in each step.", check=at_least(0)
    )


OPTIMIZERS: tuple[type[Config], ...] = (AdamConfig, AdamWConfig)
"""Every optimizer of the input file's `optimizer`."""


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


_MULTI = "Multi-task training: train one model per input."
_TB = "It belongs to tensorboard, which is not available."


class TrainingConfig(Config):
    """The run: data, length, display, checkpoints."""

    training_data: TrainingDataConfig = section(
        lambda: (TrainingDataConfig,), "The data that parameters are fitted to."
    )
    validation_data: ValidationDataConfig | None = section(
        lambda: (ValidationDataConfig,), "The data for validation columns of the learning curve.", default=None
    )
    numb_steps: int | None = option(
        None, "Number of optimizer steps; this or numb_epoch.",
        aliases=("stop_batch", "num_step", "num_steps", "numb_step"), check=at_least(0),
    )  # fmt: skip
    numb_epoch: float | None = option(
        None, "Length of the run in passes through the training data.",
        aliases=("num_epoch", "num_epochs", "numb_epochs"), check=positive,
    )  # fmt: skip
    seed: int | tuple[int, ...] | None = option(None, "Seed of the order of batches; null is random.")
    stat_file: str | None = option(None, "Folder or HDF5 file (.h5, .hdf5) that keeps the statistics of the data.")
    stat_file_mode: str = option(
        "update",
        "update: read what is there, compute and add the rest. read: nothing may be missing.",
        choices=("update", "read"),
    )
    gradient_max_norm: float | None = option(
        None, "Gradients are scaled down to this norm; null or not above 0: never."
    )
    disp_file: str = option("lcurve.out", "The learning curve.")
    disp_freq: int = option(1000, "Steps between rows of the learning curve.", check=positive)
    disp_avg: bool = option(False, "Rows hold means over the steps since the last row, instead of the last batch.")
    save_freq: int = option(1000, "Steps between checkpoints.", check=positive)
    save_ckpt: str = option(CHECKPOINT_NAME, "Name of checkpoints; the step is added.")
    save_dir: str | None = option(None, "Folder of checkpoints; null: that of save_ckpt.")
    max_ckpt_keep: int = option(5, "Checkpoints that are kept; below 1: all.")
    ckpt_keep_ratio: float | None = option(
        None, "Share of a run's checkpoints that is kept, instead of max_ckpt_keep.", check=_between(0, 1, closed=False)
    )

    enable_compile: bool = option(
        False,
        "Compile the model and its gradients on the first step: a minute or two, then faster steps for systems of any "
        "size. Needs the backend pt_expt.",
    )

    disp_training: bool = option(True, "The learning curve is always written.", effect="ignored")
    time_training: bool = option(True, "Times are always shown.", effect="ignored")
    acc_freq: int = option(1, "Gradients are not accumulated over steps.", effect="ignored", check=positive)
    profiling_file: str = option("timeline.json", "It belongs to profiling, which is not available.", effect="ignored")
    tensorboard_log_dir: str = option("log", _TB, effect="ignored")
    tensorboard_freq: int = option(1, _TB, effect="ignored", check=positive)
    ema_decay: float = option(
        0.999, "It belongs to enable_ema, which is not available.", effect="ignored", check=_between(0, 1, closed=True)
    )
    ema_ckpt_keep: int | None = option(
        None, "It belongs to enable_ema, which is not available.", effect="ignored", check=positive
    )
    compile_options: FrozenDict | None = option(
        None, "The library chooses the options of the compiler.", effect="ignored"
    )

    zero_stage: int = option(0, "Sharded optimizer states: train without.", effect="refused")
    enable_ema: bool = option(False, "Averaged parameters: use the last checkpoint.", effect="refused")
    change_bias_after_training: bool = option(False, "The bias stays as trained.", effect="refused")
    neighbor_graph_method: str = option("auto", "The neighbour search is chosen by the library.", effect="refused")
    profiling: bool = option(False, "Use an external profiler, such as py-spy or nsys.", effect="refused")
    enable_profiler: bool = option(False, "Use an external profiler, such as py-spy or nsys.", effect="refused")
    tensorboard: bool = option(
        False, "The learning curve is in disp_file; draw it with `dpmodel plot`.", effect="refused"
    )
    enable_tf32: bool = option(False, "Matrix products have the precision of the model.", effect="refused")
    mixed_precision: FrozenDict | None = option(
        None, "It is TensorFlow's alone; set `precision` in the descriptor and the fitting net.", effect="refused"
    )
    data_dict: FrozenDict = option(FrozenDict(), _MULTI, effect="refused")
    model_prob: FrozenDict = option(FrozenDict(), _MULTI, effect="refused")
    num_epoch_dict: FrozenDict = option(FrozenDict(), _MULTI, effect="refused")


_FULL = "It belongs to full_validation, which is not available."


class ValidatingConfig(Config):
    """Full validation during training: known, and not available in this version."""

    full_validation: bool = option(
        False,
        "Use training.validation_data with a large numb_btch, and `dpmodel test` on checkpoints.",
        effect="refused",
    )
    ema_full_validation: bool = option(
        False, "It needs training.enable_ema, which is not available either.", effect="refused"
    )
    validation_freq: int = option(5000, _FULL, effect="ignored", check=positive)
    save_best: bool = option(True, _FULL, effect="ignored")
    save_best_dir: str | None = option(None, _FULL, effect="ignored")
    max_best_ckpt: int = option(1, _FULL, effect="ignored", check=positive)
    validation_metric: str = option("E:MAE", _FULL, effect="ignored", check=_metric)
    full_val_file: str = option("val.log", _FULL, effect="ignored")
    full_val_start: float = option(0.5, _FULL, effect="ignored", check=at_least(0))
    compiled_infer: bool = option(False, "Validation runs uncompiled.", effect="refused")
    tf32_infer: bool = option(False, "Validation runs in the model's own precision.", effect="refused")
    amp_infer: bool = option(False, "Validation runs in the model's own precision.", effect="refused")


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
