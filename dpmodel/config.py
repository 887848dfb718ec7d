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
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

__all__ = [
    "MISSING",
    "Config",
    "FrozenDict",
    "Option",
    "at_least",
    "automatic",
    "capacity",
    "named_sections",
    "option",
    "positive",
    "section",
    "sections",
]

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
    """"acts"; "ignored": accepted for the sake of existing inputs, with one warning that it has no effect;
    "refused": known, but not offered by this version; only the default is accepted, `doc` says what to do instead."""
    kinds: Callable[[], tuple[type[Config], ...]] | None = None
    """For a nested section: the `Config`s it may be. More than one, or one with a `key`, are told apart by `type`."""
    default_kind: str = ""
    """The `type` of a nested section that names none; empty if it has to."""
    many: bool = False
    """Whether there is a list of nested sections."""
    named: bool = False
    """Whether there are nested sections by names that the user chooses."""

    def kind(self, data: Mapping[str, Any]) -> type[Config] | None:
        """The `Config` that a nested section asks for; None if its `type` is unknown or missing."""
        kinds = self.kinds() if self.kinds is not None else ()
        if len(kinds) == 1 and not kinds[0].key:
            return kinds[0]
        name = data.get("type", self.default_kind)
        return next((kind for kind in kinds if name == kind.key or name in kind.aliases), None)


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


def section(
    kinds: Callable[[], tuple[type[Config], ...]],
    doc: str = "",
    *,
    default: Any = MISSING,
    default_kind: str = "",
    effect: str = "acts",
) -> Any:
    """Declare a nested section: one `Config` out of `kinds()` (a function, so that registries may grow)."""
    info = Option(doc=doc, effect=effect, kinds=kinds, default_kind=default_kind)
    return dataclasses.field(default=default, metadata={"option": info})


def sections(kinds: Callable[[], tuple[type[Config], ...]], doc: str = "", *, default_kind: str = "") -> Any:
    """Declare a list of nested sections, each one `Config` out of `kinds()`."""
    info = Option(doc=doc, kinds=kinds, many=True, default_kind=default_kind)
    return dataclasses.field(default=MISSING, metadata={"option": info})


def named_sections(
    kinds: Callable[[], tuple[type[Config], ...]], doc: str = "", *, default: Any = MISSING, default_kind: str = ""
) -> Any:
    """Declare nested sections by names that the user chooses, each one `Config` out of `kinds()`."""
    info = Option(doc=doc, kinds=kinds, named=True, default_kind=default_kind)
    return dataclasses.field(default=default, metadata={"option": info})


def positive(value: Any) -> str | None:
    """Check: a number above zero."""
    return None if value > 0 else "a number above 0"


def at_least(bound: float) -> Callable[[Any], str | None]:
    """Check: a number not below `bound`."""
    return lambda value: None if value >= bound else f"a number of at least {bound}"


def automatic(value: str) -> str | None:
    """Check: a text that stands for a capacity which the data decide."""
    form = re.fullmatch(r"auto(?::(.+))?", value)
    try:
        factor = float(form[1] or 1.1) if form else math.nan
    except ValueError:
        factor = math.nan
    fits = math.isfinite(factor) and factor > 0
    return None if fits else '"auto" or "auto:f" with a factor f above 0, as in "auto:1.1"'


def capacity(value: Any) -> str | None:
    """Check: a number of neighbours, "auto" or "auto:f"."""
    if isinstance(value, str):
        return automatic(value)
    fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return None if fits else 'an integer above 0, "auto" or "auto:f"'


class Config:
    """Base of all declared sections: a frozen, hashable, keyword-only dataclass.

    `key` is the section's `type` in an input file where several kinds share a place (descriptor,
    fitting_net, loss, ...); `aliases` are other spellings of it.
    """

    key: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:
        # Not dataclass_transform: type checkers find a field's default only if it is passed by keyword.
        def __init__(self, **options: Any) -> None: ...

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
        """Build from a normalised section; `type` is dropped, lists become tuples, sections become `Config`s.

        Raises TypeError naming unknown keys, ValueError naming an unknown `type` (use `dpmodel.input` to validate
        what a user wrote).
        """
        known = cls.options()
        unknown = sorted(data.keys() - known.keys() - {"type"})
        if unknown:
            raise TypeError(f"{cls.__name__} has no option {unknown}; it has {sorted(known)}")
        return cls(**{name: _nested(known[name], value) for name, value in data.items() if name in known})

    def check(self) -> None:
        """Raise InputError where options contradict each other. `dpmodel.input` calls it on every section."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `type` (if there is one) and every option, tuples as lists."""
        out: dict[str, Any] = {"type": self.key} if self.key else {}
        out.update({name: thaw(getattr(self, name)) for name in self.options()})
        return out

    def replace(self: C, **changes: Any) -> C:
        """A copy with some options replaced."""
        return cast(C, dataclasses.replace(cast(Any, self), **changes))


class FrozenDict(dict[str, Any]):
    """A dictionary that cannot be changed and can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]  # dict declares __hash__ = None; this one never changes
        return hash(frozenset(self.items()))

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise TypeError("the values of a Config cannot be changed; use config.replace(...)")

    __setitem__ = __delitem__ = update = clear = pop = popitem = setdefault = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def _nested(field: dataclasses.Field[Any], value: Any) -> Any:
    info: Option = field.metadata["option"] if "option" in field.metadata else Option(doc="")
    if info.kinds is not None and info.many and isinstance(value, list | tuple):
        return tuple(_section_of(info, field.name, item) if isinstance(item, Mapping) else item for item in value)
    if info.kinds is not None and info.named and isinstance(value, Mapping):
        items = {name: _section_of(info, name, v) if isinstance(v, Mapping) else v for name, v in value.items()}
        return FrozenDict(items)
    return (
        _section_of(info, field.name, value) if info.kinds is not None and isinstance(value, Mapping) else freeze(value)
    )


def _section_of(info: Option, name: str, value: Mapping[str, Any]) -> Config:
    kind = info.kind(value)
    if kind is None:
        names = [k.key for k in info.kinds()] if info.kinds is not None else []
        raise ValueError(f"{name}: expected type to be one of {names}, got {value.get('type')!r}")
    return kind.from_dict(value)


def freeze(value: Any) -> Any:
    """Lists to tuples, dictionaries to `FrozenDict`s, recursively."""
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if isinstance(value, dict):
        return FrozenDict({str(name): freeze(item) for name, item in value.items()})
    return value


def thaw(value: Any) -> Any:
    """The inverse of `freeze`, and `Config`s to dictionaries."""
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, dict):
        return {name: thaw(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value
