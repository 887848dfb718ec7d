"""dpa3: what the comparison with other programs and between backends does not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpmodel.descriptors.dpa3 import DPA3, DPA3Config
from dpmodel.geometry import GraphBuilder
from dpmodel.graph import Comm, Graph
from dpmodel.nn import MLP, Linear
from dpmodel.op import Kind, walk

FLOW: dict[str, Any] = {
    "e_rcut": 3.0, "e_rcut_smth": 1.0, "e_sel": 12, "a_rcut": 2.5, "a_rcut_smth": 0.5, "a_sel": 6, "n_dim": 4, "e_dim": 4,
    "a_dim": 2, "nlayers": 2, "axis_neuron": 2, "update_residual": 0.5,
}  # fmt: skip


def make(*, options: dict[str, Any] | None = None, **flow: Any) -> DPA3:
    config = DPA3Config.from_dict({"repflow": {**FLOW, **flow}, "precision": "float64", **(options or {})})
    return config.build(2, ("O", "H"), seed=3)


def graph_of(op: DPA3, coord: Any, atype: Any, **more: Any) -> Graph:
    builder = GraphBuilder(requests=op.requests(), ntypes=2, group_by_type=False)
    return builder.build(np.asarray(coord, float), np.asarray(atype), None, **more)


COORD = np.array([[[0.0, 0.1, 0.0], [1.0, 0.2, 0.0], [-0.3, 1.1, 0.3], [1.5, 1.4, 0.2], [2.2, -0.6, 0.8]]])
ATYPE = np.array([[0, 1, 1, 0, 0]])


def phi(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def test_one_layer_by_hand() -> None:
    """Two atoms, no angles within reach: every formula of the layer with its sums written out."""
    op = make(nlayers=1, a_rcut=0.9, smooth_edge_update=True)
    r, u = 1.2, (1.2 - 1.0) / 2.0
    s = 1 + u**3 * (-6 * u**2 + 15 * u - 10)
    (layer,), d = op.layers, np.array([r, 0.0, 0.0])
    rows = {k: np.array([s / r, *(s * k * d / r**2)]) / 0.3 for k in (1, -1)}
    te = op.type_embedding.table()
    n = {1: phi(te[0]), -1: phi(te[1])}  # the atom at the origin sees the other one in direction 1
    found = op(graph_of(op, [[[0.0] * 3, d]], [[0, 1]])).node

    def affine(net: Linear, x: np.ndarray) -> np.ndarray:
        return x @ net.w + net.b

    for row, (k, other) in enumerate(((1, -1), (-1, 1))):
        e = phi(affine(op.edge_embedding, rows[k][:1]))
        h = rows[k][1:]
        square = []
        for g in (e, n[other]):
            moment = np.outer(h, g) * s / np.sqrt(12)
            square.append((moment[:, :2].T @ moment / 3).ravel())
        message = phi(affine(layer.node_edge, np.concatenate([n[k], n[other], e]))) * s / 12
        updates = (
            phi(affine(layer.node_self, n[k])), phi(affine(layer.node_sym, np.concatenate(square))), message,
        )  # fmt: skip
        expected = n[k] + sum(w * x for w, x in zip(layer.node_residual, updates, strict=True))
        np.testing.assert_allclose(found[row], expected, rtol=1e-13)


def test_charge_and_spin_shift_the_type_embedding() -> None:
    """A frame's features are those of a model whose embedding of every type holds the shift."""
    op = make(options={"add_chg_spin_ebd": True, "concat_output_tebd": True})
    pairs = np.array([[1.0, 2.0], [-3.0, 0.0]])
    shift = op.charge_spin(pairs)
    found = op(graph_of(op, np.tile(COORD, (2, 1, 1)), np.tile(ATYPE, (2, 1)), charge_spin=pairs))
    layer = op.type_embedding.embedding.layers[0]
    for frame, z in enumerate(shift):
        embedding = op.type_embedding.replace(embedding=MLP(layers=(layer.replace(w=layer.w + z),)))
        plain = op.replace(charge_spin=None, type_embedding=embedding)(graph_of(op, COORD, ATYPE))
        np.testing.assert_allclose(found.node[5 * frame : 5 * frame + 5], plain.node, rtol=1e-12)
        np.testing.assert_allclose(found.rotation[5 * frame : 5 * frame + 5], plain.rotation, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match="this model needs charge_spin"):
        op(graph_of(op, COORD, ATYPE))


@pytest.mark.parametrize("options", [{}, {"smooth_edge_update": True}, {"update_style": "res_avg"}])
def test_capacities_that_nothing_fills_do_not_matter_but_in_the_divisors(options: dict[str, Any]) -> None:
    small, large = (make(e_sel=e, a_sel=a, **options) for e, a in ((12, 6), (24, 12)))
    graph = graph_of(small, COORD, ATYPE)
    assert np.abs(small(graph).node - large(graph).node).max() > 1e-6
    halves = {"use_dynamic_sel": True, "smooth_edge_update": True, **options, "sel_reduce_factor": 2.0}
    ones = {**halves, "sel_reduce_factor": 1.0}
    np.testing.assert_array_equal(
        make(e_sel=24, a_sel=12, **halves)(graph).node, make(e_sel=12, a_sel=6, **ones)(graph).node
    )


def test_frozen() -> None:
    assert not any(trained for _, kind, _, trained in walk(make(options={"trainable": False})) if kind is Kind.PARAM)
    assert all(trained for _, kind, _, trained in walk(make()) if kind is Kind.PARAM)
    residuals = make(options={"trainable": False}).layers[0].node_residual
    assert not residuals.any()


def test_random_starts() -> None:
    a, b, other = make(), make(), DPA3Config.from_dict({"repflow": FLOW}).build(2, ("O", "H"), seed=4)
    state = b.state()
    assert all(np.array_equal(value, state[path]) for path, value in a.state().items())
    moved = [path for path, value in other.state().items() if not np.array_equal(value, state[path])]
    assert {"layers.0.node_edge.w", "layers.1.angle_self.b", "type_embedding.embedding.layers.0.w"} <= set(moved)
    constant = make(update_residual=0.25).layers[1]
    assert (constant.node_residual == 0.25).all()
    assert (constant.node_residual.shape, constant.edge_residual.shape, constant.angle_residual.shape) == (
        (3, 4), (2, 4), (1, 2),
    )  # fmt: skip
    drawn = make(update_residual=0.25, update_residual_init="norm").layers[1].node_residual
    assert 0.05 < drawn.std() < 0.6


def test_no_exchange_between_processes_here() -> None:
    op = make()
    graph = graph_of(op, COORD, ATYPE).replace(comm=Comm(handle=np.zeros(1, np.int64)))
    with pytest.raises(ValueError, match="DPA3: this backend has no ghost exchange between processes"):
        op(graph)


def test_what_a_model_may_ask() -> None:
    op = make(options={"concat_output_tebd": True, "env_protection": 0.1})
    assert (op.mixed_types, op.message_passing, op.groups_types(), op.tolerates_overlap()) == (True, True, False, True)
    assert (op.dim_out, op.dim_emb) == (8, 4)
    (request,) = op.requests()
    assert (request.rcut, request.sel, request.layout) == (3.0, (12,), "edges")
    assert (request.angles.rcut, request.angles.sel) == (2.5, 6)
    assert not make().is_smooth()
    assert make(smooth_edge_update=True).is_smooth()
    assert make(update_angle=False).is_smooth()
    assert not make(smooth_edge_update=True, use_exp_switch=True).is_smooth()
