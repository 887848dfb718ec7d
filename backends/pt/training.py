"""The training step on PyTorch: what the one loop of `dpmodel.training` asks of a backend."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dpmodel.errors import InputError
from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, Model, predict
from dpmodel.training.stepper import Loss, NonFiniteError, OptimizerState

from .bridge import Overrides, from_torch, graph_to_torch, to_torch, torch_curvature, torch_gradient
from .memory import keep_freed_memory

__all__ = ["TorchStepper"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class TorchStepper:
    """A model, its loss and its optimizer (see `dpmodel.training.stepper.Stepper`)."""

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
        keep_freed_memory()
        self.device = device
        self.loss = loss
        self.derivatives = not {"force", "virial", "force_mag", "hessian"}.isdisjoint(loss.outputs)
        if "hessian" in loss.outputs:
            overrides = {}  # third derivatives, several at once: overrides may be written for fewer
        self.max_norm = gradient_max_norm if gradient_max_norm and gradient_max_norm > 0 else None
        self.module = to_torch(model, device=device, overrides=overrides)
        self._trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        if not self._trained:
            raise InputError("nothing to train: every part of the model has trainable = false")
        self.optimizer = _make_optimizer(optimizer, list(self._trained.values()))

    def step(
        self, graph: Graph, labels: Mapping[str, np.ndarray], found: Mapping[str, float], lr: float
    ) -> Callable[[], dict[str, float]]:
        """One update with learning rate `lr`. The returned function reads the metrics of the batch before the update."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = self._loss(graph, labels, found, lr, create_graph=True)
        # Naming the inputs spares the second derivatives with respect to coordinates.
        torch.autograd.backward(loss, inputs=list(self._trained.values()))
        self._check_and_clip(loss)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return functools.partial(_numbers, metrics)

    def measure(
        self, graph: Graph, labels: Mapping[str, np.ndarray], found: Mapping[str, float], lr: float
    ) -> dict[str, float]:
        """The metrics of a batch, without an update."""
        _, metrics = self._loss(graph, labels, found, lr, create_graph=False)
        return _numbers(metrics)

    def predict(self, graph: Graph) -> dict[str, np.ndarray]:
        """Outputs of the current model for a graph, without derivatives."""
        with torch.no_grad():
            outputs = self.module(graph_to_torch(graph, self.device))
        return {key: value.cpu().numpy() for key, value in outputs.items()}

    def outputs(
        self, graph: Graph, *, create_graph: bool, hessian: HessianRequest | None = None
    ) -> dict[str, torch.Tensor]:
        """What the loss reads, for a graph of tensors. create_graph: gradients of the parameters will be asked for."""
        gradient = functools.partial(torch_gradient, create_graph=create_graph) if self.derivatives else None
        curvature = functools.partial(torch_curvature, create_graph=create_graph)
        return predict(self.module, graph, gradient, curvature=curvature, request=hessian)

    def model(self) -> Model:
        """The model as it now is, with NumPy arrays."""
        plain: Any = from_torch(self.module)
        return plain

    def optimizer_state(self) -> OptimizerState:
        """Moments and step counts by parameter path; empty before the first step."""
        state: OptimizerState = {name: {} for name in (*_MOMENTS, "step")}
        for path, p in self._trained.items():
            slots = self.optimizer.state.get(p, {})
            if slots:
                state["step"][path] = np.asarray(float(slots["step"]))
                for name in _MOMENTS:
                    state[name][path] = slots[name].cpu().numpy().copy()
        return state

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """The inverse. Raises InputError where names or shapes do not fit."""
        missing = [name for name in (*_MOMENTS, "step") if name not in state]
        own = [state[name] for name in (*_MOMENTS, "step") if name in state]  # other backends may have more
        unknown = sorted({path for slot in own for path in slot} - self._trained.keys())
        if missing or unknown:
            raise InputError(
                f"the optimizer state does not fit this run: missing {missing or 'nothing'}, for parameters that are not "
                f"trained here {unknown[:4] or 'nothing'}. Go on with the same input, or begin anew with --init-model"
            )
        for path, step in state["step"].items():
            p = self._trained[path]
            slots = {
                name: torch.tensor(np.asarray(state[name][path]), device=self.device, dtype=p.dtype)
                for name in _MOMENTS
            }
            for name, value in slots.items():
                if value.shape != p.shape:
                    raise InputError(
                        f"optimizer state {name} of {path}: expected shape {tuple(p.shape)}, got {tuple(value.shape)}"
                    )
            # The fused optimizers count in float32 on the parameter's device.
            self.optimizer.state[p] = {
                "step": torch.tensor(float(step), dtype=torch.float32, device=self.device),
                **slots,
            }

    def _loss(
        self,
        graph: Graph,
        labels: Mapping[str, np.ndarray],
        found: Mapping[str, float],
        lr: float,
        *,
        create_graph: bool,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        inputs = graph_to_torch(graph, self.device)
        targets = {key: torch.as_tensor(value, device=self.device) for key, value in labels.items()}
        with torch.set_grad_enabled(create_graph):
            prediction = self.outputs(inputs, create_graph=create_graph, hessian=self._hessian(labels, found))
            loss, metrics = self.loss(prediction, targets, found, inputs, lr)
        return loss, {key: value.detach() for key, value in metrics.items()}

    def _hessian(self, labels: Mapping[str, np.ndarray], found: Mapping[str, float]) -> HessianRequest | None:
        """Whether the batch needs a Hessian."""
        if "hessian" not in self.loss.outputs or not found.get("hessian", 0.0):
            return None
        return HessianRequest.all_columns(labels["hessian"])

    def _check_and_clip(self, loss: torch.Tensor) -> None:
        """Scale gradients down to the largest allowed norm; refuse to go on with NaN or infinite ones.

        The norm is c ||g / c|| with c = max |g|, in float64, so that it neither overflows nor vanishes.
        """
        gradients = {name: p.grad for name, p in self._trained.items() if p.grad is not None and p.grad.numel()}
        if not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients.values()]).double()
        largest = flat.abs().max()
        relative = torch.linalg.vector_norm(flat / torch.where(largest > 0, largest, 1.0))
        # One transfer from the device for both numbers.
        top, length = torch.stack([largest, relative]).tolist()
        if not math.isfinite(top):
            bad = [name for name, g in gradients.items() if not bool(torch.isfinite(g).all())]
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise NonFiniteError(
                f"the gradient is not finite (loss {float(loss.detach()):g}) in {', '.join(bad[:3])}{more}"
            )
        if self.max_norm is None or top * length + 1e-6 <= self.max_norm:
            return
        # In two steps: the factor itself may be too small for the type of the gradient.
        rest = self.max_norm / (length + 1e-6 / top)
        for g in gradients.values():
            g.div_(top).mul_(rest)


def _numbers(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    """Metrics as Python numbers, in one transfer from the device."""
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


def _make_optimizer(config: Any, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer of an `optimizer` section (Kingma and Ba 2015; Loshchilov and Hutter 2019)."""
    kinds = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    betas = (config.adam_beta1, config.adam_beta2)
    return kinds[config.key](parameters, lr=1.0, betas=betas, eps=1e-8, weight_decay=config.weight_decay, fused=True)
