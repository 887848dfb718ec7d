"""What is read from the data besides coordinates, types and cells: one `LabelRequest` per quantity.

A loss, a model with frame or atomic parameters, and statistics say what they read; a data system answers with an
array and a flag. A quantity that a system does not have comes as an array of `default` with the flag 0.0, so that
nobody needs a second code path, and whoever must not use it multiplies by the flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dpmodel.errors import InputError

__all__ = [
    "ATOM_ENER",
    "ATOM_ENER_COEFF",
    "ATOM_PREF",
    "ENERGY",
    "FORCE",
    "FORCE_MAG",
    "HESSIAN",
    "NUMB_COPY",
    "SPIN",
    "STANDARD_LABELS",
    "VIRIAL",
    "LabelLike",
    "LabelRequest",
    "aparam",
    "as_request",
    "charge_spin",
    "check_names",
    "drdq",
    "fparam",
    "inputs",
    "of_included",
]

KNOWN = frozenset(
    (
        "aparam", "atom_dipole", "atom_dos", "atom_ener", "atom_ener_coeff", "atom_polarizability", "atom_pref", "charge_spin",
        "dipole", "dos", "drdq", "energy", "force", "force_mag", "fparam", "hessian", "numb_copy", "polarizability", "spin", "stress",
        "virial",
    )
)  # fmt: skip
"""Names of labels, without those of properties; a stress stands for a virial."""


class LabelLike(Protocol):
    """What a loss's own label description must have to be read from data (`dpmodel.losses` has one)."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def atomic(self) -> bool: ...
    @property
    def required(self) -> bool: ...
    @property
    def default(self) -> float | tuple[float, ...]: ...
    @property
    def repeat(self) -> int: ...
    @property
    def high_precision(self) -> bool: ...
    @property
    def square(self) -> bool: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """One quantity to read. Raises ValueError where the fields contradict each other."""

    name: str
    """Name of the file without `.npy`, and key in `Batch.labels` and `Batch.found`."""
    shape: tuple[int, ...] = (1,)
    """Shape of one atom's (if `atomic`) or one frame's value, as batches carry it. Files are flat per frame."""
    atomic: bool = False
    """True: the batch has (f, n, *shape), reordered with the atoms; False: (f, *shape)."""
    required: bool = False
    """At least one system of a dataset must have it (`Dataset.require`)."""
    everywhere: bool = False
    """Every system must have it: a model input without a default value."""
    default: float | tuple[float, ...] = 0.0
    """What stands in where a system does not have it: one number, or one per component."""
    repeat: int = 1
    """Numbers of the value that one number of the file stands for (atom_pref: 3, one weight for x, y and z)."""
    high_precision: bool = False
    """Read in float64, whatever the interface precision is."""
    square: bool = False
    """The value is a matrix over all atomic coordinates, (f, 3n, 3n), reordered on both axes; `shape` is not used."""
    selected: tuple[int, ...] | None = None
    """Types that the value is of: npy files may have atoms of these alone, in their order; the others are 0."""

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or self.repeat < 1 or self.ndof % self.repeat:
            raise ValueError(f"label {self.name!r}: shape {self.shape} and repeat {self.repeat} do not fit each other")
        if self.square and (self.atomic or self.repeat != 1):
            raise ValueError(f"label {self.name!r}: a square label is neither atomic nor repeated")
        if isinstance(self.default, tuple) and len(self.default) != self.ndof:
            raise ValueError(f"label {self.name!r}: expected {self.ndof} defaults, got {len(self.default)}")

    @property
    def ndof(self) -> int:
        """Numbers per atom (if `atomic`) or per frame, in batches."""
        return math.prod(self.shape)

    @property
    def stem(self) -> tuple[str, ...]:
        """File names without `.npy` in the order they are looked up: atomic ones may be spelled atom_x or atomic_x."""
        if self.name.startswith("atom_"):
            return self.name, "atomic_" + self.name.removeprefix("atom_")
        if self.name.startswith("atomic_"):
            return "atom_" + self.name.removeprefix("atomic_"), self.name
        return (self.name,)

    @property
    def files(self) -> tuple[str, ...]:
        """File names in the order they are looked up."""
        return tuple(f"{stem}.npy" for stem in self.stem)

    def file_size(self, natoms: int) -> int:
        """Numbers per frame in the file of a system of `natoms` atoms."""
        if self.square:
            return (3 * natoms) ** 2
        return self.ndof // self.repeat * (natoms if self.atomic else 1)

    def frame_shape(self, natoms: int) -> tuple[int, ...]:
        """Shape of one frame's value in a batch."""
        if self.square:
            return (3 * natoms, 3 * natoms)
        return (natoms, *self.shape) if self.atomic else self.shape


