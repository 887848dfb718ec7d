"""The loss of densities of states: D on a grid of energies, and its running sum C (the integrated density).

    L = p_dos <dD^2> + p_cdf <dC^2> + p_ados M[dD_i^2] + p_acdf M[dC_i^2]

The first two over frames, the others over the atoms of a frame, then frames; means over grid points in all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dpmodel.config import at_least, option
from dpmodel.errors import InputError
from dpmodel.losses.base import Batch, Label, LossConfig, Term, TermLoss

__all__ = ["DOSLoss", "DOSLossConfig"]

_TERMS = {
    "dos": ("dos", "rmse_global_dos"),
    "cdf": ("dos", "rmse_global_cdf"),
    "ados": ("atom_dos", "rmse_local_dos"),
    "acdf": ("atom_dos", "rmse_local_cdf"),
}
"""By suffix of the prefactors: output and label, metric."""


def _pref(default: float, when: str, what: str) -> Any:
    return option(default, f"Prefactor of the loss of {what} at the {when} of training.", check=at_least(0))


class DOSLossConfig(LossConfig, key="dos"):
    """Densities of states of frames and of atoms, and their running sums."""

    start_pref_dos: float = _pref(0.0, "start", "the density of frames (label dos)")
    limit_pref_dos: float = _pref(0.0, "end", "the density of frames (label dos)")
    start_pref_cdf: float = _pref(0.0, "start", "the running sum for frames (label dos)")
    limit_pref_cdf: float = _pref(0.0, "end", "the running sum for frames (label dos)")
    start_pref_ados: float = _pref(1.0, "start", "the density of atoms (label atom_dos)")
    limit_pref_ados: float = _pref(1.0, "end", "the density of atoms (label atom_dos)")
    start_pref_acdf: float = _pref(0.0, "start", "the running sum for atoms (label atom_dos)")
    limit_pref_acdf: float = _pref(0.0, "end", "the running sum for atoms (label atom_dos)")

    def metric_terms(self) -> dict[str, str]:
        return {"G": "dos", "L": "ados"}

    def check(self) -> None:
        """Raise InputError for values out of range, or if nothing is left to learn."""
        self.check_options()
        if not any(self.active(term) for term in _TERMS):
            raise InputError("loss: all prefactors are 0, so there is nothing to learn; set one, as start_pref_ados")


@dataclasses.dataclass(frozen=True)
class DOSLoss(TermLoss):
    """The loss of densities of states; `size` is the number of grid points."""

    config: DOSLossConfig
    size: int

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(term for term in _TERMS if self.config.active(term))

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(["dos", *(_TERMS[term][0] for term in self.terms)]))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(sorted(["rmse", *(_TERMS[term][1] for term in self.terms)]))

    @property
    def labels(self) -> tuple[Label, ...]:
        names = dict.fromkeys(_TERMS[term][0] for term in self.terms)
        return tuple(
            Label(name=name, shape=(self.size,), atomic=name.startswith("atom"), required=True) for name in names
        )

    def batch(self, *given: Any) -> Batch:
        return Batch(self.config, "dos", *given)

    def compute(self, term: str, batch: Batch) -> Term:
        """Residuals (f, size) or (n, size); those of frames are shown per atom of a mean frame."""
        name, metric = _TERMS[term]
        label, means = batch.label(name), batch.means
        if label is None:
            return batch.absent(metric)
        residual = batch.output(name) - label
        if term in ("cdf", "acdf"):
            residual = batch.xp.cumulative_sum(residual, axis=1)
        if name == "atom_dos":
            square = means.atoms(means.mask_atoms(residual) ** 2)
            return Term(square, {metric: batch.xp.sqrt(square)}, batch.found(name))
        square = means.frames(means.mask_frames(residual) ** 2)
        return Term(square, {metric: batch.xp.sqrt(square) / means.mean_atoms()}, batch.found(name))
