"""The operator library: built and loaded when it is first needed, never by an import."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from dpmodel.errors import BackendError

from ..native import CSRC, build_library, built_for
from .ops import register_python_side

__all__ = ["load_ops", "ops_library"]

_ready = threading.Lock()
_loaded: list[Path] = []


def ops_library() -> Path:
    """Path of the built library `libdpmodel_ops.so`, for linking."""
    return build_library("libdpmodel_ops", [CSRC / "ghosts.cpp"], include=[CSRC])


def load_ops() -> Path:
    """Make `torch.ops.dpmodel.ghost_forward` and `ghost_reverse` available; the library's path, for linking.

    Only the first call does anything. Raises BackendError where the library cannot be built or loaded.
    """
    with _ready:
        if not _loaded:
            path = ops_library()
            # A program that embeds Python may have brought the operators along: a schema is registered once a process.
            if not hasattr(torch.ops.dpmodel, "ghost_forward"):
                _load(path)
            register_python_side()
            _loaded.append(path)
        return _loaded[0]


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(str(path))
    except OSError as problem:
        raise BackendError(
            f"the operator library {path} cannot be loaded: {problem}. Expected a library for torch "
            f"{torch.__version__}, found one built for {built_for(path)}. Delete the folder {path.parent}: it is then "
            "built anew"
        ) from problem
