"""Output biases that fit the training data: at the start of a fine-tuning, and at the end of a run that asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpmodel.data.dataset import Dataset
from dpmodel.models import Model, SpinModel
from dpmodel.models.multi_task import MultiTask
from dpmodel.potential import Potential
from dpmodel.statistics.change import bias_change, bias_of, with_bias

__all__ = ["change_bias", "change_biases"]


def change_bias(model: Model, data: Dataset, *, nbatch: int, backend: str, device: str | None = None) -> Model:
    """The model with a bias that is larger by the least-squares fit of (label - prediction) to the types.

    Everything but the output bias is the same objects, so what tasks share stays shared. data: with the labels of the output
    and the inputs of the model, as training reads them. nbatch: batches per system. backend, device: of the predictions.
    Raises DataError where no system has the label.
    """
    changed = bias_change(Potential.from_model(model, backend, device=device), data, nbatch=nbatch)
    target: Any = changed.backbone if isinstance(changed, SpinModel) else changed
    return with_bias(model, bias_of(changed), np.asarray(target.out_std))


def change_biases(
    model: Any, data: Mapping[str, Dataset], *, nbatch: Mapping[str, int], backend: str, device: str | None = None
) -> Any:
    """`change_bias` of every task, by its own data. model: a `Model` (its task is ""), or a `MultiTask`.

    For `training.change_bias_after_training`: the chief computes it, all ranks take it by `Stepper.load_buffers`, and then both
    kinds of checkpoint are written again; biases are buffers, so averaged weights have the same.
    """
    if not isinstance(model, MultiTask):
        return change_bias(model, data[""], nbatch=nbatch[""], backend=backend, device=device)
    for name, own in model.models().items():
        new = change_bias(own, data[name], nbatch=nbatch[name], backend=backend, device=device)
        model = model.with_task(name, new)
    return model
