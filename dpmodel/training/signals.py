"""Signals that end a run politely: save, then leave.

::

    with save_and_leave() as request:
        for step in ...:
            ...
            if request.name:            # "SIGTERM"
                save()
                break

SIGINT (Ctrl-C), SIGTERM (batch systems at the time limit) and SIGUSR1 (their warning before it) only set the name. A
second Ctrl-C raises KeyboardInterrupt at once. With several processes the caller has to agree on a step (see
`dpmodel.training.agree`): signals do not reach all of them at the same one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["SIGNALS", "Request", "save_and_leave"]

SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""The signals that this system has of SIGINT, SIGTERM, SIGUSR1."""

PATIENCE = 2.0
"""Seconds within which a Ctrl-C to several processes counts once."""


@dataclass
class Request:
    """Whether somebody asked the run to end."""

    name: str = ""
    """Name of the first signal that came, empty before."""


@contextmanager
def save_and_leave(*, several: bool = False) -> Iterator[Request]:
    """Turn the signals into a request while the block runs; afterwards they do what they did before.

    several: the process is one of several, whose launcher passes a Ctrl-C on that came from the terminal as well: a second
    one within two seconds is the same.

    Outside the main thread nothing is installed (Python handles signals there only) and the request stays empty. An
    ignored SIGINT, as in a shell's background jobs, stays ignored.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    interrupted: float | None = None

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT:
            now = time.monotonic()
            if interrupted is None:
                interrupted = now
            elif not several or now - interrupted > PATIENCE:
                raise KeyboardInterrupt
        if not request.name:
            request.name = signal.Signals(number).name
            _say(f"{request.name}: saving a checkpoint after this step, then leaving. Ctrl-C again leaves at once.\n")

    former: dict[signal.Signals, Any] = {}
    try:
        for number in SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGINT and before is signal.SIG_IGN:
                continue
            signal.signal(number, handle)
            former[number] = before
        yield request
    finally:
        for number, before in former.items():
            # None: installed by C code, which Python cannot name again.
            signal.signal(number, signal.SIG_DFL if before is None else before)


def _say(text: str) -> None:
    # Not logging nor print: the signal may have come in the middle of either, and their buffers are not reentrant.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
