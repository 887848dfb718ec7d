"""The C++ compiler: from an exported program to files of compiled code.

Inductor's options are private and change between versions of torch: only this file and `..inductor` name them. All of
them are needed.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, cast

import torch
from torch._inductor import aot_compile, config

from dpmodel.errors import BackendError

from ..inductor import OPTIONS as SHARED_OPTIONS
from ..inductor import for_any_size

__all__ = ["compile_program"]

OPTIONS: dict[str, Any] = {**SHARED_OPTIONS, "aot_inductor.package": True}
MARCH = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3", "DEFAULT": "x86-64"}
"""By torch's name of the instruction set: what all processors have that have it. Otherwise code would run on processors
like the one that compiled it alone, and crash elsewhere without a word."""


def compile_program(exported: torch.export.ExportedProgram, folder: Path) -> list[Path]:
    """Files of an AOTInductor package, written below `folder`. Raises BackendError with the compiler's last words."""
    options = {**OPTIONS, "aot_inductor.output_path": str(folder / "code")}
    if platform.machine() == "x86_64":
        options["cpp.march"] = MARCH.get(torch.backends.cpu.get_cpu_capability(), MARCH["DEFAULT"])
    _require_known(options)
    env = _shape_env(exported)
    module = cast(Any, exported.module(check_guards=False))
    inputs = tuple(exported.example_inputs[0]) if exported.example_inputs else ()
    try:
        with for_any_size(env):
            files: Any = aot_compile(module, inputs, options=options)
    except BackendError:
        raise
    except Exception as problem:
        raise BackendError(f"export: the compiler failed: {str(problem)[-500:]}") from problem
    return [Path(name) for name in files if isinstance(name, str) and not name.endswith((".cpp", ".h"))]


def _shape_env(exported: torch.export.ExportedProgram) -> Any:
    """What knows the ranges of the symbols."""
    names = set(exported.graph_signature.user_inputs)
    values = (node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder" and node.name in names)
    return next(size.node.shape_env for value in values for size in value.shape if isinstance(size, torch.SymInt))


def _require_known(options: dict[str, Any]) -> None:
    """Without one of the options, code would be compiled that is not what its artefact says."""
    unknown = sorted(options.keys() - config.get_config_copy().keys())
    if unknown:
        raise BackendError(
            f"export: torch {torch.__version__} does not know the compiler's options {unknown}: use a version of torch "
            "that dpmodel was made for"
        )
