"""Types of options: whether a JSON value fits an annotation, and what to call it in a message.

The annotations of a `Config` are the only declaration. Integers are numbers, but true and false are neither
(Python's `isinstance(True, int)` would let them through).
"""

from __future__ import annotations

import functools
import json
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

from dpmodel.config import Config, Option, freeze, thaw

__all__ = ["accepts", "coerce", "describe", "dtypes", "hints", "option_of", "problem", "show"]


_HINTS: dict[type[Config], dict[str, Any]] = {}


def hints(cls: type[Config]) -> dict[str, Any]:
    """The resolved annotations of a `Config`'s options."""
    if cls not in _HINTS:
        found = typing.get_type_hints(cls)
        _HINTS[cls] = {name: found[name] for name in cls.options()}
    return _HINTS[cls]


def option_of(cls: type[Config], name: str) -> Option:
    """What the declaration of option `name` says."""
    return typing.cast(Option, cls.options()[name].metadata.get("option", Option(doc="")))


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_mapping(hint: Any) -> bool:
    base = typing.get_origin(hint) or hint
    return isinstance(base, type) and issubclass(base, Mapping | Config)


def accepts(hint: Any, value: Any) -> bool:
    """Whether a JSON value (lists, not tuples) fits an annotation."""
    if len(_members(hint)) > 1:
        return any(accepts(member, value) for member in _members(hint))
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, list):
            return False
        if len(items) == 2 and items[1] is Ellipsis:
            return all(accepts(items[0], item) for item in value)
        return len(items) == len(value) and all(map(accepts, items, value))
    if _is_mapping(hint):
        return isinstance(value, dict)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def coerce(hint: Any, value: Any) -> Any:
    """`value` with integers turned into floats where the annotation asks for numbers. `value` must be accepted."""
    if len(_members(hint)) > 1:
        fitting = [coerce(member, value) for member in _members(hint) if accepts(member, value)]
        return next((item for item in fitting if repr(item) == repr(value)), fitting[0])
    if hint is float:
        return float(value)
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if len(items) == 2 and items[1] is Ellipsis:
            return [coerce(items[0], item) for item in value]
        return [coerce(kind, item) for kind, item in zip(items, value, strict=True)]
    return value


_NAMES: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false values"),
    str: ("a string", "strings"),
    type(None): ("null", "nulls"),
    Any: ("any value", "any values"),
}


def _names(hint: Any) -> tuple[str, str]:
    """Singular and plural."""
    members = _members(hint)
    if len(members) > 1:
        singular, plural = ([_names(member)[k] for member in members] for k in (0, 1))
        return f"{', '.join(singular[:-1])} or {singular[-1]}", f"{', '.join(plural[:-1])} or {plural[-1]}"
    if hint in _NAMES:
        return _NAMES[hint]
    if _is_mapping(hint):
        return "a section {...}", "sections"
    items = typing.get_args(hint)
    if len(items) == 2 and items[1] is Ellipsis:
        return f"a list of {_names(items[0])[1]}", f"lists of {_names(items[0])[1]}"
    return f"a list of {len(items)} {_names(items[0])[1]}", f"lists of {len(items)} {_names(items[0])[1]}"


def describe(hint: Any) -> str:
    """An annotation in words: "an integer", "a list of numbers or null"."""
    return _names(hint)[0]


def dtypes(hint: Any) -> list[Any]:
    """The annotation as dargs types, in a fixed order."""
    if hint is Any:
        return [bool, int, float, str, list, dict, type(None)]
    out: list[Any] = []
    for member in _members(hint):
        if typing.get_origin(member) is tuple:
            items = [dtypes(item) for item in typing.get_args(member) if item is not Ellipsis]
            flat = [kind for item in items for kind in item]
            out.append(list if Any in typing.get_args(member) else list[functools.reduce(operator.or_, flat)])  # type: ignore[misc]  # a type made at run time
        else:
            out.append(dict if _is_mapping(member) else member)
    return out


def problem(hint: Any, info: Option, default: Any, value: Any) -> str | None:
    """None if `value` is legal, else what would be ("a number above 0")."""
    if info.effect == "refused":
        return None if value == thaw(default) else show(thaw(default))
    if not accepts(hint, value):
        return describe(hint)
    if info.choices and value not in thaw(info.choices):
        return f"one of {', '.join(show(choice) for choice in thaw(info.choices))}"
    if info.check is not None and value is not None:
        try:
            return info.check(freeze(coerce(hint, value)))
        except TypeError:  # the annotation allows more types than the check can compare
            return "a value of another type"
    return None


def show(value: Any) -> str:
    """A value for a message, as JSON, shortened."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
