"""Learning rates: the section `learning_rate` and the function lr(step) that it means.

With S steps in all, W of them warm-up, T = S - W and t' = t - W, the step of 0-based index t uses

    t < W     f lr0 + (1 - f) lr0 t / W                                  f = warmup_start_factor
    exp       max(lr0 r^floor(t'/s), stop)     (smooth: r^(t'/s))        s = decay_steps
              r = decay_rate, or (max(stop, 1e-10) / lr0)^(s / T)
    cosine    stop + (lr0 - stop) (1 + cos(pi t'/T)) / 2                 stop from t' = T on
    wsd       lr0 while t' <= T - D, then with tau = (t' - T + D) / D    D = int(decay_phase_ratio S), in [1, T]
              inverse_linear  1 / (tau / stop + (1 - tau) / lr0)
              cosine          stop + (lr0 - stop) (1 + cos(pi tau)) / 2
              linear          lr0 + (stop - lr0) tau

    schedule = build_schedule(ExpConfig(start_lr=1e-3, stop_lr=1e-8), num_steps=100_000)
    schedule.lr(0)

These are DeePMD-kit v3's schedules. (wsd: warm-up, stable, decay; Hu et al., arXiv:2404.06395.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dpmodel.config import Config, at_least, option, positive
from dpmodel.errors import InputError

__all__ = [
    "CONFIGS",
    "CosineConfig",
    "ExpConfig",
    "Schedule",
    "ScheduleConfig",
    "WsdConfig",
    "build_schedule",
    "worker_scale",
]

logger = logging.getLogger(__name__)

DEFAULT_STOP_LR = 5e-8
"""The final rate where the input names none."""


def _finite_positive(value: float) -> str | None:
    return None if value > 0 and math.isfinite(value) else "a finite number above 0"


def _finite(value: float) -> str | None:
    return None if value >= 0 and math.isfinite(value) else "a finite number of at least 0"


def _share(value: float) -> str | None:
    return None if 0 < value <= 1 else "a number above 0 and at most 1"


def _start_share(value: float) -> str | None:
    return None if 0 <= value < 1 else "a number of at least 0 and below 1"


class ScheduleConfig(Config):
    """What all schedules share."""

    start_lr: float = option(doc="Learning rate at the start, after warm-up.", check=_finite_positive)
    stop_lr: float | None = option(
        None, "Learning rate at the end. 5e-8 where neither it nor stop_lr_ratio is given.", check=_finite
    )
    stop_lr_ratio: float | None = option(None, "The same as a fraction of start_lr; excludes stop_lr.", check=_finite)
    warmup_steps: int = option(
        0, "Steps during which the rate grows linearly to start_lr.", unit="steps", check=at_least(0)
    )
    warmup_ratio: float | None = option(
        None, "The same as a fraction of all steps, rounded down; excludes warmup_steps.", check=_start_share
    )
    warmup_start_factor: float = option(0.0, "The first rate of the warm-up, as a fraction of start_lr.", check=_finite)
    scale_by_worker: str | None = option(
        None,
        "How the rate grows with the number of processes: linear, sqrt (with its root) or none. "
        "Not at all where it is not given.",
        choices=(None, "linear", "sqrt", "none"),
    )


class ExpConfig(ScheduleConfig, key="exp"):
    """Exponential decay, in steps or smooth."""

    decay_steps: int = option(
        5000,
        "The rate is multiplied by decay_rate each time so many steps have passed. Where it is not below the number of "
        "steps after warm-up, and decay_rate is not given, a smaller number is used.",
        unit="steps",
        check=positive,
    )
    decay_rate: float | None = option(
        None,
        "Factor of one decay. Not given: chosen so that the run ends at stop_lr. Given: stop_lr is only a floor.",
        check=_share,
    )
    smooth: bool = option(False, "Decay at every step rather than every decay_steps.")


class CosineConfig(ScheduleConfig, key="cosine"):
    """Half a period of a cosine from start_lr to stop_lr."""


class WsdConfig(ScheduleConfig, key="wsd"):
    """Warm-up, a stable phase at start_lr, then decay to stop_lr."""

    decay_phase_ratio: float = option(
        0.1, "Length of the decay as a fraction of all steps, warm-up included.", check=_share
    )
    decay_type: str = option("inverse_linear", "Form of the decay.", choices=("inverse_linear", "cosine", "linear"))


CONFIGS: tuple[type[ScheduleConfig], ...] = (ExpConfig, CosineConfig, WsdConfig)
"""What `learning_rate` may be."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of a run."""

    start_lr: float
    """Base rate: what prefactors and optimizers measure lr(step) against; with warm-up lr(0) is smaller, perhaps 0."""
    stop_lr: float
    num_steps: int
    warmup_steps: int
    warmup_start_factor: float
    decay: Callable[[int], float]
    """The rate so many steps after warm-up."""

    def lr(self, step: int) -> float:
        """The rate that the step of 0-based index `step` uses."""
        if step < self.warmup_steps:
            low = self.warmup_start_factor
            return low * self.start_lr + (1 - low) * self.start_lr * step / self.warmup_steps
        return self.decay(step - self.warmup_steps)


