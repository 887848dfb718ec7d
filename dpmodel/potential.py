"""The façade: `load` a model, `evaluate` it, `save` it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.backend import Backend, Evaluator, get_backend, get_exporter
from dpmodel.errors import BackendError, InputError
from dpmodel.evaluation import assemble_frames, atoms_per_call, evaluate_graph
from dpmodel.files.model_file import ModelFile, read_model, write_model
from dpmodel.geometry.cells import check_pbc, make_lattice
from dpmodel.models import Model, builder_of
from dpmodel.nn.charge_spin import check_charge_spin

__all__ = ["Potential", "freeze", "load", "save"]

ARTEFACT = ".pt2"
"""The suffix of compiled models."""


def load(
    path: str | Path,
    backend: str | None = None,
    *,
    head: str | None = None,
    device: str | None = None,
    compile: bool = False,
) -> Potential:
    """Load a model file or a checkpoint.

    Args:
        path: `.dp`, `.yaml` or `.json`; or `.pt2`, which is native code: load such files from people you trust alone.
        backend: numpy, pt, jax or pt_expt (or an alias); None: `DP_BACKEND`, else the best installed.
        head: the branch of a multi-task model.
        device: "cpu", "cuda", "cuda:1" ...; None: the best the backend has.
        compile: compile for speed (pt_expt only; the first call takes a minute or two).

    Raises:
        ModelFileError: the file is no model, damaged, newer than this program, or out of scope.
        BackendError: the backend is unknown, not installed, or lacks the device.
    """
    _refuse_head(head, path)
    if Path(path).suffix.lower() == ARTEFACT:
        return _load_artefact(Path(path), backend, device, compile=compile)
    chosen = get_backend(backend)
    file = read_model(path)
    return Potential(file, chosen, chosen.evaluator(file.model, device=device, compile=compile))


def _load_artefact(path: Path, backend: str | None, device: str | None, *, compile: bool) -> Potential:
    if compile:
        raise InputError(f"compile=True: {path} is compiled already; leave it out")
    exporter = get_exporter(backend)
    file, evaluator = exporter.open_artefact(path, device=device)
    return Potential(file, exporter, evaluator, without=(*evaluator.without, "hessian"))


def freeze(
    model: str | Path, output: str | Path = "model.pt2", *, head: str | None = None, atomic_virial: bool = False
) -> None:
    """Compile a model file or a checkpoint into one file that LAMMPS runs without Python, on one process or many.

    Args:
        model: `.dp`, `.yaml`, `.json`, or a checkpoint.
        output: `.pt2`; complete and compared with the model, or not there at all.
        head: the branch of a multi-task model.
        atomic_virial: compile per-atom virials too.

    Raises:
        ModelFileError: as `load`.
        BackendError: torch is not installed, or the model does not compile or gives other numbers when compiled.
        InputError: the suffix of `output`, or a kind of model that cannot be frozen.
    """
    _refuse_head(head, model)
    if Path(output).suffix.lower() != ARTEFACT:
        raise InputError(f"freeze writes {ARTEFACT} files, not {output}; `dpmodel convert` writes .dp, .yaml and .json")
    exporter = get_exporter()
    exporter.freeze(read_model(model), Path(output), atomic_virial=atomic_virial)


def _refuse_head(head: str | None, path: str | Path) -> None:
    if head is not None:
        raise InputError(f"head={head!r}: {path} holds a single model, which has no heads; leave head out")


def save(potential: Potential, path: str | Path) -> None:
    """Write a model to `.dp`, `.yaml` or `.json`; complete or not at all."""
    write_model(path, dataclasses.replace(potential.file, model=potential.model))


class Potential:
    """A loaded model: `evaluate` gives energies, forces, virials."""

    def __init__(
        self, file: ModelFile, backend: Backend, evaluator: Evaluator, *, without: tuple[str, ...] = ()
    ) -> None:
        """without: outputs that the evaluator lacks."""
        self.file = file
        self._without = without
        self.backend = backend
        self._evaluator = evaluator
        self._model = file.model
        self._builder = builder_of(self._model)

    @classmethod
    def from_model(
        cls, model: Model, backend: str | None = None, *, device: str | None = None, compile: bool = False
    ) -> Potential:
        """Wrap a model of NumPy arrays that was built rather than loaded."""
        chosen = get_backend(backend)
        return cls(ModelFile(model=model), chosen, chosen.evaluator(model, device=device, compile=compile))

    def __repr__(self) -> str:
        return f"Potential({self._model.output().name}, type_map={list(self.type_map)}, rcut={self.rcut}, backend={self.backend.name!r})"

    @property
    def model(self) -> Model:
        """The model with NumPy arrays."""
        return self._evaluator.model()

    @property
    def type_map(self) -> tuple[str, ...]:
        """Symbol of every type."""
        return self._model.type_map

    @property
    def rcut(self) -> float:
        """Cutoff, Å."""
        return self._model.rcut

    @property
    def dim_fparam(self) -> int:
        """Frame parameters per frame."""
        return self._model.dim_fparam

    @property
    def dim_aparam(self) -> int:
        """Atomic parameters per atom."""
        return self._model.dim_aparam

    @property
    def outputs(self) -> tuple[str, ...]:
        """Keys that `evaluate` can return on this backend without being asked for `hessian`."""
        output = self._model.output()
        keys = [output.reduced, output.atomic, "mask"]
        if output.differentiable and self.backend.has_gradients:
            keys += ["force", "virial", "atom_virial"]
        if self._model.spin_scales is not None:
            keys += ["mask_mag", *(["force_mag"] if "force" in keys else [])]
        return tuple(key for key in keys if key not in self._without)

    def evaluate(
        self,
        coord: Any,
        atype: Any,
        box: Any = None,
        *,
        pbc: bool | Sequence[bool] = True,
        fparam: Any = None,
        aparam: Any = None,
        spin: Any = None,
        charge_spin: Any = None,
        forces: bool | None = None,
        atomic: bool = False,
        atomic_virial: bool | None = None,
        hessian: bool = False,
    ) -> dict[str, np.ndarray]:
        """Evaluate frames of equal size.

        Args:
            coord: (nf, na, 3) or (na, 3), Å.
            atype: (na,) or (nf, na): type indices (-1 pads) or symbols.
            box: (nf, 3, 3), (nf, 9), (3, 3) or (9,), Å, rows are cell vectors; None: open boundaries.
            pbc: periodic or not, one value or one per axis; without effect where box is None.
            fparam: (nf, dim_fparam) or (dim_fparam,).
            aparam: (nf, na, dim_aparam) or (na, dim_aparam).
            spin: (nf, na, 3) or (na, 3), for models that take spins; atoms of types without spin: any.
            charge_spin: (nf, 2) or (2,): total charge and spin multiplicity, truncated to integers.
            forces: None: where the backend has derivatives.
            atomic: add per-atom values, per-atom virials and `mask`.
            atomic_virial: False: leave out per-atom virials, which artefacts may lack; None or True: as `atomic` says.
            hessian: add second derivatives of the energy. It takes 3 na times as long as forces; positive sign.

        Returns:
            float64 arrays: `energy` (nf, 1) eV, `force` (nf, na, 3) eV/Å, `virial` (nf, 9) eV;
            atomic: `atom_energy` (nf, na, 1), `atom_virial` (nf, na, 9), `mask` (nf, na) integer.
            hessian: `hessian` (nf, 3 na, 3 na) eV/Å^2, rows and columns atom by atom; spins stay as they are.

        Raises:
            InputError: shapes, types, coordinates or cells that cannot be evaluated.
            BackendError: forces=True or hessian=True on a backend without derivatives, or hessian=True of compiled code.
        """
        if hessian:
            self._check_hessian()
        forces = self._with_forces(forces)
        frames = _Frames.read(coord, atype, box, self.type_map, check_pbc(pbc))
        parameters = {
            "fparam": frames.frame_values(fparam, self.dim_fparam, "fparam"),
            "aparam": frames.atom_values(aparam, self.dim_aparam, "aparam"),
            "spin": frames.atom_values(spin, 3 if self._model.spin_scales is not None else 0, "spin"),
            "charge_spin": frames.frame_values(charge_spin, 2 if self._model.takes_charge_spin else 0, "charge_spin"),
        }
        if self.dim_fparam and fparam is None and not self._model.has_default_fparam:
            raise InputError(
                f"fparam is missing: this model takes {self.dim_fparam} numbers per frame and has no default"
            )
        if self.dim_aparam and aparam is None:
            raise InputError(f"aparam is missing: this model takes {self.dim_aparam} numbers per atom")
        if self._model.spin_scales is not None and spin is None:
            raise InputError("spin is missing: this model takes a vector for every atom, (frames, atoms, 3)")
        if (charges := parameters["charge_spin"]) is not None:
            check_charge_spin(charges, "charge_spin")
        elif self._model.takes_charge_spin and self._model.default_charge_spin is None:
            raise InputError(
                "charge_spin is missing: this model takes charge and spin of every frame and has no default"
            )
        virials = atomic and atomic_virial is not False
        size = atoms_per_call(self._model)
        parts = []
        for part in frames.chunks(size):
            given = {k: None if v is None else v[part] for k, v in parameters.items()}
            cell = None if frames.cell is None else frames.cell[part]
            graph = self._builder.build(
                frames.coord[part], frames.atype[part], cell, pbc=pbc, numbers=range(part.start, part.stop), **given
            )
            flat = evaluate_graph(
                self._evaluator, graph, self._model, forces=forces, atomic=virials, size=size, hessian=hessian
            )
            parts.append(assemble_frames(flat, frames.coord[part].shape[:2], self._model.output(), atomic=atomic))
        left_out = () if forces else ("force", "virial", "atom_virial", "force_mag")
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key not in left_out}

    def _check_hessian(self) -> None:
        """Raise where there are no Hessians."""
        name = self._model.output().name
        if name != "energy":
            raise InputError(f"hessian=True: a Hessian is of energies, and this model predicts {name!r}; leave it out")
        if not self.backend.has_gradients:
            raise BackendError(
                f"hessian=True: the {self.backend.name} backend has no derivatives: use backend='pt' or 'jax'"
            )
        if "hessian" in self._without:
            raise BackendError(
                "hessian=True: compiled models (.pt2) have no Hessian; load the model file that was frozen"
            )

    def _with_forces(self, forces: bool | None) -> bool:
        """What `forces` means here. Raises where derivatives were asked for and cannot be had."""
        output = self._model.output()
        if forces and not self.backend.has_gradients:
            raise BackendError(
                f"forces=True: the {self.backend.name} backend has no derivatives: use backend='pt' or 'jax', or "
                "forces=False"
            )
        if forces and not output.differentiable:
            raise InputError(f"forces=True: forces do not derive from {output.name!r}; leave it out")
        return self.backend.has_gradients and output.differentiable if forces is None else bool(forces)


@dataclasses.dataclass(frozen=True)
class _Frames:
    """Checked inputs: coord (nf, na, 3), atype (nf, na), cell (nf, 3, 3) or None."""

    coord: np.ndarray
    atype: np.ndarray
    cell: np.ndarray | None

    @classmethod
    def read(cls, coord: Any, atype: Any, box: Any, type_map: tuple[str, ...], pbc: tuple[bool, bool, bool]) -> _Frames:
        coord = _floats(coord, "coord")
        shape = coord.shape
        coord = coord[None] if coord.ndim == 2 else coord
        if coord.ndim != 3 or coord.shape[2] != 3:
            raise InputError(f"coord: expected shape (frames, atoms, 3) or (atoms, 3), got {shape}")
        nf, na = coord.shape[:2]
        if nf < 1:
            raise InputError(f"coord: expected at least one frame, got shape {shape}")
        types = _types(atype, type_map)
        if types.shape not in ((na,), (nf, na)):
            raise InputError(f"atype: expected shape ({na},) or ({nf}, {na}) to go with coord, got {types.shape}")
        types = np.broadcast_to(types, (nf, na))
        if types.size and (types.min() < -1 or types.max() >= len(type_map)):
            bad = next(int(t) for t in types.ravel() if t < -1 or t >= len(type_map))
            raise InputError(
                f"atype: {bad} is out of range; this model knows 0 to {len(type_map) - 1} {list(type_map)}, and -1 pads"
            )
        wrong = ~np.isfinite(coord).all(axis=2) & (types >= 0)
        if wrong.any():
            frame, atom = np.argwhere(wrong)[0]
            raise InputError(
                f"coord: atom {atom} of frame {frame} has NaN or infinite coordinates {coord[frame, atom].tolist()}"
            )
        return cls(coord, types, None if box is None else _cells(box, nf, pbc))

    def chunks(self, size: int) -> Iterator[slice]:
        """Slices of frames with at most `size` atoms each (at least one frame)."""
        nf, na = self.atype.shape
        step = max(1, size // max(1, na))
        return (slice(k, min(k + step, nf)) for k in range(0, nf, step))

    def frame_values(self, value: Any, width: int, name: str) -> np.ndarray | None:
        """(nf, width), from (nf, width) or (width,)."""
        return self._values(value, width, name, (self.atype.shape[0], width), ((width,),))

    def atom_values(self, value: Any, width: int, name: str) -> np.ndarray | None:
        """(nf, na, width), from that or (na, width)."""
        nf, na = self.atype.shape
        return self._values(value, width, name, (nf, na, width), ((na, width),))

    def _values(
        self, value: Any, width: int, name: str, shape: tuple[int, ...], short: tuple[tuple[int, ...], ...]
    ) -> np.ndarray | None:
        if value is None:
            return None
        if not width:
            raise InputError(f"{name} was given, but this model does not take it; leave it out")
        array = _floats(value, name)
        if array.shape != shape and array.shape not in short:
            allowed = " or ".join(str(each) for each in dict.fromkeys((shape, *short)))
            raise InputError(f"{name}: expected shape {allowed}, got {array.shape}")
        if not np.all(np.isfinite(array)):
            raise InputError(f"{name} holds NaN or infinite numbers")
        return np.broadcast_to(array, shape)


def _array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InputError(
            f"{name}: {int(np.sum(np.ma.getmaskarray(value)))} entries are masked; leave them out, or fill them with numbers"
        )
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as problem:  # RuntimeError: a tensor that requires grad
        raise InputError(
            f"{name}: expected numbers of a regular shape, got {type(value).__name__} ({problem})"
        ) from problem


def _floats(value: Any, name: str) -> np.ndarray:
    array = _array(value, name)
    if array.dtype.kind not in "fiu" and array.size:
        raise InputError(f"{name}: expected real numbers, got {type(value).__name__} of dtype {array.dtype}")
    return array.astype(np.float64, copy=False)


def _cells(box: Any, nf: int, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    """(nf, 3, 3). Raises InputError for other shapes and for cells without volume."""
    cells = _floats(box, "box")
    if cells.shape not in ((9,), (3, 3), (1, 9), (1, 3, 3), (nf, 9), (nf, 3, 3)):
        raise InputError(
            f"box: expected shape ({nf}, 3, 3), ({nf}, 9), (3, 3) or (9,), rows are cell vectors; got {cells.shape}"
        )
    cells = cells.reshape(-1, 3, 3)
    for frame, cell in enumerate(cells):
        make_lattice(cell, pbc, where=f"box: frame {frame}: ")
    return np.broadcast_to(cells, (nf, 3, 3))


def _types(atype: Any, type_map: tuple[str, ...]) -> np.ndarray:
    array = _array(atype, "atype")
    if array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(name, str) for name in array.flat)):
        index = {name: k for k, name in enumerate(type_map)}
        try:
            return np.array([index[str(name)] for name in array.ravel()], dtype=np.int64).reshape(array.shape)
        except KeyError as problem:
            raise InputError(
                f"atype: the model knows no {problem.args[0]!r}; its type_map is {list(type_map)}"
            ) from None
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"atype: expected integers or symbols, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.size and array.max() >= len(type_map):  # 2^64 - 1 would become -1
        raise InputError(
            f"atype: {array.max()} is out of range; this model knows 0 to {len(type_map) - 1} {list(type_map)}"
        )
    return array.astype(np.int64, copy=False)
