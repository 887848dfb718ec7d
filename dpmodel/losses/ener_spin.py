"""The loss of models with spin: energies and what is derived from them, forces and magnetic forces apart.

Terms as in `dpmodel.losses.ener` without Huber's loss, relative forces and generalised coordinates; `fr` is its force
term, and with mu_i = 1 for atoms of types that have a spin, else 0, over all atoms of the batch:

    fm:  sum_i mu_i |dFm_i|^2 / (3 max(1, sum_i mu_i))        (mae: |.| of the components)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpmodel.config import option
from dpmodel.losses.base import Label, LossConfig, Term, TermLoss
from dpmodel.losses.ener import EnergyBatch, energy_labels, pref, relative_force
from dpmodel.ops import array_namespace, as_dtype

__all__ = ["EnerSpinLoss", "EnerSpinLossConfig"]

_OUTPUTS = {"e": "energy", "fr": "force", "fm": "force_mag", "v": "virial", "ae": "atom_energy"}


class EnerSpinLossConfig(LossConfig, key="ener_spin"):
    """Energy, force, magnetic force, virial and atomic energies of models with spin."""

    start_pref_e: float = pref(0.02, "start", "energy loss", "1/eV^2")
    limit_pref_e: float = pref(1.0, "end", "energy loss", "1/eV^2")
    start_pref_fr: float = pref(1000.0, "start", "loss of forces on atoms", "Å^2/eV^2")
    limit_pref_fr: float = pref(1.0, "end", "loss of forces on atoms", "Å^2/eV^2")
    start_pref_fm: float = pref(10000.0, "start", "loss of magnetic forces", "1/eV^2 times the unit of spin squared")
    limit_pref_fm: float = pref(10.0, "end", "loss of magnetic forces", "1/eV^2 times the unit of spin squared")
    start_pref_v: float = pref(0.0, "start", "virial loss", "1/eV^2")
    limit_pref_v: float = pref(0.0, "end", "virial loss", "1/eV^2")
    start_pref_ae: float = pref(0.0, "start", "atomic energy loss (label atom_ener)", "1/eV^2")
    limit_pref_ae: float = pref(0.0, "end", "atomic energy loss (label atom_ener)", "1/eV^2")
    start_pref_pf: float = option(0.0, "This loss has no force weights of atoms.", effect="ignored")
    limit_pref_pf: float = option(0.0, "This loss has no force weights of atoms.", effect="ignored")
    relative_f: float | None = relative_force()
    enable_atom_ener_coeff: bool = option(
        False, "The energy is the sum of atomic energies times the label atom_ener_coeff (1 where there is none)."
    )
    loss_func: str = option("mse", "Squared or absolute residuals.", choices=("mse", "mae"))
    intensive_ener_virial: bool = option(
        False, "Squared energy and virial residuals are divided by N^2 instead of N (not with mae)."
    )

    use_huber = False
    f_use_norm = False

    def deltas(self) -> tuple[float, float, float]:
        """Huber's deltas, which this loss does not read."""
        return 1.0, 1.0, 1.0

    def metric_terms(self) -> dict[str, str]:
        return {"E": "e", "FR": "fr", "FM": "fm"}

    def check(self) -> None:
        """Raise InputError for values out of range."""
        self.check_options()


class EnerSpinLoss(TermLoss):
    """The loss of models with spin."""

    config: EnerSpinLossConfig

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(term for term in _OUTPUTS if self.config.active(term))

    @property
    def outputs(self) -> tuple[str, ...]:
        names = [_OUTPUTS[term] for term in self.terms]
        if "fm" in self.terms:
            names.append("mask_mag")
        if "e" in self.terms and self.config.enable_atom_ener_coeff:
            names.append("atom_energy")
        return tuple(dict.fromkeys(names))

    @property
    def metrics(self) -> tuple[str, ...]:
        kind = "rmse" if self.config.loss_func == "mse" else "mae"
        return tuple(sorted(["rmse", *(f"{kind}_{term}" for term in self.terms)]))

    @property
    def labels(self) -> tuple[Label, ...]:
        found = energy_labels(self.config, {"f" if term == "fr" else term for term in self.terms})
        if "fm" in self.terms:
            found.append(Label(name="force_mag", shape=(3,), atomic=True, required=True))
        return tuple(found)

    def batch(self, *given: Any) -> SpinBatch:
        return SpinBatch(self.config, "energy", *given)

    def compute(self, term: str, batch: SpinBatch) -> Term:
        return _COMPUTE[term](batch)


class SpinBatch(EnergyBatch):
    """The terms of a model with spin."""

    def real_force(self) -> Term:
        """Forces on atoms."""
        term = self.force()
        return Term(term.value, {f"{name}r": value for name, value in term.metrics.items()}, term.found)

    def magnetic_force(self) -> Term:
        """Magnetic forces; residuals (n, 3) of the atoms with spin."""
        label, squares = self.label("force_mag"), self.config.loss_func == "mse"
        if label is None:
            return self.absent("rmse_fm" if squares else "mae_fm")
        magnetic = as_dtype(self.output("mask_mag"), self.dtype)
        xp = array_namespace(magnetic)
        magnetic = self.means.mask_atoms(magnetic)
        residual = self.means.mask_atoms(self.output("force_mag") - label) * magnetic
        count = xp.sum(magnetic)
        count = 3.0 * xp.where(count > 1.0, count, xp.ones_like(count))
        if not squares:
            value = xp.sum(xp.abs(residual)) / count
            return Term(value, {"mae_fm": value}, self.found("force_mag"))
        value = xp.sum(residual * residual) / count
        return Term(value, {"rmse_fm": xp.sqrt(value)}, self.found("force_mag"))


_COMPUTE: dict[str, Callable[[SpinBatch], Term]] = {
    "e": EnergyBatch.energy,
    "fr": SpinBatch.real_force,
    "fm": SpinBatch.magnetic_force,
    "v": EnergyBatch.virial,
    "ae": EnergyBatch.atomic_energy,
}
