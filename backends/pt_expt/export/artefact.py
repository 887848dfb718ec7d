"""Evaluating an artefact in Python: inputs are checked, because compiled code looks at nothing."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._C import _aoti

from dpmodel.errors import BackendError, InputError, ModelFileError
from dpmodel.files.model_file import ModelFile, read_model
from dpmodel.graph import Comm, Graph, Leaf, check, sized
from dpmodel.models import HessianRequest, Model
from dpmodel.ops import segment_sum

from ...pt import pick_device
from ...pt.bridge import graph_to_torch
from ...pt.memory import keep_freed_memory
from ..ghosts import NODE_KEYS, MappingProvider, failure_of, fold, load_ops
from .archive import read_entries
from .metadata import parse_metadata, require_model, require_runtime

__all__ = ["ArtefactEvaluator", "Runner", "hash_of", "load_code", "open_artefact", "run_program"]

Runner = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""The compiled function: arrays of a graph to outputs."""


class ArtefactEvaluator:
    """An artefact, ready to evaluate."""

    def __init__(self, runner: Runner, metadata: dict[str, Any], model: Model, where: str) -> None:
        keep_freed_memory()
        self.metadata = metadata
        self._run = runner
        self._model = model
        self._where = where

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        """See `dpmodel.backend.Evaluator`. Raises InputError where per-atom virials were not compiled."""
        if hessian is not None:
            raise BackendError(f"{self._where} has no Hessian; load the model file that was frozen")
        if forces and atomic and not self.metadata["atomic_virial"]:
            raise InputError(
                f"{self._where} was frozen without per-atom virials: freeze the model with --atomic-virial "
                "(atomic_virial=True), or leave out atomic=True or forces"
            )
        outputs = run_program(self._run, self.metadata, graph)
        derived = (
            {"force", "virial", "atom_virial", "force_mag"} if not forces else set() if atomic else {"atom_virial"}
        )
        return {key: value.numpy() for key, value in outputs.items() if key not in derived}

    @property
    def without(self) -> tuple[str, ...]:
        """See `dpmodel.backend.Artefact`."""
        return () if self.metadata["atomic_virial"] else ("atom_virial",)

    def model(self) -> Model:
        """The model with NumPy arrays."""
        return self._model


def open_artefact(path: str | Path, *, device: str | None = None) -> tuple[ModelFile, ArtefactEvaluator]:
    """The model file inside an artefact, and its compiled code.

    Raises ModelFileError where the archive is damaged or was changed, BackendError where it was compiled for another
    torch, device or processor.
    """
    path = Path(path)
    if device is not None and pick_device(device).type != "cpu":
        raise BackendError(f"{path} was compiled for the CPU, not for {device!r}: load it with device='cpu'")
    text, image = read_entries(path)
    metadata = parse_metadata(text, str(path))
    require_runtime(metadata, str(path))
    file = _model_file(image, metadata, path)
    require_model(metadata, file.model, str(path))
    if metadata["exchanges"]:
        load_ops()
    return file, ArtefactEvaluator(load_code(path), metadata, file.model, str(path))


def _model_file(image: bytes, metadata: dict[str, Any], path: Path) -> ModelFile:
    if hash_of(image) != metadata["model_hash"]:
        raise ModelFileError(f"{path}: the model inside is not the one that was compiled; freeze the model anew")
    with tempfile.TemporaryDirectory(prefix="dpmodel-") as folder:
        inside = Path(folder) / "model.dp"
        inside.write_bytes(image)
        try:
            return read_model(inside)
        except ModelFileError as problem:
            raise ModelFileError(str(problem).replace(str(inside), f"the model inside {path}")) from problem


