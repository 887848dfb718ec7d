"""The Python side of the exchange operators, needed for tracing only: shapes and derivatives.

Each operator is linear and the adjoint of the other, so each is the other's derivative, to any order.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

__all__ = ["register_python_side"]


def register_python_side() -> None:
    """Register fakes and derivatives of the loaded operators. Once per process."""
    torch.library.register_fake("dpmodel::ghost_forward", _rows)
    torch.library.register_fake("dpmodel::ghost_reverse", _rows)
    torch.library.register_fake("dpmodel::ghost_after", _handle)
    torch.library.register_autograd("dpmodel::ghost_forward", _reverse, setup_context=_remember)
    torch.library.register_autograd("dpmodel::ghost_reverse", _forward, setup_context=_remember)
    torch.library.register_vmap("dpmodel::ghost_forward", _no_batches)
    torch.library.register_vmap("dpmodel::ghost_reverse", _no_batches)


def _rows(x: torch.Tensor, handle: torch.Tensor, rows: Any) -> torch.Tensor:  # noqa: ARG001 - the operators' signature
    """Shape of both results: as many rows as asked for, contiguous."""
    return x.new_empty((rows, *x.shape[1:]))


def _handle(handle: torch.Tensor, before: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - the operator's signature
    return torch.empty_like(handle)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG001 - as torch calls it
    x, handle, _ = inputs
    ctx.save_for_backward(handle)
    ctx.rows = x.shape[0]


def _reverse(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return torch.ops.dpmodel.ghost_reverse(grad.contiguous(), *ctx.saved_tensors, ctx.rows), None, None


def _forward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return torch.ops.dpmodel.ghost_forward(grad.contiguous(), *ctx.saved_tensors, ctx.rows), None, None


def _no_batches(*_: Any) -> NoReturn:
    # Without this rule torch would call the operator once per entry: as often on no two processes.
    raise RuntimeError(
        "dpmodel's ghost exchange cannot be batched by vmap: all processes must make equally many exchanges"
    )
