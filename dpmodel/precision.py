"""Precision rules.

The environment variable `DP_INTERFACE_PREC` sets the global float: `high` (default) is float64, `low`
float32. Descriptors and fitting nets compute in their own `precision`; their inputs are cast from the
global float and their outputs back to it. Atomic energies are summed in float64 always, and displacements
are formed in float64 before any cast.
"""

from __future__ import annotations

import os

from dpmodel.errors import InputError

__all__ = ["ENERGY_DTYPE", "PRECISIONS", "dtype_name", "global_dtype"]

ENERGY_DTYPE = "float64"

PRECISIONS: dict[str, str] = {
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "single": "float32",
    "float64": "float64",
    "double": "float64",
}


def global_dtype() -> str:
    """ "float64", or "float32" where DP_INTERFACE_PREC=low. Raises InputError for other values."""
    value = os.environ.get("DP_INTERFACE_PREC", "high").lower()
    if value not in ("high", "low"):
        raise InputError(f"DP_INTERFACE_PREC must be 'high' (float64) or 'low' (float32), not {value!r}")
    return "float64" if value == "high" else "float32"


def dtype_name(precision: str) -> str:
    """The dtype that a `precision` means; "default" is the global float. Raises InputError listing the names."""
    if precision == "default":
        return global_dtype()
    if precision == "bfloat16":
        raise InputError("precision 'bfloat16' is not available: NumPy, the reference, has no such type; use 'float32'")
    try:
        return PRECISIONS[precision]
    except KeyError:
        raise InputError(f"unknown precision {precision!r}; known are {['default', *PRECISIONS]}") from None
