"""The exportable PyTorch backend: the same bridge, its own overrides, compiled evaluation and training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch

from dpmodel.backend import Artefact, Evaluator
from dpmodel.descriptors.message_passing import MessagePassing
from dpmodel.errors import BackendError
from dpmodel.files.model_file import ModelFile
from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, Model
from dpmodel.nn import Activation
from dpmodel.op import Op
from dpmodel.training.stepper import Loss, StepOptions
from dpmodel.training.world import World

from ..pt import TorchEvaluator, pick_device
from ..pt.bridge import Overrides, override_table
from ..pt.distributed import join
from ..pt.profiling import TorchProfiler
from ..pt.training import TorchStepper
from .activation import SigmoidActivation
from .compile import CompiledLower
from .export import freeze, open_artefact
from .ghosts import GhostExchange
from .lammps import build_plugin
from .training import CompiledStepper

__all__ = ["BACKEND", "OVERRIDES", "CompiledEvaluator", "ExportableBackend"]

OVERRIDES: Mapping[type[Op], type[Op]] = {Activation: SigmoidActivation, MessagePassing: GhostExchange}
"""Methods that trace and compile well. The eager overrides of `pt` are not stacked below: what is traced is the reference."""


class CompiledEvaluator(TorchEvaluator):
    """A model whose evaluation is compiled on first use."""

    def __init__(self, model: Model, device: torch.device, overrides: Overrides) -> None:
        super().__init__(model, device, overrides)
        self._lower = CompiledLower(self.module)

    def run(self, graph: Graph, forces: bool, atomic: bool) -> dict[str, torch.Tensor]:
        """See `TorchEvaluator.run`."""
        return self._lower(graph, forces=forces, atomic=atomic)

    def curve(self, graph: Graph, atomic: bool, request: HessianRequest) -> dict[str, torch.Tensor]:
        """Raises BackendError."""
        raise BackendError("compile=True has no Hessian: load the model without it")

    def compilations(self) -> int:
        """How many graphs were compiled so far."""
        return self._lower.compilations()


class ExportableBackend:
    """PyTorch, traced and compiled on request."""

    name: ClassVar[str] = "pt_expt"
    has_gradients: ClassVar[bool] = True
    compiles_training: ClassVar[bool] = True
    several_tasks: ClassVar[bool] = True
    optimizers: ClassVar[frozenset[str]] = frozenset(("Adam", "AdamW", "AdaMuon", "HybridMuon", "LKF"))
    overrides: ClassVar[Overrides] = override_table(OVERRIDES)

    def evaluator(self, model: Model, *, device: str | None = None, compile: bool = False) -> Evaluator:
        """See `Backend.evaluator`."""
        kind = CompiledEvaluator if compile else TorchEvaluator
        return kind(model, pick_device(device), self.overrides)

    def stepper(
        self,
        model: Op,
        losses: Mapping[str, Loss],
        optimizer: Any,
        *,
        options: StepOptions,
        device: str | None = None,
        world: World | None = None,
    ) -> TorchStepper:
        """See `dpmodel.backend.Trainer`."""
        kind = CompiledStepper if options.compile else TorchStepper
        return kind(
            model,
            losses,
            optimizer,
            options=options,
            device=pick_device(device),
            overrides=self.overrides,
            world=world,
        )

    def join(self, device: str | None = None) -> AbstractContextManager[World]:
        """See `dpmodel.backend.Trainer`."""
        return join(device, pick_device)

    def profiler(self, trace: Path | None, folder: Path | None) -> TorchProfiler:
        """See `dpmodel.training.profiling.Profiler`."""
        return TorchProfiler(trace, folder)

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that take part."""
        return {"torch": str(torch.__version__)}

    def freeze(self, file: ModelFile, output: Path, *, atomic_virial: bool = False) -> None:
        """See `Exporter.freeze`."""
        freeze(file, output, overrides=self.overrides, atomic_virial=atomic_virial)

    def open_artefact(self, path: Path, *, device: str | None = None) -> tuple[ModelFile, Artefact]:
        """See `Exporter.open_artefact`."""
        return open_artefact(path, device=device)

    def lammps_plugin(self) -> Path:
        """See `Exporter.lammps_plugin`."""
        return build_plugin()


BACKEND = ExportableBackend()
