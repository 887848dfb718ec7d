"""The façade: `load` a model, `evaluate` it, `save` it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.arguments import Frames
from dpmodel.backend import EXPORTERS, Backend, Evaluator, get_backend, get_exporter
from dpmodel.errors import BackendError, InputError
from dpmodel.evaluation import assemble_frames, atoms_per_call, evaluate_graph
from dpmodel.files.model_file import ModelFile, read_model, write_model
from dpmodel.files.program import holds_program
from dpmodel.geometry.cells import check_pbc
from dpmodel.graph import PARAMETERS, Graph
from dpmodel.models import Model, builder_of
from dpmodel.models.probe import Probe
from dpmodel.nn.charge_spin import check_charge_spin

__all__ = ["Potential", "check_parameters", "freeze", "load", "save"]


def check_parameters(given: Iterable[str], known: Sequence[str] = PARAMETERS) -> None:
    """Raise InputError where a name is none of the inputs of models beside the geometry."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}; models take {', '.join(known)}")


def load(
    path: str | Path,
    backend: str | None = None,
    *,
    head: str | None = None,
    type_map: Sequence[str] | None = None,
    device: str | None = None,
    compile: bool = False,
) -> Potential:
    """Load a model file or a checkpoint.

    Args:
        path: `.dp`, `.yaml` or `.json`; a checkpoint of DeePMD-kit's PyTorch (`.pt`), which needs torch; or `.pt2`, which
            is native code: load such files from people you trust alone.
        backend: numpy, pt, jax or pt_expt (or an alias); None: `DP_BACKEND`, else the best installed.
        head: the task of a model of several; without, where there are several, an error lists them.
        type_map: other types than the file has: another order, fewer, or more (which mean nothing before they are trained);
            see `dpmodel.type_map`.
        device: "cpu", "cuda", "cuda:1" ...; None: the best the backend has.
        compile: compile for speed (pt_expt only; the first call takes a minute or two).

    Raises:
        ModelFileError: the file is no model, damaged, newer than this program, or out of scope.
        BackendError: the backend is unknown, not installed, or lacks the device.
        InputError: a head that the file does not have, types that the model cannot have.
    """
    if _is_compiled(Path(path)):
        _refuse_head(head, path)
        if type_map is not None:
            raise InputError(f"type_map: the types of {path} are compiled; load the model file that was frozen")
        return _load_artefact(Path(path), backend, device, compile=compile)
    chosen = get_backend(backend)
    file = read_model(path, head)
    file = file if type_map is None else file.with_type_map(type_map)
    evaluator = chosen.evaluator(file.model, device=device, compile=compile)
    return Potential(file, chosen, evaluator, without=("hessian",) if compile else (), device=device)


def _is_compiled(path: Path) -> bool:
    """Whether a file is an artefact. DeePMD-kit's `.hlo` files are not: they are read as model files."""
    suffix = path.suffix.lower()
    return suffix in EXPORTERS and (suffix != ".hlo" or holds_program(path))


def _load_artefact(path: Path, backend: str | None, device: str | None, *, compile: bool) -> Potential:
    if compile:
        raise InputError(f"compile=True: {path} is compiled already; leave it out")
    exporter = get_exporter(backend, path.suffix.lower())
    file, evaluator = exporter.open_artefact(path, device=device)
    return Potential(file, exporter, evaluator, without=(*evaluator.without, "hessian"), device=device)


