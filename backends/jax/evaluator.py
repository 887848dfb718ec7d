"""Evaluation on JAX: jitted, with derivatives."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from dpmodel.geometry.padding import Sizes, bucket_sizes, pad_graph
from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, Model, predict

from .bridge import double_precision, from_jax, graph_to_jax, jax_curvature, jax_gradient, to_jax
from .overrides import OVERRIDES

__all__ = ["JaxEvaluator", "PaddedEvaluator"]


class PaddedEvaluator:
    """Base of evaluators: sizes are padded to buckets, so new systems rarely compile anew."""

    def __init__(self, reduced: str, device: Any) -> None:
        """reduced: the name of the output per frame."""
        self.device = device
        self._reduced = reduced
        self._sizes: Sizes | None = None
        self._traces = 0

    def run(self, graph: Graph, forces: bool, atomic: bool, hessian: HessianRequest | None) -> dict[str, jax.Array]:
        """Outputs for a padded graph of JAX arrays, in double precision."""
        raise NotImplementedError(f"{type(self).__name__} does not define run()")

    def __call__(
        self, graph: Graph, *, forces: bool, atomic: bool, hessian: HessianRequest | None = None
    ) -> dict[str, np.ndarray]:
        """See `dpmodel.backend.Evaluator`."""
        n, m, f = graph.frame.shape[0], graph.atype.shape[0], graph.natoms.shape[0]
        self._sizes = bucket_sizes(graph, self._sizes)
        with double_precision():
            padded = graph_to_jax(pad_graph(graph, self._sizes), self.device)
            outputs = self.run(padded, forces, atomic, hessian)
        frames = {"virial", self._reduced}
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


class JaxEvaluator(PaddedEvaluator):
    """A model as a pytree and a jitted function."""

    def __init__(self, model: Model, device: Any) -> None:
        super().__init__(model.output().reduced, device)

        def traced(
            model: Any, graph: Graph, forces: bool, atomic: bool, hessian: HessianRequest | None
        ) -> dict[str, jax.Array]:
            self._traces += 1  # runs once per new shape, when JAX traces
            return predict(
                model, graph, jax_gradient if forces else None, atomic_virial=atomic,
                curvature=None if hessian is None else jax_curvature, request=hessian,
            )  # fmt: skip

        self._run = jax.jit(traced, static_argnums=(2, 3, 4))
        self._plain: Any = None
        with double_precision():
            self._model = to_jax(model, device=device, overrides=OVERRIDES)

    def run(self, graph: Graph, forces: bool, atomic: bool, hessian: HessianRequest | None) -> dict[str, jax.Array]:
        """See `PaddedEvaluator.run`."""
        outputs: dict[str, jax.Array] = self._run(self._of(hessian), graph, forces, atomic, hessian)
        return outputs

    def _of(self, hessian: HessianRequest | None) -> Any:
        """The model; for Hessians with the reference methods: second derivatives of expansions lose digits in float32."""
        if hessian is None:
            return self._model
        if self._plain is None:
            self._plain = to_jax(self.model(), device=self.device)
        return self._plain

    def model(self) -> Model:
        """The model with NumPy arrays."""
        plain: Any = from_jax(self._model)
        return plain
