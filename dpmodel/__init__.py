"""Machine-learned interatomic potentials of the Deep Potential family.

    import dpmodel

    potential = dpmodel.load("model.dp")
    result = potential.evaluate(coord, atype, box)      # energy, force, virial

Importing this package loads no framework; `load` does.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpmodel.deviation import model_deviation
    from dpmodel.potential import Potential, freeze, load, save

__all__ = ["Potential", "__version__", "freeze", "load", "model_deviation", "save"]

_HOMES = {
    **dict.fromkeys(("Potential", "freeze", "load", "save"), "dpmodel.potential"),
    "model_deviation": "dpmodel.deviation",
}

try:
    __version__ = version("dpmodel")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dpmodel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
