"""The model section of several tasks: defaults of all, and definitions that tasks share by name.

    model: {
        "shared_dict": {"types": ["O", "H"], "dpa": {"type": "dpa1", ...}},
        "model_dict": {
            "water": {"type_map": "types", "descriptor": "dpa:0", "fitting_net": {...}},
            "ice": {"type_map": "types", "descriptor": "dpa", "fitting_net": {...}},
        },
        "data_stat_nbatch": 20,                     # of both
    }

`expand` writes everything out, so that every task has a whole section, and keeps what was shared; `folded` is its inverse.
Plain data alone: no schema is needed here.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dpmodel.errors import InputError
from dpmodel.models.multi_task import Link, Place, Shared

__all__ = ["Expanded", "expand", "folded", "inlined"]

_REFERENCE = re.compile(r"(?P<name>.*?)(:(?P<level>-?\d+))?$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expanded:
    """What `expand` found."""

    models: dict[str, dict[str, Any]]
    """By task, its whole section."""
    shared: tuple[Shared, ...]
    """Descriptors and fitting nets that tasks share; a definition that one place uses is there too."""
    references: dict[Place, str]
    """Texts that stood for definitions, by their place: ("model_dict", "water", "descriptor")."""
    homes: dict[str, tuple[str, Place]]
    """By definition, a task and the place in its section where it is written out."""
    origins: tuple[tuple[str, str], ...]
    """(path in the expanded section, path where the user wrote it), for messages; the first that fits counts."""


def expand(model: Mapping[str, Any]) -> Expanded:
    """Write out a `model` section with `model_dict`; `model` is not changed. Raises InputError naming the place."""
    tasks, definitions = model["model_dict"], model.get("shared_dict") or {}
    for name, value in (("model_dict", tasks), ("shared_dict", definitions)):
        if not isinstance(value, Mapping):
            raise InputError(f"model.{name}: expected a section {{...}}, got {type(value).__name__}")
    tasks = {name: part for name, part in tasks.items() if not name.startswith("_")}
    definitions = {name: part for name, part in definitions.items() if not name.startswith("_")}
    if not tasks:
        raise InputError("model.model_dict: expected at least one task, got none")
    for name in tasks:
        _check_name(name)
    own = ("model_dict", "shared_dict")
    common = {key: value for key, value in model.items() if key not in own and not key.startswith("_")}
    for key in common:
        if close := difflib.get_close_matches(key, own, n=1, cutoff=0.8):
            raise InputError(f'model.{key}: unknown key; did you mean "{close[0]}"?')
    walk = _Walk(definitions)
    models: dict[str, dict[str, Any]] = {}
    origins: list[tuple[str, str]] = []
    for name, part in tasks.items():
        if not isinstance(part, Mapping):
            raise InputError(f"model.model_dict.{name}: expected a section {{...}}, got {type(part).__name__}")
        section = copy.deepcopy(dict(part))
        for key, value in common.items():
            if key not in section:
                section[key] = copy.deepcopy(value)
                origins.append((f"model.model_dict.{name}.{key}", f"model.{key}"))
        walk.section(name, section)
        models[name] = section
    unused = [name for name in definitions if name not in walk.homes]
    if unused:
        raise InputError(f"model.shared_dict.{unused[0]}: no task uses it; name it in model.model_dict, or remove it")
    return Expanded(
        models=models, shared=tuple(walk.shared()), references=walk.references, homes=walk.homes,
        origins=(*walk.origins, *origins),
    )  # fmt: skip


def inlined(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By task, its whole section."""
    return expand(model).models


