"""The reference of the input file, generated from the `Config`s: what `dpmodel doc` prints.

rst, json, json_schema   by dargs, from the schema
md                       tables of key, type, default and meaning, and the three classes of keys
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dargs import Argument
from dargs.dargs import ArgumentEncoder
from dargs.json_schema import generate_json_schema

from dpmodel.config import MISSING, Config, thaw
from dpmodel.errors import InputError
from dpmodel.input.schema import schema, text
from dpmodel.input.sections import InputFile, MultiInputFile
from dpmodel.input.values import describe, hints, option_of, show

__all__ = ["OUT_TYPES", "document", "key_table"]

OUT_TYPES = ("rst", "md", "json", "json_schema")


def document(out_type: str = "rst", section: str | None = None, *, multi_task: bool = False) -> str:
    """The reference of the whole input file, or of the section at a path such as "model.descriptor[se_e2_a]".

    multi_task: of inputs of several tasks, with paths such as "model.model_dict.<task>.descriptor".

    Of several kinds of a section, all are shown unless one is named in brackets.
    Raises InputError for an unknown `out_type` or section.
    """
    if out_type not in OUT_TYPES:
        raise InputError(f"out_type: expected one of {', '.join(OUT_TYPES)}, got {show(out_type)}")
    root: type[Config] = MultiInputFile if multi_task else InputFile
    if out_type == "md":
        return _markdown(section, root)
    argument = _find(schema(root, name="input", offered_only=True), section, root)
    if out_type == "json":
        return json.dumps(argument, cls=ArgumentEncoder, indent=2)
    if out_type == "json_schema":
        return json.dumps(_sorted(generate_json_schema(argument)), indent=2)
    arguments = argument.sub_fields.values() if section is None else [argument]
    return "\n\n".join(part.gen_doc(make_anchor=True, make_link=True) for part in arguments)


def key_table(root: type[Config] = InputFile) -> str:
    """The three classes of keys as a Markdown table: acts, accepted without effect, not available."""
    rows: dict[str, list[str]] = {"acts": [], "ignored": [], "refused": []}
    for path, cls in _places(root):
        for name in cls.options():
            info = option_of(cls, name)
            if info.kinds is None:
                rows[info.effect].append(f"{path}.{name}".lstrip("."))
    acting: dict[str, list[str]] = {}
    for key in rows["acts"]:
        place, _, name = key.rpartition(".")
        acting.setdefault(place, []).append(f"`{name}`")
    meaning = {
        "ignored": "accepted with one warning that it has no effect",
        "refused": "an error, unless it has its default",
    }
    lines = ["| key | what it does |", "|---|---|"]
    lines += [f"| `{place}`: {', '.join(names)} | acts |" for place, names in acting.items()]
    for effect, what in meaning.items():
        lines += [f"| `{key}` | {what} |" for key in rows[effect]]
    return (
        "\n".join([*lines, "| any other key | an error that names the nearest known key; `_*` is a comment |"]) + "\n"
    )


def _places(cls: type[Config], path: str = "") -> Iterator[tuple[str, type[Config]]]:
    """("model.descriptor[se_e2_a]", `Config`) of every section, the file itself first with ""."""
    yield path, cls
    for name in cls.options():
        info = option_of(cls, name)
        for kind in info.kinds() if info.kinds is not None else ():
            suffix = f"[{kind.key}]" if kind.key else ""
            task = ".<task>" if info.named else ""
            yield from _places(kind, f"{path}.{name}{task}{suffix}".lstrip("."))


def _plain_path(path: str) -> str:
    return "".join(part.split("]")[-1] for part in path.split("["))


def _markdown(section: str | None, root: type[Config]) -> str:
    place, _, kind = (section or "").rstrip("]").partition("[")
    wanted = [
        (path, cls)
        for path, cls in _places(root)
        if section is None
        or (_plain_path(path) == place and kind in ("", cls.key))
        or (not kind and f"{_plain_path(path)}".startswith(f"{place}."))
    ]
    if not wanted:
        raise _no_section(section or "", root)
    parts = ["# Input file\n"] if section is None else []
    parts += [_section_table(path, cls) for path, cls in wanted]
    if section is None:
        parts.append(f"## Keys by what they do\n\n{key_table(root)}")
    return "\n".join(parts)


def _section_table(path: str, cls: type[Config]) -> str:
    kind = f", type `{cls.key}`" if cls.key else ""
    also = f" (also {', '.join(f'`{alias}`' for alias in cls.aliases)})" if cls.aliases else ""
    title = f"## `{_plain_path(path)}`{kind}{also}" if path else "## Sections"
    lines = [
        title,
        "",
        " ".join((cls.__doc__ or "").split()),
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in cls.options().items():
        info = option_of(cls, name)
        if info.effect == "refused":
            continue
        also = f" (also {', '.join(f'`{alias}`' for alias in info.aliases)})" if info.aliases else ""
        default = "required" if field.default is MISSING else _default(field.default)
        what = text(info).replace("|", "\\|")
        lines.append(f"| `{name}`{also} | {describe(hints(cls)[name])} | {default} | {what} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, Config):
        return f'type "{value.key}"' if value.key else "{}"
    return f"`{show(thaw(value))}`"


def _find(argument: Argument, section: str | None, root: type[Config]) -> Argument:
    """The argument at a dotted path, whose last part may be `name[kind]`."""
    place, _, kind = (section or "").rstrip("]").partition("[")
    parts = [part for part in place.split(".") if part not in ("", "<task>")]
    for k, part in enumerate(parts):
        if part not in argument.sub_fields:
            raise _no_section(section or "", root)
        argument = argument.sub_fields[part]
        choices = argument.sub_variants["type"].choice_dict if argument.sub_variants else {}
        wanted = kind if k == len(parts) - 1 else next(iter(choices), "")  # no section with several kinds has sections
        if wanted and wanted not in choices:
            raise _no_section(section or "", root)
        argument = choices[wanted] if wanted else argument
    return argument


def _no_section(section: str, root: type[Config]) -> InputError:
    known = dict.fromkeys(_plain_path(path) for path, _ in _places(root) if path)
    return InputError(f"section: expected one of {', '.join(known)}, got {show(section)}")


def _sorted(value: Any) -> Any:
    """dargs lists types in the order of a set, which changes from run to run."""
    if isinstance(value, dict):
        return {
            key: sorted(item) if key == "type" and isinstance(item, list) else _sorted(item)
            for key, item in value.items()
        }
    return [_sorted(item) for item in value] if isinstance(value, list) else value
