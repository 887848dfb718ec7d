"""Export: a model with its derivatives as one StableHLO program of any size, in a model file (`.hlo`).

The program takes the arrays of a graph (`dpmodel.graph.sized`) and holds parameters and buffers itself. Every axis of
data-dependent size is a symbol. Symbols are at least 1; padding makes every size of it.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from dpmodel.errors import BackendError, InputError, ModelFileError
from dpmodel.files.model_file import ModelFile
from dpmodel.files.program import read_program, write_program
from dpmodel.graph import Graph, map_leaves, sized
from dpmodel.models import HessianRequest, Model, predict
from dpmodel.models.sample import sample_graph

from .bridge import double_precision, jax_gradient, to_jax
from .evaluator import JaxEvaluator, PaddedEvaluator
from .overrides import OVERRIDES

__all__ = ["PLATFORMS", "ProgramEvaluator", "export_model", "freeze", "open_artefact"]

PLATFORMS = ("cpu", "cuda")
"""What programs are lowered for."""

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
"""Of the larger of 1 and the largest value of an output."""

_HARMLESS = frozenset(("shape_assertion",))
"""Custom calls that a program may have: this one checks sizes while it is compiled and leaves no code."""

_DERIVED = ("force", "force_mag", "virial", "atom_virial")


# --- writing -----------------------------------------------------------------------------------------------


def export_model(model: Model, like: Graph) -> jax.export.Exported:
    """Everything that the model predicts, for graphs of the structure of `like` of any size.

    Raises BackendError where a layer depends on the size of its data.
    """
    derivatives = jax_gradient if model.output().differentiable else None
    with double_precision():
        tree = to_jax(model, overrides=OVERRIDES)

        def run(*leaves: jax.Array) -> dict[str, jax.Array]:
            parts = iter(leaves)
            graph = map_leaves(like, lambda _: next(parts))
            return predict(tree, graph, derivatives, atomic_virial=derivatives is not None)

        sizes = _symbols(like)
        inputs = [
            jax.ShapeDtypeStruct((*(sizes[axis] for axis in leaf.axes), *leaf.static), leaf.array.dtype)
            for leaf in sized(like)
        ]
        try:
            return jax.export.export(jax.jit(run), platforms=PLATFORMS)(*inputs)
        except Exception as problem:  # whatever tracing raises, of several modules
            raise BackendError(
                f"export: this model cannot be exported by JAX ({str(problem)[:500]}). Please report this with the model"
            ) from problem


def _symbols(graph: Graph) -> dict[str, Any]:
    """A symbolic size for every axis of a graph of this structure."""
    names = list(dict.fromkeys(axis for leaf in sized(graph) for axis in leaf.axes))
    scope = jax.export.SymbolicScope(["nodes >= atoms"])
    found = jax.export.symbolic_shape(", ".join(name.replace(".", "_") for name in names), scope=scope)
    return dict(zip(names, found, strict=True))


def freeze(file: ModelFile, output: Path) -> None:
    """Export a model and write it to `output` (`.hlo`), after comparing the program with the model.

    Raises BackendError where the model cannot be exported or its program gives other numbers; there is no file then.
    """
    _check_target(output)
    _require_flatbuffers()
    like = sample_graph(file.model, 1, 4)
    exported = export_model(file.model, like)
    code = bytes(exported.serialize())
    inputs, precision = [_describe(leaf.path, leaf.array, leaf.axes) for leaf in sized(like)], _precision(file.model)
    program = ProgramEvaluator(code, file.model, inputs, str(output), None)
    metadata = {
        "jax_version": jax.__version__,
        "platforms": list(exported.platforms),
        "precision": precision,
        "inputs": inputs,
        "outputs": _outputs(exported),
        "compared": _compare(program, file.model, precision),
    }
    write_program(output, file, code, metadata)


def _check_target(output: Path) -> None:
    """Refuse now what could not be written in the end."""
    if output.is_dir():
        raise InputError(f"{output} is a folder; give the name of a file")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}; create it first")


def _require_flatbuffers() -> None:
    """jax.export writes and reads programs with it, and JAX does not require it."""
    if find_spec("flatbuffers") is None:
        raise BackendError('export needs the package flatbuffers, which is not installed: pip install "dpmodel[jax]"')


def _describe(name: str, array: Any, axes: tuple[str, ...]) -> dict[str, Any]:
    static = [int(size) for size in array.shape[len(axes) :]]
    return {"name": name, "dtype": str(array.dtype), "axes": list(axes), "static": static}


def _outputs(exported: jax.export.Exported) -> list[dict[str, Any]]:
    """The outputs in order, with the symbols of their sizes."""
    values: dict[str, Any] = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return [
        _describe(name, value, tuple(str(size) for size in value.shape if not isinstance(size, int)))
        for name, value in values.items()
    ]


def _precision(model: Model) -> str:
    """float32 where any array of floats is, else float64."""
    return "float32" if any(np.dtype(x.dtype) == np.float32 for x in model.state().values()) else "float64"


def _compare(program: ProgramEvaluator, model: Model, precision: str) -> list[dict[str, Any]]:
    """Compare a program with the model at several sizes. Raises BackendError naming the output that differs."""
    found, forces = [], model.output().differentiable
    evaluator = JaxEvaluator(model, None)
    for frames, atoms in ((1, 27), (2, 4), (1, 1), (1, 0)):
        graph = sample_graph(model, frames, atoms)
        expected, worst = evaluator(graph, forces=forces, atomic=forces), 0.0
        results = program(graph, forces=forces, atomic=forces)
        if results.keys() != expected.keys():
            raise BackendError(f"export: the program gives {sorted(results)}, the model {sorted(expected)}")
        for key, value in expected.items():
            scale = max(1.0, float(np.max(np.abs(value), initial=0.0)))
            difference = float(np.max(np.abs(results[key] - value), initial=0.0)) / scale
            if results[key].shape != value.shape or not difference <= TOLERANCE[precision]:
                raise BackendError(
                    f"export: {key} of a graph of {len(graph.frame)} atoms and {len(graph.centre)} edges is "
                    f"{difference:.1e} away from the model (allowed: {TOLERANCE[precision]:.0e}). No file was written. "
                    "Please report this with the model"
                )
            worst = max(worst, difference)
        found.append({"atoms": len(graph.frame), "edges": len(graph.centre), "largest_difference": worst})
    return found


# --- reading -----------------------------------------------------------------------------------------------


def open_artefact(path: Path, device: Any) -> tuple[ModelFile, ProgramEvaluator]:
    """The model file inside an artefact, and its program.

    Raises ModelFileError where the file is damaged or was changed, BackendError where it was made for other devices.
    """
    _require_flatbuffers()
    program = read_program(path)
    kind = (jax.devices()[0] if device is None else device).platform.replace("gpu", "cuda")
    if kind not in program.metadata["platforms"]:
        raise BackendError(
            f"{path} was made for {', '.join(program.metadata['platforms'])}, and this is {kind!r}: load it with device='cpu'"
        )
    return program.file, ProgramEvaluator(
        program.code, program.file.model, program.metadata["inputs"], str(path), device
    )


def _load(code: bytes, where: str) -> jax.export.Exported:
    """The program, after a look at what it calls. Raises ModelFileError."""
    try:
        exported = jax.export.deserialize(bytearray(code))
        text = exported.mlir_module()
    except Exception as problem:  # whatever the readers of JAX and MLIR raise
        raise ModelFileError(
            f"{where}: JAX {jax.__version__} cannot read the program ({str(problem).splitlines()[0][:200]}); freeze the "
            "model anew with this version"
        ) from problem
    calls = re.findall(r"custom_call(?: @([A-Za-z0-9_.]+)\()?", text)
    foreign = sorted({name or "one in a form that is not known" for name in calls} - _HARMLESS)
    if foreign:
        raise ModelFileError(
            f"{where}: the program calls native functions ({', '.join(foreign[:4])}), which no program of `dpmodel freeze` "
            "does. It is not run"
        )
    return exported


class ProgramEvaluator(PaddedEvaluator):
    """A program, ready to evaluate; XLA compiles it once for every size of padded graphs."""

    without = ()
    """See `dpmodel.backend.Artefact`."""

    def __init__(self, code: bytes, model: Model, inputs: list[dict[str, Any]], where: str, device: Any) -> None:
        super().__init__(model.output().reduced, device)
        self._plain, self._inputs, self._where = model, inputs, where
        exported = _load(code, where)

        def traced(leaves: tuple[jax.Array, ...], forces: bool, atomic: bool) -> dict[str, jax.Array]:
            self._traces += 1  # runs once per new shape, when JAX traces
            outputs = exported.call(*leaves)
            dropped = _DERIVED if not forces else () if atomic else ("atom_virial",)
            return {key: value for key, value in outputs.items() if key not in dropped}

        self._run = jax.jit(traced, static_argnums=(1, 2))

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        """See `dpmodel.backend.Evaluator`. Raises ValueError for a graph of another structure."""
        if hessian is not None:
            raise BackendError(f"{self._where} holds no second derivatives; load the model file that was frozen")
        graph = self._with_defaults(graph)
        found = [_describe(leaf.path, leaf.array, leaf.axes) for leaf in sized(graph)]
        if found != self._inputs:
            names = [[f"{each['dtype']} {each['name']}" for each in some] for some in (self._inputs, found)]
            raise ValueError(f"{self._where}: the program takes {names[0]}, the graph holds {names[1]}")
        return super().__call__(graph, forces=forces, atomic=atomic)

    def run(self, graph: Graph, forces: bool, atomic: bool, hessian: HessianRequest | None) -> dict[str, jax.Array]:
        """See `PaddedEvaluator.run`."""
        outputs: dict[str, jax.Array] = self._run(tuple(leaf.array for leaf in sized(graph)), forces, atomic)
        return outputs

    def model(self) -> Model:
        """The model with NumPy arrays."""
        return self._plain

    def _with_defaults(self, graph: Graph) -> Graph:
        """What an evaluation may leave out is an input of the program all the same."""
        frames = graph.natoms.shape[0]
        defaults = {"fparam": self._plain.default_fparam, "charge_spin": self._plain.default_charge_spin}
        for name, default in defaults.items():
            if default is not None and getattr(graph, name) is None:
                graph = graph.replace(**{name: np.tile(np.asarray(default, np.float64), (frames, 1))})
        return graph
