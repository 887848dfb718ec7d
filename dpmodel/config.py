"""`Config`: a hyper-parameter is declared once, and everything else derives from the declaration.

::

    class SeAConfig(Config, key="se_e2_a", aliases=("se_a",)):
        \"\"\"Two-body embedding with full coordinates.\"\"\"

        rcut: float = option(6.0, "Cutoff radius.", unit="Å", check=positive)
        neuron: tuple[int, ...] = option((10, 20, 40), "Widths of the embedding net.")

Defaults are those of the input file. The constructor is the dataclass's own; the dargs schema
(`dpmodel.input`), the `doc` command and the reference pages are generated from the fields. Values are
immutable (tuples, not lists), so a `Config` can be a static field of an `Op`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform

__all__ = ["MISSING", "Config", "Option", "at_least", "option", "positive"]

C = TypeVar("C", bound="Config")

MISSING = dataclasses.MISSING
"""Default of a required option."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """What a declaration says besides name, type and default."""

    doc: str
    unit: str = ""
    aliases: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    check: Callable[[Any], str | None] | None = None
    """Returns None for a legal value, else what a legal one would be ("a positive number")."""
    effect: str = "acts"
    """"acts", or "ignored": accepted for the sake of existing inputs, with one warning that it has no effect."""


def option(
    default: Any = MISSING,
    doc: str = "",
    *,
    unit: str = "",
    aliases: tuple[str, ...] = (),
    choices: tuple[Any, ...] = (),
    check: Callable[[Any], str | None] | None = None,
    effect: str = "acts",
) -> Any:
    """Declare one hyper-parameter of a `Config`. Without a default it is required."""
    info = Option(doc=doc, unit=unit, aliases=aliases, choices=choices, check=check, effect=effect)
    return dataclasses.field(default=default, metadata={"option": info})


def positive(value: Any) -> str | None:
    """Check: a number above zero."""
    return None if value > 0 else "a number above 0"


def at_least(bound: float) -> Callable[[Any], str | None]:
    """Check: a number not below `bound`."""
    return lambda value: None if value >= bound else f"a number of at least {bound}"


@dataclass_transform(field_specifiers=(option,), kw_only_default=True, frozen_default=True)
class Config:
    """Base of all declared sections: a frozen, hashable, keyword-only dataclass.

    `key` is the section's `type` in an input file where several kinds share a place (descriptor,
    fitting_net, loss, ...); `aliases` are other spellings of it.
    """

    key: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, key: str | None = None, aliases: tuple[str, ...] = (), **rest: Any) -> None:
        super().__init_subclass__(**rest)
        dataclasses.dataclass(kw_only=True, frozen=True)(cls)
        if key is not None:
            cls.key, cls.aliases = key, aliases

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """The declared fields by name."""
        return {f.name: f for f in dataclasses.fields(cast(Any, cls))}

    @classmethod
    def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
        """Build from a normalised section; `type` is dropped, lists become tuples.

        Raises TypeError naming unknown keys (use `dpmodel.input` to validate what a user wrote).
        """
        known = cls.options()
        unknown = sorted(data.keys() - known.keys() - {"type"})
        if unknown:
            raise TypeError(f"{cls.__name__} has no option {unknown}; it has {sorted(known)}")
        return cls(**{name: freeze(value) for name, value in data.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `type` (if there is one) and every option, tuples as lists."""
        out: dict[str, Any] = {"type": self.key} if self.key else {}
        out.update({name: thaw(getattr(self, name)) for name in self.options()})
        return out

    def replace(self: C, **changes: Any) -> C:
        """A copy with some options replaced."""
        return cast(C, dataclasses.replace(cast(Any, self), **changes))


def freeze(value: Any) -> Any:
    """Lists to tuples, recursively; dictionaries are left as they are."""
    return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value


def thaw(value: Any) -> Any:
    """The inverse of `freeze`, and `Config`s to dictionaries."""
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value
