"""The C++ compiler: from an exported program to files of compiled code.

Inductor's options are private and change between versions of torch: this is the only file of the export that names
them. All of them are needed.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.fx.experimental._config as fx_config
from torch._inductor import aot_compile, config
from torch._inductor.decomposition import decompositions

from dpmodel.errors import BackendError

__all__ = ["compile_program"]

OPTIONS: dict[str, Any] = {
    "aot_inductor.package": True,
    # The number of threads belongs to the run, not to the machine that compiled.
    "cpp.dynamic_threads": True,
}
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
    ranges = dict(env.var_to_range)
    module = cast(Any, exported.module(check_guards=False))
    inputs = tuple(exported.example_inputs[0]) if exported.example_inputs else ()
    try:
        # Inductor asks questions such as "is this product small?" of the sample's sizes and takes the answers for facts:
        # it would believe that no system is larger than the sample, or that none has 0 or 1 atoms.
        with (
            warnings.catch_warnings(),
            _sums_by_rows(),
            cast(Any, fx_config).patch(backed_size_oblivious=True),
            env.suppress_guards(),
        ):
            # torch deprecates parts of itself that its compiler still uses.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            files: Any = aot_compile(module, inputs, options=options)
    except Exception as problem:
        raise BackendError(f"export: the compiler failed: {str(problem)[-500:]}") from problem
    changed = {str(symbol): str(bounds) for symbol, bounds in env.var_to_range.items() if ranges.get(symbol) != bounds}
    if changed:
        raise BackendError(f"export: the compiler restricted sizes of the model's inputs: {changed}")
    return [Path(name) for name in files if isinstance(name, str) and not name.endswith((".cpp", ".h"))]


@contextmanager
def _sums_by_rows() -> Iterator[None]:
    """Let Inductor call torch for segment sums, by a function that sums whole rows.

    Its own code adds number by number, atomically, and computes what is added there as well, unvectorised: a dpa3 model
    takes three times as long.
    """
    operator = torch.ops.aten.index_add.default
    before = decompositions.get(operator)
    decompositions[operator] = _index_add
    try:
        yield
    finally:
        if before is None:
            del decompositions[operator]
        else:
            decompositions[operator] = before


def _index_add(x: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, *, alpha: Any = 1) -> torch.Tensor:
    shape = [1] * source.ndim
    shape[dim] = index.shape[0]
    rows = index.view(shape).expand_as(source)
    return torch.ops.aten.scatter_add.default(x, dim, rows, source if alpha == 1 else source * alpha)


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
