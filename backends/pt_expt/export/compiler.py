"""The C++ compiler: from an exported program to files of compiled code.

Inductor's options are private and change between versions of torch: this is the only file of the export that names
them, and one that a version does not know is left out.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch._inductor import aot_compile, config

from dpmodel.errors import BackendError

__all__ = ["compile_program"]

OPTIONS: dict[str, Any] = {
    "aot_inductor.package": True,
    # The number of threads belongs to the run, not to the machine that compiled.
    "cpp.dynamic_threads": True,
}


def compile_program(exported: torch.export.ExportedProgram) -> list[Path]:
    """Files of an AOTInductor package. Raises BackendError with the end of the compiler's message."""
    module = cast(Any, exported.module(check_guards=False))
    inputs = tuple(exported.example_inputs[0]) if exported.example_inputs else ()
    try:
        with warnings.catch_warnings():
            # torch deprecates parts of itself that its compiler still uses.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            files: Any = aot_compile(module, inputs, options=_known(OPTIONS))
    except Exception as problem:
        raise BackendError(f"export: the compiler failed: {str(problem)[-500:]}") from problem
    return [Path(name) for name in files if isinstance(name, str) and not name.endswith((".cpp", ".h"))]


def _known(options: dict[str, Any]) -> dict[str, Any]:
    known = config.get_config_copy()
    return {name: value for name, value in options.items() if name in known}
