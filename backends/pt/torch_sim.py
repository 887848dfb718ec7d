"""A model for TorchSim (https://torchsim.github.io/torch-sim), the batched simulation engine.

    import torch_sim as ts
    from dpmodel.backends.pt.torch_sim import TorchSimModel

    model = TorchSimModel("model.dp")
    state = ts.optimize(system=[atoms, other], model=model, optimizer=ts.frechet_cell_fire)

Written for the interface of torch-sim-atomistic 0.3: `ModelInterface.forward(state)` with one `pbc` flag for all axes.
Later releases (for Python 3.12 and later) have a flag per axis, which is understood too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpmodel.errors import BackendError, InputError
from dpmodel.potential import Potential, check_parameters, load

from . import pick_device

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it uses torch.jit, which torch 2.13 deprecates
        import torch_sim
        from torch_sim.models.interface import ModelInterface
except ModuleNotFoundError as _problem:
    raise ImportError(
        f'dpmodel.backends.pt.torch_sim needs TorchSim ({_problem}); install it with: pip install "dpmodel[torch-sim]"'
    ) from _problem

__all__ = ["TorchSimModel"]

_TABLE = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg "
    "Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
_NUMBERS = {name: number for number, name in enumerate(_TABLE.split())}
"""Atomic numbers."""


class TorchSimModel(ModelInterface):  # type: ignore[misc]  # torch_sim has no type information
    """A potential as TorchSim asks for it: energies, forces and stresses of a batch of systems of any sizes.

    Neighbours are searched on the CPU; numbers are those of `Potential.evaluate`, in float64 unless `dtype` says else.
    """

    def __init__(
        self,
        model: Potential | str | Path,
        backend: str | None = None,
        device: str | torch.device | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        compute_stress: bool = True,
        head: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a potential, or load one.

        Args:
            model: a potential, or the path of a model file or checkpoint.
            backend: as for `dpmodel.load`, for a path: pt (None) or pt_expt.
            device: of states and results; the model is loaded there. None: CUDA where there is one, else the CPU.
            dtype: of states and results.
            compute_stress: leave stresses out with False.
            head: as for `dpmodel.load`, for a path.
            parameters: fparam, charge_spin, as for `Potential.evaluate`, the same for all systems.

        Raises what `dpmodel.load` raises; InputError for models that are not of energies, or take spins or aparam, and for
        unknown parameters; BackendError for other backends and unknown devices.
        """
        super().__init__()
        check_parameters(parameters or ())
        chosen = pick_device(None if device is None else str(device))
        if not isinstance(model, Potential):
            model = load(model, backend or "pt", head=head, device=str(chosen))
        elif backend is not None or head is not None:
            raise InputError("backend and head belong to loading; this potential is loaded already")
        self.potential = model
        if self.potential.backend.name not in ("pt", "pt_expt"):
            raise BackendError(
                f"TorchSim runs on PyTorch: expected backend pt or pt_expt, got {self.potential.backend.name}"
            )
        known = self.potential.model
        if known.output().name != "energy" or known.spin_scales is not None or known.dim_aparam:
            raise InputError("TorchSim runs models of energies, without spins and aparam")
        self._device, self._dtype = chosen, dtype
        self._compute_stress, self._compute_forces = compute_stress, True
        self._memory_scales_with = "n_atoms_x_density"
        self.parameters = dict(parameters or {})
        self._types = {_NUMBERS[name]: k for k, name in enumerate(self.potential.type_map) if name in _NUMBERS}

    def forward(self, state: Any, **_options: Any) -> dict[str, torch.Tensor]:
        """`energy` (systems,) eV, `forces` (atoms, 3) eV/Å, `stress` (systems, 3, 3) eV/Å^3 (0 where an axis is
        open: the cell then has no volume of its own).

        state: a `SimState`, or a dictionary of its arrays. Raises InputError naming an element that the model does not
        know, and as `Potential.evaluate` does.
        """
        state = torch_sim.SimState(**state) if isinstance(state, dict) else state
        coord, types, place = self._padded(state)
        pbc = torch.as_tensor(state.pbc).reshape(-1).tolist()
        pbc = [bool(flag) for flag in (pbc * 3 if len(pbc) == 1 else pbc)]
        cell = state.row_vector_cell.detach().cpu().double().numpy() if any(pbc) else None
        out = self.potential.evaluate(coord, types, cell, pbc=pbc, forces=True, **self.parameters)
        found = {"energy": out["energy"][:, 0], "forces": out["force"][place]}
        if self._compute_stress:
            virial = out["virial"].reshape(-1, 3, 3)
            volume = np.ones(1) if cell is None else np.abs(np.linalg.det(cell))
            symmetric = -0.5 * (virial + virial.swapaxes(1, 2)) / volume[:, None, None]
            found["stress"] = symmetric if all(pbc) else np.zeros_like(symmetric)
        return {key: torch.as_tensor(value, dtype=self._dtype, device=self._device) for key, value in found.items()}

    def _padded(self, state: Any) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """(f, n, 3) positions and (f, n) types with padding, and where each atom of the state is."""
        system = state.system_idx.cpu().numpy()
        numbers = state.atomic_numbers.cpu().numpy()
        unknown = sorted(set(numbers.tolist()) - self._types.keys())
        if unknown:
            names = ", ".join(_TABLE.split()[number] for number in unknown)
            raise InputError(f"the model has no type for {names}; its type_map is {list(self.potential.type_map)}")
        count = np.bincount(system, minlength=int(state.n_systems))
        row = np.arange(len(system)) - (np.cumsum(count) - count)[system]  # atoms of a system are consecutive
        coord = np.zeros((len(count), int(count.max()), 3))
        types = np.full(coord.shape[:2], -1, dtype=np.int64)
        coord[system, row] = state.positions.detach().cpu().double().numpy()
        types[system, row] = [self._types[number] for number in numbers.tolist()]
        return coord, types, (system, row)
