"""Stages 0 and 1: every rank holds the whole model; gradients are summed after the backward pass.

Which parameters take part is agreed on first, by one flag for each: a batch may lack a type of atom, and with it the
gradient of that type's net, on one rank only. A gradient that a rank lacks counts as zero there; one that all lack stays
away, so that the optimizer leaves its parameter alone. No graph is searched for unused parameters.

Stage 1 divides parameters, whole, among the ranks. Each makes its optimizer for its own and sends them on after the update.
`torch.distributed.optim.ZeroRedundancyOptimizer` does the same, but builds the optimizer from bare tensors (ours choose by
name how to treat a parameter), sends one message per tensor, and collects its state by pickling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from dpmodel.training.world import RankError

from ..store import Store, model_state
from .world import TorchWorld, lost

__all__ = ["BUCKET", "Replicas", "Shares", "broadcast_from_chief", "buckets"]

BUCKET = 1 << 22
"""Numbers that travel in one message, or one tensor if that is larger. A step holds a message beside all gradients."""


def buckets(sizes: Mapping[str, tuple[int, torch.dtype]]) -> Iterator[list[str]]:
    """Names in order, cut into runs of one dtype and of at most `BUCKET` numbers (or one tensor). sizes: (numbers, dtype)."""
    for wanted in dict.fromkeys(dtype for _, dtype in sizes.values()):
        run: list[str] = []
        filled = 0
        for name, (size, dtype) in sizes.items():
            if dtype is not wanted:
                continue
            if run and filled + size > BUCKET:
                yield run
                run, filled = [], 0
            run.append(name)
            filled += size
        if run:
            yield run


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unpack(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Copy parts of a flat tensor into those that it was made of."""
    first = 0
    for tensor in tensors:
        tensor.copy_(flat[first : first + tensor.numel()].view(tensor.shape))
        first += tensor.numel()


def broadcast(tensors: Mapping[str, torch.Tensor], source: int) -> None:
    """Give all ranks the values of one. Tensors are on the device, equal in name, shape and dtype everywhere."""
    with torch.no_grad():
        for names in buckets({name: (value.numel(), value.dtype) for name, value in tensors.items()}):
            parts = [tensors[name] for name in names]
            flat = _flat(parts)
            with lost("a broadcast of parameters"):
                dist.broadcast(flat, source)
            _unpack(flat, parts)


def broadcast_from_chief(module: torch.nn.Module, world: TorchWorld) -> None:
    """Give all ranks the parameters and buffers of rank 0. Raises RankError where their models differ in shape."""
    state = {name: value.detach() for name, value in model_state(module).items()}
    own = {name: [list(value.shape), str(value.dtype)] for name, value in state.items()}
    expected = world.plain(own)
    with world.agreement("the same model on all ranks"):
        wrong = sorted(name for name in own.keys() | expected.keys() if own.get(name) != expected.get(name))
        if wrong or list(own) != list(expected):
            raise RankError(f"this model is not that of rank 0; differences in {wrong[:4] or 'the order of its parts'}")
    broadcast(state, 0)


class Replicas(Store):
    """Stage 0. `module` holds the same numbers on all ranks."""

    def __init__(self, module: torch.nn.Module, parts: Mapping[str, torch.nn.Module], world: TorchWorld) -> None:
        super().__init__(module, parts)
        self.world = world

    def wait(self, what: str) -> None:
        self.world.wait(what)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        found = tensor.detach().clone()
        with lost("a sum over ranks"):
            dist.all_reduce(found)
        return found

    def reduce(self, trained: Mapping[str, torch.nn.Parameter], count: int) -> None:
        anywhere = self.world.any([p.grad is not None for p in trained.values()])
        taking_part = {name: p for (name, p), flag in zip(trained.items(), anywhere, strict=True) if flag}
        for p in taking_part.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for names in buckets({name: (p.numel(), p.dtype) for name, p in taking_part.items()}):
            gradients = [p.grad for name in names if (p := taking_part[name]).grad is not None]
            flat = _flat(gradients)
            with lost("the sum of gradients"):
                dist.all_reduce(flat)
            _unpack(flat.div_(count * self.world.size), gradients)


class Shares(Replicas):
    """Stage 1: as stage 0, with an optimizer for a share of the parameters."""

    stage = 1

    def __init__(self, module: torch.nn.Module, parts: Mapping[str, torch.nn.Module], world: TorchWorld) -> None:
        super().__init__(module, parts, world)
        self._owner: dict[str, int] = {}
        load = [0] * world.size
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        # The largest first, each to whom has least: the same on all ranks.
        for name, p in sorted(trained.items(), key=lambda item: -item[1].numel()):
            self._owner[name] = owner = load.index(min(load))
            load[owner] += p.numel()

    def owned(self, names: Sequence[str]) -> Sequence[str]:
        return [name for name in names if self._owner[name] == self.world.rank]

    def updated(self, names: Sequence[str]) -> None:
        parameters = self.parameters
        for rank in range(self.world.size):
            broadcast({name: parameters[name].detach() for name in names if self._owner[name] == rank}, rank)

    def slots(
        self, found: Mapping[str, Mapping[str, torch.Tensor]], order: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        mine = {
            slot: {
                name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in tensors.items()
            }
            for slot, tensors in found.items()
        }
        whole: dict[str, dict[str, torch.Tensor]] = {slot: {} for slot in found}
        for rank, kinds in enumerate(self.world.each(mine)):
            for slot, tensors in found.items():
                own = {
                    name: tensors[name].detach().to(self.device, copy=True)
                    if rank == self.world.rank
                    else torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
                    for name, (dtype, shape) in kinds[slot].items()
                }
                broadcast(own, rank)
                whole[slot] |= own
        ordered = {slot: {n: tensors[n] for n in order if n in tensors} for slot, tensors in whole.items()}
        return super().slots(ordered, order)
