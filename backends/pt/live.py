"""A model in training as an evaluator: its tensors as they are now, without gradients of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, Model, predict

from .bridge import from_torch, graph_to_torch, to_torch, torch_curvature, torch_gradient

__all__ = ["LiveEvaluator"]


class LiveEvaluator:
    """See `dpmodel.backend.Evaluator`. Good for as long as the tensors are.

    Args:
        own: the module whose values these are, for `model`.
        module: what computes when the tensors are put in.
        state: its parameters and buffers.
    """

    def __init__(
        self, own: torch.nn.Module, module: torch.nn.Module, state: Mapping[str, torch.Tensor], device: torch.device
    ) -> None:
        self._own, self._module, self._state, self._device = own, module, dict(state), device
        self._plain: Any = None

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        """See `dpmodel.backend.Evaluator`."""
        inputs = graph_to_torch(graph, self._device)
        with torch.no_grad():
            if hessian is None:
                outputs = predict(self._call, inputs, torch_gradient if forces else None, atomic_virial=atomic)
            else:
                outputs = self._curve(inputs, atomic, hessian)
        return {key: value.detach().cpu().numpy() for key, value in outputs.items()}

    def model(self) -> Model:
        """The model with NumPy arrays."""
        plain: Any = from_torch(self._own)
        return plain

    def _call(self, graph: Graph) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = functional_call(self._module, self._state, (graph,))
        return found

    def _curve(self, graph: Graph, atomic: bool, request: HessianRequest) -> dict[str, torch.Tensor]:
        """With Hessian, by the reference methods: overrides may be written for fewer derivatives."""
        if self._plain is None:
            self._plain = to_torch(self.model(), device=self._device).requires_grad_(False)
        return predict(
            self._plain, graph, torch_gradient, atomic_virial=atomic, curvature=torch_curvature, request=request
        )