def hash_of(image: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(image).hexdigest()


_LOADING = threading.Lock()


def load_code(path: Path) -> Runner:
    """The compiled function of a checked archive."""
    with _LOADING:
        before = _unpacked()
        try:
            # As C++ does it. `aoti_load_package` would read all else in the archive first, pickles included.
            loader = _aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        except RuntimeError as problem:
            raise ModelFileError(
                f"{path}: torch cannot load the compiled code ({str(problem).splitlines()[0]}); freeze the model anew"
            ) from problem
        for library in _unpacked() - before:
            _remove_unpacked(library)
    return lambda inputs: loader.boxed_run(list(inputs))


def _unpacked() -> set[Path]:
    """Loaded libraries that torch has unpacked from artefacts; none where the system does not list what is loaded."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return set()
    return {Path(line[line.index("/") :]) for line in lines if "/data/aotinductor/model/" in line}


def _remove_unpacked(library: Path) -> None:
    """Remove what torch has unpacked for a library that is loaded: it stays in memory.

    torch does so when the model is destroyed, which a process that is killed never does. Of the folders above only
    those go that are empty.
    """
    shutil.rmtree(library.parent, ignore_errors=True)
    with contextlib.suppress(OSError):
        for folder in tuple(library.parents)[1:5]:
            folder.rmdir()


def run_program(run: Runner, metadata: dict[str, Any], graph: Graph) -> dict[str, torch.Tensor]:
    """Outputs for a graph of NumPy arrays, ghosts folded onto the rows of `graph.owner` where that is set.

    Exchanges go where `graph.comm` says, or stay within the process: ghosts copy their owners' rows.

    Raises ValueError for a graph that the program was not compiled for, BackendError where an exchange failed.
    """
    owner, n = graph.owner, graph.frame.shape[0]
    graph = _with_defaults(graph.replace(owner=None), metadata)
    provider = MappingProvider(None if owner is None else owner[n:])
    if metadata["message_passing"] and graph.comm is None:
        graph = graph.replace(comm=Comm(handle=provider.handle))
    inputs: Graph = graph_to_torch(graph)
    check(inputs)
    leaves = sized(inputs)
    _check_inputs(leaves, metadata["inputs"])
    _check_exchanges(graph)
    results = run([_packed(leaf.array) for leaf in leaves])
    _check_exchanges(graph)
    outputs = {each["name"]: value for each, value in zip(metadata["outputs"], results, strict=True)}
    if owner is not None:
        rows = torch.as_tensor(owner)
        for key in outputs.keys() & NODE_KEYS:
            outputs[key] = fold(outputs[key], inputs, lambda value: segment_sum(value, rows, n))
    return outputs


def _check_exchanges(graph: Graph) -> None:
    """Before a run the handle may be that of a provider that is gone; after it, torch may have ignored a failure."""
    failure = None if graph.comm is None else failure_of(graph.comm.handle)
    if failure is not None:
        raise BackendError(f"a ghost exchange failed, so the results are worth nothing: {failure}")


def _packed(x: torch.Tensor) -> torch.Tensor:
    """Contiguous, with the strides of a fresh tensor: torch calls any strides contiguous where there is but one row."""
    expected, step = [], 1
    for size in reversed(x.shape):
        expected.append(step)
        step *= max(1, size)
    return (
        x if list(x.stride()) == expected[::-1] else torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)
    )


def _with_defaults(graph: Graph, metadata: dict[str, Any]) -> Graph:
    """What an evaluation may leave out is an input of the program all the same."""
    frames = graph.natoms.shape[0]
    for name in ("fparam", "charge_spin"):
        default = metadata[f"default_{name}"]
        if default is not None and getattr(graph, name) is None:
            graph = graph.replace(**{name: np.tile(np.asarray(default, np.float64), (frames, 1))})
    return graph


def _check_inputs(leaves: Sequence[Leaf], declared: Sequence[dict[str, Any]]) -> None:
    names = [leaf.path for leaf in leaves]
    if names != [each["name"] for each in declared]:
        raise ValueError(f"the program takes {[each['name'] for each in declared]}, the graph holds {names}")
    for leaf, each in zip(leaves, declared, strict=True):
        dtype = str(leaf.array.dtype).removeprefix("torch.")
        found = (dtype, list(leaf.axes), list(leaf.static))
        if found != (each["dtype"], each["axes"], each["static"]):
            raise ValueError(
                f"{leaf.path}: the program takes {each['dtype']} over {each['axes']} and {each['static']}, got {dtype} of "
                f"shape {tuple(leaf.array.shape)}"
            )
