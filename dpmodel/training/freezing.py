"""Which parameters `training.freeze_parameters` means."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

from dpmodel.errors import InputError
from dpmodel.models.multi_task import MultiTask
from dpmodel.op import Kind, paths_of, walk

__all__ = ["frozen_paths"]


def frozen_paths(model: Any, patterns: Sequence[str]) -> tuple[str, ...]:
    """First paths of the parameters that match a pattern by any of their paths, in the model's order.

    Of several tasks a path begins with `tasks.<number>.` or, in patterns, with the task's name and a dot. A part that
    tasks share is frozen for all of them.

    Raises InputError for a pattern that matches no parameter.
    """
    if not patterns:
        return ()
    trained = {path for path, kind, _, _ in walk(model) if kind is Kind.PARAM}
    names = model.names if isinstance(model, MultiTask) else ()
    found: dict[str, None] = {}
    parameters = [paths for _, paths in paths_of(model).values() if paths[0] in trained]
    for pattern in patterns:
        task = max((name for name in names if pattern.startswith(f"{name}.")), key=len, default=None)
        own = pattern if task is None else f"tasks.{names.index(task)}{pattern.removeprefix(task)}"
        matched = [paths[0] for paths in parameters if any(fnmatch.fnmatchcase(path, own) for path in paths)]
        if not matched:
            raise InputError(
                f"training.freeze_parameters: {pattern!r} matches no parameter; {_near(own, [p for q in parameters for p in q])}"
            )
        found |= dict.fromkeys(matched)
    order = [paths[0] for paths in parameters]
    return tuple(path for path in order if path in found)


def _near(pattern: str, paths: Sequence[str]) -> str:
    """Paths like the pattern, in words; some others where none is."""
    close = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.5)
    # Patterns of whole parts are short: what their beginnings might have been tells more than whole paths.
    head = pattern.partition("*")[0].rstrip(".")
    starts = {".".join(path.split(".")[: head.count(".") + 1]): None for path in paths}
    parts = difflib.get_close_matches(head, list(starts), n=3, cutoff=0.5)
    if pattern != head and parts:
        return f"did you mean one of {', '.join(f'{part}.*' for part in parts)}?"
    if close:
        return f"near are {', '.join(close)}"
    return f"they are {', '.join(paths[:3])}, ..."
