"""Parameters that may be sharded: what an optimizer asks of a tensor, whole or `DTensor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["AdamRoute", "local", "part", "sharded", "whole"]


def sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    # FSDP has imported the module where there are any; importing it here would slow every start.
    return hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Tensor:
    """What this rank holds of it; changing it in place changes the tensor."""
    return tensor.to_local() if sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of it, on every rank (collective where it is sharded)."""
    return tensor.full_tensor() if sharded(tensor) else tensor


def part(tensor: Tensor, like: Any) -> Tensor:
    """This rank's part of a whole tensor that is sharded as `like` is. No communication."""
    if not sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415  # as above

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


class AdamRoute:
    """Adam with moments in float32 whatever the type of the parameters; works on what this rank holds of them.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), after
    p *= 1 - lr decay. State: exp_avg, exp_avg_sq (float32, the parameter's shape), step (scalar on the CPU).
    """

    def __init__(self, *, betas: tuple[float, float], eps: float) -> None:
        self.betas = betas
        self.eps = eps

    def step(self, parameters: Sequence[Tensor], states: Sequence[dict[str, Any]], lr: float, decay: float) -> None:
        """One update of all; every parameter has a gradient. states: of each, filled in the first step."""
        for p, state in zip(parameters, states, strict=True):
            if "step" not in state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
                state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
            state["step"] = state["step"].cpu() + 1  # where it was restored on another device: read it from there once
        pairs = [(p, state) for p, state in zip(parameters, states, strict=True) if local(p).numel()]
        if not pairs:
            return
        b1, b2 = self.betas
        counts = [float(state["step"]) for _, state in pairs]
        gradients = [local(p.grad).float() for p, _ in pairs]
        means = [local(state["exp_avg"]) for _, state in pairs]
        squares = [local(state["exp_avg_sq"]) for _, state in pairs]
        # Lists of plain tensors, so that one kernel serves many; DTensors have no such operations.
        torch._foreach_lerp_(means, gradients, 1 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - b2)
        below = torch._foreach_div(squares, [1 - b2**t for t in counts])  # noqa: SLF001  # as torch.optim does
        torch._foreach_sqrt_(below)
        torch._foreach_add_(below, self.eps)
        steps = torch._foreach_mul(means, [-lr / (1 - b1**t) for t in counts])  # noqa: SLF001  # as above
        torch._foreach_div_(steps, below)
        targets = [local(p) for p, _ in pairs]
        if decay:
            torch._foreach_mul_(targets, 1 - lr * decay)
        torch._foreach_add_(targets, steps)
