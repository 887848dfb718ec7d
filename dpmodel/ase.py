"""A calculator for ASE (https://wiki.fysik.dtu.dk/ase).

    from dpmodel.ase import Calculator

    atoms.calc = Calculator("model.dp")
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc.get_hessian(atoms)       # for ase.vibrations.VibrationsData.from_2d(atoms, ...)

Units are ASE's own: eV, eV/Å, eV/Å^3, eV/Å^2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from dpmodel.errors import InputError
from dpmodel.graph import PARAMETERS
from dpmodel.potential import Potential, load

try:
    from ase.calculators.calculator import Calculator as AseCalculator
    from ase.calculators.calculator import all_changes
except ModuleNotFoundError as _problem:
    raise ImportError(f"dpmodel.ase needs ASE ({_problem}); install it with: pip install ase") from _problem

__all__ = ["Calculator"]

_OF_ASE = ("label", "directory", "atoms")
"""Arguments that are handed to ASE."""

_VOIGT = (0, 4, 8, 5, 2, 1)
"""xx, yy, zz, yz, xz, xy in a flattened symmetric tensor."""


class Calculator(AseCalculator):
    """Energies, forces, stress and Hessian of a potential; the dipole of a dipole model.

    Properties: `energy` and `free_energy` (equal), `energies` (per atom), and on backends with derivatives `forces`,
    `hessian` (3 n, 3 n) and, where the cell has a volume, `stress` (xx, yy, zz, yz, xz, xy). Models of dipoles: `dipole`
    (3,), in the unit that they were trained with; ASE's is e Å.

    Each axis is periodic or not as `atoms.pbc` says. `atoms.info["fparam"]`, `["aparam"]` and `["charge_spin"]`
    are handed to models that take them. Models with spin read the initial magnetic moments, (n, 3), or (n,) along z;
    `results["force_mag"]` is minus the derivative of the energy with respect to them.
    """

    def __init__(
        self,
        model: Potential | str | Path,
        backend: str | None = None,
        device: str | None = None,
        type_dict: Mapping[str, int] | None = None,
        *,
        head: str | None = None,
        compile: bool = False,
        **options: Any,
    ) -> None:
        """Take a potential, or load one.

        Args:
            model: a potential, or the path of a model file or checkpoint.
            backend: as for `dpmodel.load`, for a path.
            device: as for `dpmodel.load`, for a path.
            type_dict: type index by chemical symbol, instead of the model's type_map.
            head: as for `dpmodel.load`, for a path.
            compile: as for `dpmodel.load`, for a path.
            options: of ASE's calculators (label, directory, atoms).

        Raises what `dpmodel.load` raises, InputError for a type_dict that does not fit and for unknown options.
        """
        if unknown := sorted(options.keys() - _OF_ASE):
            raise InputError(
                f"unknown argument {unknown[0]!r}; besides its own, the calculator takes {', '.join(_OF_ASE)}"
            )
        if isinstance(model, Potential):
            if backend is not None or device is not None or head is not None or compile:
                raise InputError(
                    "backend, device, head and compile belong to loading; this potential is loaded already"
                )
            potential = model
        else:
            potential = load(model, backend, head=head, device=device, compile=compile)
        self.potential = potential
        self.implemented_properties = _properties(potential)
        self._types = _type_table(potential, type_dict)
        self._inputs: dict[str, np.ndarray] = {}
        _untyped(super()).__init__(**options)

    def _get_name(self) -> str:
        """What trajectories call this calculator."""
        return "dpmodel"

    def check_state(self, atoms: Any, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; ASE itself does not look at `atoms.info`."""
        changes: list[str] = _untyped(super()).check_state(atoms, tol=tol)
        now = _inputs(atoms)
        if now.keys() != self._inputs.keys() or any(not np.array_equal(now[k], self._inputs[k]) for k in now):
            changes.append("info")
        return changes

    def calculate(
        self,
        atoms: Any = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`. Raises InputError naming an element that the model does not know, and as `evaluate` does."""
        _untyped(super()).calculate(atoms, list(properties), list(system_changes))
        atoms = cast(Any, self.atoms)
        self._inputs = _inputs(atoms)
        cell = _cell(atoms)
        atomic = "energies" in properties
        given: dict[str, Any] = dict(self._inputs)
        if self.potential.model.spin_scales is not None:
            given["spin"] = _moments(atoms)
        out = self.potential.evaluate(
            atoms.positions,
            self._types_of(atoms),
            cell,
            pbc=[bool(periodic) for periodic in atoms.pbc],
            forces=False if "dipole" in self.implemented_properties else None,
            atomic=atomic,
            atomic_virial=False,
            hessian="hessian" in properties,
            **given,
        )
        if "global_dipole" in out:
            self.results = {"dipole": out["global_dipole"][0]}
            return
        energy = float(out["energy"][0, 0])
        self.results = {"energy": energy, "free_energy": energy}
        if atomic:
            self.results["energies"] = out["atom_energy"][0, :, 0]
        self.results.update({key: out[key][0] for key in ("hessian", "force_mag") if key in out})
        if "force" in out:
            self.results["forces"] = out["force"][0]
            volume = abs(float(np.linalg.det(atoms.cell.array)))
            if volume > 0.0:
                virial = out["virial"].reshape(3, 3)
                self.results["stress"] = (-(virial + virial.T) / 2 / volume).reshape(9)[list(_VOIGT)]

    def get_hessian(self, atoms: Any = None) -> np.ndarray:
        """(3 n, 3 n) eV/Å^2, rows and columns atom by atom, xyz."""
        hessian: np.ndarray = _untyped(self).get_property("hessian", atoms)
        return hessian

    def _types_of(self, atoms: Any) -> np.ndarray:
        symbols = atoms.get_chemical_symbols()
        unknown = sorted(set(symbols) - self._types.keys())
        if unknown:
            raise InputError(
                f"the model has no type for {', '.join(unknown)}; it knows {', '.join(self._types)} "
                f"(type_map {list(self.potential.type_map)}). Use another model, or type_dict where names differ"
            )
        return np.array([self._types[symbol] for symbol in symbols], dtype=np.int64)


def _untyped(base: Any) -> Any:
    """ASE's calculators are partly without types."""
    return base


def _properties(potential: Potential) -> list[str]:
    """ASE's names of what the potential gives. Raises InputError where there are none."""
    name = potential.model.output().name
    if name == "energy":
        derived = ["forces", "stress"] if potential.backend.has_gradients else []
        return ["energy", "free_energy", "energies", *derived, *(["hessian"] if potential.has_hessian else [])]
    if name == "dipole":
        return ["dipole"]
    raise InputError(
        f"the calculator needs a model of energies or dipoles: ASE has no name for {name!r}; use Potential.evaluate"
    )


def _moments(atoms: Any) -> np.ndarray:
    """(n, 3) initial magnetic moments; plain numbers are along z."""
    moments: np.ndarray = np.asarray(atoms.get_initial_magnetic_moments(), dtype=float)
    return moments if moments.ndim == 2 else moments[:, None] * np.array([0.0, 0.0, 1.0])


def _type_table(potential: Potential, type_dict: Mapping[str, int] | None) -> dict[str, int]:
    if type_dict is None:
        return {name: k for k, name in enumerate(potential.type_map)}
    ntypes = len(potential.type_map)
    for name, kind in type_dict.items():
        if kind not in range(ntypes):
            raise InputError(
                f"type_dict: expected types 0 to {ntypes - 1} of {list(potential.type_map)}, got {kind!r} for {name!r}"
            )
    return {str(name): int(kind) for name, kind in type_dict.items()}


def _inputs(atoms: Any) -> dict[str, np.ndarray]:
    """Copies, so that changes in place are seen. Raises InputError for what are no numbers."""
    found = {}
    for name in PARAMETERS:
        if (given := atoms.info.get(name)) is not None:
            try:
                found[name] = np.array(given, dtype=float)
            except (ValueError, TypeError):
                raise InputError(f'atoms.info["{name}"]: expected numbers, got {given!r:.80}') from None
    return found


def _cell(atoms: Any) -> np.ndarray | None:
    """(3, 3) Å, missing vectors of open axes filled in; None where no axis is periodic."""
    if not any(atoms.pbc):
        return None
    for axis in range(3):
        if atoms.pbc[axis] and not np.any(atoms.cell[axis]):
            raise InputError(
                f"atoms are periodic along axis {axis}, but their cell has no vector there; set atoms.cell or atoms.pbc"
            )
    cell: np.ndarray = atoms.cell.complete().array
    return cell
