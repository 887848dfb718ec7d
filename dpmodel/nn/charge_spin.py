"""Embedding of a frame's total charge and spin multiplicity."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.nn.activation import Activation
from dpmodel.nn.mlp import Linear, Seed, child_seed, make_linear
from dpmodel.nn.type_embedding import TypeEmbedding, make_type_embedding
from dpmodel.op import Array, Op, child
from dpmodel.ops import array_namespace, as_dtype, take_rows

__all__ = ["CHARGES", "SPINS", "ChargeSpin", "check_charge_spin", "make_charge_spin"]

CHARGES = 200
"""Rows of the charge embedding: charges -100 to 99, and 100, whose row is zero."""
SPINS = 100
"""Rows of the spin embedding: 0 to 99, and 100, whose row is zero."""


class ChargeSpin(Op):
    """Features of a frame's total charge and spin multiplicity."""

    charge: TypeEmbedding = child()
    spin: TypeEmbedding = child()
    mix: Linear = child()
    activation: Activation = child()

    def call(self, charge_spin: Array) -> Array:
        """(f, 2) -> (f, width). Numbers are truncated to integers (see `check_charge_spin`)."""
        xp = array_namespace(charge_spin)
        rows = as_dtype(charge_spin, "int64")
        charge = take_rows(self.charge.table(), rows[:, 0] + CHARGES // 2)
        return self.activation(self.mix(xp.concat([charge, take_rows(self.spin.table(), rows[:, 1])], axis=-1)))


def make_charge_spin(width: int, activation: Activation, *, seed: Seed, **own: Any) -> ChargeSpin:
    """With random weights. own: dtype, trainable."""
    return ChargeSpin(
        charge=make_type_embedding(CHARGES, width, seed=child_seed(seed, 0), **own),
        spin=make_type_embedding(SPINS, width, seed=child_seed(seed, 1), **own),
        mix=make_linear(2 * width, width, seed=child_seed(seed, 2), **own),
        activation=activation,
    )


def check_charge_spin(values: np.ndarray, name: str) -> None:
    """Raise InputError, naming the frame, for numbers without a row in the tables. values: (f, 2)."""
    whole = np.trunc(values)
    wrong = ~((np.abs(whole[:, 0]) <= CHARGES // 2) & (whole[:, 1] >= 0) & (whole[:, 1] <= SPINS))
    if wrong.any():
        frame = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{name}: expected charges from {-(CHARGES // 2)} to {CHARGES // 2} and spins from 0 to {SPINS}, got "
            f"{values[frame].tolist()}" + (f" in frame {frame}" if len(values) > 1 else "")
        )
