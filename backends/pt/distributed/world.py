"""The processes that `torchrun` started, over `torch.distributed`.

Two process groups: the default one for numbers of the model (NCCL on CUDA, gloo on CPUs), and one of gloo for control,
whose patience lasts for what one rank does alone meanwhile (statistics, compilation, writing). Nothing is pickled: plain
data travels as JSON, arrays as their bytes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

from dpmodel.errors import BackendError, DPError
from dpmodel.training.world import Alone, RankError, World

__all__ = ["STEP", "WAIT", "TorchWorld", "abort", "join", "lost"]

logger = logging.getLogger(__name__)

STEP = timedelta(minutes=10)
"""How long a rank waits for numbers of the others: they compute the same step."""
WAIT = timedelta(hours=2)
"""How long it waits for what another rank does alone, and for the compilation of a first step."""


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What allocators say; that of the CPU raises no class of its own."""


@contextmanager
def lost(what: str) -> Iterator[None]:
    """Around one collective operation: its failure becomes a RankError. Nothing else may be inside.

    Memory that this process lacks for it is its own failure, which it says itself.
    """
    try:
        yield
    except (RuntimeError, dist.DistError) as problem:
        if isinstance(problem, torch.OutOfMemoryError) or any(w in str(problem).lower() for w in _OUT_OF_MEMORY):
            raise
        reason = str(problem).strip().partition("\n")[0]
        raise RankError(
            f"{what}: another process of this run has ended or does not answer; its own message says why (torch: {reason})"
        ) from problem


