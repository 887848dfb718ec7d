"""se_e2_a, se_e2_r, and dpa1 without attention, through Chebyshev expansions of their embedding nets.

The formulas are those of the PyTorch backend (`dpmodel.backends.pt.overrides.spectral`). A jitted function cannot choose
the number of terms: it has one, and where the last coefficients are not at rounding, the same function computes the
direct form instead. That one is recomputed when it is differentiated, so that what it would keep takes no memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpmodel.descriptors import DPA1, SeA, SeR
from dpmodel.nn import MLP, joint_net, pair_table

__all__ = ["SpectralDPA1", "SpectralSeA", "SpectralSeR"]

ORDERS = {"float32": 32, "float64": 96}
"""Numbers of terms, by precision."""
TAIL = 4
"""How many of the last coefficients must have fallen to rounding."""
MARGIN = 0.05
"""The interval is widened by this share on both sides."""
FEWEST = 256
"""Fewer neighbour slots are computed directly."""
MOST_TYPES = 4
"""Models of more types are computed directly: sums are formed for every pair of types."""


class SpectralSeA(SeA):
    """See the module's docstring."""

    def _embed(self, network: MLP, table: Any) -> Any:
        if not pays(table):
            return super()._embed(network, table)
        z, nodes = scaled(table[:, :, 0])
        v, falls = coefficients(network, nodes)

        def spectral() -> Any:
            return jnp.einsum("nck,km->nmc", moments(z, table, v.shape[0]), v)

        return choose(falls, spectral, functools.partial(super()._embed, network, table))


class SpectralSeR(SeR):
    """See the module's docstring. R is 1 where there is a neighbour."""

    def _embed(self, network: MLP, x: Any, mask: Any) -> Any:
        if not pays(x):
            return super()._embed(network, x, mask)
        z, nodes = scaled(x[:, :, 0])
        v, falls = coefficients(network, nodes)

        def spectral() -> Any:
            return moments(z, mask[:, :, None].astype(x.dtype), v.shape[0])[:, 0, :] @ v

        return choose(falls, spectral, functools.partial(super()._embed, network, x, mask))


class SpectralDPA1(DPA1):
    """See the module's docstring; with a net for every pair of types: R is repeated, one block q of columns for each type."""

    def _gather(self, rows: Any, neighbour: Any, centre: Any, real: Any, s: Any, table: Any) -> Any:
        if self.attention or self.ntypes > MOST_TYPES or not pays(rows):
            return super()._gather(rows, neighbour, centre, real, s, table)
        z, nodes = scaled(rows[:, :, 0])
        u, falls = self._nets(nodes, table)
        of_kind = (neighbour[:, :, None] == jnp.arange(self.ntypes)).astype(rows.dtype)
        smooth = self.type_net is not None and self.config.smooth()

        def spectral() -> Any:
            n, w, c = rows.shape
            by = jnp.concat([jnp.ones_like(s)[:, :, None], of_kind * s[:, :, None]], axis=2) if smooth else of_kind
            columns = (rows[:, :, :, None] * by[:, :, None, :]).reshape(n, w, -1)
            sums = moments(z, columns, u.shape[2]).reshape(n, c, -1)
            found = [jnp.einsum("nck,km->nmc", sums, own.reshape(-1, own.shape[-1])) for own in u]
            if len(found) == 1:
                return found[0]
            return sum(jnp.where((centre == k)[:, None, None], own, 0.0) for k, own in enumerate(found))

        direct = functools.partial(super()._gather, rows, neighbour, centre, real, s, table)
        return choose(falls, spectral, direct)

    def _nets(self, nodes: Any, table: Any) -> tuple[Any, Any]:
        """(C, Q, K, M) coefficients, C types of centres (1 for all, where the net does not see them)."""
        cfg, kinds = self.config, jnp.arange(self.ntypes)
        pairs = (kinds[None],) if cfg.type_one_side else (kinds, kinds[:, None])
        shape = (1 if cfg.type_one_side else self.ntypes, self.ntypes)
        if self.type_net is None:
            index = [jnp.broadcast_to(each, shape)[:, :, None] for each in pairs]
            return coefficients(
                lambda x: joint_net(self.net, jnp.broadcast_to(x, (*shape, *x.shape)), table, index), nodes
            )
        v, falls = coefficients(self.net, nodes)
        if cfg.type_one_side:
            factor = self.type_net(table)[kinds][None]
        else:
            factor = pair_table(self.type_net, table)[kinds[:, None] * table.shape[0] + kinds]
        u = v * factor[:, :, None, :]
        if not cfg.smooth():
            return u + v, falls
        return jnp.concat([jnp.broadcast_to(v, (shape[0], 1, *v.shape)), u], axis=1), falls


