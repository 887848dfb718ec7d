"""The input file: one description of every hyper-parameter, checked with dargs, as `Config` objects.

    inp = load_input("input.json")
    inp.training.numb_steps, inp.model.descriptor.rcut
    inp.normalised      # plain data with every default filled in; loading it again gives the same
    inp.notes           # what the log should say once: keys without effect, old layouts, defaults to know

`load_input` raises InputError with the path of what is wrong, what was expected and what came.

Importing this package loads neither dargs nor yaml; using one of its names does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpmodel.input.doc import document
    from dpmodel.input.load import Input, load_input, load_model

__all__ = ["Input", "document", "load_input", "load_model"]

_HOMES = {
    "Input": "dpmodel.input.load",
    "document": "dpmodel.input.doc",
    "load_input": "dpmodel.input.load",
    "load_model": "dpmodel.input.load",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dpmodel.input' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