class TorchWorld:
    """See `dpmodel.training.world.World`; one of the ranks of `torch.distributed`'s default group."""

    def __init__(self, device: torch.device, control: dist.ProcessGroup | None = None) -> None:
        self.device = device
        """Where this rank computes."""
        self._control = control if control is not None else dist.new_group(backend="gloo", timeout=WAIT)
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()

    @property
    def chief(self) -> bool:
        return self.rank == 0

    # --- control: see `World` ---------------------------------------------------------------------------

    def integers(self, values: Sequence[int]) -> list[int]:
        found = torch.tensor([int(value) for value in values], dtype=torch.int64)
        self._broadcast(found)
        return [int(value) for value in found.tolist()]

    def plain(self, value: Any) -> Any:
        problem, content = None, b""
        if self.chief:
            try:
                content = json.dumps(value).encode()
            except (TypeError, ValueError) as found:
                problem = found
        size = self.integers([-1 if problem is not None else len(content)])[0]
        if size < 0:
            raise RankError(f"rank 0 has no plain data to share: {problem or 'see its message'}") from problem
        return json.loads(self._bytes(content, size))

    def arrays(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = {name: np.asarray(value) for name, value in values.items()}
        kinds = {name: [str(value.dtype), list(value.shape)] for name, value in own.items()}
        expected = self.plain(kinds)
        wrong = sorted(name for name in kinds.keys() | expected.keys() if kinds.get(name) != expected.get(name))
        with self.agreement("arrays that all ranks have"):
            if wrong:
                name = wrong[0]
                raise RankError(
                    f"rank {self.rank} has {name} as {kinds.get(name)}, rank 0 as {expected.get(name)} "
                    f"({len(wrong)} arrays differ): all ranks must read the same input"
                )
        found = {}
        for name in expected:  # the order of rank 0
            value = np.ascontiguousarray(own[name]).reshape(own[name].shape)
            content = self._bytes(value.tobytes() if self.chief else b"", value.nbytes)
            found[name] = np.frombuffer(content, value.dtype).reshape(value.shape).copy()
        return {name: found[name] for name in own}

    def total(self, values: np.ndarray) -> np.ndarray:
        found = torch.tensor(np.asarray(values, np.float64))
        with lost("a sum over ranks"):
            dist.all_reduce(found, group=self._control)
        result: np.ndarray = found.numpy()
        return result

    def same(self, **values: int) -> None:
        rows = self._rows(torch.tensor([int(value) for value in values.values()], dtype=torch.int64))
        for k, name in enumerate(values):
            found = [int(row[k]) for row in rows]
            if len(set(found)) > 1:
                kind = RankError if self.chief else RankError.heard
                raise kind(
                    f"{name} is not the same on all ranks: {', '.join(f'{v} on rank {r}' for r, v in enumerate(found))}"
                )

    @contextmanager
    def agreement(self, what: str) -> Iterator[None]:
        problem: Exception | None = None
        try:
            yield
        except Exception as found:  # noqa: BLE001 - every failure of this rank is told to the others
            problem = found
        texts = self.each(None if problem is None else _message(problem))
        first = next((rank for rank, text in enumerate(texts) if text is not None), None)
        if problem is not None:
            if first != self.rank and texts[self.rank] == texts[first or 0]:
                problem.told = True  # type: ignore[attr-defined]  # all say the same: once is enough
            raise problem
        if first is not None:
            raise RankError.heard(f"{what}: rank {first}: {texts[first]}")

    # --- for steppers -----------------------------------------------------------------------------------

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """By position, whether the flag is set on any rank. Collective; on the host."""
        found = torch.tensor([int(flag) for flag in flags], dtype=torch.uint8)
        if len(flags):
            with lost("an agreement on gradients"):
                dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._control)
        return [bool(flag) for flag in found.tolist()]

    def each(self, value: Any) -> list[Any]:
        """The plain data (JSON) of every rank. Collective."""
        content = json.dumps(value).encode()
        sizes = [int(row[0]) for row in self._rows(torch.tensor([len(content)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return [json.loads(bytes(row[:size].tolist())) for row, size in zip(self._rows(padded), sizes, strict=True)]

    def wait(self, what: str) -> None:
        """Until all ranks are here, which may take them long."""
        with lost(what):
            dist.all_reduce(torch.zeros(1), group=self._control)

    def _broadcast(self, values: torch.Tensor) -> None:
        with lost("a broadcast by rank 0"):
            dist.broadcast(values, 0, group=self._control)

    def _bytes(self, content: bytes, size: int) -> bytes:
        """Those of rank 0, of that size."""
        if size == 0:
            return b""
        values = torch.frombuffer(bytearray(content if self.chief else bytes(size)), dtype=torch.uint8)
        self._broadcast(values)
        return bytes(values.numpy().tobytes())

    def _rows(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Those of every rank, which has equally many."""
        rows = [torch.empty_like(values) for _ in range(self.size)]
        if values.numel():
            with lost("an exchange among all ranks"):
                dist.all_gather(rows, values, group=self._control)
        return rows


def _message(problem: BaseException) -> str:
    return str(problem) if isinstance(problem, DPError) else f"{type(problem).__name__}: {problem}"


@contextmanager
def join(device: str | None, pick: Callable[[str | None], torch.device]) -> Iterator[World]:
    """The processes that `torchrun` started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), until left.

    `Alone` where there is one. Of CUDA devices each rank takes that of its LOCAL_RANK. A default process group that
    exists already is used and left alone. pick: the device of a name.

    Raises BackendError where the environment is incomplete or the devices do not suffice, RankError where the others
    do not come.
    """
    rank, size = (_integer(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    existing = dist.is_available() and dist.is_initialized()
    if size == 1 and not existing:
        yield Alone()
        return
    if not dist.is_available():
        raise BackendError(f"WORLD_SIZE is {size}, but this torch was built without torch.distributed")
    chosen = _own_device(pick(device), device, _integer("LOCAL_RANK", rank))
    if not existing:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise BackendError(
                f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start the processes with "
                f"torchrun --nproc-per-node {size}, or unset WORLD_SIZE"
            )
        backend = "cuda:nccl,cpu:gloo" if chosen.type == "cuda" else "gloo"
        with lost("joining the run"):
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=STEP)
    try:
        with lost("joining the run"):
            world = TorchWorld(chosen)
        logger.info("Rank %d of %d, on %s", world.rank, world.size, chosen)
        yield world
        world.wait("leaving the run")
    finally:
        # NCCL may wait for ranks that are gone: then the process ends by `abort`.
        if not existing and (chosen.type != "cuda" or sys.exc_info()[0] is None):
            dist.destroy_process_group()


def _own_device(device: torch.device, name: str | None, local: int) -> torch.device:
    if device.type != "cuda":
        return device
    index: int | None = device.index
    if index is not None:
        raise BackendError(
            f"device {name!r}: on several processes each takes a device of its own; say 'cuda', and choose devices with "
            "CUDA_VISIBLE_DEVICES"
        )
    if local >= (count := torch.cuda.device_count()):
        raise BackendError(
            f"process {local} of this machine has no CUDA device: there are {count}. Start at most so many with "
            "torchrun --nproc-per-node, or train on the CPU"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdigit():
        raise BackendError(f"the environment variable {name} is {value!r}; expected a number, as torchrun sets it")
    return int(value)


def abort(problem: BaseException) -> NoReturn:
    """End this process of a run at once with what happened, so that the others end too.

    A process that lives on, in handlers of its exit, would let them wait for it.
    """
    rank = os.environ.get("RANK", "0")
    if isinstance(problem, DPError):
        print(f"rank {rank}: {problem}", file=sys.stderr)  # noqa: T201
    else:
        traceback.print_exception(problem, file=sys.stderr)
        print(f"rank {rank}: {_message(problem)}", file=sys.stderr)  # noqa: T201
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
