"""Where the parameters of a model in training lie, and what follows from that: in one process, in its module.

The stores of several processes (`distributed`) are subclasses. All that a stepper and its optimizer do is written once,
in terms of this interface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from .optimizers import shards

__all__ = ["CHUNK", "Report", "Store", "largest", "lengths", "local", "model_state"]

CHUNK = 1 << 22
"""Numbers of a gradient that are copied, in float64, at once."""


class Report(NamedTuple):
    """What is known of the gradient of a step, over all ranks, before clipping."""

    largest: float
    """The largest absolute value; infinite or NaN where a number of the gradient is."""
    relative: float
    """The 2-norm divided by `largest`."""


def model_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, then buffers, by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def local(tensor: Any) -> torch.Tensor:
    """What this rank holds of a tensor: itself, or its part of a sharded one."""
    with torch.no_grad():
        return shards.local(tensor)


def largest(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The largest absolute value, float64, (); infinite or NaN where a number is. Copies nothing."""
    filled = [g for g in gradients if g.numel()]
    if not filled:
        return gradients[0].new_zeros((), dtype=torch.float64)
    return torch.stack([top.double() for top in torch._foreach_norm(filled, math.inf)]).max()  # noqa: SLF001 - as torch.optim does


def lengths(gradients: Sequence[torch.Tensor], unit: torch.Tensor) -> torch.Tensor:
    """2-norms of all numbers in units of `unit` (as they are where it is 0), by chunk; float64, (chunks,)."""
    divisor = torch.where(unit > 0, unit, 1.0)
    found: list[torch.Tensor] = []
    run: list[torch.Tensor] = []
    filled = 0

    def close() -> None:
        found.append(torch.linalg.vector_norm(torch.cat(run).double().div_(divisor)))

    # Many small ones in one chunk, for devices that are slow to start; a large one in several.
    for gradient in gradients:
        for piece in gradient.reshape(-1).split(CHUNK):
            if run and filled + piece.numel() > CHUNK:
                close()
                run, filled = [], 0
            run.append(piece)
            filled += piece.numel()
    close()
    return torch.stack(found)


class Store:
    """Parameters whole, in the module, which this process alone trains.

    Args:
        module: the model on its device, with `requires_grad` as it is to be trained.
        parts: by task, the modules inside it that are called.
    """

    stage = 0
    together = True
    """Whether all batches of a step are computed inside one `whole`."""

    def __init__(self, module: torch.nn.Module, parts: Mapping[str, torch.nn.Module]) -> None:
        self.module, self.parts = module, dict(parts)
        self.device = next((t.device for t in model_state(module).values()), torch.device("cpu"))

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All parameters by (first) path, as this rank holds them between steps."""
        return dict(self.module.named_parameters())

    def owned(self, names: Sequence[str]) -> Sequence[str]:
        """Those of the trained parameters that this rank updates."""
        return names

    # --- computing --------------------------------------------------------------------------------------

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the module of every rank holds whole parameters. Collective on entering."""
        yield

    def leaves(self) -> list[torch.Tensor]:
        """What gradients are taken of, inside `whole`."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def function(self, task: str) -> Callable[..., dict[str, torch.Tensor]]:
        """The model of a task, to be called with a graph inside `whole`."""
        return self.parts[task]

    def called(self, task: str) -> torch.nn.Module:
        """What computes a task's model when the tensors of `state` are put in."""
        return self.parts[task]

    def state(self, task: str) -> dict[str, torch.Tensor]:
        """The tensors of a task's model by path inside it, whole inside `whole`: `model_state` of its part."""
        return model_state(self.parts[task])

    # --- gradients --------------------------------------------------------------------------------------

    def absorb(self) -> None:
        """The batches of one `whole`, which is not left yet, were differentiated. Collective."""

    def reduce(self, trained: Mapping[str, torch.nn.Parameter], count: int) -> None:
        """Make the sums of gradients over `count` batches means, over those of all ranks. Collective."""
        if count > 1:
            for p in trained.values():
                if p.grad is not None:
                    p.grad.div_(count)

    def report(self, gradients: Sequence[torch.Tensor]) -> Report:
        """Of gradients as this rank holds them. The norm is c ||g / c|| with c = max |g|, in float64, so that it neither overflows nor vanishes."""
        top = largest(gradients)
        relative = lengths(gradients, top).square().sum().sqrt()
        # One transfer from the device for both numbers.
        return Report(*torch.stack([top, relative]).tolist())

    def norms(self, gradients: Sequence[torch.Tensor]) -> list[float]:
        """The 2-norm of each, over all ranks. Collective."""
        own = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients])
        return cast(list[float], self._over_ranks(own).tolist())

    def _over_ranks(self, own: torch.Tensor) -> torch.Tensor:
        """Those of whole tensors by those of what this rank holds of them."""
        return own

    def bad(self, gradients: Mapping[str, torch.Tensor]) -> list[str]:
        """The names of gradients that hold numbers which are not finite, on any rank."""
        return [name for name, g in gradients.items() if not bool(torch.isfinite(g).all())]

    def wait(self, what: str) -> None:
        """Until all ranks are here, which may take them long. Collective."""

    def updated(self, names: Sequence[str]) -> None:
        """The optimizer has updated those of these parameters that this rank owns."""

    # --- states -----------------------------------------------------------------------------------------

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Tensors that are laid out like parameters, whole, as arrays of their own. Collective."""
        return {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}

    def part(self, name: str, array: np.ndarray) -> torch.Tensor:
        """What this rank holds of an array of the shape of a parameter, laid out like it."""
        return torch.tensor(np.asarray(array), device=self.device)

    def slots(
        self, found: Mapping[str, Mapping[str, torch.Tensor]], order: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Slots of the optimizer by name and path, whole on every rank; counts as float64. Collective.

        order: the paths of all trained parameters, the same on all ranks.
        """
        whole = {slot: self.gather(tensors) for slot, tensors in found.items()}
        return {
            slot: {path: np.asarray(float(v)) if slot == "step" else v for path, v in values.items()}
            for slot, values in whole.items()
        }

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks. Collective."""
        return tensor
