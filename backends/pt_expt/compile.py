"""Compiled models: outputs, derivatives and gradients of parameters as graphs with dynamic sizes.

Evaluation: the function (parameters, buffers, graph) -> outputs is traced once by `make_fx` on fake tensors, with every
size of the input graph a symbol, forces included (they are plain nodes of the trace), and handed to Inductor directly:
no guards, no recompilation between sizes, 0 and 1 included. Parameters and buffers are inputs, so they may change
without a new compilation.

Training: autograd of the same function is traced together with it ("joint"), so that forces are differentiated once
more by autograd itself and not by looking at a recorded graph, in which a `detach` of autograd's own could not be told
from one that a layer means. The joint graph is cut into what runs before the loss and what runs after it.

What was compiled is found by its content: models of one structure share it, whatever their weights.

Inductor's entry points are private: this is the only file that touches them (torch 2.11 to 2.13).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.fx.experimental._config as fx_config
from torch._dynamo.source import ConstantSource
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import aot_compile_joint_with_descriptors, aot_export_joint_with_descriptors
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx, compile_fx_inner, partition_fn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dpmodel.cache import cache_folder
from dpmodel.errors import BackendError, DPError
from dpmodel.graph import Graph, Leaf, check, map_leaves, map_record, sized
from dpmodel.models import predict
from dpmodel.op import Op

from ..pt.bridge import structure, torch_gradient
from ..pt.store import model_state
from .audit import audit, content_hash
from .inductor import decompositions, for_any_size

__all__ = ["CompiledLower", "CompiledStep", "Traced", "model_state", "sample_graph", "trace", "use_own_cache"]

logger = logging.getLogger(__name__)


class Traced(NamedTuple):
    """What `trace` makes: the function (state, leaves of the graph) -> outputs."""

    names: tuple[str, ...]
    """Keys of the outputs, in order."""
    graph_module: torch.fx.GraphModule
    """Its inputs: the tensors of `model_state`, then those of `sized(graph)`."""
    fakes: list[torch.Tensor]
    """A fake tensor for every input. Sizes of data-dependent axes are symbols, one for each axis."""


def sample_graph(like: Graph) -> Graph:
    """A small graph of the structure of `like` whose sizes are distinct primes, so that no two symbols coincide.

    There are more nodes than owned atoms: the first n of m rows are min(n, m) rows, and where the tracer must know
    which, it asks the sample. With m < n every sum of such rows with n others would be refused.
    """
    free = _primes(11)
    sizes = {axis: next(free) for axis in ("atoms", "nodes", "edges", "frames")}

    def blank(leaf: Leaf) -> torch.Tensor:
        tensor: torch.Tensor = leaf.array
        if not leaf.axes:  # a handle, not data: exchanges read it
            return tensor
        shape = [sizes.get(axis) or sizes.setdefault(axis, next(free)) for axis in leaf.axes]
        return tensor.new_zeros((*shape, *leaf.static))

    sample: Graph = map_leaves(like, blank)
    return sample


def _primes(start: int) -> Iterator[int]:
    return (k for k in itertools.count(start) if all(k % d for d in range(2, k)))


def trace(module: torch.nn.Module, like: Graph, *, forces: bool, atomic: bool) -> Traced:
    """Trace outputs and derivatives of a model for graphs of the structure of `like`, of any size.

    Raises BackendError where the model cannot be traced, or where the trace would not serve all such graphs.
    """
    sample, names = sample_graph(like), [""]

    def outputs(model: Callable[[Graph], Any], graph: Graph) -> dict[str, torch.Tensor]:
        found = predict(model, graph, torch_gradient if forces else None, atomic_virial=atomic)
        return {name: value.detach() for name, value in found.items()}

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
    with _explained(), cast(Any, fx_config).patch(backed_size_oblivious=True):
        fakes = _fakes(mode, model_state(module), sample, trained=False)
        with mode:
            traced = make_fx(_pure(module, sample, outputs, names), tracing_mode="real")(*fakes)
    leaves = sized(sample)
    audit(traced.graph, leaves, fakes[len(fakes) - len(leaves) :], mode.shape_env)
    return Traced(tuple(names), traced, fakes)


_Outputs = Callable[[Callable[[Graph], Any], Graph], dict[str, torch.Tensor]]


def _pure(
    module: torch.nn.Module, sample: Graph, outputs: _Outputs, names: list[str]
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The function of (state, leaves of the graph) alone. It leaves the keys of its outputs in `names`."""
    state = list(model_state(module))

    def lower(*flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = iter(flat[len(state) :])
        graph: Graph = map_record(sample, lambda _: next(leaves))

        def model(g: Graph) -> Any:
            return functional_call(module, dict(zip(state, flat, strict=False)), (g,))

        found = outputs(model, graph)
        names[:] = list(found)
        return tuple(found.values())

    return lower


def _fakes(
    mode: FakeTensorMode, state: Mapping[str, torch.Tensor], sample: Graph, *, trained: bool
) -> list[torch.Tensor]:
    """A stand-in for every input. trained: parameters that require gradients still do."""
    copies = [t.detach().clone().requires_grad_(trained and t.requires_grad) for t in state.values()]
    return [mode.from_tensor(t, static_shapes=True) for t in copies] + [_fake(mode, leaf) for leaf in sized(sample)]


def _fake(mode: FakeTensorMode, leaf: Leaf) -> torch.Tensor:
    """A stand-in whose data-dependent sizes are symbols; the others belong to the model."""
    dynamic = [DimDynamic.DYNAMIC if d < len(leaf.axes) else DimDynamic.STATIC for d in range(leaf.array.ndim)]
    context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic)
    # Generated code names symbols s0, s1, ...: no input may be called so.
    source = ConstantSource(f"graph_{leaf.path.replace('.', '_')}")
    return mode.from_tensor(leaf.array, source=source, symbolic_context=context)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever the tracer raises into an error that names the layer."""
    try:
        yield
    except DPError:
        raise
    except Exception as problem:
        where, own, step = "", str(Path(torch.__file__).parent), problem.__traceback__
        while step is not None:
            code, op = step.tb_frame.f_code, step.tb_frame.f_locals.get("self")
            if isinstance(op, Op) and not code.co_filename.startswith(own):
                where = f" in {type(op).__name__}"
            if where and not code.co_filename.startswith(own):
                where = f"{where.partition(' (')[0]} ({code.co_filename}:{step.tb_lineno})"
            step = step.tb_next
        reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
        raise BackendError(
            f"the model cannot be traced{where}: {reason}. Compiled code cannot look at values: no .item(), no branch "
            "on data, no shape that depends on data. Run without compilation meanwhile"
        ) from problem


# --- compilation -------------------------------------------------------------------------------------------


class _Code:
    """A compiled graph: (state, leaves of the graph) -> outputs by name."""

    def __init__(self, names: Sequence[str], run: Callable[..., Sequence[torch.Tensor]], key: str) -> None:
        self.names, self.run, self.key = tuple(names), run, key


_SHARED: weakref.WeakValueDictionary[Any, _Code] = weakref.WeakValueDictionary()
"""All that is compiled in this process and still in use: by compiler and content, and by what a model is (`_identity`)."""


def compile_joint(joint: Any) -> Callable[..., Sequence[torch.Tensor]]:
    """Compile a joint graph of AOTAutograd by Inductor."""
    backward = functools.partial(compile_fx_inner, is_backward=True)
    with cast(Any, functorch_config).patch(force_non_lazy_backward_lowering=True):
        run: Any = aot_compile_joint_with_descriptors(
            joint, partition_fn=partition_fn, fw_compiler=cast(Any, compile_fx_inner), bw_compiler=cast(Any, backward)
        )
    return cast(Callable[..., Sequence[torch.Tensor]], run)


def _compile_traced(module: torch.nn.Module, graph: Graph, forces: bool, atomic: bool) -> _Code:
    begin = time.perf_counter()
    traced = trace(module, graph, forces=forces, atomic=atomic)
    mode = cast(FakeTensor, traced.fakes[-1]).fake_mode
    key = content_hash(traced.graph_module.graph, traced.fakes, mode.shape_env)

    def compiled() -> Callable[..., Any]:
        with tracing(TracingContext(mode)):
            return cast(Any, compile_fx)(traced.graph_module, traced.fakes)

    return _shared(compile_fx, key, traced.names, compiled, begin, mode.shape_env)


def _compile_step(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], graph: Graph, wanted: frozenset[str], derivatives: bool
) -> _Code:
    begin = time.perf_counter()
    sample, names = sample_graph(graph), [""]
    gradient = functools.partial(torch_gradient, create_graph=True) if derivatives else None

    def outputs(model: Callable[[Graph], Any], graph: Graph) -> dict[str, torch.Tensor]:
        return {name: value for name, value in predict(model, graph, gradient).items() if name in wanted}

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
    with contextlib.ExitStack() as stack, torch.enable_grad():  # a trace without gradients would never have any
        stack.enter_context(tracing(TracingContext(mode)))
        with _explained(), cast(Any, fx_config).patch(backed_size_oblivious=True):
            fakes = _fakes(mode, state, sample, trained=True)
            joint = aot_export_joint_with_descriptors(
                stack, _Plain(_pure(module, sample, outputs, names)), tuple(fakes), decompositions=decompositions()
            )
        content, leaves = joint.graph_module.graph, sized(sample)
        audit(content, leaves, fakes[len(fakes) - len(leaves) :], mode.shape_env)
        key = content_hash(content, fakes, mode.shape_env)
        return _shared(compile_joint, key, names, functools.partial(compile_joint, joint), begin, mode.shape_env)


class _Plain(torch.nn.Module):
    """A function as a module without state."""

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call it."""
        return self.function(*flat)


