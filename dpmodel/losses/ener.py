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

H(x) = x^2/2 up to |x| = delta, then delta (|x| - delta/2). dQ_j = sum over real atoms of (dr/dq_j) . dF.
With `relative_f` = nu, dF_i is divided by (|F_i| + nu), F_i the label; the norms and dQ use the plain difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from dpmodel.config import Config, at_least, option, positive
from dpmodel.errors import InputError
from dpmodel.graph import Graph
from dpmodel.losses.base import Label, Means, plain_number, prefactor, shown, weights_or_one
from dpmodel.op import Array
from dpmodel.ops import array_namespace, as_dtype, safe_norm

__all__ = ["TERMS", "EnerLoss", "EnerLossConfig"]

TERMS: dict[str, str] = {
    "e": "energy",
    "f": "force",
    "v": "virial",
    "ae": "atom_ener",
    "pf": "atom_pref",
    "gf": "drdq",
}
"""Terms by the suffix of their prefactors, and the label that each cannot do without."""

_OUTPUTS = {"e": "energy", "f": "force", "v": "virial", "ae": "atom_energy", "pf": "force", "gf": "force"}


def _pref(default: float, when: str, what: str, unit: str) -> Any:
    return option(default, f"Prefactor of the {what} at the {when} of training.", unit=unit, check=at_least(0))


def _delta(value: Any) -> str | None:
    values = value if isinstance(value, tuple | list) else (value,)
    fits = len(values) == 3 or not isinstance(value, tuple | list)
    return None if fits and all(v > 0 for v in values) else "a number above 0, or three (energy, force, virial)"


class EnerLossConfig(Config, key="ener", aliases=("ener_hess",)):
    """Energy, force, virial and related terms, each with a prefactor that follows the learning rate."""

    start_pref_e: float = _pref(0.02, "start", "energy loss", "1/eV^2")
    limit_pref_e: float = _pref(1.0, "end", "energy loss", "1/eV^2")
    start_pref_f: float = _pref(1000.0, "start", "force loss", "Å^2/eV^2")
    limit_pref_f: float = _pref(1.0, "end", "force loss", "Å^2/eV^2")
    start_pref_v: float = _pref(0.0, "start", "virial loss", "1/eV^2")
    limit_pref_v: float = _pref(0.0, "end", "virial loss", "1/eV^2")
    start_pref_h: float = _pref(0.0, "start", "Hessian loss", "Å^4/eV^2")
    limit_pref_h: float = _pref(0.0, "end", "Hessian loss", "Å^4/eV^2")
    start_pref_ae: float = _pref(0.0, "start", "atomic energy loss (label atom_ener)", "1/eV^2")
    limit_pref_ae: float = _pref(0.0, "end", "atomic energy loss (label atom_ener)", "1/eV^2")
    start_pref_pf: float = _pref(0.0, "start", "force loss weighted by atom (label atom_pref)", "Å^2/eV^2")
    limit_pref_pf: float = _pref(0.0, "end", "force loss weighted by atom (label atom_pref)", "Å^2/eV^2")
    start_pref_gf: float = _pref(0.0, "start", "loss of generalised forces (label drdq)", "1/(unit of dE/dq)^2")
    limit_pref_gf: float = _pref(0.0, "end", "loss of generalised forces (label drdq)", "1/(unit of dE/dq)^2")
    use_default_pf: bool = option(False, "Weight atoms by 1 in the pf term where there is no atom_pref.")
    relative_f: float | None = option(
        None, "Divide force residuals by (norm of the label + this number).", unit="eV/Å", check=positive
    )
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

    def prefactors(self, term: str) -> tuple[float, float]:
        """(start, limit) of a term named by its suffix, as in `e`."""
        return getattr(self, f"start_pref_{term}"), getattr(self, f"limit_pref_{term}")

    def deltas(self) -> tuple[float, float, float]:
        """Huber's deltas of energy, force and virial."""
        given = self.huber_delta
        return (given[0], given[1], given[2]) if isinstance(given, tuple) else (given, given, given)

    def active(self, term: str) -> bool:
        """Whether a term acts: either of its prefactors is not zero."""
        return any(value != 0 for value in self.prefactors(term))

    def check(self) -> None:
        """Raise InputError for values out of range and for options that do not go together."""
        for name, field in self.options().items():
            _check_option(name, getattr(self, name), field.metadata["option"])
        if self.active("h"):
            raise InputError(
                "loss: start_pref_h and limit_pref_h must be 0: training on Hessians is not available yet. "
                "Remove both to train on energies, forces and virials"
            )
        if self.use_huber:
            wrong = [f"start_pref_{term}" for term in ("pf", "gf") if self.active(term)]
            wrong += ["relative_f"] if self.relative_f is not None else []
            if wrong:
                raise InputError(f"loss: use_huber does not go with {', '.join(wrong)}; remove one or the other")
        if self.loss_func == "mae" and self.use_huber:
            raise InputError("loss: use_huber does not go with loss_func mae; remove one or the other")
        if self.intensive_ener_virial and (self.use_huber or self.loss_func == "mae"):
            other = "use_huber" if self.use_huber else "loss_func mae"
            raise InputError(f"loss: intensive_ener_virial does not go with {other}; remove one or the other")
        if self.f_use_norm and not (self.use_huber or self.loss_func == "mae"):
            raise InputError("loss: f_use_norm needs use_huber: true or loss_func: mae; the squared norm is mse itself")
        if self.active("gf") and self.numb_generalized_coord < 1:
            raise InputError(
                f"loss: start_pref_gf needs numb_generalized_coord of at least 1, not {self.numb_generalized_coord}"
            )

    def check_metric(self, metric: str) -> None:
        """Raise InputError unless full validation can rank by `metric` ("F:RMSE"; any case).

        Legal are E, F, V with MAE or RMSE, where both prefactors of the quantity are not zero.
        """
        known = [f"{q}:{kind}" for q in "EFV" for kind in ("MAE", "RMSE")]
        if metric.upper() not in known:
            raise InputError(f"validation metric {metric!r} does not belong to the loss 'ener'; legal are {known}")
        term = metric[0].lower()
        if any(value == 0 for value in self.prefactors(term)):
            raise InputError(
                f"validation metric {metric!r} needs start_pref_{term} and limit_pref_{term} that are both not 0, "
                f"got {self.prefactors(term)}"
            )