def folded(expanded: Expanded, models: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The `model` section with names where they stood, from sections (plain data) like those that were expanded."""
    shared: dict[str, Any] = {}
    for name, (task, place) in expanded.homes.items():
        shared[name] = copy.deepcopy(_at(models[task], place))
    out: dict[str, Any] = {"shared_dict": shared, "model_dict": copy.deepcopy(dict(models))}
    # Inner places first: an outer one takes them away.
    for where, text in sorted(expanded.references.items(), key=lambda item: -len(item[0])):
        holder = _at(out, where[:-1])
        holder[where[-1]] = text
    return out


def _at(data: Any, place: Place) -> Any:
    for key in place:
        data = data[key]
    return data


def _check_name(name: str) -> None:
    if name == "RANDOM":
        raise InputError(
            'model.model_dict.RANDOM: "RANDOM" is what finetune_head calls a fresh fitting net; rename the task'
        )
    if not name or re.search(r"[\s/]", name):  # they are columns of a table, and parts of paths
        raise InputError(f"model.model_dict: expected names of tasks without spaces and slashes, got {name!r}")


class _Walk:
    """Puts definitions in the places of their names, and remembers both."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self.definitions = definitions
        self.references: dict[Place, str] = {}
        self.homes: dict[str, tuple[str, Place]] = {}
        self.origins: list[tuple[str, str]] = []
        self.links: dict[str, list[tuple[bool, Link]]] = {}

    def section(self, task: str, section: dict[str, Any]) -> None:
        """Write out the section of one task, in place."""
        spin = section.get("spin") is not None
        for head, part in _standard_parts(section):
            if isinstance(name := part.get("type_map"), str):
                part["type_map"] = self._found(task, (*head, "type_map"), name, spin, levels=(0,))
            for key in ("descriptor", "fitting_net"):
                if key in part:
                    self._part(task, (*head, key), part, key, spin, ())

    def _part(self, task: str, place: Place, holder: Any, key: str | int, spin: bool, inside: tuple[str, ...]) -> None:
        """Write out a descriptor or a fitting net, and the parts of a hybrid. inside: definitions that lead here."""
        if isinstance(name := holder[key], str):
            holder[key] = self._found(task, place, name, spin, inside=inside)
            inside = (*inside, _split(name)[0])
        here = holder[key]
        parts = here.get("list") if isinstance(here, dict) else None
        if isinstance(parts, list):
            for k in range(len(parts)):
                self._part(task, (*place, "list", k), parts, k, spin, inside)

    def _found(
        self,
        task: str,
        place: Place,
        text: str,
        spin: bool,
        *,
        inside: tuple[str, ...] = (),
        levels: tuple[int, ...] = (),
    ) -> Any:
        """A copy of the definition that a text names."""
        where = ".".join(("model.model_dict", task, *map(str, place)))
        name, level = _split(text)
        if name not in self.definitions:
            close = difflib.get_close_matches(name, self.definitions, n=1)
            known = f'; did you mean "{close[0]}"?' if close else f" ({', '.join(self.definitions) or 'it is empty'})"
            raise InputError(f'{where}: "{text}" is no name of model.shared_dict{known}')
        if name in inside:
            raise InputError(f"model.shared_dict.{name}: it is a part of itself, by way of {' and '.join(inside)}")
        if level < 0 or (levels and level not in levels):
            raise InputError(
                f'{where}: "{text}": expected a level of {levels[0] if levels else "at least 0"}, got {level}'
            )
        self.origins.append((where, f"model.shared_dict.{name}"))
        if inside:  # a name inside a definition: it stands there, and in the tasks through it
            outer = self.homes[inside[-1]][1]
            if self.homes[inside[-1]][0] == task and place[: len(outer)] == outer:
                self.references["shared_dict", inside[-1], *place[len(outer) :]] = text
        else:
            self.references["model_dict", task, *place] = text
        self.homes.setdefault(name, (task, place))
        if place[-1] != "type_map":
            link = Link(task=task, place=place, level=level)
            self.links.setdefault(name, []).append((spin, link))
        return copy.deepcopy(self.definitions[name])

    def shared(self) -> Iterator[Shared]:
        """Every definition of descriptors and fitting nets; links by level, models with spin first."""
        for name, links in self.links.items():
            ordered = [link for _, link in sorted(links, key=lambda item: (item[1].level, not item[0]))]
            kind = "fitting_net" if ordered[0].place[-1] == "fitting_net" else "descriptor"
            yield Shared(name=name, kind=kind, links=tuple(ordered))


def _split(text: str) -> tuple[str, int]:
    """(name, level) of "name" or "name:level"."""
    found = _REFERENCE.match(text)
    assert found is not None
    return found["name"], int(found["level"] or 0)


def _standard_parts(section: dict[str, Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, section) of what may have a descriptor and a fitting net."""
    if isinstance(parts := section.get("models"), list):
        yield from ((("models", k), part) for k, part in enumerate(parts) if isinstance(part, dict))
    yield (), section
