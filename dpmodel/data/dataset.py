"""`Dataset`: several systems with batch sizes and probabilities, as the input file describes them.

data = Dataset.from_config(["water/data_0", "water/data_1"], batch_size="auto", type_map=["O", "H"], labels=labels)
sampler = Sampler(data, seed=1)          # batches for training, see dpmodel.data.sampler
for batch in iterate(data): ...          # every frame once, in order
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpmodel.data.discovery import find_systems, is_xyz, open_systems
from dpmodel.data.labels import LabelLike, LabelRequest, as_request, check_names
from dpmodel.data.mixing import check_mixable
from dpmodel.data.pairs import too_close
from dpmodel.data.plan import Probabilities, batch_sizes, mixed_frames, probabilities, total_batches
from dpmodel.data.system import Batch, Integers, System
from dpmodel.errors import DataError, InputError

__all__ = ["Dataset", "iterate", "statistics_batches"]

log = logging.getLogger(__name__)

_PATH_WIDTH = 44


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Systems and how batches are drawn from them. Make one with `from_config`."""

    systems: tuple[System, ...]
    batch_sizes: tuple[int, ...]
    """Frames per batch, per system. A system with fewer frames gives smaller batches."""
    frames: tuple[Integers, ...]
    """Per system, the frames that training draws: all, those of numb_copy several times, without too close pairs."""
    probabilities: Probabilities
    """(nsystems,), sum 1."""
    labels: tuple[LabelRequest, ...]
    mixed: int = 0
    """Frames per batch where each is drawn by itself, from any system; 0: batches are of one system."""

    @classmethod
    def from_config(
        cls,
        systems: str | Path | Sequence[str | Path],
        *,
        rglob_patterns: Sequence[str] | None = None,
        batch_size: int | str | Sequence[int] = "auto",
        auto_prob: str = "prob_sys_size",
        sys_probs: Sequence[float] | None = None,
        type_map: Sequence[str] | None = None,
        labels: Sequence[LabelLike | LabelRequest] = (),
        min_pair_dist: float = 0.0,
        base: str | Path | None = None,
        sort_atoms: bool = True,
        label_names: Mapping[str, str] | None = None,
    ) -> Dataset:
        """Find, open and check the systems of a `training_data` or `validation_data` section.

        systems, rglob_patterns, base: see `dpmodel.data.discovery.find_systems`. batch_size, auto_prob, sys_probs: see
        `dpmodel.data.plan`. type_map, labels, sort_atoms: see `NpySystem.open`. min_pair_dist: frames with a closer
        pair of atoms (Å) are left out of training. label_names: what XYZ files call labels, by their names. A folder that is listed twice is used twice, with a warning.

        Raises DataError for bad data and InputError for bad options, before any batch is made.
        """
        paths = find_systems(systems, rglob_patterns, base)
        _warn_of_duplicates(paths)
        mixed, requests = mixed_frames(batch_size), tuple(as_request(label) for label in labels)
        if label_names:
            check_names(label_names, requests)
            if not any(is_xyz(path) for path in paths):
                raise InputError(
                    "label_names: it is for extended XYZ files, and there is none among the systems; remove it"
                )
        found: list[System] = [
            system
            for path in paths
            for system in open_systems(path, type_map, labels, sort_atoms=sort_atoms, label_names=label_names)
        ]
        if mixed:
            check_mixable(found, requests)
        sizes = batch_sizes(batch_size, [system.natoms for system in found])
        left_out = [system.path for system, size in zip(found, sizes, strict=True) if size is None]
        if left_out:
            log.info("batch_size %r leaves out %d system(s): %s", batch_size, len(left_out), ", ".join(left_out))
        if left_out and sys_probs is not None:
            # Probabilities are counted by the systems that the user sees in the input.
            sys_probs = _without(sys_probs, sizes)
        kept = [(system, size) for system, size in zip(found, sizes, strict=True) if size is not None]
        frames = [_drawn_frames(system, min_pair_dist) for system, _ in kept]
        counts = [_batches(len(pool), size) for pool, (_, size) in zip(frames, kept, strict=True)]
        return cls(
            systems=tuple(system for system, _ in kept), batch_sizes=tuple(size for _, size in kept),
            frames=tuple(frames), probabilities=probabilities(auto_prob, sys_probs, counts),
            labels=requests, mixed=mixed,
        )  # fmt: skip

    @property
    def nframes(self) -> int:
        """Frames of all systems."""
        return sum(system.nframes for system in self.systems)

    def nbatches(self, world: int = 1) -> tuple[int, ...]:
        """Per system, the batches that show each of its frames once, where `world` processes share the frames."""
        return tuple(
            _batches(-(-len(pool) // world), size) for pool, size in zip(self.frames, self.batch_sizes, strict=True)
        )

    def total_batches(self, world: int = 1) -> int:
        """Batches of an epoch, per process: ceil(max_i n_i / p_i) over the systems that are drawn at all."""
        count = total_batches(self.nbatches(world), self.probabilities)
        return -(-count // self.mixed) if self.mixed else count

    def found(self, name: str) -> tuple[float, ...]:
        """Per system, whether it has the label (1.0 or 0.0)."""
        return tuple(system.found.get(name, 0.0) for system in self.systems)

    def require(self, names: Iterable[str] | None = None) -> None:
        """Raise DataError where no system has one of these labels. Default: the requests with `required`.

        For training data: a loss term without any label would train nothing, silently.
        """
        wanted = [request.name for request in self.labels if request.required] if names is None else list(names)
        known = {request.name: request for request in self.labels}
        for name in wanted:
            if not any(self.found(name)):
                request = known.get(name, LabelRequest(name=name))
                first = self.systems[0]
                raise DataError(
                    f"the loss needs the label {name!r}, but none of the {len(self.systems)} systems has "
                    f"{first.place_of(request)} (first: {first.path}). "
                    f"Add them, or set the prefactors of that term to 0"
                )

    def summary(self, title: str = "training") -> str:
        """A table of the systems: path, atoms, batch size, batches, probability, periodic or not."""
        columns = f"{'system':>{_PATH_WIDTH}}  {'natoms':>7}  {'bch_sz':>6}  {'n_bch':>6}  {'prob':>9}  pbc"
        lines = [f"--- Summary of DataSystem: {title} ".ljust(len(columns), "-")]
        lines += [f"found {len(self.systems)} system(s), {self.nframes} frames:", columns]
        rows = zip(self.systems, self.batch_sizes, self.nbatches(), self.probabilities, strict=True)
        for system, size, count, share in rows:
            path = system.path if len(system.path) <= _PATH_WIDTH else "..." + system.path[3 - _PATH_WIDTH :]
            sides = system.pbc if isinstance(system.pbc, tuple) else (system.pbc,)
            pbc = "".join("T" if periodic else "F" for periodic in sides)
            lines.append(f"{path:>{_PATH_WIDTH}}  {system.natoms:7d}  {size:6d}  {count:6d}  {share:9.3e}  {pbc:>3}")
        lines += [f"batches of {self.mixed} frames, each from any of the systems"] if self.mixed else []
        return "\n".join([*lines, "-" * len(columns)])


def iterate(dataset: Dataset, *, max_frames: int | None = None, chunk_atoms: int = 1_000_000) -> Iterator[Batch]:
    """Every frame of every system once, in order, in batches of at most `chunk_atoms` atoms (at least one frame).

    max_frames: at most that many frames of each system (the first ones). numb_copy and min_pair_dist do not act here.
    Raises InputError for limits below 1, at the first batch.
    """
    if chunk_atoms < 1 or (max_frames is not None and max_frames < 1):
        raise InputError(f"expected max_frames and chunk_atoms above 0, got {max_frames} and {chunk_atoms}")
    for index, system in enumerate(dataset.systems):
        count = system.nframes if max_frames is None else min(max_frames, system.nframes)
        step = max(1, chunk_atoms // system.natoms)
        for start in range(0, count, step):
            yield system.batch(np.arange(start, min(start + step, count)), index)


def statistics_batches(dataset: Dataset, nbatch: int) -> Iterator[Batch]:
    """Up to `nbatch` batches of every system, system by system, the same at every call.

    The frames are spread evenly over the system, not its first ones: neighbouring frames of a trajectory are alike.
    Frames that `min_pair_dist` leaves out are not among them. Raises InputError for `nbatch` below 1.
    """
    if nbatch < 1:
        raise InputError(f"data_stat_nbatch: expected a number above 0, got {nbatch}")
    parts = zip(dataset.systems, dataset.batch_sizes, dataset.frames, strict=True)
    for index, (system, own, pool) in enumerate(parts):
        size = max(own, dataset.mixed)
        count = min(nbatch * size, len(pool))
        chosen = pool[np.arange(count) * len(pool) // count]
        for start in range(0, count, size):
            yield system.batch(chosen[start : start + size], index)


def _batches(nframes: int, size: int) -> int:
    return max(1, -(-nframes // size))


def _without(sys_probs: Sequence[float], sizes: Sequence[int | None]) -> list[float]:
    """Probabilities of the systems that were not left out, scaled so that the given ones keep their sum."""
    if len(sys_probs) != len(sizes):
        raise InputError(
            f"sys_probs: expected one value for each of the {len(sizes)} systems found, got {len(sys_probs)}"
        )
    kept = [p for p, size in zip(sys_probs, sizes, strict=True) if size is not None]
    before, after = sum(p for p in sys_probs if p > 0), sum(p for p in kept if p > 0)
    if after <= 0 and not any(p < 0 for p in kept):
        raise InputError("sys_probs: the batch_size filter leaves out every system with a probability above 0")
    return [p * before / after if p > 0 else p for p in kept]


def _drawn_frames(system: System, min_pair_dist: float) -> Integers:
    """Frames that training draws. Raises DataError where none is left."""
    frames = np.arange(system.nframes)
    if min_pair_dist > 0:
        bad = too_close(system, min_pair_dist)
        if bad.all():
            raise DataError(f"{system.path}: every frame has atoms closer than min_pair_dist, {min_pair_dist} Å")
        if bad.any():
            log.warning(
                "%s: left out %d frames with atoms closer than %g Å", system.path, int(bad.sum()), min_pair_dist
            )
            frames = frames[~bad]
    if system.copies is not None:
        frames = np.repeat(frames, system.copies[frames])
        if not len(frames):
            raise DataError(f"{system.path}: numb_copy and min_pair_dist together leave no frame")
    return frames


def _warn_of_duplicates(paths: Sequence[Path]) -> None:
    first: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in first:
            log.warning("systems: %s is listed twice (also as %s); its frames count twice", path, first[real])
        first.setdefault(real, path)
