"""Changing the types of a model: another order, fewer, more.

    change = TypeChange(old=("O", "H"), new=("H", "O", "C"))

Every Op that has something by type has a method `with_types(change)`. A new order changes no number. Of a type that is
dropped nothing is left. A type that is new has neutral statistics (mean 0, deviation 1, bias 0) and a random row in the
embedding, so it means nothing before it was trained. Nets of their own, as se_e2_a has for every type, cannot be made up,
and its capacities by type count in its numbers: such descriptors take another order alone.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from dpmodel.config import Config, FrozenDict
from dpmodel.errors import InputError

__all__ = ["TypeChange"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TypeChange:
    """From one type map to another, by symbol. Raises InputError for a map that is none."""

    old: tuple[str, ...]
    new: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.new or len(set(self.new)) != len(self.new) or not all(isinstance(name, str) for name in self.new):
            raise InputError(f"type_map: expected different symbols, at least one; got {list(self.new)}")
        if not set(self.new) & set(self.old):
            raise InputError(f"type_map: the model has {list(self.old)}, none of which is in {list(self.new)}")

    @property
    def added(self) -> tuple[str, ...]:
        """Symbols that are new."""
        return tuple(name for name in self.new if name not in self.old)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Symbols that are no more."""
        return tuple(name for name in self.old if name not in self.new)

    @property
    def sources(self) -> tuple[int | None, ...]:
        """By new type, the old one; None: there was none."""
        return tuple(self.old.index(name) if name in self.old else None for name in self.new)

    def only_order(self, what: str, why: str) -> None:
        """Raise InputError where types are added or dropped."""
        if self.added or self.dropped:
            raise InputError(
                f"type_map: {what} takes the types {list(self.old)} in another order alone, got {list(self.new)}: {why}. "
                f"Train a model with these types anew"
            )

    def none_added(self, what: str, why: str) -> None:
        """Raise InputError where types are added."""
        if self.added:
            raise InputError(f"type_map: {what} cannot learn of {', '.join(self.added)}: {why}")

    # --- what is by type ------------------------------------------------------------------------------

    def rows(self, array: Any, fill: float) -> np.ndarray:
        """An array whose first axis counts types; rows of new types hold `fill`."""
        old = np.asarray(array)
        out = np.full((len(self.new), *old.shape[1:]), fill, old.dtype)
        for k, source in enumerate(self.sources):
            if source is not None:
                out[k] = old[source]
        return out

    def values(self, values: Sequence[T], fill: T) -> tuple[T, ...]:
        """A list with an entry per type."""
        return tuple(fill if source is None else values[source] for source in self.sources)

    def types(self, types: Sequence[int]) -> tuple[int, ...]:
        """A list of types; those that are dropped leave it."""
        return tuple(self.new.index(self.old[t]) for t in types if self.old[t] in self.new)

    def pairs(self, pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
        """A list of pairs of types; those with one that is dropped leave it."""
        found = (self.types(pair) for pair in pairs)
        return tuple((pair[0], pair[1]) for pair in found if len(pair) == 2)

    def networks(self, networks: Sequence[T], axes: int, *, ordered: bool = True) -> tuple[T, ...]:
        """Nets by type (one axis) or by pair (two), the first type fastest. Needs an old type for every new one.

        ordered: False where pairs have one net, at the smaller type first; the other is stored and not used.
        """
        sources = [source for source in self.sources if source is not None]
        if axes == 1:
            return tuple(networks[a] for a in sources)
        n, found = len(self.old), []
        for j, b in enumerate(sources):
            for i, a in enumerate(sources):
                one, other = (a, b) if ordered or (i <= j) == (a <= b) else (b, a)
                found.append(networks[one + n * other])
        return tuple(found)

    def random_rows(self, width: int) -> np.ndarray:
        """(new types, width), uniform in [0, 1); the row of a symbol is always the same."""
        rows = [np.random.default_rng(zlib.crc32(name.encode())).random(width) for name in self.new]
        return np.stack(rows)

    def by_output(self, preset: FrozenDict | None) -> FrozenDict | None:
        """Presets by output: a list with an entry per type, None for new ones."""
        return None if preset is None else FrozenDict({name: self.values(row, None) for name, row in preset.items()})

    def section(self, config: Any) -> Any:
        """The options with types renamed, whichever of them the section has."""
        changes: dict[str, Any] = {}
        names = config.options() if isinstance(config, Config) else {}
        if "exclude_types" in names:
            changes["exclude_types"] = self.pairs(config.exclude_types)
        if "atom_ener" in names and config.atom_ener:
            # Types beyond the end of the list count as given.
            given = [*config.atom_ener, *[0.0] * (len(self.old) - len(config.atom_ener))]
            changes["atom_ener"] = self.values(given, None)
        if "scale" in names and isinstance(config.scale, tuple | list) and len(config.scale) == len(self.old):
            changes["scale"] = self.values(config.scale, 1.0)
        if getattr(config, "typed", False):
            changes["sel"] = self.values(config.sel, 0)
        return config.replace(**changes) if changes else config
