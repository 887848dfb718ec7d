"""Backends: what runs a model, how one is chosen, and the NumPy one.

A backend is found through the entry-point group `dpmodel.backends`; the library itself never imports a
framework. Selection: the argument, else the environment variable `DP_BACKEND`, else the best installed of
pt, jax, numpy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np

from dpmodel.errors import BackendError
from dpmodel.graph import Graph
from dpmodel.models.base import Model
from dpmodel.models.curvature import HessianRequest
from dpmodel.models.derivatives import predict
from dpmodel.op import Op

if TYPE_CHECKING:
    from dpmodel.training.stepper import Loss, StepOptions, Stepper
    from dpmodel.training.world import World

__all__ = [
    "ALIASES",
    "NUMPY",
    "Artefact",
    "Backend",
    "CheckpointReader",
    "Evaluator",
    "Exporter",
    "Trainer",
    "canonical_name",
    "get_backend",
    "get_exporter",
    "get_reader",
    "get_trainer",
    "installed",
]

GROUP = "dpmodel.backends"

ALIASES: dict[str, str] = {
    "numpy": "numpy",
    "np": "numpy",
    "dp": "numpy",
    "dpmodel": "numpy",
    "pt": "pt",
    "pytorch": "pt",
    "torch": "pt",
    "jax": "jax",
    "pt_expt": "pt_expt",
    "pt-expt": "pt_expt",
    "pytorch-exportable": "pt_expt",
    "pytorch_exportable": "pt_expt",
}
"""Every accepted spelling of a backend's name."""

REQUIRES: dict[str, str] = {"numpy": "numpy", "pt": "torch", "jax": "jax", "pt_expt": "torch"}
"""The package that each backend needs."""

INSTALL: dict[str, str] = {
    "pt": "pip install torch",
    "jax": "pip install jax",
    "pt_expt": "pip install torch",
}

PREFERENCE = ("pt", "jax", "numpy")

EXPORTERS: dict[str, str] = {".pt2": "pt_expt", ".hlo": "jax"}
"""The backend of every kind of artefact, by suffix."""


class Evaluator(Protocol):
    """A model made ready on a backend."""

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs for a graph of NumPy arrays: flat per-atom arrays, per-frame arrays, all NumPy.

        forces: `force`, `virial` as well; atomic: `atom_virial` too; hessian: `hessian` too (with forces).
        Raises BackendError for what the evaluator does not have.
        """

    def model(self) -> Model:
        """The model as it now is, with NumPy arrays."""


class Backend(Protocol):
    """What a backend offers. Instances are stateless."""

    name: ClassVar[str]
    has_gradients: ClassVar[bool]
    """Whether forces and virials can be had."""

    def evaluator(self, model: Model, *, device: str | None = None, compile: bool = False) -> Evaluator:
        """Make a model of NumPy arrays ready. Raises BackendError for a device or option it does not have."""


class Trainer(Backend, Protocol):
    """A backend that can train."""

    compiles_training: ClassVar[bool]
    """Whether `stepper` takes compile=True."""
    several_tasks: ClassVar[bool]
    """Whether `stepper` takes a `MultiTask`."""
    optimizers: ClassVar[frozenset[str]]
    """The `optimizer.type`s that `stepper` takes."""

    def stepper(
        self,
        model: Op,
        losses: Mapping[str, Loss],
        optimizer: Any,
        *,
        options: StepOptions,
        device: str | None = None,
        world: World | None = None,
    ) -> Stepper:
        """A model (of the task "") or `MultiTask` made ready to be trained.

        losses: by task. optimizer: the section of the input. world: from `join`; None: this process alone.
        Raises BackendError for options that the backend does not have, InputError for what cannot be trained.
        """

    def join(self, device: str | None = None) -> AbstractContextManager[World]:
        """The processes that `torchrun` started, until the context is left; `Alone` where there is one.

        Raises BackendError where the backend trains in one process only.
        """

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that take part."""


class CheckpointReader(Protocol):
    """A backend that reads checkpoints of other programs, which need its framework."""

    def read_checkpoint(self, path: Path, head: str | None) -> dict[str, Any]:
        """The tree of a model file (see `dpmodel.files.container`). head: the branch of a multi-task model.

        Raises ModelFileError, InputError for a head that there is not. Executes nothing that the file holds.
        """

    def read_heads(self, path: Path) -> dict[str, dict[str, Any]]:
        """The trees of all branches by name; of a single model that of "". Raises as `read_checkpoint`."""


class Artefact(Evaluator, Protocol):
    """Compiled code."""

    @property
    def without(self) -> tuple[str, ...]:
        """Outputs that were not compiled."""


class Exporter(Backend, Protocol):
    """A backend that compiles models into artefacts (`.pt2`, `.hlo`)."""

    def freeze(self, file: Any, output: Path, *, atomic_virial: bool = False) -> None:
        """Compile a `dpmodel.files.model_file.ModelFile` and write the artefact, complete or not at all."""

    def open_artefact(self, path: Path, *, device: str | None = None) -> tuple[Any, Artefact]:
        """The model file inside an artefact, and its compiled code."""

    def lammps_plugin(self) -> Path:
        """The folder of the LAMMPS plugin, which is built where that has not been done. Raises BackendError."""