def _shared(
    compiler: Any, key: str, names: Sequence[str], compiled: Callable[[], Any], begin: float, shape_env: Any
) -> _Code:
    """What this compiler made of this content before, else made now. begin: when its trace began."""
    code = _SHARED.get((compiler, key))
    traced = time.perf_counter()
    if code is not None:
        logger.info("Compiled before in this process: graph %.12s (traced in %.1f s)", key, traced - begin)
        return code
    logger.info("Compiling the model for any size of system (once; a minute or two without a cache)")
    try:
        with for_any_size(shape_env, oblivious=compiler is compile_fx):
            run = compiled()
    except BackendError:
        raise
    except Exception as problem:
        reason = f"{type(problem).__name__}: {problem}".strip().splitlines()[0]
        raise BackendError(
            f"compiling the model failed: {reason}. A C++ compiler is needed (Debian, Ubuntu: apt install g++; conda: "
            "conda install gxx), or run without compilation"
        ) from problem
    logger.info("Compiled graph %.12s: traced in %.1f s, compiled in %.1f s", key, traced - begin, _since(traced))
    code = _SHARED[compiler, key] = _Code(names, run, key)
    return code


def use_own_cache() -> None:
    """Let Inductor keep what it compiled in the user's own folder, unless its variable names another.

    torch's own choice, which it writes into the environment on import, is below the folder of temporary files: lost on
    a restart of the machine, and under a name that another user may have taken first, to put code there.
    """
    if os.environ.get(_CACHE_VARIABLE, default_cache_dir()) == default_cache_dir():
        os.environ[_CACHE_VARIABLE] = str(cache_folder() / "inductor")


