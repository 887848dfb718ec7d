"""Which task of a file of several is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpmodel.errors import InputError

__all__ = ["choose_head"]


def choose_head(heads: Mapping[str, Sequence[str]], head: str | None, where: str) -> str:
    """The name of the task. heads: by task, its aliases.

    head: a name or an alias; None serves where there is one task. Raises InputError naming the heads where there are several
    and none is named, or another one.
    """
    if head is None and len(heads) > 1:
        raise InputError(f"{where} holds a multi-task model: choose one of its heads with head ({', '.join(heads)})")
    if head is None and heads:
        return next(iter(heads))
    if head in heads:
        return str(head)
    for name, aliases in heads.items():
        if head in aliases:
            return name
    raise InputError(f"head={head!r}: {where} has the heads {', '.join(heads)}")
