"""The training step with compiled gradients: forces, virials and what the optimizer needs of them in one graph."""

from __future__ import annotations

from typing import Any

import torch

from dpmodel.errors import InputError
from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, Model
from dpmodel.training.stepper import Loss

from ..pt.bridge import Overrides
from ..pt.training import TorchStepper
from .compile import CompiledStep

__all__ = ["CompiledStepper"]


class CompiledStepper(TorchStepper):
    """As `TorchStepper`; the model and its gradients are compiled on the first step, loss and optimizer run eagerly.

    One compilation serves all sizes of batches. Another one is made for every other structure: optional inputs that
    come or go, parameters that are frozen or thawed.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        optimizer: Any,
        *,
        device: torch.device,
        overrides: Overrides,
        gradient_max_norm: float | None,
    ) -> None:
        if "hessian" in loss.outputs:
            raise InputError(
                "loss: start_pref_h and limit_pref_h do not go with training.enable_compile, which has no third "
                "derivatives; remove one or the other"
            )
        super().__init__(
            model, loss, optimizer, device=device, overrides=overrides, gradient_max_norm=gradient_max_norm
        )
        # Losses take the dtype of the frames' values for theirs.
        wanted = frozenset((model.output().reduced, *loss.outputs))
        self.compiled = CompiledStep(self.module, wanted, derivatives=self.derivatives)

    def outputs(
        self, graph: Graph, *, create_graph: bool, hessian: HessianRequest | None = None
    ) -> dict[str, torch.Tensor]:
        """See `TorchStepper.outputs`. Without `create_graph` the same code runs, and gradients are switched off."""
        with torch.set_grad_enabled(create_graph):
            return self.compiled(graph)