def pays(table: Any) -> bool:
    """Whether there are enough slots, and of how many is known when the function is compiled."""
    n, w = table.shape[:2]
    return isinstance(n, int) and isinstance(w, int) and n * w >= FEWEST and table.dtype.name in ORDERS


def scaled(s: Any) -> tuple[Any, Any]:
    """s as numbers z on an interval within (-1, 1), and the Chebyshev nodes (K, 1) as numbers s."""
    fixed = jax.lax.stop_gradient(s)
    low, high = jnp.min(fixed), jnp.max(fixed)
    centre, half = 0.5 * (low + high), 0.5 * (high - low) + MARGIN * jnp.maximum(high - low, 1e-3)
    order = ORDERS[s.dtype.name]
    nodes = np.cos(np.pi * (2 * np.arange(order) + 1) / (2 * order)).astype(s.dtype)
    return (s - centre) / half, (centre + half * nodes)[:, None]


def coefficients(function: Callable[[Any], Any], nodes: Any) -> tuple[Any, Any]:
    """(..., K, M) Chebyshev coefficients of a function (K, 1) -> (..., K, M); whether all fall to rounding."""
    order = nodes.shape[0]
    j, k = np.arange(order), np.arange(order)[:, None]
    transform = 2.0 / order * np.cos(np.pi * ((k * (2 * j + 1)) % (4 * order)) / (2 * order))
    transform[0] *= 0.5
    v = jnp.matmul(transform.astype(nodes.dtype), function(nodes), precision="highest")
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(v)), axis=-1)
    tail, largest = jnp.max(size[..., -TAIL:], axis=-1), jnp.max(size, axis=-1)
    return v, jnp.all(tail <= 8 * jnp.finfo(nodes.dtype).eps * largest)


def moments(z: Any, r: Any, order: int) -> Any:
    """B (n, c, K) = sum_j R_ij[c] T_k(z_ij), from z (n, w) and R (n, w, c)."""
    return jnp.einsum("nwc,knw->nck", r, basis(z, order, 0), precision="highest")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def basis(z: Any, order: int, d: int) -> Any:
    """(K, n, w): the d-th derivatives of T_k, k < order, from the three-term recurrence, which they share."""
    older = (jnp.ones_like(z), *(jnp.zeros_like(z),) * d)
    old = (z, *(jnp.full_like(z, float(i == 0)) for i in range(d)))

    def step(carry: Any, _: None) -> Any:
        older, old = carry
        new = tuple(
            2.0 * (z * old[i] + (i * old[i - 1] if i else 0.0)) - older[i] for i in range(d + 1)
        )  # (z T)^(i) = z T^(i) + i T^(i-1)
        return (old, new), older[d]

    return jax.lax.scan(step, (older, old), None, length=order)[1]


@basis.defjvp
def _(order: int, d: int, values: Any, tangents: Any) -> Any:
    (z,), (dz,) = values, tangents
    return basis(z, order, d), basis(z, order, d + 1) * dz


def choose(falls: Any, spectral: Callable[[], Any], direct: Callable[[], Any]) -> Any:
    """One of two forms, decided when the function runs."""
    return jax.lax.cond(falls, spectral, jax.checkpoint(direct))
