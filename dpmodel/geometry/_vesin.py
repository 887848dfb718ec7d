"""vesin (https://luthaf.fr/vesin), the neighbour search in C++, called through its C interface.

`import vesin` imports torch wherever torch is installed (vesin 0.6), a second and 200 MB that a NumPy user did
not ask for and that this package forbids itself. So the shared library is opened directly, with the declarations
of structures that the installed vesin ships beside it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.errors import BackendError

__all__ = ["installed", "vesin_pairs"]

_LIBRARIES = {"linux": "lib/libvesin.so", "darwin": "lib/libvesin.dylib", "win32": "bin/vesin.dll"}
_THREADS_FROM = 20_000  # atoms; below, one thread is as fast (measured: 192 and 1536 atoms) and disturbs nobody


def _open(folder: Path) -> tuple[Any, Any]:
    """Declarations and library in the folder of the installed package. Raises where they are not as expected."""
    api_spec = importlib.util.spec_from_file_location("dpmodel.geometry._vesin_api", folder / "_c_api.py")
    if api_spec is None or api_spec.loader is None:
        raise ImportError(f"cannot read {folder / '_c_api.py'}")
    api = importlib.util.module_from_spec(api_spec)
    api_spec.loader.exec_module(api)
    library = ctypes.cdll.LoadLibrary(str(folder / _LIBRARIES[sys.platform]))
    api.setup_functions(library)
    names = {name for name, *_ in api.VesinOptions._fields_}
    missing = {"cutoff", "full", "return_shifts", "n_threads"} - names
    if missing:
        raise AttributeError(f"VesinOptions lacks {sorted(missing)}")
    api.VesinDevice(api.VesinCPU, 0)
    return api, library


@cache
def _load() -> tuple[Any, Any] | None:
    """(declarations, library), or None where vesin is not installed or differs from what is expected here."""
    try:
        spec = importlib.util.find_spec("vesin")
    except ValueError:  # sys.modules["vesin"] is None: someone forbids it
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    try:
        return _open(Path(spec.submodule_search_locations[0]))
    except (ImportError, AttributeError, KeyError, OSError, TypeError) as error:
        warnings.warn(
            f"the installed vesin cannot be used ({error}); neighbour lists come from the slower built-in search. "
            "Install vesin 0.6.",
            stacklevel=2,
        )
        return None


def installed() -> bool:
    """Whether `vesin_pairs` can be called."""
    return _load() is not None


def vesin_pairs(
    coord: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All directed pairs nearer than `cutoff`, in no order: centre (e,), neighbour (e,), image (e, 3), all int64.

    coord (n, 3) and cell (3, 3) are float64. Raises BackendError with vesin's message where it fails.
    """
    loaded = _load()
    if loaded is None:
        raise BackendError("vesin is not installed; install it, or ask for method='search'")
    api, library = loaded
    options = api.VesinOptions(cutoff=cutoff, full=True, return_shifts=True)
    options.n_threads = 1 if len(coord) < _THREADS_FROM else 0
    coord, cell = np.ascontiguousarray(coord, np.float64), np.ascontiguousarray(cell, np.float64)
    doubles = ctypes.POINTER(ctypes.c_double)
    found, message = api.VesinNeighborList(), ctypes.c_char_p()
    try:
        status = library.vesin_neighbors(
            coord.ctypes.data_as(doubles),
            len(coord),
            cell.ctypes.data_as(doubles),
            (ctypes.c_bool * 3)(*pbc),
            api.VesinDevice(api.VesinCPU, 0),
            options,
            ctypes.byref(found),
            ctypes.byref(message),
        )
        if status != 0:
            said = (message.value or b"no message").decode(errors="replace")
            raise BackendError(
                f"vesin found no neighbours of {len(coord)} atoms within {cutoff:g} Å: {said}. "
                "Check coordinates and cell; uninstall vesin to use the slower built-in search"
            )
        if found.length == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
        pairs = np.ctypeslib.as_array(ctypes.cast(found.pairs, ctypes.POINTER(ctypes.c_size_t)), (found.length, 2))
        images = np.ctypeslib.as_array(ctypes.cast(found.shifts, ctypes.POINTER(ctypes.c_int32)), (found.length, 3))
        return pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64), images.astype(np.int64)
    finally:
        library.vesin_free(ctypes.byref(found))
