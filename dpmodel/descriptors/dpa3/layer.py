"""One layer of dpa3: how the features of atoms, edges and angles change each other.

With n, e, a the features of atoms (n,), edges (k,) and angles (t,), h the vector part of the environment rows, s the
switch of edges and sa that of angles, Ne and Na the norms of the section, phi the activation, and [..|..] for
concatenation along the feature axis:

    HG(g)_i    = Ne^(-1/2) sum_j s_ij h_ij (x) g_ij                             (3, width)
    GRRG(H)    = 1/3 H[:, :axis]^T H                                            (axis * width,)
    atoms      n + phi(self n) + phi(sym [GRRG(HG(e)) | GRRG(HG(n_j))]) + 1/Ne sum_j s_ij phi(edge [n_i | n_j | e_ij])
    edges      e + phi(self [n_i | n_j | e_ij]) + phi(angle2 (Na^(-1/2) sum_k sa_ijk phi(angle1 I_ijk)))
    angles     a + phi(self I_ijk),   I_ijk = [a_ijk | n'_i | e'_ik | e'_ij]

(each + is a residual update, see `dpmodel.nn.residual`; n', e' are narrowed copies). A product of weights with a concatenation
is a sum of products with its parts, so that each part is multiplied where it lives, on atoms or on edges, and only
then gathered: with ten neighbours per atom that is a tenth of the work.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from dpmodel.nn import Activation, Linear
from dpmodel.nn.residual import combine
from dpmodel.op import Array, Op, child, param
from dpmodel.ops import array_namespace, segment_outer, segment_sum, take_rows

__all__ = ["Environment", "RepflowLayer", "State"]


class State(NamedTuple):
    """Features between two layers."""

    node: Array
    """(n, n_dim)."""
    edge: Array
    """(k, e_dim)."""
    angle: Array | None
    """(t, a_dim); None where nothing reads them any more."""


class Environment(NamedTuple):
    """What is the same for all layers."""

    centre: Array
    """(k,): owned atom of every edge."""
    neighbour: Array
    """(k,): node of every edge."""
    h: Array
    """(k, 3): s * h."""
    s: Array
    """(k, 1)."""
    ij: Array
    """(t,): first edge of every angle."""
    ik: Array
    """(t,): second edge."""
    sa: Array
    """(t, 1)."""
    spans: Array
    """(k, 1) bool: whether the edge spans angles."""


class RepflowLayer(Op):
    """See the module's docstring."""

    n_dim: int
    e_dim: int
    a_dim: int
    axis: int
    edge_norm: float
    angle_norm: float
    style: str
    smooth: bool
    """Edges that span no angles take part with 0; False: with their own features."""
    sequential: bool
    widths: tuple[int, int]
    """Columns of n' and e'."""
    activation: Activation = child()
    node_self: Linear = child()
    node_sym: Linear = child()
    node_edge: Linear = child()
    edge_self: Linear = child()
    edge_angle1: Linear | None = child(default=None)
    edge_angle2: Linear | None = child(default=None)
    angle_self: Linear | None = child(default=None)
    narrow_node: Linear | None = child(default=None)
    narrow_edge: Linear | None = child(default=None)
    node_residual: Array | None = param(default=None)
    """(2 + messages, n_dim), for the style res_residual."""
    edge_residual: Array | None = param(default=None)
    """(1 or 2, e_dim)."""
    angle_residual: Array | None = param(default=None)
    """(0 or 1, a_dim)."""
    trainable: bool = True  # type: ignore[misc]  # a field of this class, a constant of others

    def call(self, state: State, seen: Array, env: Environment, *, edges: bool, angles: bool) -> State:
        """The features after the layer.

        seen: (m, n_dim), features of all nodes. edges, angles: whether the layers that follow read them; what nobody
        reads is not computed, and comes back as it was (edges) or as None (angles).
        """
        if self.sequential:
            return self._sequential(state, seen, env)
        node, edge, angle = state
        joint = [self.node_edge, self.edge_self] if edges else [self.node_edge]
        parts = self._on_edges(joint, node, seen, edge, env)
        new = self._node(node, seen, edge, parts[0], env)
        if not edges:
            return State(new, edge, None)
        if self.edge_angle1 is None:
            return State(new, combine([edge, parts[1]], self.style, self.edge_residual), angle)
        heads: list[Linear | None] = [self.edge_angle1, self.angle_self] if angles else [self.edge_angle1]
        z = self._on_angles(heads, node, edge, angle, env)
        sent = self._from_angles(z[0], edge, env)
        angle = combine([angle, z[1]], self.style, self.angle_residual) if angles else None
        return State(new, combine([edge, parts[1], sent], self.style, self.edge_residual), angle)

    def _sequential(self, state: State, seen: Array, env: Environment) -> State:
        node, edge, angle = state
        (own,) = self._on_edges([self.edge_self], node, seen, edge, env)
        edge = edge + own * self.edge_residual[0, ...]  # type: ignore[index]  # the section demands res_residual
        (q,) = self._on_angles([self.angle_self], node, edge, angle, env)
        angle = combine([angle, q], self.style, self.angle_residual)
        (z,) = self._on_angles([self.edge_angle1], node, edge, angle, env)
        edge = edge + self._from_angles(z, edge, env) * self.edge_residual[1, ...]  # type: ignore[index]  # as above
        (message,) = self._on_edges([self.node_edge], node, seen, edge, env)
        return State(self._node(node, seen, edge, message, env), edge, angle)

    def _node(self, node: Array, seen: Array, edge: Array, message: Array, env: Environment) -> Array:
        """(n, n_dim). message: (k, messages * n_dim)."""
        xp, n, phi = array_namespace(node), node.shape[0], self.activation
        scale = 1.0 / math.sqrt(self.edge_norm)
        both = xp.concat([edge, take_rows(seen, env.neighbour)], axis=-1)
        moment = scale * segment_outer(env.h, both, env.centre, n)
        e = self.e_dim
        squares = xp.concat([self._grrg(moment[:, :, :e]), self._grrg(moment[:, :, e:])], axis=-1)
        received = segment_sum(message * env.s, env.centre, n) / self.edge_norm
        heads = [received[:, k : k + self.n_dim] for k in range(0, received.shape[1], self.n_dim)]
        return combine(
            [node, phi(self.node_self(node)), phi(self.node_sym(squares)), *heads], self.style, self.node_residual
        )

    def _grrg(self, moment: Array) -> Array:
        """(n, 3, width) -> (n, axis * width), the axis index slow."""
        xp = array_namespace(moment)
        square = xp.matmul(xp.permute_dims(moment[:, :, : self.axis], (0, 2, 1)), moment) / 3.0
        return xp.reshape(square, (moment.shape[0], self.axis * moment.shape[2]))

    def _on_edges(self, heads: list[Linear], node: Array, seen: Array, edge: Array, env: Environment) -> list[Array]:
        """phi(head [n_i | n_j | e_ij]) of every head, on all edges (k, width)."""
        xp, n = array_namespace(edge), self.n_dim
        w = _joined([head.w[...] for head in heads])
        own = xp.matmul(node, w[:n, :]) + _joined([head.b[...] for head in heads])  # type: ignore[index]  # all have one
        other = xp.matmul(seen, w[n : 2 * n, :])
        x = xp.matmul(edge, w[2 * n :, :]) + take_rows(own, env.centre) + take_rows(other, env.neighbour)
        return self._split(self.activation(x), heads)

    def _on_angles(
        self, heads: list[Linear | None], node: Array, edge: Array, angle: Array | None, env: Environment
    ) -> list[Array]:
        """phi(head [a_ijk | n'_i | e'_ik | e'_ij]) of every head, on all angles (t, width)."""
        xp = array_namespace(edge)
        nets = [head for head in heads if head is not None]
        (nw, ew), a = self.widths, self.a_dim
        node = node[:, :nw] if self.narrow_node is None else self.narrow_node(node)
        edge = edge[:, :ew] if self.narrow_edge is None else self.narrow_edge(edge)
        w = _joined([head.w[...] for head in nets])
        atoms = xp.matmul(node, w[a : a + nw, :]) + _joined([head.b[...] for head in nets])  # type: ignore[index]
        first = xp.matmul(edge, w[a + nw + ew :, :]) + take_rows(atoms, env.centre)
        second = xp.matmul(edge, w[a + nw : a + nw + ew, :])
        x = xp.matmul(angle, w[:a, :]) + take_rows(first, env.ij) + take_rows(second, env.ik)
        return self._split(self.activation(x), nets)

    def _split(self, x: Array, heads: list[Linear]) -> list[Array]:
        """The columns of every head."""
        if len(heads) == 1:
            return [x]
        width = heads[0].w.shape[1]
        return [x[:, :width], x[:, width:]]

    def _from_angles(self, z: Array, edge: Array, env: Environment) -> Array:
        """(k, e_dim): what the angles send to their first edges. z: (t, e_dim)."""
        xp = array_namespace(edge)
        total = segment_sum(z * env.sa, env.ij, edge.shape[0]) / math.sqrt(self.angle_norm)
        if not self.smooth:
            total = xp.where(env.spans, total, edge)
        return self.activation(self.edge_angle2(total))  # type: ignore[misc]  # there is one where there are angles


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else array_namespace(arrays[0]).concat(arrays, axis=-1)
