"""Steps with messages of another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import cells

from dpmodel.backends.pt.distributed import replicas, sharded


def cell(world: Any, size: int | None, **options: Any) -> Any:
    """What `cells.cell` finds with at most `size` numbers in a message (None: as it is), and how many messages there were."""
    count, cut = 0, replicas.buckets

    def counted(sizes: Mapping[str, Any]) -> Iterator[list[str]]:
        nonlocal count
        for names in cut(sizes):
            count += 1
            yield names

    with (
        mock.patch.object(replicas, "BUCKET", size or replicas.BUCKET),
        mock.patch.object(replicas, "buckets", counted),
        mock.patch.object(sharded, "buckets", counted),
    ):
        found = cells.cell(world, **options)
    return {**found, "messages": count}
