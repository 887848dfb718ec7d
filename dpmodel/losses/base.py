"""What all losses share: label requests, prefactors, and means that padding cannot change.

Atoms are flat (`dpmodel.graph`). An atom counts when its type is not negative; a frame counts when it has such an
atom. Every mean over a batch is first taken inside each frame and then over the frames that count, so frames of
different sizes weigh equally, and neither padded atoms nor padded frames (no atoms at all) change anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from dpmodel.config import Config
from dpmodel.errors import InputError
from dpmodel.graph import Graph
from dpmodel.models.curvature import place_in_frame
from dpmodel.op import Array, Op
from dpmodel.ops import array_namespace, as_dtype, segment_sum, take_rows

__all__ = [
    "Batch", "Label", "LossConfig", "Means", "Term", "TermLoss", "flat", "plain_number", "prefactor", "shown", "weights_or_one",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """One quantity that a loss reads from the data."""

    name: str
    """Name of the file, and key in `labels` and `found`."""
    shape: tuple[int, ...]
    """Shape of one atom's (if `atomic`) or one frame's value."""
    atomic: bool
    """True: labels[name] is (n, *shape); False: (f, *shape)."""
    required: bool
    """At least one system of the data must have it; systems without it contribute nothing to its term."""
    default: float = 0.0
    """What stands in where a system does not have it."""
    repeat: int = 1
    """Numbers of the value that one number of the file stands for."""
    high_precision: bool = False
    """Read in float64, whatever the interface precision is."""
    square: bool = False
    """A matrix over the coordinates of a frame: labels[name] is (n, 3, 3 k), with k the atoms of the largest frame."""


def plain_number(value: float | Array) -> float | Array:
    """Numbers of Python and NumPy as a float, which goes with the arrays of every library; other arrays as they are."""
    return float(value) if isinstance(value, int | float | np.generic | np.ndarray) else value


def prefactor(start: float, limit: float, lr: float | Array, start_lr: float) -> float | Array:
    """limit + (start - limit) lr / start_lr.

    `start_lr` is the configured one, not that of the warm-up: during warm-up, prefactors begin near their limits.
    """
    return limit + (start - limit) * (lr / start_lr)


def flat(x: Array) -> Array:
    """(rows, components) of any array with rows in front."""
    return array_namespace(x).reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def shown(value: Array, found: float | Array) -> Array:
    """The metric as it is displayed: NaN where the label was not found."""
    xp = array_namespace(value)
    missing = xp.full_like(value, float("nan"))
    if isinstance(found, float):
        return value if found > 0 else missing
    return xp.where(found > 0, value, missing)


def weights_or_one(weights: Array, found: float | Array) -> Array:
    """The weights where they were found (1.0), ones where they were not (0.0)."""
    xp = array_namespace(weights)
    if isinstance(found, float):
        return weights if found > 0 else xp.ones_like(weights)
    return xp.where(found > 0, weights, xp.ones_like(weights))


class Means:
    """Masked means of one batch, in the float dtype of `like`."""

    def __init__(self, graph: Graph, like: Array) -> None:
        xp = array_namespace(like)
        self.frame, atype = graph.frame, graph.atype[: graph.frame.shape[0]]
        self.nframes: int = graph.natoms.shape[0]
        self.real_atom = atype >= 0
        """(n,): of the rows that atoms have in outputs and labels."""
        if graph.virtual is not None:  # the atoms that users know; rows of padding name one atom twice
            rows, others = graph.virtual.real, graph.virtual.virtual
            self.frame = take_rows(graph.frame, rows)
            self.real_atom = (take_rows(atype, rows) >= 0) & (rows != others)
        self.real_frame = graph.natoms > 0  # (f,)
        natoms = xp.where(self.real_frame, graph.natoms, xp.ones_like(graph.natoms))
        self.natoms = as_dtype(natoms, like.dtype)
        """(f,): number of real atoms, 1 for frames without any."""
        count = xp.sum(as_dtype(self.real_frame, like.dtype))
        self.count = xp.where(count > 0, count, xp.ones_like(count))

    def mean_atoms(self) -> Array:
        """Atoms of a frame, on average over the real frames; scalar."""
        return self.frames(self.natoms[:, None])

    def mask_atoms(self, x: Array) -> Array:
        """(n, *rest): 0 on atoms that do not count, with gradient 0 whatever stood there."""
        xp = array_namespace(x)
        return xp.where(xp.reshape(self.real_atom, (-1, *(1,) * (x.ndim - 1))), x, xp.zeros_like(x))

    def mask_pairs(self, x: Array) -> Array:
        """(n, 3, 3 k): 0 on rows of atoms that do not count, and on columns of those of the same frame."""
        xp, k = array_namespace(x), x.shape[2] // 3
        place = place_in_frame(self.frame, self.nframes)
        real = self.real_atom & (place < k)
        row = xp.where(real, self.frame * k + as_dtype(place, self.frame.dtype), xp.zeros_like(self.frame))
        seen = segment_sum(as_dtype(real, x.dtype), row, self.nframes * k)
        column = take_rows(xp.reshape(seen, (self.nframes, k)), self.frame) > 0  # (n, k)
        kept = (self.real_atom[:, None] & column)[:, None, :, None]
        pairs = xp.reshape(x, (x.shape[0], 3, k, 3))
        return xp.reshape(xp.where(kept, pairs, xp.zeros_like(pairs)), x.shape)

    def mask_frames(self, x: Array) -> Array:
        """(f, k): 0 on frames that do not count, with gradient 0 whatever stood there."""
        xp = array_namespace(x)
        return xp.where(self.real_frame[:, None], x, xp.zeros_like(x))

    def frames(self, x: Array) -> Array:
        """Mean over the k values of every frame, then over the real frames: (f, k) -> scalar."""
        xp = array_namespace(x)
        return xp.sum(xp.mean(self.mask_frames(x), axis=1)) / self.count

    def atom_sum(self, x: Array) -> Array:
        """Sum over the real atoms of every frame: (n, k) -> (f, k)."""
        return segment_sum(self.mask_atoms(x), self.frame, self.nframes)

    def atoms(self, x: Array) -> Array:
        """M_k of the specification: (n, k) -> scalar, < sum over real atoms and components / (k N_f) >_f."""
        return self.frames(self.atom_sum(x) / self.natoms[:, None])


class LossConfig(Config):
    """Base of the losses' sections: terms, each with a prefactor that follows the learning rate."""

    def prefactors(self, term: str) -> tuple[float, float]:
        """(start, limit) of a term named by the suffix of its prefactors, as in `e`."""
        return getattr(self, f"start_pref_{term}"), getattr(self, f"limit_pref_{term}")

    def active(self, term: str) -> bool:
        """Whether a term acts: either of its prefactors is not zero."""
        return any(value != 0 for value in self.prefactors(term))

    def metric_terms(self) -> dict[str, str]:
        """The term whose label each metric of full validation is about, by the letters of the metric ("E" of "E:MAE")."""
        return {}

    def check_metric(self, metric: str) -> None:
        """Raise InputError unless full validation can rank by `metric` ("F:RMSE"; any case).

        Legal are the loss's own letters with MAE or RMSE, where both prefactors of the quantity are not zero.
        """
        terms = self.metric_terms()
        known = [f"{letters}:{kind}" for letters in terms for kind in ("MAE", "RMSE")]
        if metric.upper() not in known:
            raise InputError(
                f"validation metric {metric!r} does not belong to the loss {self.key!r}; legal are {', '.join(known)}"
            )
        term = terms[metric.upper().partition(":")[0]]
        if any(value == 0 for value in self.prefactors(term)):
            raise InputError(
                f"validation metric {metric!r} needs start and limit prefactors of {term!r} that are both not 0, got "
                f"{self.prefactors(term)}"
            )

    def check_options(self) -> None:
        """Raise InputError unless values are finite, among the choices and pass the options' own checks."""
        for name, field in self.options().items():
            value, info = getattr(self, name), field.metadata["option"]
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
                raise InputError(f"loss: {name} must be finite, not {value!r}")
            if info.choices and value not in info.choices:
                raise InputError(f"loss: {name} must be one of {list(info.choices)}, not {value!r}")
            if info.check is not None and value is not None and (legal := info.check(value)):
                raise InputError(f"loss: {name} must be {legal}, not {value!r}")


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of a loss for one batch."""

    value: Array
    """Scalar."""
    metrics: Mapping[str, Array]
    """Displayed, scalars."""
    found: float | Array
    """1.0 where the batch has the label, else 0.0."""


class Batch:
    """What the terms of one batch are computed from, in the dtype of `like`, an output of frames."""

    def __init__(
        self,
        config: Any,
        like: str,
        prediction: Mapping[str, Array],
        labels: Mapping[str, Array],
        found: Mapping[str, float | Array],
        graph: Graph,
    ) -> None:
        self.config, self.prediction, self.labels, self.present = config, prediction, labels, found
        first = self._raw(like)
        self.xp, self.dtype = array_namespace(first), first.dtype
        self.means = Means(graph, first)
        # A zero that depends on the parameters: a batch without any label still has a (zero) gradient.
        self.zero = 0.0 * self.means.frames(flat(first))

    def output(self, name: str) -> Array:
        """A prediction. Raises InputError where the model did not make it."""
        return as_dtype(self._raw(name), self.dtype)

    def label(self, name: str) -> Array | None:
        """A label; None where the batch does not even have a stand-in."""
        return as_dtype(self.labels[name], self.dtype) if name in self.labels else None

    def found(self, name: str) -> Any:
        """1.0 where the batch has the label, else 0.0."""
        return plain_number(self.present.get(name, 0.0))

    def absent(self, *metrics: str) -> Term:
        """A term without its label."""
        return Term(self.zero, dict.fromkeys(metrics, self.zero), 0.0)

    def _raw(self, name: str) -> Array:
        if name not in self.prediction:
            raise InputError(
                f"the loss needs the model output {name!r}, which is not among {sorted(self.prediction)}; "
                f"ask the model for it, or set its prefactors to 0"
            )
        return self.prediction[name]


@dataclasses.dataclass(frozen=True)
class TermLoss:
    """Base of the losses: pure functions, hashable, built once per task.

    Raises InputError where the configuration is not legal (`check` of its class) or `start_lr` is not above 0.
    """

    config: Any
    start_lr: float

    def __post_init__(self) -> None:
        self.config.check()
        if not (math.isfinite(self.start_lr) and self.start_lr > 0):
            raise InputError(f"learning_rate: start_lr must be a number above 0, not {self.start_lr!r}")

    def bound(self, model: Op) -> Self:
        """The loss for a model whose statistics are known, where it depends on them."""
        return self

    @property
    def terms(self) -> tuple[str, ...]:
        """The active terms."""
        raise NotImplementedError(f"{type(self).__name__} does not define terms")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Keys that `prediction` must have."""
        raise NotImplementedError(f"{type(self).__name__} does not define outputs")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the displayed metrics, sorted."""
        raise NotImplementedError(f"{type(self).__name__} does not define metrics")

    @property
    def labels(self) -> tuple[Label, ...]:
        """What the loss reads from the data."""
        raise NotImplementedError(f"{type(self).__name__} does not define labels")

    def needs(self, name: str) -> bool:
        """Whether at least one system of the data must have the label `name`."""
        return any(label.name == name and label.required for label in self.labels)

    def batch(self, *given: Any) -> Any:
        """The `Batch` that `compute` reads, from (prediction, labels, found, graph)."""
        raise NotImplementedError(f"{type(self).__name__} does not define batch()")

    def compute(self, term: str, batch: Any) -> Term:
        """One term."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute()")

    def total_metrics(self, total: Array) -> dict[str, Array]:
        """Metrics of the loss as a whole."""
        return {"rmse": array_namespace(total).sqrt(total)}

    def __call__(
        self,
        prediction: Mapping[str, Array],
        labels: Mapping[str, Array],
        found: Mapping[str, float | Array],
        graph: Graph,
        lr: float | Array,
    ) -> tuple[Array, dict[str, Array]]:
        """The loss and the displayed metrics.

        prediction: by `outputs`, as `dpmodel.models.predict` gives them: (f, *shape) per frame, (n, *shape) per atom.
        labels: arrays by name, shapes as in `Label`; a name may be absent. found: 1.0 where the batch has the label,
        else 0.0 (absent: 0.0). lr: the learning rate of the step. Computed in the dtype of the predicted values.

        Returns a scalar and, for every name in `metrics`, a scalar: NaN where the label was not found. The metrics of
        a differentiable array belong to its graph: detach them (torch) before keeping them.
        Raises InputError where the prediction lacks an output that an active term needs.
        """
        batch = self.batch(prediction, labels, found, graph)
        total, lr = batch.zero, plain_number(lr)
        metrics: dict[str, Array] = {}
        for name in self.terms:
            term = self.compute(name, batch)
            start, limit = self.config.prefactors(name)
            total = total + term.value * (prefactor(start, limit, lr, self.start_lr) * term.found)
            metrics |= {key: shown(value, term.found) for key, value in term.metrics.items()}
        return total, {**metrics, **self.total_metrics(total)}
