"""The JAX backend: jitted evaluation with derivatives."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any, ClassVar

import jax
import numpy as np

from dpmodel.backend import Evaluator
from dpmodel.errors import BackendError
from dpmodel.geometry.padding import Sizes, bucket_sizes, pad_graph
from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, Model, predict

from .bridge import double_precision, from_jax, graph_to_jax, jax_curvature, jax_gradient, to_jax
from .overrides import OVERRIDES

__all__ = ["BACKEND", "OVERRIDES", "JaxBackend", "JaxEvaluator", "pick_devices"]


class JaxEvaluator:
    """A model as a pytree and a jitted function; sizes are padded to buckets, so new systems rarely compile anew."""

    def __init__(self, model: Model, device: Any) -> None:
        self.device = device
        self._sizes: Sizes | None = None
        self._traces = 0

        def traced(
            model: Any, graph: Graph, forces: bool, atomic: bool, hessian: HessianRequest | None
        ) -> dict[str, jax.Array]:
            self._traces += 1  # runs once per new shape, when JAX traces
            return predict(
                model, graph, jax_gradient if forces else None, atomic_virial=atomic,
                curvature=None if hessian is None else jax_curvature, request=hessian,
            )  # fmt: skip

        self._run = jax.jit(traced, static_argnums=(2, 3, 4))
        with double_precision():
            self._model = to_jax(model, device=device, overrides=OVERRIDES)

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        """See `dpmodel.backend.Evaluator`."""
        n, m, f = graph.frame.shape[0], graph.atype.shape[0], graph.natoms.shape[0]
        self._sizes = bucket_sizes(graph, self._sizes)
        with double_precision():
            padded = graph_to_jax(pad_graph(graph, self._sizes), self.device)
            outputs = self._run(self._model, padded, forces, atomic, hessian)
        frames = {"virial", self._model.output().reduced}
        rows = n if graph.virtual is None else graph.virtual.owned.shape[0]
        ghosts = slice(self._sizes["atoms"], self._sizes["atoms"] + m - n)  # behind the padding of the owned atoms
        results = {}
        for key, padded_value in outputs.items():
            value = np.array(padded_value)
            nodes = key in {"force", "atom_virial"} and graph.owner is None and m > n
            results[key] = (
                np.concatenate([value[:n], value[ghosts]]) if nodes else value[: f if key in frames else rows]
            )
        return results

    def compilations(self) -> int:
        """How many shapes have been compiled so far."""
        return self._traces

    def model(self) -> Model:
        """The model with NumPy arrays."""
        plain: Any = from_jax(self._model)
        return plain


def pick_devices(device: str | None) -> list[Any]:
    """All devices of a kind ("cpu", "cuda"; None: the best there is), or the one that is named ("cuda:1").

    Raises BackendError.
    """
    kind, _, index = ("", "", "") if device is None else device.replace("cuda", "gpu").partition(":")
    try:
        found = jax.local_devices(backend=kind or None)
        return [found[int(index)]] if index else found
    except (RuntimeError, ValueError, IndexError) as problem:
        raise BackendError(f"device {device!r} is not available to JAX: {problem}") from problem


class JaxBackend:
    """JAX."""

    name: ClassVar[str] = "jax"
    has_gradients: ClassVar[bool] = True
    compiles_training: ClassVar[bool] = True

    def evaluator(self, model: Model, *, device: str | None = None, compile: bool = False) -> Evaluator:
        """See `Backend.evaluator`."""
        if compile:
            raise BackendError("backend='jax' always compiles (jit); leave compile out")
        return JaxEvaluator(model, None if device is None else pick_devices(device)[0])

    def stepper(
        self,
        model: Model,
        loss: Any,
        optimizer: Any,
        *,
        device: str | None = None,
        gradient_max_norm: float | None = None,
        compile: bool = False,
    ) -> Any:
        """See `dpmodel.backend.Trainer`. compile: training is compiled either way.

        A kind of device ("cpu", "cuda"), or None for the best there is, means all devices of the kind, which share each
        batch; "cuda:1" means that one.
        """
        try:
            training = import_module(".training", __name__)
        except ModuleNotFoundError as problem:
            if problem.name != "optax":
                raise
            raise BackendError(
                'training on JAX needs the package optax, which is not installed: pip install "dpmodel[jax]"'
            ) from problem
        devices = pick_devices(device)
        return training.JaxStepper(model, loss, optimizer, devices=devices, gradient_max_norm=gradient_max_norm)

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that take part."""
        return {"jax": jax.__version__, "optax": metadata.version("optax")}


BACKEND = JaxBackend()