def _check_option(name: str, value: Any, info: Any) -> None:
    """Raise InputError unless the value is finite, among the choices and passes the option's own check."""
    parts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
        raise InputError(f"loss: {name} must be finite, not {value!r}")
    if info.choices and value not in info.choices:
        raise InputError(f"loss: {name} must be one of {list(info.choices)}, not {value!r}")
    if info.check is not None and value is not None and (legal := info.check(value)):
        raise InputError(f"loss: {name} must be {legal}, not {value!r}")


@dataclasses.dataclass(frozen=True)
class EnerLoss:
    """The loss of one task: a pure function, hashable, built once.

    Raises InputError where the configuration is not legal (`EnerLossConfig.check`) or `start_lr` is not above 0.
    """

    config: EnerLossConfig
    start_lr: float

    def __post_init__(self) -> None:
        self.config.check()
        if not (math.isfinite(self.start_lr) and self.start_lr > 0):
            raise InputError(f"learning_rate: start_lr must be a number above 0, not {self.start_lr!r}")

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
        cfg, active = self.config, set(self.terms)
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
            required = not cfg.use_default_pf
            found.append(
                Label(name="atom_pref", shape=(3,), atomic=True, required=required, default=1.0, repeat=3)
            )  # fmt: skip
        if "gf" in active:
            found.append(Label(name="drdq", shape=(3, cfg.numb_generalized_coord), atomic=True, required=True))
        if "e" in active and cfg.enable_atom_ener_coeff:
            found.append(Label(name="atom_ener_coeff", shape=(1,), atomic=True, required=False, default=1.0))
        return tuple(found)

    def needs(self, name: str) -> bool:
        """Whether at least one system of the data must have the label `name`."""
        return any(label.name == name and label.required for label in self.labels)

    def __call__(
        self,
        prediction: Mapping[str, Array],
        labels: Mapping[str, Array],
        found: Mapping[str, float | Array],
        graph: Graph,
        lr: float | Array,
    ) -> tuple[Array, dict[str, Array]]:
        """The loss and the displayed metrics.

        prediction: `energy` (f, 1) float64, and by `outputs` `force` (n, 3), `virial` (f, 9), `atom_energy` (n, 1).
        labels: arrays by name, shapes as in `Label`; a name may be absent. found: 1.0 where the batch has the label,
        else 0.0 (absent: 0.0). lr: the learning rate of the step. Computed in the dtype of the predicted energy.

        Returns a scalar and, for every name in `metrics`, a scalar: NaN where the label was not found. The metrics of
        a differentiable array belong to its graph: detach them (torch) before keeping them.
        Raises InputError where the prediction lacks an output that an active term needs.
        """
        batch = _Batch(self.config, prediction, labels, found, graph)
        total, metrics, lr = batch.zero, {}, plain_number(lr)
        for term in self.terms:
            value, name, metric, present = _COMPUTE[term](batch)
            start, limit = self.config.prefactors(term)
            total = total + value * (prefactor(start, limit, lr, self.start_lr) * present)
            metrics[name] = shown(metric, present)
        metrics["rmse"] = array_namespace(total).sqrt(total)
        return total, metrics


