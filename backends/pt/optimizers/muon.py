"""What AdaMuon and HybridMuon share: routes by parameter, momentum, whole matrices from shards.

Weights are stored (in, out): m, the number of rows, is the width of the input, and scales by shape, sqrt(max(1, m / n)),
are those of this orientation.

A sharded matrix is gathered, orthogonalised whole on every rank, and cut again, so that the numbers are those of one
process. `torch.optim.Muon` does not serve: it takes no sharded parameters (in torch 2.13 its step raises on DTensors),
none but matrices, iterates in bfloat16 whatever the type of the parameters, and has neither the schedules of
coefficients, nor the damping, nor the second moments that the options here ask for. With five iterations of Jordan's
coefficients and no damping, HybridMuon is that optimizer, bit for bit; a test holds it to that.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .shards import AdamRoute, local, sharded, whole

__all__ = ["Muon", "scale_of"]


def scale_of(rows: int, columns: int, adjust: float, coefficient: float) -> float:
    """Times the learning rate, for the step of a (rows, columns) matrix.

    adjust > 0: sqrt(max(1, rows / columns)) (Jordan et al.). Else coefficient sqrt(max(rows, columns)) (Moonlight): the
    entries of an orthogonal matrix have a root mean square of 1 / sqrt(max(rows, columns)), so the steps of all matrices
    have that of `coefficient`, and AdamW's learning rates fit.
    """
    return math.sqrt(max(1.0, rows / columns)) if adjust > 0 else coefficient * math.sqrt(max(rows, columns))


class Muon(torch.optim.Optimizer):
    """Base: one group of parameters, each with a route: "muon", "adamw" or "adam".

    The routes are decided here, by names and shapes, and are no part of the groups.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, torch.nn.Parameter]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        lr_adjust: float,
        lr_adjust_coeff: float,
        adam: AdamRoute,
    ) -> None:
        super().__init__([p for _, p in named], {"lr": lr})
        self.routes = tuple(self.route(name, tuple(p.shape)) for name, p in named)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.lr_adjust = lr_adjust
        self.lr_adjust_coeff = lr_adjust_coeff
        self.adam = adam

    @abstractmethod
    def route(self, name: str, shape: tuple[int, ...]) -> str:
        """How the parameter with this path and shape is treated."""

    @abstractmethod
    def muon_step(self, parameters: Sequence[torch.nn.Parameter], lr: float) -> None:
        """Update matrices, each with a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        lr = float(group["lr"])
        routed: dict[str, list[Any]] = {"adam": [], "adamw": [], "muon": []}
        for route, p in zip(self.routes, group["params"], strict=True):
            if p.grad is not None:
                routed[route].append(p)
        slow = lr / self.lr_adjust if self.lr_adjust > 0 else lr
        for route, decay in (("adam", 0.0), ("adamw", self.weight_decay)):
            self.adam.step(routed[route], [self.state[p] for p in routed[route]], slow, decay)
        self.muon_step([p for p in routed["muon"] if p.numel()], lr)
        return loss

    def accumulate(self, p: Any) -> Any:
        """The momentum M = b M + (1 - b) g, after this gradient; sharded as the parameter is."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        local(state["momentum_buffer"]).lerp_(local(p.grad), 1 - self.momentum)
        return state["momentum_buffer"]

    def nesterov(self, p: Any, buffer: Any) -> Tensor:
        """The whole U = (1 - b) g + b M."""
        blend = local(p.grad).lerp(local(buffer), self.momentum)
        if not sharded(p):
            return blend
        from torch.distributed.tensor import DTensor  # noqa: PLC0415  # only where FSDP has imported it

        return whole(
            DTensor.from_local(
                blend, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
            )
        )  # fmt: skip

    def move(self, p: Any, step: Tensor, lr: float, scale: float) -> None:
        """Decay the parameter and take the step, of which `step` is this rank's part."""
        target = local(p)
        if self.weight_decay:
            target.mul_(1 - lr * self.weight_decay)
        target.add_(step, alpha=-lr * scale)
