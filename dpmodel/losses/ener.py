"""The loss of energy models: energy, force, virial, and what can be derived from them.

    L(t) = sum over active terms k of p_k(t) found_k L_k,    p_k(t) = limit_k + (start_k - limit_k) lr(t) / start_lr

A term is active when its start or its limit prefactor is not zero. With residuals d and N_f real atoms in frame f
(<.>_f is the mean over frames, M_k the mean over atoms and k components inside a frame, then over frames):

    term     mse (q = 2 if intensive, else 1)   mse with huber          mae
    energy   <dE^2 / N_f^q>_f                   <H(dE / N_f)>_f         <|dE| / N_f>_f
    force    M_3[dF^2]                          M_3[H(dF)]              M_3[|dF|]
             with f_use_norm                    M_1[H(|dF_i|)]          M_1[|dF_i|]
    virial   <mean_9 dV^2 / N_f^q>_f            <mean_9 H(dV / N_f)>_f  <mean_9 |dV| / N_f>_f
    ae       M_1[de_i^2]                        M_1[H(de_i)]            M_1[|de_i|]
    pf       M_3[w_i dF^2]                      not allowed             M_3[w_i |dF|]
    gf       <mean_j dQ_j^2>_f                  not allowed             as mse
    h        <sum_ab dH_ab^2 / (3 N_f)^2>_f     not allowed             <sum_ab |dH_ab| / (3 N_f)^2>_f

H(x) = x^2/2 up to |x| = delta, then delta (|x| - delta/2). dQ_j = sum over real atoms of (dr/dq_j) . dF.
With `relative_f` = nu, dF_i is divided by (|F_i| + nu), F_i the label; the norms and dQ use the plain difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpmodel.config import at_least, option, positive
from dpmodel.errors import InputError
from dpmodel.losses.base import Batch, Label, LossConfig, Term, TermLoss, weights_or_one
from dpmodel.op import Array
from dpmodel.ops import array_namespace, safe_norm

__all__ = ["TERMS", "EnerLoss", "EnerLossConfig", "EnergyBatch", "energy_labels", "pref", "relative_force"]

TERMS: dict[str, str] = {
    "e": "energy",
    "f": "force",
    "v": "virial",
    "ae": "atom_ener",
    "pf": "atom_pref",
    "gf": "drdq",
    "h": "hessian",
}
"""Terms by the suffix of their prefactors, and the label that each cannot do without."""

_OUTPUTS = {
    "e": "energy", "f": "force", "v": "virial", "ae": "atom_energy", "pf": "force", "gf": "force", "h": "hessian",
}  # fmt: skip


def pref(default: float, when: str, what: str, unit: str) -> Any:
    """A prefactor."""
    return option(default, f"Prefactor of the {what} at the {when} of training.", unit=unit, check=at_least(0))


def relative_force() -> Any:
    """The option `relative_f`."""
    return option(None, "Divide force residuals by (norm of the label + this number).", unit="eV/Å", check=positive)


def _delta(value: Any) -> str | None:
    values = value if isinstance(value, tuple | list) else (value,)
    fits = len(values) == 3 or not isinstance(value, tuple | list)
    return None if fits and all(v > 0 for v in values) else "a number above 0, or three (energy, force, virial)"


class EnerLossConfig(LossConfig, key="ener", aliases=("ener_hess",)):
    """Energy, force, virial and related terms, each with a prefactor that follows the learning rate."""

    start_pref_e: float = pref(0.02, "start", "energy loss", "1/eV^2")
    limit_pref_e: float = pref(1.0, "end", "energy loss", "1/eV^2")
    start_pref_f: float = pref(1000.0, "start", "force loss", "Å^2/eV^2")
    limit_pref_f: float = pref(1.0, "end", "force loss", "Å^2/eV^2")
    start_pref_v: float = pref(0.0, "start", "virial loss", "1/eV^2")
    limit_pref_v: float = pref(0.0, "end", "virial loss", "1/eV^2")
    start_pref_h: float = pref(0.0, "start", "Hessian loss", "Å^4/eV^2")
    limit_pref_h: float = pref(0.0, "end", "Hessian loss", "Å^4/eV^2")
    start_pref_ae: float = pref(0.0, "start", "atomic energy loss (label atom_ener)", "1/eV^2")
    limit_pref_ae: float = pref(0.0, "end", "atomic energy loss (label atom_ener)", "1/eV^2")
    start_pref_pf: float = pref(0.0, "start", "force loss weighted by atom (label atom_pref)", "Å^2/eV^2")
    limit_pref_pf: float = pref(0.0, "end", "force loss weighted by atom (label atom_pref)", "Å^2/eV^2")
    start_pref_gf: float = pref(0.0, "start", "loss of generalised forces (label drdq)", "1/(unit of dE/dq)^2")
    limit_pref_gf: float = pref(0.0, "end", "loss of generalised forces (label drdq)", "1/(unit of dE/dq)^2")
    use_default_pf: bool = option(False, "Weight atoms by 1 in the pf term where there is no atom_pref.")
    relative_f: float | None = relative_force()
    enable_atom_ener_coeff: bool = option(
        False, "The energy is the sum of atomic energies times the label atom_ener_coeff (1 where there is none)."
    )
    numb_generalized_coord: int = option(0, "Number of generalised coordinates in drdq.", check=at_least(0))
    use_huber: bool = option(False, "Huber's loss in place of squares (loss_func mse only).")
    loss_func: str = option("mse", "Squared or absolute residuals.", choices=("mse", "mae"))
    f_use_norm: bool = option(False, "The force residual is the norm of the difference vector (huber or mae only).")
    huber_delta: float | tuple[float, ...] = option(
        0.01, "Residual where Huber's loss turns linear: one number, or [energy, force, virial]; per atom for energy "
        "and virial. Atomic energies use that of the energy.", unit="eV, eV/Å, eV", check=_delta
    )  # fmt: skip
    intensive_ener_virial: bool = option(
        False, "Squared energy and virial residuals are divided by N^2 instead of N (neither huber nor mae)."
    )

    def deltas(self) -> tuple[float, float, float]:
        """Huber's deltas of energy, force and virial."""
        given = self.huber_delta
        return (given[0], given[1], given[2]) if isinstance(given, tuple) else (given, given, given)

    def check(self) -> None:
        """Raise InputError for values out of range and for options that do not go together."""
        self.check_options()
        if self.use_huber and self.loss_func == "mse":
            wrong = [f"start_pref_{term}" for term in ("pf", "gf", "h") if self.active(term)]
            wrong += ["relative_f"] if self.relative_f is not None else []
            if wrong:
                raise InputError(f"loss: use_huber does not go with {', '.join(wrong)}; remove one or the other")
        if self.f_use_norm and not (self.use_huber or self.loss_func == "mae"):
            raise InputError("loss: f_use_norm needs use_huber: true or loss_func: mae; the squared norm is mse itself")
        if self.active("gf") and self.numb_generalized_coord < 1:
            raise InputError(
                f"loss: start_pref_gf needs numb_generalized_coord of at least 1, not {self.numb_generalized_coord}"
            )

    def metric_terms(self) -> dict[str, str]:
        return {"E": "e", "F": "f", "V": "v"}


