"""From `Config`s to a dargs schema, and from a checked input to `Config`s.

dargs validates: structure, types, required keys, aliases, defaults, strictness. What it finds is explained in
the project's own words (`explain.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from dargs import Argument, Variant
from dargs.dargs import ArgumentError

from dpmodel.config import MISSING, Config, FrozenDict, Option, thaw
from dpmodel.errors import InputError
from dpmodel.input.explain import explain
from dpmodel.input.values import coerce, dtypes, hints, option_of, problem, show

__all__ = ["arguments", "build", "normalise", "schema"]

C = TypeVar("C", bound=Config)


def schema(cls: type[Config], *, name: str = "input", offered_only: bool = False) -> Argument:
    """The dargs schema of a whole `Config`. `offered_only` leaves out what this version refuses (for the docs)."""
    return Argument(name, dict, arguments(cls, offered_only), doc=_doc(cls))


def arguments(cls: type[Config], offered_only: bool = False) -> list[Argument]:
    """The dargs arguments of a `Config`'s options, in the order of declaration."""
    names = [name for name in cls.options() if not (offered_only and option_of(cls, name).effect == "refused")]
    return [_argument(cls, name, offered_only) for name in names]


def _argument(cls: type[Config], name: str, offered_only: bool) -> Argument:
    info, hint, default = option_of(cls, name), hints(cls)[name], cls.options()[name].default
    types = dtypes(hint)
    options: dict[str, Any] = {"optional": default is not MISSING, "alias": list(info.aliases), "doc": text(info)}
    if default is not MISSING and not isinstance(default, Config):
        options["default"] = thaw(default)
    if info.kinds is None:
        options["extra_check"] = lambda value: problem(hint, info, default, value) is None
    elif _keyless(info):
        options["sub_fields"] = arguments(info.kinds()[0], offered_only)
        if info.named:
            options["repeat"], types = True, [dict]
    else:
        choices = [
            Argument(kind.key, dict, arguments(kind, offered_only), alias=list(kind.aliases), doc=_doc(kind))
            for kind in info.kinds()
        ]
        optional = bool(info.default_kind)
        options["sub_variants"] = [Variant("type", choices, optional=optional, default_tag=info.default_kind)]
        if info.many:
            options["repeat"], types = True, [list]
        if info.named:
            options["repeat"], types = True, [dict]
    argument = Argument(name, types, **options)
    argument.dtype = tuple(types)  # dargs keeps a set: its order would change the generated pages from run to run
    return argument


def _keyless(info: Option) -> bool:
    kinds = info.kinds() if info.kinds is not None else ()
    return len(kinds) == 1 and not kinds[0].key


def text(info: Option) -> str:
    """The meaning of an option, with unit and effect."""
    out = info.doc + (f" Unit: {info.unit}." if info.unit else "")
    if info.choices:
        out += f" One of {', '.join(show(choice) for choice in thaw(info.choices))}."
    if info.effect == "ignored":
        out += " Accepted, without effect."
    if info.effect == "refused":
        out = "Not available in this version. " + out
    return out.strip()


def _doc(cls: type[Config]) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def normalise(cls: type[Config], data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Check `data` (plain, changed in place) against `cls`: (normalised data, notes on keys without effect).

    Aliases are resolved, keys `_*` dropped, defaults filled in, integers made floats where numbers are meant.
    Normalising the result again gives the same. Raises InputError.
    """
    argument = schema(cls)
    try:
        argument.normalize_value(data, inplace=True, do_default=False, trim_pattern="_*")
        _open_sections(cls, data)
        argument.check_value(data, strict=True)
    except ArgumentError as error:
        raise explain(error, cls, data) from None
    notes = _notes(cls, data)
    argument.normalize_value(data, inplace=True, do_alias=False)
    _coerce(cls, data)
    return data, notes


def _sections(cls: type[Config], data: dict[str, Any]) -> Iterator[tuple[str, type[Config], dict[str, Any]]]:
    """(place, `Config`, data) of the nested sections that are there and of a known kind.

    Places are `name`; `name.0`, ... of those in lists; `name.own` of those that have names of their own.
    """
    for name in cls.options():
        info, value = option_of(cls, name), data.get(name)
        items: dict[str, Any] = {name: value}
        if info.many and isinstance(value, list):
            items = {f"{name}.{k}": item for k, item in enumerate(value)}
        elif info.named and isinstance(value, dict):
            items = {f"{name}.{own}": item for own, item in value.items()}
        for place, item in items.items():
            if isinstance(item, dict) and (kind := info.kind(item)) is not None:
                yield place, kind, item


def _open_sections(cls: type[Config], data: dict[str, Any]) -> None:
    """Insert {} for absent sections that have a default, so that theirs are filled in (dargs leaves them out)."""
    for name, field in cls.options().items():
        if isinstance(field.default, Config):
            data.setdefault(name, {})
    for _, kind, value in _sections(cls, data):
        _open_sections(kind, value)


def _notes(cls: type[Config], data: dict[str, Any], path: str = "") -> list[str]:
    """One warning for each key that was given, differs from its default, and has no effect."""
    notes = []
    for name, field in cls.options().items():
        info = option_of(cls, name)
        if info.effect == "ignored" and name in data and data[name] != thaw(field.default):
            notes.append(f"{path}{name}: accepted, but it has no effect ({info.doc.rstrip('.')})")
    for name, kind, value in _sections(cls, data):
        notes += _notes(kind, value, f"{path}{name}.")
    return notes


def _coerce(cls: type[Config], data: dict[str, Any]) -> None:
    for name, value in data.items():
        if name in cls.options() and option_of(cls, name).kinds is None:
            data[name] = coerce(hints(cls)[name], value)
    for _, kind, value in _sections(cls, data):
        if kind.key:
            value["type"] = kind.key
        _coerce(kind, value)


def build(cls: type[C], data: dict[str, Any], path: str = "") -> C:
    """The `Config` of normalised data; sections become `Config`s.

    Raises InputError with the path, also where a `Config` itself refuses a combination of its options.
    """
    nested: dict[str, Any] = {}
    for place, kind, value in _sections(cls, data):
        name, _, own = place.partition(".")
        config = build(kind, value, f"{path}.{place}".lstrip("."))
        if option_of(cls, name).named:
            nested[name] = FrozenDict({**nested.get(name, {}), own: config})
        else:
            nested[name] = (*nested.get(name, ()), config) if own else config
    try:
        config = cls.from_dict({**data, **nested})
        config.check()
    except InputError as error:
        said = str(error)
        if not path or said.startswith(path):
            raise
        option = re.match(r"\w+(?=[.:])", said)
        raise InputError(f"{path}{'.' if option and option[0] in cls.options() else ': '}{said}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}" if path else str(error)) from None
    return config