_Term = tuple[Array, str, Array, Any]
"""(loss of the term, name of its metric, metric, found: 1.0 or 0.0)."""


class _Batch:
    """The terms of one batch, each computed when it is asked for."""

    def __init__(
        self,
        config: EnerLossConfig,
        prediction: Mapping[str, Array],
        labels: Mapping[str, Array],
        found: Mapping[str, float | Array],
        graph: Graph,
    ) -> None:
        self.config, self.prediction, self.labels, self.present = config, prediction, labels, found
        energy = self._output("energy")
        self.xp, self.dtype = array_namespace(energy), energy.dtype
        self.means = Means(graph, energy)
        # A zero that depends on the parameters: a batch without any label still has a (zero) gradient.
        self.zero = 0.0 * self.means.frames(energy)

    def energy(self) -> _Term:
        """Per-frame energies; residuals (f,)."""
        cfg, found = self.config, self._found("energy")
        label = self._label("energy")
        if label is None:
            return self._absent("e")
        energy = self._output("energy")
        if cfg.enable_atom_ener_coeff and (coeff := self._label("atom_ener_coeff")) is not None:
            weights = weights_or_one(coeff, self._found("atom_ener_coeff"))
            energy = self.means.atom_sum(self._output("atom_energy") * self.means.mask_atoms(weights))
        return self._extensive("e", energy - label, cfg.deltas()[0], found)

    def virial(self) -> _Term:
        """Per-frame virials; residuals (f, 9)."""
        label = self._label("virial")
        if label is None:
            return self._absent("v")
        return self._extensive("v", self._output("virial") - label, self.config.deltas()[2], self._found("virial"))

    def force(self) -> _Term:
        """Forces; residuals (n, 3)."""
        cfg, means = self.config, self.means
        plain = self._force_residual()
        if plain is None:
            return self._absent("f")
        residual, found = self._relative(plain), self._found("force")
        if cfg.loss_func == "mae":
            value = means.atoms(safe_norm(plain, keepdims=True) if cfg.f_use_norm else self.xp.abs(residual))
            return value, "mae_f", value, found
        square = means.atoms(residual * residual)
        if not cfg.use_huber:
            value = square
        elif cfg.f_use_norm:
            value = means.atoms(_huber(safe_norm(plain, keepdims=True), cfg.deltas()[1]))
        else:
            value = means.atoms(_huber(residual, cfg.deltas()[1]))
        return value, "rmse_f", self.xp.sqrt(square), found

    def atomic_energy(self) -> _Term:
        """Atomic energies; residuals (n, 1), not divided by anything. Huber's delta is that of the energy."""
        label = self._label("atom_ener")
        if label is None:
            return self._absent("ae")
        residual, found = self.means.mask_atoms(self._output("atom_energy") - label), self._found("atom_ener")
        if self.config.loss_func == "mae":
            value = self.means.atoms(self.xp.abs(residual))
            return value, "mae_ae", value, found
        square = self.means.atoms(residual * residual)
        value = self.means.atoms(_huber(residual, self.config.deltas()[0])) if self.config.use_huber else square
        return value, "rmse_ae", self.xp.sqrt(square), found

    def weighted_force(self) -> _Term:
        """Forces weighted by atom_pref; without it, nothing, or weights 1 with `use_default_pf`."""
        plain, weights, found = self._force_residual(), self._label("atom_pref"), self._found("atom_pref")
        if plain is None or (weights is None and not self.config.use_default_pf):
            return self._absent("pf")
        residual = self._relative(plain)
        if self.config.use_default_pf:
            weights = self.xp.ones_like(residual) if weights is None else weights_or_one(weights, found)
            found = 1.0
        # Without force labels the residual would be the force itself, so both must have been found.
        found = found * self._found("force")
        if self.config.loss_func == "mae":
            value = self.means.atoms(weights * self.xp.abs(residual))
            return value, "mae_pf", value, found
        value = self.means.atoms(weights * residual * residual)
        return value, "rmse_pf", self.xp.sqrt(value), found

    def generalised_force(self) -> _Term:
        """Generalised forces Q_j = sum_i (dr_i/dq_j) . F_i over real atoms; residuals (f, ngen)."""
        plain, drdq = self._force_residual(), self._label("drdq")
        if plain is None or drdq is None:
            return self._absent("gf")
        residual = self.means.atom_sum(self.xp.sum(plain[:, :, None] * drdq, axis=1))
        value = self.means.frames(residual * residual)
        return value, "rmse_gf", self.xp.sqrt(value), self._found("drdq") * self._found("force")

    def _extensive(self, term: str, residual: Array, delta: float, found: Any) -> _Term:
        """What energy and virial share: residuals (f, k), counted per atom."""
        cfg, means = self.config, self.means
        natoms = means.natoms[:, None]
        residual = means.mask_frames(residual)
        per_atom = residual / natoms
        if cfg.loss_func == "mae":
            value = means.frames(self.xp.abs(per_atom))
            return value, f"mae_{term}", value, found
        square = means.frames(per_atom * per_atom)
        if cfg.use_huber:
            value = means.frames(_huber(per_atom, delta))
        else:
            value = square if cfg.intensive_ener_virial else means.frames(residual * per_atom)
        return value, f"rmse_{term}", self.xp.sqrt(square), found

    def _force_residual(self) -> Array | None:
        label = self._label("force")
        return None if label is None else self.means.mask_atoms(self._output("force") - label)

    def _relative(self, plain: Array) -> Array:
        if self.config.relative_f is None:
            return plain
        label = self.means.mask_atoms(self._label("force"))
        return plain / (safe_norm(label, keepdims=True) + self.config.relative_f)

    def _absent(self, term: str) -> _Term:
        kind = "rmse" if self.config.loss_func == "mse" or term == "gf" else "mae"
        return self.zero, f"{kind}_{term}", self.zero, 0.0

    def _output(self, name: str) -> Array:
        """A prediction in the dtype of the energy."""
        if name not in self.prediction:
            raise InputError(
                f"the loss needs the model output {name!r}, which is not among {sorted(self.prediction)}; "
                f"ask the model for it, or set its prefactors to 0"
            )
        return as_dtype(self.prediction[name], self.prediction["energy"].dtype)

    def _label(self, name: str) -> Array | None:
        return as_dtype(self.labels[name], self.dtype) if name in self.labels else None

    def _found(self, name: str) -> Any:
        return plain_number(self.present.get(name, 0.0))


_COMPUTE: dict[str, Callable[[_Batch], _Term]] = {
    "e": _Batch.energy,
    "f": _Batch.force,
    "v": _Batch.virial,
    "ae": _Batch.atomic_energy,
    "pf": _Batch.weighted_force,
    "gf": _Batch.generalised_force,
}


def _huber(x: Array, delta: float) -> Array:
    """x^2/2 up to |x| = delta, then delta (|x| - delta/2)."""
    xp = array_namespace(x)
    size = xp.abs(x)
    return xp.where(size <= delta, 0.5 * x * x, delta * (size - 0.5 * delta))