class _NumpyEvaluator:
    def __init__(self, model: Model) -> None:
        self._model = model

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        if forces or hessian is not None:
            raise BackendError("the numpy backend has no derivatives: use backend='pt' or 'jax', or forces=False")
        return predict(self._model, graph, None)

    def model(self) -> Model:
        return self._model


class NumpyBackend:
    """The reference: energies without derivatives, on NumPy."""

    name: ClassVar[str] = "numpy"
    has_gradients: ClassVar[bool] = False

    def evaluator(self, model: Model, *, device: str | None = None, compile: bool = False) -> Evaluator:
        """See `Backend.evaluator`."""
        if device not in (None, "cpu"):
            raise BackendError(f"the numpy backend runs on the CPU; device={device!r} needs backend='pt' or 'jax'")
        if compile:
            raise BackendError("compile=True needs backend='pt_expt'; the numpy backend has nothing to compile")
        return _NumpyEvaluator(model)


NUMPY = NumpyBackend()


def canonical_name(name: str) -> str:
    """The canonical name of any alias. Raises BackendError listing what is installed."""
    key = str(name).strip().lower()
    if key not in ALIASES:
        raise BackendError(f"unknown backend {name!r}; known are {', '.join(REQUIRES)}. {_inventory()}")
    return ALIASES[key]


def installed() -> tuple[str, ...]:
    """Names of the backends whose packages are installed (none is imported)."""
    return tuple(name for name, package in REQUIRES.items() if importlib.util.find_spec(package) is not None)


def get_backend(name: str | None = None) -> Backend:
    """The backend of that name or alias; None: DP_BACKEND, else the best installed.

    Raises BackendError for an unknown name or a missing package, saying what is installed and how to install the rest.
    """
    here = installed()
    asked = name if name is not None else os.environ.get("DP_BACKEND") or None
    source = "the environment variable DP_BACKEND: " if name is None and asked is not None else ""
    try:
        key = canonical_name(asked) if asked is not None else next(k for k in PREFERENCE if k in here)
    except BackendError as problem:
        raise BackendError(f"{source}{problem}") from None
    if key not in here:
        raise BackendError(
            f"{source}backend {key!r} needs the package {REQUIRES[key]!r}, which is not installed. {_inventory()}"
        )
    if key == "numpy":
        return NUMPY
    return _load(key)


def get_trainer(name: str | None = None) -> Trainer:
    """The backend of that name for training; None: DP_BACKEND, else pt.

    Raises BackendError where it cannot train, or as `get_backend` does.
    """
    backend: Any = get_backend(name if name is not None or os.environ.get("DP_BACKEND") else "pt")
    if not isinstance(backend, _CanTrain):
        raise BackendError(f"the {backend.name} backend cannot train in this version; use --backend pt")
    return cast(Trainer, backend)


def get_exporter(name: str | None = None, suffix: str = ".pt2") -> Exporter:
    """The backend of artefacts with that suffix; name None: the one that there is, whatever DP_BACKEND says.

    Raises BackendError where another one was named, or as `get_backend` does.
    """
    own = EXPORTERS[suffix]
    if name is not None and canonical_name(name) != own:
        raise BackendError(
            f"compiled models ({suffix}) run on the backend {own!r}, not on {name!r}: leave the backend out, or load the "
            "model file that was frozen"
        )
    return cast(Exporter, get_backend(own))


def get_reader(name: str) -> CheckpointReader:
    """The backend of that name, which reads checkpoints of its framework. Raises BackendError as `get_backend` does."""
    return cast(CheckpointReader, get_backend(name))


@runtime_checkable
class _CanTrain(Protocol):
    def stepper(self, model: Op, losses: Any, optimizer: Any) -> Any: ...


def _load(key: str) -> Any:
    points = {p.name: p for p in _entry_points()}
    value = points[key].value if key in points else f"dpmodel.backends.{key}:BACKEND"
    module, _, attribute = value.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as problem:
        if not (isinstance(problem, ModuleNotFoundError) and str(problem.name).startswith("dpmodel")):
            raise BackendError(
                f"backend {key!r}: {REQUIRES[key]} is installed, but importing {module} fails ({problem}). "
                f"Install it anew: {INSTALL[key]}"
            ) from problem
        raise BackendError(
            f"backend {key!r}: {module} cannot be imported ({problem}). Is Python running inside a checkout of the "
            "sources, whose dpmodel/ folder hides the installed package? Run from another folder, or install the "
            "checkout with: pip install -e ."
        ) from problem


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    return importlib.metadata.entry_points(group=GROUP)


def _inventory() -> str:
    here = installed()
    missing = [f"{name} ({INSTALL[name]})" for name in REQUIRES if name not in here]
    text = f"Installed: {', '.join(here)}."
    return text + (f" To install: {'; '.join(missing)}." if missing else "")
