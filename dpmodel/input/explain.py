"""What dargs finds wrong, in words a user can act on: path, expected, got, nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from dargs.dargs import ArgumentError

from dpmodel.config import Config, Option
from dpmodel.errors import InputError
from dpmodel.input.scope import FOREIGN_KEYS, instead_of
from dpmodel.input.values import describe, hints, option_of, problem, show

__all__ = ["explain"]


def explain(error: ArgumentError, root: type[Config], data: Any) -> InputError:
    """The InputError for what dargs found in `data`."""
    parts = [part for part in error.path.split("/") if part]
    found = re.search(r"key `(.*?)`", error.message or "")
    if found is None:
        return InputError(f"{'.'.join(parts) or 'input'}: {error.message}")
    key, (cls, info, here) = found.group(1), _descend(root, data, parts)
    path = ".".join([*parts, key])
    if parts and parts[-1] == key and not isinstance(here, dict) and "requires dict" in (error.message or ""):
        return InputError(f"{'.'.join(parts)}: expected a section {{...}}, got {show(here)}")
    if key == "type" and info is not None and info.kinds is not None and any(kind.key for kind in info.kinds()):
        return _wrong_kind(".".join(parts), info, here)
    if cls is None:
        return InputError(f"{path}: {error.message}")
    if (error.message or "").startswith("undefined key"):
        return InputError(f"{path}: {_unknown(root, cls, key)}")
    hint, option = hints(cls)[key], option_of(cls, key)
    if key not in here:
        return InputError(f"{path}: missing; expected {describe(hint)} ({option.doc.rstrip('.')})")
    value = here[key]
    expected = problem(hint, option, cls.options()[key].default, value) or describe(hint)
    if option.effect == "refused":
        return InputError(
            f"{path}: not available in this version, got {show(value)}. {option.doc} Accepted: {expected}, or no key"
        )
    hint_text = ""
    if option.choices and isinstance(value, str):
        close = difflib.get_close_matches(value, [c for c in option.choices if isinstance(c, str)], n=1)
        hint_text = f'; did you mean "{close[0]}"?' if close else ""
    return InputError(f"{path}: expected {expected}, got {show(value)}{hint_text}")


def _descend(root: type[Config], data: Any, parts: list[str]) -> tuple[type[Config] | None, Option | None, Any]:
    """(`Config`, declaration, data) of the section at `parts`; the `Config` is None where its `type` is wrong."""
    cls: type[Config] | None = root
    info: Option | None = None
    named = False
    for part in parts:
        if cls is None:
            break
        if info is not None and info.many and isinstance(data, list):
            data = data[int(part)]
        elif named:
            data, named = data[part], False
        else:
            info, data = option_of(cls, part), data[part]
            named = info.named
        cls = info.kind(data) if isinstance(data, dict) and info is not None and not named else cls
    return cls, info, data


def _wrong_kind(path: str, info: Option, here: dict[str, Any]) -> InputError:
    known = [kind.key for kind in info.kinds()] if info.kinds is not None else []
    listed = ", ".join(show(name) for name in known)
    if "type" not in here:
        return InputError(f"{path}.type: missing; expected one of {listed}")
    value = here["type"]
    if not isinstance(value, str):
        return InputError(f"{path}.type: expected one of {listed}, got {show(value)}")
    place = re.sub(r"^model\.model_dict\..+?(?=\.(descriptor|fitting_net|models)\b|$)", "model", path)
    why = instead_of("loss" if path.startswith("loss_dict.") else place, value)
    if why is not None:
        return InputError(
            f"{path}.type: {show(value)} is not available in this version{why and f': {why}'}. Available: {listed}"
        )
    names = known + [alias for kind in (info.kinds() if info.kinds is not None else ()) for alias in kind.aliases]
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(value.lower(), list(folded), n=1)
    suffix = f"; did you mean {show(folded[close[0]])}?" if close else ""
    return InputError(f"{path}.type: expected one of {listed}, got {show(value)}{suffix}")


def _unknown(root: type[Config], cls: type[Config], key: str) -> str:
    """What to say of a key that its section does not have."""
    names = list(cls.options()) + (["type"] if cls.key else [])
    spellings = {alias: name for name in cls.options() for alias in option_of(cls, name).aliases}
    if key in spellings:
        return f'another spelling of "{spellings[key]}", which is given as well; keep one'
    first: dict[type[Config], tuple[str, str]] = {}  # the same section may also be a part of others
    for place, kind in _places(root):
        first.setdefault(kind, place)
    elsewhere = [place for kind, place in first.items() if kind is not cls and _has(kind, key)]
    if elsewhere:
        return f'unknown key; "{key}" belongs to {" or to ".join(_listed(elsewhere))}'
    if key in FOREIGN_KEYS:
        return f"unknown key; it belongs to {FOREIGN_KEYS[key]}, not available in this version"
    close = difflib.get_close_matches(key, [*names, *spellings], n=1)
    if close:
        return f'unknown key; did you mean "{spellings.get(close[0], close[0])}"?'
    offered = [name for name in names if name == "type" or option_of(cls, name).effect == "acts"]
    return f"unknown key; known here: {', '.join(offered)}"


def _listed(places: list[tuple[str, str]]) -> list[str]:
    """Places in words; the kinds of one place are not listed where there are many."""
    kinds: dict[str, list[str]] = {}
    for path, kind in dict.fromkeys(places):
        kinds.setdefault(path, []).append(kind)
    return [
        text
        for path, names in kinds.items()
        for text in ([_place(path, name) for name in names] if len(names) < 3 else [f"{path} of several types"])
    ]


def _place(path: str, kind: str) -> str:
    return f'{path} of type "{kind}"' if kind else path or "the top level"


def _has(cls: type[Config], key: str) -> bool:
    return any(key == name or key in option_of(cls, name).aliases for name in cls.options())


def _places(cls: type[Config], path: str = "") -> Iterator[tuple[tuple[str, str], type[Config]]]:
    """((path, type), `Config`) of every section of the format."""
    yield (path, cls.key), cls
    for name in cls.options():
        info = option_of(cls, name)
        for kind in info.kinds() if info.kinds is not None else ():
            yield from _places(kind, f"{path}.{name}{'.<task>' if info.named else ''}".lstrip("."))