_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def _since(begin: float) -> float:
    return time.perf_counter() - begin


# --- models ------------------------------------------------------------------------------------------------


class _Compiled:
    """Compiles on the first call of each structure (which inputs and outputs, what is trained); serves all sizes."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self._codes: dict[Any, _Code] = {}

    def _run(
        self, graph: Graph, options: Any, state: Mapping[str, torch.Tensor], make: Callable[[], _Code]
    ) -> dict[str, torch.Tensor]:
        """Raises ValueError for a graph whose arrays disagree: compiled code looks at nothing."""
        check(graph)
        leaves = sized(graph)
        key = (options, *map(_structure, leaves), *((name, *_kind(value)) for name, value in state.items()))
        code = self._codes.get(key)
        if code is None:
            # The content tells what can be shared; a model like one that was traced before need not be traced again.
            use_own_cache()
            known = (compile_fx, compile_joint, key, _identity(self.module))
            code = _SHARED.get(known) or make()
            self._codes[key] = _SHARED[known] = code
        # AOTAutograd's code builds its graph whether or not gradients are switched on, if an input asks for them.
        values = state.values() if torch.is_grad_enabled() else [value.detach() for value in state.values()]
        found = code.run(*values, *(leaf.array.contiguous() for leaf in leaves))
        return dict(zip(code.names, found, strict=True))

    def compilations(self) -> int:
        """How many structures were met so far."""
        return len(self._codes)

    def contents(self) -> frozenset[str]:
        """Content hashes of the compiled graphs that are in use."""
        return frozenset(code.key for code in self._codes.values())


class CompiledLower(_Compiled):
    """The outputs of a model, without gradients of its parameters."""

    def __call__(self, graph: Graph, *, forces: bool, atomic: bool) -> dict[str, torch.Tensor]:
        """As `dpmodel.models.predict`."""
        state = {name: value.detach() for name, value in model_state(self.module).items()}
        make = functools.partial(_compile_traced, self.module, graph, forces, atomic)
        return self._run(graph, (forces, atomic), state, make)


class CompiledStep(_Compiled):
    """The outputs that a loss reads, with compiled gradients for every parameter that requires them.

    Args:
        module: the model. Unless a call gives others, its tensors are read anew at every call.
        wanted: keys of the outputs to return, of those that the model has.
        derivatives: whether forces and virials are among them.
    """

    def __init__(self, module: torch.nn.Module, wanted: frozenset[str], *, derivatives: bool) -> None:
        super().__init__(module)
        self.wanted, self.derivatives = wanted, derivatives

    def __call__(self, graph: Graph, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Outputs by key. Where gradients are switched off, the same code runs without them.

        state: tensors to compute with, in the order of `model_state` of the module, whose own may be of another device.
        """
        state = model_state(self.module) if state is None else state
        make = functools.partial(_compile_step, self.module, state, graph, self.wanted, self.derivatives)
        return self._run(graph, (self.wanted, self.derivatives), state, make)


_DTYPES = (torch.bool, torch.int64, torch.float32, torch.float64)


def _structure(leaf: Leaf) -> tuple[Any, ...]:
    """Everything about an input that the compiled code takes for granted."""
    x: torch.Tensor = leaf.array
    if x.dtype not in _DTYPES or (leaf.points is not None and x.dtype is not torch.int64):
        raise ValueError(f"{leaf.path} has dtype {x.dtype}; integers are int64, all else is bool, float32 or float64")
    return leaf.path, leaf.axes, leaf.static, x.dtype, x.device


def _kind(x: torch.Tensor) -> tuple[Any, ...]:
    """The same, about a parameter or buffer."""
    return x.shape, x.stride(), x.dtype, x.device, x.requires_grad


def _identity(module: torch.nn.Module) -> Any:
    """What decides how a model computes, apart from its tensors (`structure`)."""
    parts = [(*each, repr(each)) for each in structure(module)]  # 1 and 1.0 are equal, but no two reprs
    try:
        hash(key := (tuple(part.training for part in module.modules()), *parts))
    except TypeError:
        return object()
    return key