def freeze(
    model: str | Path, output: str | Path = "model.pt2", *, head: str | None = None, atomic_virial: bool = False
) -> None:
    """Compile a model file or a checkpoint into one file.

    A `.pt2` runs without Python, in LAMMPS too, on one process or many. A `.hlo` is a model file with a StableHLO program
    in it, which `load` evaluates on JAX.

    Args:
        model: `.dp`, `.yaml`, `.json`, or a checkpoint (also DeePMD-kit's `.pt`).
        output: `.pt2` or `.hlo`; complete and compared with the model, or not there at all.
        head: the task of a model of several.
        atomic_virial: compile per-atom virials too (a `.hlo` always has them).

    Raises:
        ModelFileError: as `load`.
        BackendError: torch (.pt2) or jax (.hlo) is not installed, or the model does not compile or gives other numbers when compiled.
        InputError: the suffix of `output`, or a kind of model that cannot be frozen.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in EXPORTERS:
        raise InputError(
            f"freeze writes {' and '.join(EXPORTERS)} files, not {output}; `dpmodel convert` writes .dp, .yaml and .json"
        )
    exporter = get_exporter(suffix=suffix)
    exporter.freeze(read_model(model, head), Path(output), atomic_virial=atomic_virial)


def _refuse_head(head: str | None, path: str | Path) -> None:
    if head is not None:
        raise InputError(f"head={head!r}: {path} holds a single model, which has no heads; leave head out")


def save(potential: Potential, path: str | Path) -> None:
    """Write a model to `.dp`, `.yaml` or `.json`; complete or not at all."""
    write_model(path, dataclasses.replace(potential.file, model=potential.model))


class Potential:
    """A loaded model: `evaluate` gives energies, forces, virials."""

    def __init__(
        self,
        file: ModelFile,
        backend: Backend,
        evaluator: Evaluator,
        *,
        without: tuple[str, ...] = (),
        device: str | None = None,
    ) -> None:
        """without: outputs that the evaluator lacks. device: where it runs."""
        self.file = file
        self._without = without
        self.backend = backend
        self._evaluator = evaluator
        self._model = file.model
        self._builder = builder_of(self._model)
        self._device = device
        self._probe: Evaluator | None = None

    @classmethod
    def from_model(
        cls, model: Model, backend: str | None = None, *, device: str | None = None, compile: bool = False
    ) -> Potential:
        """Wrap a model of NumPy arrays that was built rather than loaded."""
        chosen = get_backend(backend)
        evaluator = chosen.evaluator(model, device=device, compile=compile)
        return cls(ModelFile(model=model), chosen, evaluator, without=("hessian",) if compile else (), device=device)

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
        virials, parts, output = atomic and atomic_virial is not False, [], self._model.output()
        given = {"fparam": fparam, "aparam": aparam, "spin": spin, "charge_spin": charge_spin}
        for shape, graph, size in self._graphs(
            Frames.read(coord, atype, box, self.type_map, check_pbc(pbc)), pbc, given
        ):
            flat = evaluate_graph(
                self._evaluator, graph, self._model, forces=forces, atomic=virials, size=size, hessian=hessian
            )
            parts.append(assemble_frames(flat, shape, output, atomic=atomic))
        left_out = () if forces else ("force", "virial", "atom_virial", "force_mag")
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key not in left_out}

    def features(
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
    ) -> dict[str, np.ndarray]:
        """What the model computes on the way to its output; arguments as for `evaluate`.

        Returns `descriptor` and `fitting_feature` (the last hidden layer of the fitting net, or its input where it has
        no hidden layer), each (nf, na, width) in the precision of the net; 0 for padding.

        Raises InputError as `evaluate`, and for models without one descriptor and one fitting net (linear, ZBL, tables).
        """
        if self._probe is None:
            self._probe = self.backend.evaluator(Probe.of(self.model), device=self._device)
        frames, parts = Frames.read(coord, atype, box, self.type_map, check_pbc(pbc)), []
        given = {"fparam": fparam, "aparam": aparam, "spin": spin, "charge_spin": charge_spin}
        for shape, graph, size in self._graphs(frames, pbc, given):
            flat = evaluate_graph(self._probe, graph, self._probe.model(), forces=False, atomic=False, size=size)
            parts.append({key: value.reshape(*shape, -1) for key, value in flat.items()})
        real = (frames.atype >= 0)[:, :, None]
        return {key: np.where(real, np.concatenate([part[key] for part in parts]), 0) for key in parts[0]}

    def descriptors(self, coord: Any, atype: Any, box: Any = None, **options: Any) -> np.ndarray:
        """(nf, na, width) descriptors of atoms; see `features`."""
        return self.features(coord, atype, box, **options)["descriptor"]

    def fitting_features(self, coord: Any, atype: Any, box: Any = None, **options: Any) -> np.ndarray:
        """(nf, na, width) last hidden layer of the fitting net; see `features`."""
        return self.features(coord, atype, box, **options)["fitting_feature"]

    def _graphs(
        self, frames: Frames, pbc: bool | Sequence[bool], given: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[int, int], Graph, int]]:
        """(frames and atoms, graph, atoms that a call may hold) of parts that fit into memory.

        given: the optional inputs as the user wrote them. Raises InputError for them at once.
        """
        checked = self._parameters(frames, given)
        size = atoms_per_call(self._model)

        def graphs() -> Iterator[tuple[tuple[int, int], Graph, int]]:
            for part in frames.chunks(size):
                own = {k: None if v is None else v[part] for k, v in checked.items()}
                coord, cell = frames.coord[part], None if frames.cell is None else frames.cell[part]
                numbers = range(part.start, part.stop)
                graph = self._builder.build(coord, frames.atype[part], cell, pbc=pbc, numbers=numbers, **own)
                yield (coord.shape[0], coord.shape[1]), graph, size

        return graphs()

    def _parameters(self, frames: Frames, given: Mapping[str, Any]) -> dict[str, np.ndarray | None]:
        """The optional inputs, checked."""
        model = self._model
        found = {
            "fparam": frames.frame_values(given["fparam"], self.dim_fparam, "fparam"),
            "aparam": frames.atom_values(given["aparam"], self.dim_aparam, "aparam"),
            "spin": frames.atom_values(given["spin"], 3 if model.spin_scales is not None else 0, "spin"),
            "charge_spin": frames.frame_values(
                given["charge_spin"], 2 if model.takes_charge_spin else 0, "charge_spin"
            ),
        }
        if self.dim_fparam and found["fparam"] is None and not model.has_default_fparam:
            raise InputError(
                f"fparam is missing: this model takes {self.dim_fparam} numbers per frame and has no default"
            )
        if self.dim_aparam and found["aparam"] is None:
            raise InputError(f"aparam is missing: this model takes {self.dim_aparam} numbers per atom")
        if model.spin_scales is not None and found["spin"] is None:
            raise InputError("spin is missing: this model takes a vector for every atom, (frames, atoms, 3)")
        if (charges := found["charge_spin"]) is not None:
            check_charge_spin(charges, "charge_spin")
        elif model.takes_charge_spin and model.default_charge_spin is None:
            raise InputError(
                "charge_spin is missing: this model takes charge and spin of every frame and has no default"
            )
        return found

    @property
    def has_hessian(self) -> bool:
        """Whether `evaluate(..., hessian=True)` can be asked for."""
        energies = self._model.output().name == "energy"
        return energies and self.backend.has_gradients and "hessian" not in self._without

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
                "hessian=True: compiled code has no Hessian; load the model file, without compile, for it"
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
