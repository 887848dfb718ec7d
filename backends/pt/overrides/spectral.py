"""se_e2_a, se_e2_r, and dpa1 without attention, through Chebyshev expansions of their embedding nets.

For a given pair of types an embedding net is a function of one number s, so

    sum_j Net(s_ij) (x) R_ij = V^T B_i,    B_i = sum_j T(z_ij) (x) R_ij          (K, 4)

with the polynomials T and coefficients V of `chebyshev`: the net runs K times instead of once per neighbour, and no
tensor is as wide as the net. Where the coefficients do not fall to rounding (relu, say), the direct form of the
reference is used. Gradients of the weights flow through V.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from dpmodel.descriptors import DPA1, SeA, SeR
from dpmodel.nn import MLP, joint_net, pair_table

from .chebyshev import Interval, coefficients, interval_of, moments

__all__ = ["SpectralDPA1", "SpectralSeA", "SpectralSeR"]

MOST_TYPES = 8
"""More types of neighbours are computed directly: each takes columns of its own."""


class SpectralSeA(SeA):
    """See the module's docstring."""

    def _embed(self, network: MLP, table: Any) -> Any:
        s = table[:, :, 0]
        where = interval_of(s)
        v = None if where is None else coefficients(network, where, table)
        if where is None or v is None:
            return super()._embed(network, table)
        return _contract(moments(s, table, v.shape[0], where), v).transpose(1, 2)


class SpectralSeR(SeR):
    """See the module's docstring. R is 1 where there is a neighbour."""

    def _embed(self, network: MLP, x: Any, mask: Any) -> Any:
        s = x[:, :, 0]
        where = interval_of(s)
        v = None if where is None else coefficients(network, where, x)
        if where is None or v is None:
            return super()._embed(network, x, mask)
        return _contract(moments(s, mask[:, :, None].to(x.dtype), v.shape[0], where), v)[:, 0, :]


class SpectralDPA1(DPA1):
    """See the module's docstring; with a net for every pair of types.

    Their sums differ in the neighbours that take part and in weights, which R takes along: one block of columns for each.
    """

    def _gather(self, rows: Any, neighbour: Any, centre: Any, real: Any, s: Any, table: Any) -> Any:
        where = None if self.attention else interval_of(rows[:, :, 0])
        blocks = None if where is None else self._blocks(where, rows, neighbour, centre, s, table)
        if where is None or blocks is None:
            return super()._gather(rows, neighbour, centre, real, s, table)
        n, w, c = rows.shape
        q, k, m = blocks.u.shape[1:]
        columns = (rows[:, :, :, None] * blocks.weights[:, :, None, :]).reshape(n, w, c * q)
        sums = moments(rows[:, :, 0], columns, k, where).reshape(n, c, q * k)
        if blocks.place is None:
            return _contract(sums, blocks.u[0].reshape(q * k, m)).transpose(1, 2)
        members = [(blocks.place == number).nonzero()[:, 0] for number in range(blocks.u.shape[0])]
        parts = [_contract(sums[own], u.reshape(q * k, m)) for own, u in zip(members, blocks.u, strict=True)]
        return torch.cat(parts)[torch.argsort(torch.cat(members))].transpose(1, 2)

    def _blocks(self, where: Interval, rows: Any, neighbour: Any, centre: Any, s: Any, table: Any) -> _Blocks | None:
        """None where an expansion does not pay, or does not fall to rounding."""
        kinds, centres = torch.unique(neighbour), torch.unique(centre)
        if self.config.type_one_side:
            centres = centres[:1]
        if len(kinds) > MOST_TYPES or len(kinds) * len(centres) * 64 > neighbour.numel():
            return None
        place = torch.searchsorted(centres, centre) if len(centres) > 1 else None
        of_kind = (neighbour[:, :, None] == kinds).to(rows.dtype)
        if self.type_net is None:
            pairs = (kinds,) if self.config.type_one_side else (kinds, centres[:, None])
            index = [each.expand(len(centres), len(kinds))[:, :, None] for each in pairs]

            def nets(x: Any) -> Any:
                return joint_net(self.net, x.expand(len(centres), len(kinds), *x.shape), table, index)

            u = coefficients(nets, where, rows)
            return None if u is None else _Blocks(of_kind, u, place)
        v = coefficients(self.net, where, rows)
        if v is None:
            return None
        if self.config.type_one_side:
            factor = self.type_net(table)[kinds][None]
        else:
            factor = pair_table(self.type_net, table)[centres[:, None] * table.shape[0] + kinds]
        u = v * factor[:, :, None, :]
        if not self.config.smooth():
            return _Blocks(of_kind, u + v, place)
        weights = torch.cat((torch.ones_like(s)[:, :, None], of_kind * s[:, :, None]), dim=2)
        return _Blocks(weights, torch.cat((v.expand(len(centres), 1, *v.shape), u), dim=1), place)


class _Blocks(NamedTuple):
    """The nets of all pairs of types: g_ij = sum_q weights[i, j, q] sum_k u[place[i], q, k] T_k(z_ij)."""

    weights: torch.Tensor
    """(n, w, Q)."""
    u: torch.Tensor
    """(C, Q, K, M), C types of centres, or 1 for all."""
    place: torch.Tensor | None
    """(n,): which of them; None for one."""


def _contract(sums: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(n, c, K), (K, M) -> (n, c, M), as one product of matrices."""
    return (sums.reshape(-1, sums.shape[2]) @ v).reshape(*sums.shape[:2], v.shape[1])
