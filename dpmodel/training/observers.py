"""The observers that the section `training` asks for (see `dpmodel.training.loop.Observer`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from dpmodel.training.metrics_stream import MetricsStream, check_metrics_file, validated_name
from dpmodel.training.profiling import Profiling, check_profiling
from dpmodel.training.tensorboard import ReadNorms, TensorBoard, check_tensorboard
from dpmodel.training.validation import FullValidation

__all__ = ["ValidationObserver", "check_observers", "make_observers"]


@runtime_checkable
class ValidationObserver(Protocol):
    """An observer that wants to know of full validations too."""

    def on_validation(self, step: int, row: Mapping[str, float], *, averaged: bool) -> None:
        """What the log got, by column."""


def check_observers(training: Any, backend: Any) -> None:
    """Raise InputError for what is asked for and cannot be had: on all ranks, before any work."""
    if training.metrics_file is not None:
        check_metrics_file(training.metrics_file)
    if training.tensorboard:
        check_tensorboard()
    if training.profiling or training.enable_profiler:
        check_profiling(backend)


def make_observers(
    training: Any,
    backend: Any,
    *,
    restored_step: int | None = None,
    validations: Sequence[FullValidation] = (),
    norms: ReadNorms | None = None,
) -> list[Any]:
    """Those of the chief; the validations will tell theirs to them. Close them when the run ends.

    training: the section. restored_step: that of the checkpoint which is gone on from. norms: of gradients. Raises InputError, OSError.
    """
    check_observers(training, backend)
    found: list[Any] = []
    if training.metrics_file is not None:
        names = [validated_name(name, averaged=v.averaged) for v in validations for name in v.columns()]
        found.append(MetricsStream(training.metrics_file, restored_step=restored_step, validated=names))
    if training.tensorboard:
        folder, freq = training.tensorboard_log_dir, training.tensorboard_freq
        found.append(TensorBoard(folder, freq=freq, restored_step=restored_step, norms=norms))
    for validation in validations:
        validation.observers = tuple(each for each in found if isinstance(each, ValidationObserver))
    if training.profiling or training.enable_profiler:
        trace = training.profiling_file if training.profiling else None
        folder = training.tensorboard_log_dir if training.enable_profiler else None
        found.append(Profiling(backend, trace=trace, folder=folder))
    return found
