"""Stages 2 and 3: parameters, their gradients and the optimizer's state are sharded by FSDP2.

FSDP2 (`fully_shard`) groups and stores the parameters: layers of descriptors and fitting nets first, what remains at the
root. A step gathers all groups, computes on a skeleton of the model without data, into which the whole tensors are put,
and differentiates with respect to those. The sums over ranks are formed by reduce-scatters of our own.

FSDP2's own hooks never fire. Forces are differentiated inside the forward pass: hooks after that inner pass would free
parameters that the outer one needs, and whether a reduction waits for all contributions would depend on the order in
which threads of the autograd engine take nodes. Besides, FSDP2 expects that a parameter has a gradient on all ranks or on
none. So parameters, gradients and state are sharded between steps, while inside a step every rank has all parameters: the
second derivatives need them until the end. Stage 2 reduces once per step; stage 3 gives parameters and gradients back after
every batch of an accumulated step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.func import functional_call

from dpmodel.fittings.base import Fitting

from ..optimizers.shards import whole
from ..store import Report, Store, largest, lengths, local
from .replicas import buckets
from .world import TorchWorld, lost

__all__ = ["Sharded", "groups_of"]


def groups_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that are sharded as groups, inner ones first, the root last.

    Items of lists of layers, fitting nets, and parts that several parents share. A group's parameters (without those of
    groups inside) have one dtype: where they would not, its children become groups.
    """
    parents: dict[int, int] = {}
    for part in module.modules():
        for child in part.children():
            parents[id(child)] = parents.get(id(child), 0) + 1
    layers = {
        id(item)
        for part in module.modules()
        for name, items in part.named_children()
        if name == "layers" and isinstance(items, torch.nn.ModuleList) and not _is_net(items)
        for item in items
    }
    chosen: list[torch.nn.Module] = []
    seen: set[int] = set()
    taken: set[int] = set()

    def left(part: torch.nn.Module) -> set[torch.dtype]:
        return {p.dtype for p in part.parameters() if id(p) not in taken}

    def take(part: torch.nn.Module) -> None:
        chosen.append(part)
        taken.update(id(p) for p in part.parameters())

    def split(part: torch.nn.Module) -> None:
        for child in part.children():
            kinds = left(child)
            if len(kinds) == 1 and not isinstance(child, torch.nn.ModuleList):
                take(child)
            elif kinds:
                split(child)

    def visit(part: torch.nn.Module) -> None:
        if id(part) in seen:
            return
        seen.add(id(part))
        for child in part.children():
            visit(child)
        if isinstance(part, Fitting) or id(part) in layers or parents.get(id(part), 0) > 1 or part is module:
            if len(left(part)) > 1:
                split(part)
            if left(part) or part is module:
                take(part)

    visit(module)
    return chosen


def _is_net(items: torch.nn.ModuleList) -> bool:
    """Whether these are the layers of a multi-layer perceptron, each a matrix: too small for groups."""
    return not any(True for item in items for _ in item.children())


