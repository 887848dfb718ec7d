"""Steps with messages of another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import cells
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from dpmodel.backends.pt.distributed import replicas, sharded


def cell(world: Any, size: int | None, **options: Any) -> Any:
    """What `cells.cell` finds with at most `size` numbers in a message (None: as it is), and how many messages there were."""
    count, cut = 0, replicas.buckets

    def counted(sizes: Mapping[str, Any]) -> Iterator[list[str]]:
        nonlocal count
        for names in cut(sizes):
            count += 1
            yield names

    with (
        mock.patch.object(replicas, "BUCKET", size or replicas.BUCKET),
        mock.patch.object(replicas, "buckets", counted),
        mock.patch.object(sharded, "buckets", counted),
    ):
        found = cells.cell(world, **options)
    return {**found, "messages": count}


def hidden(world: Any, stage: int) -> tuple[int, list[str]]:
    """Operators of a step, how many; and the collectives that those on sharded tensors start of themselves."""
    stepper = cells.stepper_of(world, zero_stage=stage, gradient_max_norm=0.5, ema_decay=0.5)
    batches = [cells.batch_of(False, 0, frames) for frames in cells.share(world)]
    stepper.step(batches, cells.LR)()
    with _Names() as mode:
        stepper.step(batches, cells.LR)()
    return len(mode.found), [name for name in mode.found if name.startswith("_c10d_functional")]


class _Names(TorchDispatchMode):
    """Notes the operators on plain tensors, those inside of operators on sharded ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        self.found.append(str(func))
        return func(*args, **(kwargs or {}))
