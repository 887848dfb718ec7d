"""`dpmodel neighbor-stat`: the largest numbers of neighbours and the smallest distance in data systems."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from dpmodel.data.dataset import Dataset
from dpmodel.data.discovery import find_systems, open_systems
from dpmodel.errors import InputError
from dpmodel.statistics.neighbour import neighbour_statistics, resolve_sel

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    names = tuple(args.type_map) if args.type_map else type_names(args.system)
    dataset = Dataset.from_config(_systems(args.system), batch_size=1, type_map=names)
    found = neighbour_statistics(dataset, args.rcut, len(names))
    counts = (found.total,) if args.mixed_type else found.by_type
    labels = ("any",) if args.mixed_type else names
    print(f"{len(dataset.systems)} systems, {found.frames} frames, cutoff {args.rcut:g} Å")
    print(f"min_nbor_dist: {found.min_distance:.6f} Å")
    print(f"max_nbor_size: {list(counts)} ({', '.join(labels)})")
    if any(counts):
        print(f'sel "auto" would be: {list(resolve_sel("auto", found, typed=not args.mixed_type))}')


def _systems(given: Sequence[str]) -> str | list[str]:
    return given[0] if len(given) == 1 else list(given)


def type_names(given: Sequence[str]) -> tuple[str, ...]:
    """Symbols of all systems in the order in which they come; numbers where no system has a type_map.raw.

    Raises InputError where some have one and others have not.
    """
    systems = [system for path in find_systems(_systems(given)) for system in open_systems(path)]
    maps = [system.type_map for system in systems]
    if all(names is None for names in maps):
        largest = max(int(np.max(system.atype)) for system in systems if system.atype is not None)
        return tuple(str(kind) for kind in range(largest + 1))
    if any(names is None for names in maps):
        path = systems[maps.index(None)].path
        raise InputError(f"{path} has no type_map.raw, others have: say what its numbers mean with --type-map")
    return tuple(dict.fromkeys(name for names in maps if names is not None for name in names))
