"""Where libraries that are compiled on the user's machine are kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """`DPMODEL_CACHE_DIR`, else `$XDG_CACHE_HOME/dpmodel`, else `~/.cache/dpmodel`. It need not exist."""
    own = os.environ.get("DPMODEL_CACHE_DIR")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").expanduser().absolute() / "dpmodel"
