"""The loss of properties, in units of their own spread.

With x the prediction and y the label of a frame (both divided by its number of atoms unless the property is
intensive), b and s the bias and the deviation that the statistics gave the model, and d = (x - y) / s:

    smooth_mae  sum d^2 / (2 beta) where |d| < beta, else |d| - beta / 2        mse   sum d^2
    mae         sum |d|                                                        rmse  sqrt(mean d^2)
    mape        mean |(y - x) / (y + 1e-3)|, not in units of s

Sums are over the components of all frames: the loss grows with the batch. The metrics are means in units of the
property.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np

from dpmodel.config import option, positive
from dpmodel.errors import InputError
from dpmodel.fittings.base import Output
from dpmodel.losses.base import Batch, Label, LossConfig, Term, TermLoss
from dpmodel.op import Array
from dpmodel.ops import safe_norm

__all__ = ["PropertyLoss", "PropertyLossConfig"]

_KINDS = ("smooth_mae", "mae", "mse", "rmse", "mape")


def _metrics(value: Any) -> str | None:
    fits = bool(value) and len(set(value)) == len(value) and all(name in _KINDS for name in value)
    return None if fits else f"at least one of {', '.join(_KINDS)}, none twice"


class PropertyLossConfig(LossConfig, key="property"):
    """A property of frames."""

    loss_func: str = option("smooth_mae", "What is minimised.", choices=_KINDS)
    metric: tuple[str, ...] = option(("mae",), "Errors that are shown.", check=_metrics)
    beta: float = option(1.0, "Where smooth_mae turns from squares to absolute values.", check=positive)

    def prefactors(self, term: str) -> tuple[float, float]:
        return 1.0, 1.0

    def metric_terms(self) -> dict[str, str]:
        return {"G": "property"}

    def check(self) -> None:
        """Raise InputError for values out of range."""
        self.check_options()


@dataclasses.dataclass(frozen=True)
class PropertyLoss(TermLoss):
    """The loss of a property, `output`."""

    config: PropertyLossConfig
    output: Output
    scale: tuple[float, ...] = ()
    """Deviation of the labels by component; empty: 1."""

    def bound(self, model: Any) -> Self:
        """With the deviation that the model's statistics found. Raises InputError where labels do not vary."""
        found = np.asarray(model.out_std, np.float64)[0]
        if not np.all(found > 0):
            raise InputError(
                f"loss: the labels of {self.output.name!r} are the same in all frames in some component (deviation "
                f"{found.tolist()}), so there is nothing to learn; use other data"
            )
        return dataclasses.replace(self, scale=tuple(float(value) for value in found))

    @property
    def terms(self) -> tuple[str, ...]:
        return ("property",)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output.reduced,)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(sorted(self.config.metric))

    @property
    def labels(self) -> tuple[Label, ...]:
        return (Label(name=self.output.name, shape=self.output.shape, atomic=False, required=True),)

    def batch(self, *given: Any) -> Batch:
        return Batch(self.config, self.output.reduced, *given)

    def compute(self, term: str, batch: Batch) -> Term:
        """Residuals (f, components)."""
        label, means, xp = batch.label(self.output.name), batch.means, batch.xp
        if label is None:
            return batch.absent(*self.config.metric)
        x = batch.output(self.output.reduced)
        if not self.output.intensive:
            x, label = x / means.natoms[:, None], label / means.natoms[:, None]
        plain = means.mask_frames(x - label)
        mean = {
            "mae": lambda: means.frames(xp.abs(plain)),
            "mse": lambda: means.frames(plain * plain),
            "rmse": lambda: xp.sqrt(means.frames(plain * plain)),
            "smooth_mae": lambda: means.frames(self._smooth(plain, batch)),
            "mape": lambda: means.frames(xp.abs(plain / (means.mask_frames(label) + 1e-3))),
        }
        metrics = {name: mean[name]() for name in self.config.metric}
        return Term(self._value(plain, label, batch), metrics, batch.found(self.output.name))

    def total_metrics(self, total: Array) -> dict[str, Array]:
        return {}

    def _value(self, plain: Array, label: Array, batch: Batch) -> Array:
        xp, means, kind = batch.xp, batch.means, self.config.loss_func
        if kind == "mape":
            return means.frames(xp.abs(plain / (means.mask_frames(label) + 1e-3)))
        scale = self.scale or (1.0,) * plain.shape[1]
        d = xp.stack([plain[:, k] / value for k, value in enumerate(scale)], axis=1)
        if kind == "rmse":
            length = safe_norm(xp.reshape(d, (1, d.shape[0] * d.shape[1])))
            return xp.sum(length) / xp.sqrt(means.count * d.shape[1])
        if kind == "mae":
            return xp.sum(xp.abs(d))
        return xp.sum(d * d if kind == "mse" else self._smooth(d, batch))

    def _smooth(self, d: Array, batch: Batch) -> Array:
        beta, size = self.config.beta, batch.xp.abs(d)
        return batch.xp.where(size < beta, 0.5 * d * d / beta, size - 0.5 * beta)