def of_included(request: LabelRequest, ntypes: int, excluded: Sequence[int]) -> LabelRequest:
    """The request for a label of atoms, of which files may leave out those of types that a model leaves out."""
    if not request.atomic or not excluded:
        return request
    return dataclasses.replace(request, selected=tuple(t for t in range(ntypes) if t not in excluded))


def check_names(given: Mapping[str, Any], requests: Sequence[LabelRequest] = ()) -> None:
    """Raise InputError where a table of names (label -> what files call it) has a label that there is not.

    requests: labels that are asked for, whose names are known besides (those of properties).
    """
    known = KNOWN | {request.name for request in requests}
    for name, own in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            raise InputError(
                f"label_names.{name}: expected a label, one of {', '.join(sorted(known))}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        if not isinstance(own, str) or not own:
            raise InputError(f"label_names.{name}: expected what the files call it, a text, got {own!r}")


def as_request(label: LabelLike | LabelRequest) -> LabelRequest:
    """The request that a loss's label description stands for; requests pass unchanged."""
    if isinstance(label, LabelRequest):
        return label
    return LabelRequest(
        name=label.name,
        shape=label.shape,
        atomic=label.atomic and not label.square,
        required=label.required,
        default=label.default,
        repeat=label.repeat,
        high_precision=label.high_precision,
        square=label.square,
    )


ENERGY = LabelRequest(name="energy", high_precision=True)
"""(f, 1) eV."""
FORCE = LabelRequest(name="force", shape=(3,), atomic=True)
"""(f, n, 3) eV/Å."""
VIRIAL = LabelRequest(name="virial", shape=(9,))
"""(f, 9) eV, sign as in `dpmodel.graph`."""
ATOM_ENER = LabelRequest(name="atom_ener", atomic=True)
"""(f, n, 1) eV."""
ATOM_PREF = LabelRequest(name="atom_pref", shape=(3,), atomic=True, repeat=3, default=1.0)
"""(f, n, 3) weight of each atom's force error, in the file one number per atom."""
ATOM_ENER_COEFF = LabelRequest(name="atom_ener_coeff", atomic=True, default=1.0)
"""(f, n, 1) weight of each atom's energy in the total that is compared with the label."""
HESSIAN = LabelRequest(name="hessian", square=True)
"""(f, 3n, 3n) eV/Å^2, second derivatives of the energy (positive sign)."""
SPIN = LabelRequest(name="spin", shape=(3,), atomic=True, everywhere=True)
"""(f, n, 3) magnetic moments, a model input."""
FORCE_MAG = LabelRequest(name="force_mag", shape=(3,), atomic=True)
"""(f, n, 3) minus the derivative of the energy with respect to the moments."""
NUMB_COPY = LabelRequest(name="numb_copy", default=1.0)
"""How often each frame counts in training. Systems read it themselves: it is in `System.copies`, not in batches."""

STANDARD_LABELS: tuple[LabelRequest, ...] = (ENERGY, FORCE, VIRIAL, ATOM_ENER, ATOM_PREF)
"""What energy models are commonly trained on and tested with."""


def drdq(ngen: int) -> LabelRequest:
    """(f, n, 3, ngen): derivatives of the atoms' positions with respect to `ngen` generalised coordinates."""
    return LabelRequest(name="drdq", shape=(3, ngen), atomic=True)


def fparam(dim: int, default: tuple[float, ...] | None = None) -> LabelRequest:
    """(f, dim) frame parameters; without `default` every system must have them."""
    values = (0.0,) * dim if default is None else tuple(default)
    return LabelRequest(name="fparam", shape=(dim,), everywhere=default is None, default=values)


def charge_spin(default: tuple[float, float] | None = None) -> LabelRequest:
    """(f, 2) total charge and spin multiplicity; without `default` every system must have them."""
    values = (0.0, 0.0) if default is None else default
    return LabelRequest(name="charge_spin", shape=(2,), everywhere=default is None, default=values)


def aparam(dim: int) -> LabelRequest:
    """(f, n, dim) atomic parameters; every system must have them."""
    return LabelRequest(name="aparam", shape=(dim,), atomic=True, everywhere=True)


def inputs(
    *,
    fparam_dim: int,
    default_fparam: tuple[float, ...] | None,
    aparam_dim: int,
    takes_charge_spin: bool,
    default_charge_spin: tuple[float, float] | None,
    takes_spin: bool,
) -> tuple[LabelRequest, ...]:
    """What a model reads besides coordinates, types and cells."""
    found = [fparam(fparam_dim, default_fparam)] if fparam_dim else []
    found += [aparam(aparam_dim)] if aparam_dim else []
    found += [charge_spin(default_charge_spin)] if takes_charge_spin else []
    return (*found, *([SPIN] if takes_spin else []))
