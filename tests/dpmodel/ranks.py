"""Processes of a run as threads of one: a `World` for tests without a framework."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dpmodel.training.world import RankError

LIMIT = 20.0
"""Seconds that a rank waits for the others before the test fails."""


class _Table:
    """Where ranks put down what they exchange."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=LIMIT)
        self.values: list[Any] = [None] * size


class Threads:
    """One rank. Every collective operation says its name, so that ranks that do different things fail at once."""

    def __init__(self, table: _Table, rank: int) -> None:
        self.table, self.rank, self.size = table, rank, len(table.values)
        self.calls: list[str] = []

    @property
    def chief(self) -> bool:
        return self.rank == 0

    def exchange(self, name: str, value: Any) -> list[Any]:
        self.calls.append(name)
        self.table.values[self.rank] = (name, value)
        self.table.barrier.wait()
        found = list(self.table.values)
        self.table.barrier.wait()
        assert {other for other, _ in found} == {name}, found
        return [other for _, other in found]

    def integers(self, values: Sequence[int]) -> list[int]:
        found = self.exchange("integers", [int(value) for value in values])
        assert len({len(each) for each in found}) == 1
        return list(found[0])

    def plain(self, value: Any) -> Any:
        return json.loads(self.exchange("plain", json.dumps(value) if self.chief else None)[0])

    def arrays(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.exchange("arrays", dict(values))
        kinds = [{name: (value.shape, value.dtype) for name, value in each.items()} for each in found]
        assert all(kind == kinds[0] for kind in kinds)
        return {name: value.copy() for name, value in found[0].items()}

    def total(self, values: np.ndarray) -> np.ndarray:
        found = self.exchange("total", np.asarray(values, np.float64))
        return np.sum(found, axis=0)

    def same(self, **values: int) -> None:
        found = self.exchange("same", values)
        for name in values:
            if len({each[name] for each in found}) > 1:
                raise RankError(f"{name} differs: {[each[name] for each in found]}")

    @contextmanager
    def agreement(self, what: str) -> Iterator[None]:
        problem = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below
            problem = error
        texts = self.exchange(f"agreement {what}", None if problem is None else str(problem))
        if problem is not None:
            raise problem
        for rank, text in enumerate(texts):
            if text is not None:
                raise RankError(f"rank {rank}: {text}")


def run_ranks(size: int, work: Callable[[Threads], Any]) -> list[Any]:
    """What `work(world)` returns on each rank, or the exception that it raised."""
    table = _Table(size)
    found: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            found[rank] = work(Threads(table, rank))
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 3 * LIMIT
    while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
        if any(isinstance(each, BaseException) for each in found):
            for thread in threads:
                thread.join(1.0)
            table.barrier.abort()  # who still waits does so for nothing
        time.sleep(0.002)
    assert not any(thread.is_alive() for thread in threads)
    return found


def results(size: int, work: Callable[[Threads], Any]) -> list[Any]:
    """The same, where nothing may be raised."""
    found = run_ranks(size, work)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found