class EnerLoss(TermLoss):
    """The loss of energy models."""

    config: EnerLossConfig

    @property
    def terms(self) -> tuple[str, ...]:
        """The active terms, by suffix of their prefactors."""
        return tuple(term for term in TERMS if self.config.active(term))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Keys that `prediction` must have."""
        names = dict.fromkeys(_OUTPUTS[term] for term in self.terms)
        if self.config.enable_atom_ener_coeff and "e" in self.terms:
            names["atom_energy"] = None
        return tuple(names)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the displayed metrics, sorted."""
        kind = "rmse" if self.config.loss_func == "mse" else "mae"
        return tuple(sorted(["rmse", *(f"{'rmse' if t == 'gf' else kind}_{t}" for t in self.terms)]))

    @property
    def labels(self) -> tuple[Label, ...]:
        """What the loss reads from the data."""
        return tuple(energy_labels(self.config, set(self.terms)))

    def batch(self, *given: Any) -> EnergyBatch:
        return EnergyBatch(self.config, "energy", *given)

    def compute(self, term: str, batch: EnergyBatch) -> Term:
        return _COMPUTE[term](batch)


def energy_labels(config: Any, active: set[str]) -> list[Label]:
    """What the active terms read from the data."""
    found = []
    if "e" in active:
        found.append(Label(name="energy", shape=(1,), atomic=False, required=True, high_precision=True))
    if active & {"f", "pf", "gf"}:
        found.append(Label(name="force", shape=(3,), atomic=True, required=True))
    if "v" in active:
        found.append(Label(name="virial", shape=(9,), atomic=False, required=True))
    if "ae" in active:
        found.append(Label(name="atom_ener", shape=(1,), atomic=True, required=True))
    if "pf" in active:
        required = not config.use_default_pf
        found.append(Label(name="atom_pref", shape=(3,), atomic=True, required=required, default=1.0, repeat=3))
    if "gf" in active:
        found.append(Label(name="drdq", shape=(3, config.numb_generalized_coord), atomic=True, required=True))
    if "h" in active:
        found.append(Label(name="hessian", shape=(3,), atomic=True, required=True, square=True))
    if "e" in active and config.enable_atom_ener_coeff:
        found.append(Label(name="atom_ener_coeff", shape=(1,), atomic=True, required=False, default=1.0))
    return found


