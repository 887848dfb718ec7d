"""A pair of processes that live as long as the tests, and compute together what they are asked."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LIMIT = 60.0
"""Seconds for one answer."""


def environment(rank: int, port: int, size: int = 2) -> dict[str, str]:
    """What torchrun sets."""
    return {
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Pair:
    """Ranks 0 and 1 over gloo. After a failure that may have parted them the next call starts them anew."""

    def __init__(self) -> None:
        self._ranks: list[subprocess.Popen[bytes]] = []

    def _start(self) -> None:
        port, worker = free_port(), Path(__file__).with_name("worker.py")
        self._ranks = [
            subprocess.Popen(
                [sys.executable, str(worker)],
                env=environment(rank, port),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(2)
        ]

    def __call__(self, name: str, *args: Any, limit: float = LIMIT, **options: Any) -> list[Any]:
        """What the function of `cells` returns on each rank, within `limit` seconds.

        Raises AssertionError with the traceback of a rank.
        """
        if not self._ranks:
            self._start()
        content = pickle.dumps((name, args, options))
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(struct.pack("q", len(content)) + content)
            rank.stdin.flush()
        end = time.monotonic() + limit
        try:
            answers = [self._answer(rank, end) for rank in self._ranks]
        except BaseException:
            self.close()
            raise
        problems = [f"rank {k}: {found}" for k, (good, found) in enumerate(answers) if not good]
        if problems:
            self.close()
            raise AssertionError("\n".join(problems))
        return [found for _, found in answers]

    def _answer(self, rank: subprocess.Popen[bytes], end: float) -> Any:
        return pickle.loads(self._read(rank, struct.unpack("q", self._read(rank, 8, end))[0], end))

    def _read(self, rank: subprocess.Popen[bytes], size: int, end: float) -> bytes:
        found = b""
        assert rank.stdout is not None
        while len(found) < size:
            ready, _, _ = select.select([rank.stdout], [], [], max(end - time.monotonic(), 0.0))
            part = os.read(rank.stdout.fileno(), size - len(found)) if ready else b""
            if not part:
                raise AssertionError(f"a rank gave no answer ({'it has ended' if ready else 'time-out'})")
            found += part
        return found

    def close(self) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.wait()
            for stream in (rank.stdin, rank.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._ranks = []


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.close()