class Sharded(Store):
    """Stages 2 and 3. `module` holds the same numbers on all ranks, and is sharded here."""

    def __init__(
        self,
        module: torch.nn.Module,
        parts: Mapping[str, torch.nn.Module],
        world: TorchWorld,
        *,
        stage: int,
        skeleton: tuple[torch.nn.Module, Mapping[str, torch.nn.Module]],
    ) -> None:
        super().__init__(module, parts)
        self.world, self.stage, self.together = world, stage, stage < 3
        # By task, the skeleton's part and where its tensors are in the whole model.
        first = {id(tensor): name for name, tensor in _named(skeleton[0])}
        self._skeletons = {
            task: (part, {n: first[id(t)] for n, t in _named(part)}) for task, part in skeleton[1].items()
        }
        # Here, as they take a second to import.
        from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

        self._mesh = init_device_mesh(world.device.type, (world.size,))
        self._groups: list[Any] = []
        for group in groups_of(module):
            self._groups.append(fully_shard(cast(Any, group), mesh=self._mesh, reshard_after_forward=stage == 3))
        self._parameters = dict(module.named_parameters())
        self._leaves: dict[str, torch.nn.Parameter] = {}
        self._sums: dict[str, torch.Tensor] = {}

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self._parameters

    @contextmanager
    def whole(self) -> Iterator[None]:
        # Entered twice at once, leaving the inner one would shard what the outer one needs.
        assert not self._leaves
        try:
            for group in self._groups:
                with lost("gathering parameters"):
                    group.unshard()
            self._leaves = dict(self.module.named_parameters())
            yield
        finally:
            for p in self._leaves.values():
                p.grad = None
            # Whole parameters that stay would hide later changes of the shards.
            self._leaves = {}
            for group in self._groups:
                group.reshard()

    def leaves(self) -> list[torch.Tensor]:
        return [p for p in self._leaves.values() if p.requires_grad]

    def state(self, task: str) -> dict[str, torch.Tensor]:
        _, places = self._skeletons[task]
        tensors = {**self._leaves, **dict(self.module.named_buffers())}
        return {name: tensors[place] for name, place in places.items()}

    def called(self, task: str) -> torch.nn.Module:
        return self._skeletons[task][0]

    def function(self, task: str) -> Callable[..., dict[str, torch.Tensor]]:
        skeleton, state = self._skeletons[task][0], self.state(task)
        return lambda graph: functional_call(skeleton, state, (graph,))

    def wait(self, what: str) -> None:
        self.world.wait(what)

    # --- gradients --------------------------------------------------------------------------------------

    def absorb(self) -> None:
        leaves = {name: p for name, p in self._leaves.items() if p.requires_grad}
        anywhere = self.world.any([p.grad is not None for p in leaves.values()])
        taking_part = {name: p for (name, p), flag in zip(leaves.items(), anywhere, strict=True) if flag}
        for names in buckets({name: (p.numel(), p.dtype) for name, p in taking_part.items()}):
            # (ranks, numbers): a row is what one rank holds of each gradient, padded to what the first holds.
            rows = torch.cat([self._rows(taking_part[name]) for name in names], dim=1)
            for name in names:
                taking_part[name].grad = None
            own = rows.new_empty(rows.shape[1])
            with lost("the sum of gradients"):
                _reduce_scatter(own, rows.reshape(-1))
            first = 0
            for name in names:
                target = local(self._parameters[name])
                part = own[first : first + target.numel()].view(target.shape)
                self._sums[name] = self._sums[name].add_(part) if name in self._sums else part.clone()
                first += self._width(self._parameters[name])

    def _width(self, p: torch.Tensor) -> int:
        """How many numbers the first rank holds."""
        # Of the shape alone: a slice of a DTensor would gather it.
        return -(-p.shape[0] // self.world.size) * math.prod(p.shape[1:])

    def _rows(self, p: torch.nn.Parameter) -> torch.Tensor:
        padded = p.new_zeros(self.world.size * self._width(p))
        if p.grad is not None:
            padded[: p.numel()] = p.grad.reshape(-1)
        return padded.view(self.world.size, -1)

    def reduce(self, trained: Mapping[str, torch.nn.Parameter], count: int) -> None:
        for name, part in self._sums.items():
            trained[name].grad = self._sharded(name, part.div_(count * self.world.size))
        self._sums = {}

    def report(self, gradients: Sequence[torch.Tensor]) -> Report:
        own = largest(gradients)
        finite = torch.isfinite(own)
        # Not a number is not reliably the largest.
        found = torch.stack([torch.where(finite, own, 0.0), (~finite).double()])
        with lost("the norm of the gradient"):
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        square = lengths(gradients, found[0]).square().sum()
        with lost("the norm of the gradient"):
            dist.all_reduce(square)
        top, bad, total = torch.stack([*found, square]).tolist()
        return Report(float("inf") if bad else top, total**0.5)

    def _over_ranks(self, own: torch.Tensor) -> torch.Tensor:
        square = own.square()
        with lost("the norms of gradients"):
            dist.all_reduce(square)
        return square.sqrt()

    def bad(self, gradients: Mapping[str, torch.Tensor]) -> list[str]:
        flags = self.world.any([not bool(torch.isfinite(g).all()) for g in gradients.values()])
        return [name for name, flag in zip(gradients, flags, strict=True) if flag]

    # --- states -----------------------------------------------------------------------------------------

    def gather(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        found = {}
        for name, value in tensors.items():
            with lost("gathering a state"):
                full = whole(value)
            found[name] = full.detach().cpu().numpy().copy()
        return found

    def part(self, name: str, array: np.ndarray) -> torch.Tensor:
        rows = -(-self._parameters[name].shape[0] // self.world.size)
        first = min(rows * self.world.rank, array.shape[0])
        own = torch.tensor(np.asarray(array)[first : first + rows], device=self.device)
        return self._sharded(name, own)

    def _sharded(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """A tensor that is laid out like a parameter, of this rank's part."""
        from torch.distributed.tensor import DTensor, Shard  # noqa: PLC0415 - see above

        p: Any = self._parameters[name]
        return DTensor.from_local(own, self._mesh, [Shard(0)], run_check=False, shape=p.shape, stride=p.stride())


# The name changed in torch 2.13.
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def _named(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
