"""The loss of dipoles and polarizabilities: T_i of atoms, T of frames.

    L = pref_atomic M_k[(w_i dT_i)^2] + pref <dT^2>        k = 3 (dipole) or 9 (polarizability) components

w_i is the label atomic_weight with `enable_atomic_weight`, else 1. The prefactors are constant in time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dpmodel.config import at_least, option
from dpmodel.errors import InputError
from dpmodel.fittings.base import Output
from dpmodel.losses.base import Batch, Label, LossConfig, Term, TermLoss, flat, weights_or_one

__all__ = ["TensorLoss", "TensorLossConfig"]


class TensorLossConfig(LossConfig, key="tensor"):
    """Dipoles or polarizabilities of frames and of atoms."""

    pref: float = option(doc="Prefactor of the loss of frames (label dipole or polarizability).", check=at_least(0))
    pref_atomic: float = option(
        doc="Prefactor of the loss of atoms (label atomic_dipole or atomic_polarizability).", check=at_least(0)
    )
    enable_atomic_weight: bool = option(
        False, "Residuals of atoms are multiplied by the label atomic_weight (1 where there is none)."
    )

    def prefactors(self, term: str) -> tuple[float, float]:
        value = self.pref if term == "global" else self.pref_atomic
        return value, value

    def metric_terms(self) -> dict[str, str]:
        return {"G": "global", "L": "local"}

    def check(self) -> None:
        """Raise InputError for values out of range, or if nothing is left to learn."""
        self.check_options()
        if not (self.pref or self.pref_atomic):
            raise InputError("loss: pref and pref_atomic are both 0, so there is nothing to learn; set one of them")


@dataclasses.dataclass(frozen=True)
class TensorLoss(TermLoss):
    """The loss of a tensor of atoms, `output`, which adds up to that of the frame."""

    config: TensorLossConfig
    output: Output

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(term for term in ("local", "global") if self.config.active(term))

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output.atomic, self.output.reduced)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(sorted(["rmse", *(self._metric(term) for term in self.terms)]))

    @property
    def labels(self) -> tuple[Label, ...]:
        name, shape = self.output.name, self.output.shape
        found = []
        if "local" in self.terms:
            found.append(Label(name=f"atom_{name}", shape=shape, atomic=True, required=True))
            if self.config.enable_atomic_weight:
                found.append(Label(name="atomic_weight", shape=(1,), atomic=True, required=False, default=1.0))
        if "global" in self.terms:
            found.append(Label(name=name, shape=shape, atomic=False, required=True))
        return tuple(found)

    def batch(self, *given: Any) -> Batch:
        return Batch(self.config, self.output.reduced, *given)

    def compute(self, term: str, batch: Batch) -> Term:
        """Residuals (n, k) or (f, k); those of frames are shown per atom of a mean frame."""
        means, metric = batch.means, self._metric(term)
        name = self.output.name if term == "global" else f"atom_{self.output.name}"
        label = batch.label(name)
        if label is None:
            return batch.absent(metric)
        if term == "global":
            residual = means.mask_frames(flat(batch.output(self.output.reduced)) - flat(label))
            square = means.frames(residual * residual)
            return Term(square, {metric: batch.xp.sqrt(square) / means.mean_atoms()}, batch.found(name))
        residual = means.mask_atoms(flat(batch.output(self.output.atomic)) - flat(label))
        if self.config.enable_atomic_weight and (weights := batch.label("atomic_weight")) is not None:
            residual = residual * means.mask_atoms(weights_or_one(weights, batch.found("atomic_weight")))
        square = means.atoms(residual * residual)
        return Term(square, {metric: batch.xp.sqrt(square)}, batch.found(name))

    def _metric(self, term: str) -> str:
        return f"rmse_{term}_{self.output.atomic}"
