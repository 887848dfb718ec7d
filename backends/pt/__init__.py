"""The PyTorch backend: evaluation and training, eager."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from dpmodel.backend import Evaluator
from dpmodel.errors import BackendError
from dpmodel.files.torch_state import tree_of_state, trees_of_state
from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, Model, predict
from dpmodel.op import Op
from dpmodel.training.stepper import Loss, StepOptions
from dpmodel.training.world import World

from .bridge import Overrides, from_torch, graph_to_torch, override_table, to_torch, torch_curvature, torch_gradient
from .checkpoint import read_checkpoint
from .distributed import join
from .memory import keep_freed_memory
from .overrides import OVERRIDES
from .profiling import TorchProfiler
from .training import TorchStepper

__all__ = ["BACKEND", "OVERRIDES", "TorchBackend", "TorchEvaluator", "pick_device"]


def pick_device(device: str | None) -> torch.device:
    """The device of that name; None: CUDA where there is one, else the CPU. Raises BackendError."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as problem:
        raise BackendError(f"device {device!r} is not available to torch: {problem}".splitlines()[0]) from problem
    return chosen


class TorchEvaluator:
    """A model as a torch module, ready to evaluate."""

    def __init__(self, model: Model, device: torch.device, overrides: Overrides) -> None:
        keep_freed_memory()
        self.device = device
        self.module = to_torch(model, device=device, overrides=overrides).eval().requires_grad_(False)
        self._plain: Any = None

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        """See `dpmodel.backend.Evaluator`."""
        inputs = graph_to_torch(graph, self.device)
        with torch.no_grad():
            outputs = self.run(inputs, forces, atomic) if hessian is None else self.curve(inputs, atomic, hessian)
        return {key: value.detach().cpu().numpy() for key, value in outputs.items()}

    def run(self, graph: Graph, forces: bool, atomic: bool) -> dict[str, torch.Tensor]:
        """Outputs for a graph of tensors."""
        return predict(self.module, graph, torch_gradient if forces else None, atomic_virial=atomic)

    def curve(self, graph: Graph, atomic: bool, request: HessianRequest) -> dict[str, torch.Tensor]:
        """Outputs with Hessian, by the reference methods: overrides may be written for fewer derivatives."""
        if self._plain is None:
            self._plain = to_torch(self.model(), device=self.device).eval().requires_grad_(False)
        return predict(
            self._plain, graph, torch_gradient, atomic_virial=atomic, curvature=torch_curvature, request=request
        )

    def model(self) -> Model:
        """The model with NumPy arrays."""
        plain: Any = from_torch(self.module)
        return plain


class TorchBackend:
    """PyTorch, eager."""

    name: ClassVar[str] = "pt"
    has_gradients: ClassVar[bool] = True
    compiles_training: ClassVar[bool] = False
    several_tasks: ClassVar[bool] = True
    optimizers: ClassVar[frozenset[str]] = frozenset(("Adam", "AdamW", "AdaMuon", "HybridMuon", "LKF"))
    overrides: ClassVar[Overrides] = override_table(OVERRIDES)

    def evaluator(self, model: Model, *, device: str | None = None, compile: bool = False) -> Evaluator:
        """See `Backend.evaluator`."""
        if compile:
            raise BackendError("compile=True needs backend='pt_expt'; backend='pt' runs eagerly")
        return TorchEvaluator(model, pick_device(device), self.overrides)

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
        if options.compile:
            raise BackendError("a compiled training step needs the backend pt_expt; the backend pt runs eagerly")
        return TorchStepper(
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

    def read_checkpoint(self, path: Path, head: str | None) -> dict[str, Any]:
        """See `dpmodel.backend.CheckpointReader`: those of DeePMD-kit's PyTorch."""
        return tree_of_state(*read_checkpoint(path), head, str(path))

    def read_heads(self, path: Path) -> dict[str, dict[str, Any]]:
        """See `dpmodel.backend.CheckpointReader`."""
        return trees_of_state(*read_checkpoint(path), str(path))

    def profiler(self, trace: Path | None, folder: Path | None) -> TorchProfiler:
        """See `dpmodel.training.profiling.Profiler`."""
        return TorchProfiler(trace, folder)

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that take part."""
        return {"torch": str(torch.__version__)}


BACKEND = TorchBackend()