class EnergyBatch(Batch):
    """The terms of energies and what is derived from them, each computed when it is asked for."""

    def energy(self) -> Term:
        """Per-frame energies; residuals (f,)."""
        cfg, found = self.config, self.found("energy")
        label = self.label("energy")
        if label is None:
            return self._absent("e")
        energy = self.output("energy")
        if cfg.enable_atom_ener_coeff and (coeff := self.label("atom_ener_coeff")) is not None:
            weights = weights_or_one(coeff, self.found("atom_ener_coeff"))
            energy = self.means.atom_sum(self.output("atom_energy") * self.means.mask_atoms(weights))
        return self._extensive("e", energy - label, cfg.deltas()[0], found)

    def virial(self) -> Term:
        """Per-frame virials; residuals (f, 9)."""
        label = self.label("virial")
        if label is None:
            return self._absent("v")
        return self._extensive("v", self.output("virial") - label, self.config.deltas()[2], self.found("virial"))

    def force(self) -> Term:
        """Forces; residuals (n, 3)."""
        cfg, means = self.config, self.means
        plain = self._force_residual()
        if plain is None:
            return self._absent("f")
        residual, found = self._relative(plain), self.found("force")
        if cfg.loss_func == "mae":
            value = means.atoms(safe_norm(plain, keepdims=True) if cfg.f_use_norm else self.xp.abs(residual))
            return Term(value, {"mae_f": value}, found)
        square = means.atoms(residual * residual)
        if not cfg.use_huber:
            value = square
        elif cfg.f_use_norm:
            value = means.atoms(_huber(safe_norm(plain, keepdims=True), cfg.deltas()[1]))
        else:
            value = means.atoms(_huber(residual, cfg.deltas()[1]))
        return Term(value, {"rmse_f": self.xp.sqrt(square)}, found)

    def atomic_energy(self) -> Term:
        """Atomic energies; residuals (n, 1), not divided by anything. Huber's delta is that of the energy."""
        label = self.label("atom_ener")
        if label is None:
            return self._absent("ae")
        residual, found = self.means.mask_atoms(self.output("atom_energy") - label), self.found("atom_ener")
        if self.config.loss_func == "mae":
            value = self.means.atoms(self.xp.abs(residual))
            return Term(value, {"mae_ae": value}, found)
        square = self.means.atoms(residual * residual)
        value = self.means.atoms(_huber(residual, self.config.deltas()[0])) if self.config.use_huber else square
        return Term(value, {"rmse_ae": self.xp.sqrt(square)}, found)

    def weighted_force(self) -> Term:
        """Forces weighted by atom_pref; without it, nothing, or weights 1 with `use_default_pf`."""
        plain, weights, found = self._force_residual(), self.label("atom_pref"), self.found("atom_pref")
        if plain is None or (weights is None and not self.config.use_default_pf):
            return self._absent("pf")
        residual = self._relative(plain)
        if self.config.use_default_pf:
            weights = self.xp.ones_like(residual) if weights is None else weights_or_one(weights, found)
            found = 1.0
        # Without force labels the residual would be the force itself, so both must have been found.
        found = found * self.found("force")
        if self.config.loss_func == "mae":
            value = self.means.atoms(weights * self.xp.abs(residual))
            return Term(value, {"mae_pf": value}, found)
        value = self.means.atoms(weights * residual * residual)
        return Term(value, {"rmse_pf": self.xp.sqrt(value)}, found)

    def generalised_force(self) -> Term:
        """Generalised forces Q_j = sum_i (dr_i/dq_j) . F_i over real atoms; residuals (f, ngen)."""
        plain, drdq = self._force_residual(), self.label("drdq")
        if plain is None or drdq is None:
            return self._absent("gf")
        residual = self.means.atom_sum(self.xp.sum(plain[:, :, None] * drdq, axis=1))
        value = self.means.frames(residual * residual)
        return Term(value, {"rmse_gf": self.xp.sqrt(value)}, self.found("drdq") * self.found("force"))

    def hessian(self) -> Term:
        """Hessians; residuals (n, 3, 3 k). Pairs count where both atoms do."""
        label, found, means = self.label("hessian"), self.found("hessian"), self.means
        if label is None or (isinstance(found, float) and found == 0.0):
            return self._absent("h")
        residual = means.mask_pairs(self.output("hessian")[:, :, : label.shape[2]] - label)
        mae = self.config.loss_func == "mae"
        size = self.xp.abs(residual) if mae else residual * residual
        total = means.atom_sum(self.xp.sum(size, axis=(1, 2))[:, None])
        value = means.frames(total / (3.0 * means.natoms[:, None]) ** 2)
        return Term(value, {"mae_h": value} if mae else {"rmse_h": self.xp.sqrt(value)}, found)

    def _extensive(self, term: str, residual: Array, delta: float, found: Any) -> Term:
        """What energy and virial share: residuals (f, k), counted per atom."""
        cfg, means = self.config, self.means
        natoms = means.natoms[:, None]
        residual = means.mask_frames(residual)
        per_atom = residual / natoms
        if cfg.loss_func == "mae":
            value = means.frames(self.xp.abs(per_atom))
            return Term(value, {f"mae_{term}": value}, found)
        square = means.frames(per_atom * per_atom)
        if cfg.use_huber:
            value = means.frames(_huber(per_atom, delta))
        else:
            value = square if cfg.intensive_ener_virial else means.frames(residual * per_atom)
        return Term(value, {f"rmse_{term}": self.xp.sqrt(square)}, found)

    def _force_residual(self) -> Array | None:
        label = self.label("force")
        return None if label is None else self.means.mask_atoms(self.output("force") - label)

    def _relative(self, plain: Array) -> Array:
        if self.config.relative_f is None:
            return plain
        label = self.means.mask_atoms(self.label("force"))
        return plain / (safe_norm(label, keepdims=True) + self.config.relative_f)

    def _absent(self, term: str) -> Term:
        kind = "rmse" if self.config.loss_func == "mse" or term == "gf" else "mae"
        return self.absent(f"{kind}_{term}")


_COMPUTE: dict[str, Callable[[EnergyBatch], Term]] = {
    "e": EnergyBatch.energy,
    "f": EnergyBatch.force,
    "v": EnergyBatch.virial,
    "ae": EnergyBatch.atomic_energy,
    "pf": EnergyBatch.weighted_force,
    "gf": EnergyBatch.generalised_force,
    "h": EnergyBatch.hessian,
}


def _huber(x: Array, delta: float) -> Array:
    """x^2/2 up to |x| = delta, then delta (|x| - delta/2)."""
    xp = array_namespace(x)
    size = xp.abs(x)
    return xp.where(size <= delta, 0.5 * x * x, delta * (size - 0.5 * delta))