def build_schedule(config: ScheduleConfig, num_steps: int, *, workers: int = 1) -> Schedule:
    """The schedule that a section means in a run of `num_steps` steps on `workers` processes.

    Raises InputError when options exclude each other or do not fit the number of steps.
    """
    _check_options(config)
    if num_steps < 0:
        raise InputError(f"a run has at least 0 steps, not {num_steps}")
    if config.stop_lr is not None and config.stop_lr_ratio is not None:
        raise InputError("learning_rate: stop_lr and stop_lr_ratio exclude each other; remove one")
    if config.warmup_steps and config.warmup_ratio is not None:
        raise InputError("learning_rate: warmup_steps and warmup_ratio exclude each other; remove one")
    warmup = config.warmup_steps if config.warmup_ratio is None else int(config.warmup_ratio * num_steps)
    if warmup > 0 and warmup >= num_steps:
        raise InputError(
            f"learning_rate: a warm-up of {warmup} steps must be shorter than the run of {num_steps}; lower it"
        )
    scale = worker_scale(config, workers)
    start, stop = config.start_lr * scale, _stop_lr(config) * scale
    if stop > start:
        logger.warning("learning_rate: stop_lr %g is above start_lr %g: the rate grows during the run", stop, start)
    return Schedule(
        start, stop, num_steps, warmup, config.warmup_start_factor, _decay(config, start, stop, num_steps, warmup)
    )


def worker_scale(config: ScheduleConfig, workers: int) -> float:
    """What all rates of the section are multiplied by on so many processes."""
    return {"linear": float(workers), "sqrt": math.sqrt(workers)}.get(config.scale_by_worker or "none", 1.0)


def _check_options(config: ScheduleConfig) -> None:
    """The checks of the declaration, for schedules that are not built from an input file."""
    for name, field in config.options().items():
        value, info = getattr(config, name), field.metadata["option"]
        problem = info.check(value) if info.check is not None and value is not None else None
        if info.choices and value not in info.choices:
            problem = f"one of {info.choices}"
        if problem:
            raise InputError(f"learning_rate/{name} should be {problem}, not {value!r}")


def _stop_lr(config: ScheduleConfig) -> float:
    if config.stop_lr is not None:
        return config.stop_lr
    return DEFAULT_STOP_LR if config.stop_lr_ratio is None else config.stop_lr_ratio * config.start_lr


def _decay(config: ScheduleConfig, start: float, stop: float, num_steps: int, warmup: int) -> Callable[[int], float]:
    """The rate as a function of the steps since the end of the warm-up. Picklable."""
    after = num_steps - warmup
    if isinstance(config, ExpConfig):
        every = config.decay_steps
        if config.decay_rate is None and every >= after:
            every = 100 if after // 10 > 100 else after // 100 + 1
        rate = config.decay_rate
        if rate is None:
            rate = 1.0 if after == 0 else (max(stop, 1e-10) / start) ** (every / after)
        return partial(_exp, start=start, stop=stop, rate=rate, every=every, smooth=config.smooth)
    if isinstance(config, CosineConfig):
        return partial(_cosine, start=start, stop=stop, steps=after)
    if isinstance(config, WsdConfig):
        if config.decay_type == "inverse_linear" and stop <= 0:
            raise InputError(
                "learning_rate: decay_type inverse_linear needs a stop_lr above 0; give one, or use linear"
            )
        length = min(max(int(config.decay_phase_ratio * num_steps), 1), after)
        return partial(_wsd, start=start, stop=stop, stable=after - length, length=length, form=config.decay_type)
    raise InputError(
        f"learning_rate: unknown schedule {type(config).__name__}; known are {[kind.key for kind in CONFIGS]}"
    )


def _exp(t: int, *, start: float, stop: float, rate: float, every: int, smooth: bool) -> float:
    return max(start * rate ** (t / every if smooth else t // every), stop)


def _half_cosine(start: float, stop: float, x: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * x)) / 2


def _cosine(t: int, *, start: float, stop: float, steps: int) -> float:
    if steps == 0:
        return start
    return stop if t >= steps else _half_cosine(start, stop, t / steps)


def _wsd(t: int, *, start: float, stop: float, stable: int, length: int, form: str) -> float:
    if length == 0:
        return start
    tau = min(max((t - stable) / length, 0.0), 1.0)
    if form == "cosine":
        return _half_cosine(start, stop, tau)
    if form == "linear":
        return start + (stop - start) * tau
    return 1 / (tau / stop + (1 - tau) / start)
