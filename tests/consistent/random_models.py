"""Random models: any section of an input file that is legal, with options drawn from what is declared.

An option of `choices`, or a flag, is drawn from its declaration; every other one has a rule in `random_rules.py`. An
option that is neither fails by name as soon as its section is drawn, so that nothing new goes untested by accident.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np

from dpmodel.config import Config, Option
from dpmodel.descriptors import CONFIGS as DESCRIPTORS
from dpmodel.fittings import CONFIGS as FITTINGS
from dpmodel.geometry import neighbour_counts
from dpmodel.models.config import LinearConfig, ModelConfig

from .random_atoms import Atoms, draw_atoms
from .random_rules import RULES, Rule

__all__ = ["KINDS", "Options", "RandomModel", "Scene", "draw_scene", "models", "rule_of"]

KINDS: tuple[type[Config], ...] = (*DESCRIPTORS, *FITTINGS)
ELEMENTS = ("O", "H", "Na", "Cu", "B")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """What the options of a section have to fit to."""

    types: tuple[str, ...]
    atoms: Atoms
    slack: int
    """Slots that stay empty around the atom with most neighbours; below 0: neighbours are cut off."""
    fparam: int
    aparam: int
    """Numbers of parameters of those parts that have any."""
    tables: Path
    """Folder of pair tables by number of types: 1.txt, ..."""
    single: bool
    """Whether float32 may take part."""
    spin: np.ndarray | None = None
    """Displacements of virtual atoms."""

    @property
    def ntypes(self) -> int:
        return len(self.types)

    def capacity(self, rcut: float) -> int:
        """Slots for neighbours of all types: the more, the larger the cutoff."""
        found = self._count(rcut)[1]
        return max(1, found + self.slack if self.slack >= 0 else found // 2)

    def capacities(self, rcut: float) -> list[int]:
        """By type; a virtual atom has as many slots as the atom that it belongs to."""
        counts = self._count(rcut)[0].reshape(-1, self.atoms.ntypes).max(axis=0)
        found = [int(count) + self.slack if self.slack >= 0 else (int(count) + 1) // 2 for count in counts]
        return found if any(found) else [1] * self.ntypes

    def _count(self, rcut: float) -> tuple[np.ndarray, int, float]:
        """Largest number of neighbours by type and in total, and the smallest distance."""
        found = [neighbour_counts(*frame, self.atoms.pbc, rcut, n) for *frame, n in self.atoms.with_virtual(self.spin)]
        return (
            np.max([each[0] for each in found], axis=0),
            max(each[1] for each in found),
            min(each[2] for each in found),
        )


class Options(dict[str, Any]):
    """The options of one section, each drawn when it is first asked for."""

    def __init__(self, rng: random.Random, kind: type[Config], scene: Scene, parent: Options | None = None) -> None:
        super().__init__()
        self.rng, self.kind, self.scene, self.parent = rng, kind, scene, parent

    def __missing__(self, name: str) -> Any:
        self[name] = rule_of(self.kind, name)(self)
        return self[name]

    def of(self, kind: type[Config], scene: Scene | None = None) -> Options:
        """A section below this one."""
        return Options(self.rng, kind, scene or self.scene, self)

    def section(self) -> dict[str, Any]:
        """The section as a file has it, under any of the names that options and kinds go by."""
        written: dict[str, Any] = {}
        if self.kind.key and (self.parent is not None or self.kind is LinearConfig):
            written["type"] = self.rng.choice((self.kind.key, *self.kind.aliases))
        for name, field in self.kind.options().items():
            info: Option = field.metadata["option"]
            if info.effect == "acts":
                value = self[name]
                written[self.rng.choice((name, *info.aliases))] = _plain(value)
        return written


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return value.section()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def rule_of(kind: type[Config], name: str) -> Rule:
    """What draws an option. Raises LookupError where nothing is known about it."""
    for cls in kind.__mro__:
        if f"{cls.__name__}.{name}" in RULES:
            return RULES[f"{cls.__name__}.{name}"]
    if name in RULES:
        return RULES[name]
    field = kind.options()[name]
    info: Option = field.metadata["option"]
    if info.choices:
        return lambda o: o.rng.choice(info.choices)
    if isinstance(field.default, bool):
        return lambda o: o.rng.random() < 0.5
    raise LookupError(f"tests/consistent/random_rules.py: say in RULES how {kind.__name__}.{name} is drawn")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RandomModel:
    """A section of an input file, and what to evaluate the model on."""

    section: dict[str, Any]
    atoms: Atoms
    spin: np.ndarray | None
    truncates: bool
    """Whether `sel` may be below the number of neighbours."""


def draw_scene(rng: random.Random, tables: Path) -> Scene:
    """Atoms, and what sections have in common. tables: folder of pair tables by number of types (`1.txt`, ...)."""
    atoms = draw_atoms(rng)
    return Scene(
        types=tuple(rng.sample(ELEMENTS, atoms.ntypes)), atoms=atoms, tables=tables, slack=rng.choice([0, 0, 1, 2, 3, -1]),
        fparam=rng.randint(1, 2), aparam=rng.randint(1, 2), single=rng.random() < 0.1,
    )  # fmt: skip


@st.composite
def models(draw: st.DrawFn, tables: Path, kind: str) -> RandomModel:
    """Any model with a descriptor of that kind, or a sum of models ("linear_ener").

    One seed makes all of it: what hypothesis varies by itself are neighbours of earlier examples.
    """
    rng = draw(st.randoms(use_true_random=True))
    scene = draw_scene(rng, tables)
    whole = Options(rng, LinearConfig if kind == LinearConfig.key else ModelConfig, scene)
    whole["_kinds"] = tuple(each for each in DESCRIPTORS if each.key == kind)
    return RandomModel(section=whole.section(), atoms=scene.atoms, spin=whole.get("_spin"), truncates=scene.slack < 0)
