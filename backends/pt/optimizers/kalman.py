"""Layer-wise extended Kalman filter (Hu et al., "RLEKF", AAAI 2023, arXiv 2212.06989), and a training step with it.

The parameters are the state of a filter and labels are measurements, with an error covariance that is diagonal by blocks:
P_l for block l, the unit matrix at first. For a residual e and the gradient H of what was measured, per block l::

    K_l = P_l H_l
    A = 1 / sum_l (lambda + H_l^T K_l)
    w_l = w_l + A e K_l
    P_l = (P_l - A K_l K_l^T) / lambda
    lambda = nu lambda + 1 - nu         0.98 at first, nu = 0.9987

With one block and a linear model this is recursive least squares with forgetting. The filter has no learning rate.

Memory: 8 n_l^2 bytes per block of n_l parameters, in float64 whatever the type of the parameters, as P would else lose its
positive eigenvalues to rounding.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpmodel.errors import BackendError, InputError
from dpmodel.training.stepper import NonFiniteError, OptimizerState

__all__ = ["LKF", "Observation", "kalman_step"]

logger = logging.getLogger(__name__)

_NU = 0.9987
_GROUPS, _ATOMS = 4, 6
"""Force updates per step, and atoms in each."""


class LKF(torch.optim.Optimizer):
    """The filter. `kalman_step` drives it; `step` has no meaning.

    Parameters are packed in order, matrices transposed (the weights of one output next to each other), into blocks of at
    most `blocksize`; one that does not fit begins a new block, one larger than a block is split. Blocks without a gradient
    stay as they are.

    Args:
        named: parameters and their paths; none sharded.
        blocksize: largest number of parameters in a block.
        pref_e, pref_f: (start, limit) of the factors of the energy and the force residual.
        num_steps: training steps from start to limit.
        seed: of the atoms whose forces are fitted; equal on all ranks.
    """

    def __init__(
        self, named: Sequence[tuple[str, torch.nn.Parameter]], *, lr: float = 1.0, blocksize: int = 5120,
        pref_e: tuple[float, float] = (1.0, 1.0), pref_f: tuple[float, float] = (1.0, 1.0), num_steps: int = 0,
        seed: Sequence[int] = (0,),
    ) -> None:  # fmt: skip
        super().__init__([p for _, p in named], {"lr": lr})
        self.names = tuple(name for name, _ in named)
        self.parameters: tuple[torch.nn.Parameter, ...] = tuple(p for _, p in named)
        self.blocks = _blocks([p.numel() for p in self.parameters], blocksize)
        self.covariances = _units(
            [sum(stop - start for _, start, stop in block) for block in self.blocks], self.parameters[0].device
        )
        self.forgetting = 0.98
        self.steps = 0
        self.seed = tuple(seed)
        self._prefs = {"energy": pref_e, "force": pref_f}
        self._num_steps = num_steps

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Not available: raises RuntimeError."""
        raise RuntimeError("the Kalman filter needs residuals, not a loss: call kalman_step(optimizer, observations)")

    def prefactor(self, what: str) -> float:
        """Of the residuals of "energy" or "force" in the present step: start (limit / start)^(steps / num_steps)."""
        start, limit = self._prefs[what]
        return float(start * (limit / start) ** (self.steps / max(self._num_steps, 1)))

    @torch.no_grad()
    def update(self, error: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """One update of the filter.

        Args:
            error: scalar residual, label minus prediction.
            gradients: of the prediction, per parameter in order, of its shape; None: it does not depend on it.

        Raises NonFiniteError, with nothing changed, where a number is not finite.
        """
        packed = [None if g is None else _packed(g) for g in gradients]
        chosen = [k for k, block in enumerate(self.blocks) if any(packed[i] is not None for i, _, _ in block)]
        rows = [self._row(self.blocks[k], packed) for k in chosen]
        gains = [self.covariances[k] @ row for k, row in zip(chosen, rows, strict=True)]
        if not chosen:
            return
        total = torch.stack([self.forgetting + row @ gain for row, gain in zip(rows, gains, strict=True)]).sum()
        if not bool(torch.isfinite(error.double() * total)):
            bad = [n for n, g in zip(self.names, packed, strict=True) if g is not None and not bool(g.isfinite().all())]
            raise NonFiniteError(
                f"the update of the Kalman filter is not finite (residual {float(error):g}), gradients of "
                f"{', '.join(bad[:3]) or 'no parameter'}"
            )
        for k, gain in zip(chosen, gains, strict=True):
            self._move(self.blocks[k], gain * (error.double() / total))
            root = gain * total.rsqrt()
            self.covariances[k].addr_(root, root, alpha=-1).div_(self.forgetting)
        self.forgetting = _NU * self.forgetting + 1 - _NU

    def filter_state(self) -> OptimizerState:
        """What a checkpoint holds: covariance by block, and the scalars."""
        return {
            "covariance": {f"blocks.{k}": p.cpu().numpy().copy() for k, p in enumerate(self.covariances)},
            "filter": {"forgetting": np.asarray(self.forgetting), "steps": np.asarray(float(self.steps))},
        }

    def load_filter_state(self, state: OptimizerState) -> None:
        """The inverse. Raises InputError where blocks do not fit."""
        own = {f"blocks.{k}": tuple(p.shape) for k, p in enumerate(self.covariances)}
        given = {name: np.shape(value) for name, value in state.get("covariance", {}).items()}
        if given != own or not {"forgetting", "steps"} <= state.get("filter", {}).keys():
            raise InputError(
                f"the state of the Kalman filter does not fit this run: expected blocks {list(own.values())}, got "
                f"{list(given.values())}. Go on with the same model and optimizer.kf_blocksize, or begin anew with "
                "--init-model"
            )
        for k, p in enumerate(self.covariances):
            p.copy_(torch.as_tensor(np.asarray(state["covariance"][f"blocks.{k}"]).copy()))
        self.forgetting = float(state["filter"]["forgetting"])
        self.steps = int(state["filter"]["steps"])

    def _row(self, block: Sequence[tuple[int, int, int]], packed: Sequence[Tensor | None]) -> Tensor:
        parts = []
        for i, start, stop in block:
            g = packed[i]
            parts.append(self.covariances[0].new_zeros(stop - start) if g is None else g[start:stop])
        return torch.cat(parts)

    def _move(self, block: Sequence[tuple[int, int, int]], step: Tensor) -> None:
        first = 0
        for i, start, stop in block:
            p = self.parameters[i]
            flat = (p.T if p.ndim == 2 else p).reshape(-1)  # a copy, where it is transposed
            flat = flat.clone() if flat.data_ptr() == p.data_ptr() else flat
            flat[start:stop] += step[first : first + stop - start].to(p.dtype)
            p.copy_(flat.reshape(p.T.shape).T if p.ndim == 2 else flat.reshape(p.shape))
            first += stop - start


def _units(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """Unit matrices. Raises BackendError where there is no memory for them."""
    gib = sum(8 * size**2 for size in sizes) / 2**30
    what = f"the covariances of the optimizer LKF, {len(sizes)} blocks, take {gib:.1f} GiB"
    if gib > 1:
        logger.warning("%s; a smaller optimizer.kf_blocksize takes proportionally less", what)
    try:
        return [torch.eye(size, dtype=torch.float64, device=device) for size in sizes]
    except (RuntimeError, MemoryError) as problem:
        text = str(problem).partition("\n")[0]
        raise BackendError(
            f"{what}, which {device} does not have ({text}); choose a smaller optimizer.kf_blocksize or another optimizer"
        ) from problem


def _packed(gradient: Tensor) -> Tensor:
    return (gradient.T if gradient.ndim == 2 else gradient).reshape(-1).double()


def _blocks(sizes: Sequence[int], largest: int) -> list[list[tuple[int, int, int]]]:
    """Blocks of (parameter, start, stop), each of at most `largest` numbers, in order."""
    blocks: list[list[tuple[int, int, int]]] = []
    room = 0
    for i, size in enumerate(sizes):
        for start in range(0, size, largest):
            stop = min(start + largest, size)
            if stop - start > room:
                blocks.append([])
                room = largest
            blocks[-1].append((i, start, stop))
            room -= stop - start
    return blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """A batch of f frames and n atoms, as the filter sees it."""

    predict: Callable[[bool], Mapping[str, Tensor]]
    """Outputs of the model as it now is, differentiable with respect to its parameters: energy (f, 1), eV, and if the
    argument is True force (n, 3), eV/Å. Called anew for every update."""
    energy: Tensor | None
    """(f, 1) eV: labels; None: not found."""
    force: Tensor | None
    """(n, 3) eV/Å: labels; None: not found."""
    atype: np.ndarray
    """(n,) types; -1: no atom."""
    frame: np.ndarray
    """(n,) frame of every atom."""
    natoms: np.ndarray
    """(f,) atoms of every frame; frames without atoms do not count."""


def kalman_step(
    optimizer: LKF, observations: Sequence[Observation], *, total: Callable[[Tensor], Tensor] | None = None
) -> None:
    """One training step: an update by the energies, then four by the forces of six atoms per frame each.

    With residuals d (label minus prediction) over the F frames of all batches and ranks, N_f atoms in frame f, and signs
    s = sign(d), so that residuals of different sign do not cancel::

        energy   e = pref_e sqrt(F) mean_f |d_f| / N_f,                 H = d/dw sum_f s_f E_f / N_f
        force    e = pref_f sqrt(F) mean_f mean_18 |d_fk| / N_f,        H = d/dw sum_f sum_18 s_fk F_fk / (18 N_f)

    where 18 components are those of six atoms of the frame, drawn with replacement by a generator that depends on the
    seed and the step alone: a run can be repeated and restarted, and ranks agree. Labels that no batch has are left out.

    Args:
        optimizer: the filter.
        observations: batches of this rank: several are fitted as one.
        total: sum of a tensor over ranks (collective); None: one rank.
    """
    _update(optimizer, "energy", [_energy(o) for o in observations if o.energy is not None], total)
    drawn = np.random.default_rng([*optimizer.seed, optimizer.steps]).random((_GROUPS, _ATOMS))
    for group in drawn:
        _update(optimizer, "force", [_force(o, group) for o in observations if o.force is not None], total)
    optimizer.steps += 1


Term = tuple[Tensor, Tensor, int]
"""Signed sum of predictions (with a graph), sum of residuals, frames."""


def _energy(o: Observation) -> Callable[[], Term]:
    def term() -> Term:
        assert o.energy is not None, "asked for"
        found = o.predict(False)["energy"].reshape(-1)
        weight = torch.as_tensor(
            np.where(o.natoms > 0, 1 / np.maximum(o.natoms, 1), 0.0), dtype=found.dtype, device=found.device
        )
        return *_signed(found, o.energy.reshape(-1).to(found.dtype), weight), int((o.natoms > 0).sum())

    return term


def _force(o: Observation, drawn: np.ndarray) -> Callable[[], Term]:
    def term() -> Term:
        assert o.force is not None, "asked for"
        rows, weights = [], []
        for f, count in enumerate(o.natoms):
            if count > 0:
                atoms = np.flatnonzero((o.frame == f) & (o.atype >= 0))
                rows.append(atoms[np.floor(drawn * len(atoms)).astype(int)])
                weights.append(1 / (3 * len(drawn) * count))
        found = o.predict(True)["force"]
        index = torch.as_tensor(np.array(rows, int).reshape(-1, len(drawn)), device=found.device)
        weight = torch.as_tensor(np.array(weights), dtype=found.dtype, device=found.device).reshape(-1, 1, 1)
        label = o.force.reshape(-1, 3).to(found.dtype)[index]
        return *_signed(found.reshape(-1, 3)[index], label, weight), len(rows)

    return term


def _signed(found: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    residual = label - found.detach()
    sign = torch.where(residual < 0, -1.0, 1.0).to(found.dtype)
    return (weight * sign * found).sum(), (weight * residual.abs()).sum()


def _update(
    optimizer: LKF, what: str, terms: Sequence[Callable[[], Term]], total: Callable[[Tensor], Tensor] | None
) -> None:
    """One update from batches of all ranks; all enter it, those without such labels too."""
    parameters = optimizer.parameters
    sums: list[Tensor | None] = [None] * len(parameters)
    error, frames = torch.zeros((), dtype=torch.float64, device=parameters[0].device), 0
    for term in terms:
        scalar, residual, count = term()
        # A prediction that depends on no parameter (no atoms) has no graph.
        found = torch.autograd.grad(scalar, parameters, allow_unused=True) if scalar.requires_grad else sums
        pairs = zip(sums, found, strict=True)
        sums = [new if old is None else old if new is None else old + new for old, new in pairs]
        error, frames = error + residual.double(), frames + count
    if total is not None:
        head = torch.tensor([float(frames), *(0.0 if g is None else 1.0 for g in sums)], dtype=torch.float64)
        slopes = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, sums, strict=True)]
        flat = torch.cat([error[None], head.to(error.device), *(g.reshape(-1).double() for g in slopes)])
        error, head, *rest = total(flat).split([1, len(head), *(p.numel() for p in parameters)])
        count, *present = head.tolist()
        error, frames = error[0], round(count)
        # In the parameters' own type again: a single rank has no more digits.
        parts = [g.to(p.dtype).reshape(p.shape) for p, g in zip(parameters, rest, strict=True)]
        sums = [g if there else None for there, g in zip(present, parts, strict=True)]
    if frames:
        optimizer.update(error * (optimizer.prefactor(what) / frames**0.5), sums)
