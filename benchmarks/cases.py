"""What is measured: quantities, the ways in which either program computes them, and cases, the rows of the table."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["PEER", "QUANTITIES", "SEVERAL_RANKS", "WAYS", "Case", "Way"]

Quantity = Literal["training", "evaluation", "export", "lammps"]

QUANTITIES: tuple[Quantity, ...] = ("training", "evaluation", "export", "lammps")

PEER = "DeePMD-kit"

SEVERAL_RANKS = "for several ranks"
"""An export of the peer that can run on several ranks of LAMMPS; its usual ones cannot where the model passes messages."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of one program: a backend in the table."""

    side: Literal["ours", "peer"]
    does: tuple[Quantity, ...]
    backend: str
    """What the program calls it."""
    compile: bool = False
    file: str = ".dp"
    """What it evaluates: models of several suffixes are made of the same weights."""


_TRAINED: tuple[Quantity, ...] = ("training", "evaluation")
_FROZEN: tuple[Quantity, ...] = ("evaluation", "export", "lammps")

WAYS: dict[str, Way] = {
    "pt": Way("ours", _TRAINED, "pt"),
    "pt_expt": Way("ours", _TRAINED, "pt_expt"),
    "pt_expt+compile": Way("ours", _TRAINED, "pt_expt", compile=True),
    ".pt2": Way("ours", _FROZEN, "pt_expt", file=".pt2"),
    "jax": Way("ours", _TRAINED, "jax"),
    "numpy": Way("ours", _TRAINED, "numpy"),
    f"{PEER} pt": Way("peer", ("training",), "pt"),
    f"{PEER} pt-expt": Way("peer", ("training",), "pt-expt"),
    f"{PEER} pt-expt+compile": Way("peer", ("training",), "pt-expt", compile=True),
    f"{PEER} .pth": Way("peer", ("evaluation",), "pt", file=".pth"),
    f"{PEER} .pt2": Way("peer", _FROZEN, "pt-expt", file=".pt2"),
}
"""By the name in the table."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    quantity: Quantity
    name: str
    """A key of WAYS."""
    supercell: int = 1
    """How often the frame is repeated along each axis."""
    ranks: int = 0
    """LAMMPS: the number of processes."""
    setting: str = ""
    """LAMMPS: a key of `dynamics.SETTINGS`. Export: SEVERAL_RANKS, or nothing."""

    @property
    def way(self) -> Way:
        """What the name stands for."""
        return WAYS[self.name]

    def kind(self) -> tuple[str, str, str]:
        """What processes of one kind share: they import the same modules."""
        return self.model, self.quantity, self.name

    def question(self) -> tuple[str, str, int, int]:
        """What cases share whose figures are compared."""
        return self.model, self.quantity, self.supercell, self.ranks

    def what(self) -> str:
        """The quantity, as the table names it."""
        ranks = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        words = ["LAMMPS", ranks, self.setting] if self.quantity == "lammps" else [self.quantity, self.setting]
        return ", ".join(word for word in words if word)
