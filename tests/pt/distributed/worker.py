"""One of the ranks of `conftest.Pair`: runs functions of `cells` (or "module:function" of a neighbour) by name.

It ends with its standard input.
"""

from __future__ import annotations

import importlib
import os
import pickle
import struct
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any


def function(name: str) -> Any:
    """ "module:function"; without a module one of `cells`."""
    place, _, own = name.rpartition(":")
    return getattr(importlib.import_module(place or "cells"), own)


def main() -> None:
    sys.path.append(str(Path(__file__).parent))  # after all others; a safe path leaves it out
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not an answer
    import torch

    from dpmodel.backends.pt import BACKEND

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    with BACKEND.join("cpu") as world:
        while header := asked.read(8):
            name, args, options = pickle.loads(asked.read(struct.unpack("q", header)[0]))
            try:
                answer = (True, function(name)(world, *args, **options))
            except BaseException:  # noqa: BLE001 - whatever happened is told to the test
                answer = (False, traceback.format_exc())
            content = pickle.dumps(answer)
            answers.write(struct.pack("q", len(content)) + content)
            answers.flush()


if __name__ == "__main__":
    sys.exit(main())
