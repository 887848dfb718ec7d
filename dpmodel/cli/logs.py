"""Where log messages and warnings of a command go: stderr, and a file if asked."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

__all__ = ["LEVELS", "log_level", "logging_to"]

LEVELS = {"ERROR": "0", "WARNING": "1", "INFO": "2", "DEBUG": "3"}
"""Names of `--log-level` and the numbers that mean them."""

_FORMAT = "[%(asctime)s] %(levelname)-7s %(message)s"
_DATE = "%Y-%m-%d %H:%M:%S"

log = logging.getLogger("dpmodel")


def log_level(text: str) -> str:
    """The name of a level that was given by name or number; the type of an argument for argparse."""
    for name, number in LEVELS.items():
        if text.upper() == name or text == number:
            return name
    raise ValueError(text)


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment: a progress bar replaces it while it is on the screen."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # a plain attribute in the base class
        return sys.stderr


@contextmanager
def logging_to(level: str, path: str | None) -> Iterator[None]:
    """Within the block, messages of the library and warnings go to stderr, and to the file at `path` as well.

    Raises OSError where the file cannot be written.
    """
    handlers: list[logging.Handler] = [_Stderr()]
    if path is not None:
        handlers.append(logging.FileHandler(Path(path), encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT, _DATE))
        log.addHandler(handler)
    former = log.level, log.propagate, warnings.showwarning
    log.setLevel(level)
    log.propagate = False
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        log.level, log.propagate, warnings.showwarning = former
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _log_warning(message: Warning | str, *_place: Any, **_more: Any) -> None:
    """Takes what `warnings.showwarning` gets; where in the library it was raised tells users nothing."""
    log.warning("%s", message)
