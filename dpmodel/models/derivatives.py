"""Forces, virials and per-atom virials: one place, for every model.

With g_e = dE/d(edge_vec_e), the edge form (conventions in `dpmodel.graph`):

    force[k]          = sum_{e: centre = k} g_e - sum_{e: neighbour = k} g_e
    atom_virial[k]    = sum_{e: neighbour = k} -g_e (x) r_e
    virial            = sum_e -g_e (x) r_e
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dpmodel.graph import Graph
from dpmodel.models.curvature import Curvature, HessianRequest, hessian
from dpmodel.op import Array
from dpmodel.ops import array_namespace, as_dtype, segment_sum, take_rows
from dpmodel.precision import ENERGY_DTYPE

__all__ = ["Gradient", "edge_derivatives", "predict", "spin_derivatives"]


class Gradient(Protocol):
    """Automatic differentiation, as a backend supplies it."""

    def __call__(
        self, function: Callable[[Array], tuple[Array, dict[str, Array]]], x: Array
    ) -> tuple[dict[str, Array], Array]:
        """For function(x) -> (scalar, outputs): (outputs, d scalar / d x)."""


def predict(
    model: Callable[[Graph], dict[str, Array]],
    graph: Graph,
    gradient: Gradient | None,
    *,
    atomic_virial: bool = False,
    curvature: Curvature | None = None,
    request: HessianRequest | None = None,
) -> dict[str, Array]:
    """Outputs of the model, with `force` (m, 3), `virial` (f, 9) and, on request, `atom_virial` (m, 9).

    `gradient` None: no derivatives. The outputs of the model must hold `energy`, or `global_dipole`: derivatives of a
    dipole have an axis of its components in front of the last, (m, 3, 3) and so on.
    `curvature` and `request`: `hessian` (n, 3, 3 * request.atoms) too, of models of energies.
    """
    if gradient is None:
        return model(graph)

    def reduced(component: int) -> Callable[[Array], tuple[Array, dict[str, Array]]]:
        def function(edge_vec: Array) -> tuple[Array, dict[str, Array]]:
            outputs = model(graph.replace(edge_vec=edge_vec))
            value = outputs["energy"] if "energy" in outputs else outputs["global_dipole"]
            return array_namespace(edge_vec).sum(value[:, component]), outputs

        return function

    second: dict[str, Array] = {}
    if curvature is None or request is None:
        outputs, slope = gradient(reduced(0), graph.edge_vec)
    else:
        outputs, slope, second["hessian"] = hessian(reduced(0), graph, curvature, request)
    found = edge_derivatives(slope, graph, atomic_virial=atomic_virial)
    if graph.virtual is not None:
        return {**outputs, **spin_derivatives(found, graph), **second}
    if "energy" in outputs:
        return {**outputs, **found, **second}
    others = (gradient(reduced(k), graph.edge_vec)[1] for k in (1, 2))
    rows = [found, *(edge_derivatives(other, graph, atomic_virial=atomic_virial) for other in others)]
    stack = array_namespace(graph.edge_vec).stack
    return {**outputs, **{key: stack([row[key] for row in rows], axis=1) for key in found}}


def edge_derivatives(slope: Array, graph: Graph, *, atomic_virial: bool = False) -> dict[str, Array]:
    """From dE/d(edge_vec) (e, 3) to force, virial and atom_virial, ghosts folded onto their owners' rows.

    With `graph.comm` set the ghosts' shares stay in rows n..m, for the caller to send home.
    """
    xp = array_namespace(slope)
    n, m, e = graph.frame.shape[0], graph.atype.shape[0], slope.shape[0]
    slope, vec = as_dtype(slope, ENERGY_DTYPE), as_dtype(graph.edge_vec, ENERGY_DTYPE)
    share = xp.reshape(-slope[:, :, None] * vec[:, None, :], (e, 9))
    frame = take_rows(graph.frame, graph.centre)
    outputs = {"virial": segment_sum(share, frame, graph.natoms.shape[0])}
    force = segment_sum(slope, graph.centre, m) - segment_sum(slope, graph.neighbour, m)
    fold = _folds(graph)
    outputs["force"] = segment_sum(force, graph.owner, n) if fold else force
    if atomic_virial:
        virial = segment_sum(share, graph.neighbour, m)
        outputs["atom_virial"] = segment_sum(virial, graph.owner, n) if fold else virial
    return outputs


def _folds(graph: Graph) -> bool:
    """Whether shares of ghosts are added to their owners' rows here."""
    return graph.owner is not None and graph.comm is None


def spin_derivatives(found: dict[str, Array], graph: Graph) -> dict[str, Array]:
    """Derivatives of a system with virtual atoms to those of its s atoms and their spins.

    A virtual atom moves with its own, and by `scale` times its spin: with F and W its force and virial, the force on the
    atom grows by F and `force_mag` = -dE/d(spin) is F times `scale`; its displacement does not grow with the cell, so
    that the virial loses F (x) displacement. Rows are those of pairs: where shares of ghosts stay, with those of ghosts.
    """
    virtual = graph.virtual
    assert virtual is not None
    xp, force = array_namespace(found["force"]), found["force"]
    pairs = (virtual.real, virtual.virtual, virtual.frame, virtual.scale, virtual.shift)
    real, moved, frame, scale, shift = (take_rows(x, virtual.owned) for x in pairs) if _folds(graph) else pairs
    own, other = take_rows(force, real), take_rows(force, moved)
    scale, shift = as_dtype(scale, force.dtype), as_dtype(shift, force.dtype)
    share = xp.reshape(other[:, :, None] * shift[:, None, :], (other.shape[0], 9))
    outputs = {
        "force": own + other,
        "force_mag": other * scale[:, None],
        "virial": found["virial"] - segment_sum(share, frame, graph.natoms.shape[0]),
    }
    if "atom_virial" in found:
        virial = found["atom_virial"]
        outputs["atom_virial"] = take_rows(virial, real) + take_rows(virial, moved) - share
    return outputs
