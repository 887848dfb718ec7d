"""`Sampler`: the endless sequence of training batches, a function of the seed.

Each batch comes from one system, drawn with replacement by the dataset's probabilities. Inside a system, frames are
shuffled and dealt out without replacement; the last batch of a shuffle may be smaller; then a new shuffle starts.
So every frame is seen once per shuffle and none is dropped. With "mixed:n" a batch is n such draws of one frame each.

Both are computed from the seed: the k-th draw of a process from one stream per rank, a shuffle from (seed, system,
number of the shuffle). The state is therefore just the seed and the number of batches drawn, and one process's state
restores every process. Where several processes train, each deals out its own stride of the same shuffles
(rank, rank + world, ...): within a shuffle no two processes see the same frame, unless a system has fewer frames
than there are processes. Which system each draws is independent.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpmodel.data.dataset import Dataset
from dpmodel.data.mixing import merge
from dpmodel.data.system import Batch, Integers
from dpmodel.errors import InputError, ModelFileError

__all__ = ["Sampler"]

_REPLAY = 1 << 20


class Sampler:
    """Draws batches. `next()` is cheap: a gather of the frames, and rarely a shuffle.

    seed: of the order; an int, several, or None for a random one that `state()` records. Processes of one run must be
    given the same seed. rank, world: number of this process, and of all.
    Raises InputError for a rank outside the world.
    """

    def __init__(
        self, dataset: Dataset, seed: int | Sequence[int] | None = None, rank: int = 0, world: int = 1
    ) -> None:
        if not 0 <= rank < world:
            raise InputError(f"sampler: expected a rank of at least 0 and below {world}, got {rank}")
        self.dataset, self.rank, self.world = dataset, rank, world
        self.seed = _seed(seed)
        self._edges = np.cumsum(dataset.probabilities)
        # Rounding must not let a draw fall behind the last system that can be drawn.
        self._edges[np.flatnonzero(dataset.probabilities)[-1] :] = np.inf
        self._atomic = frozenset(label.name for label in dataset.labels if label.atomic)
        self._data = self._fingerprint()
        self._rewind()

    def next(self) -> Batch:
        """The next batch."""
        self.drawn += 1
        if not self.dataset.mixed:
            return self._draw()
        return merge([self._draw() for _ in range(self.dataset.mixed)], self._atomic)

    def place(self, batch: Batch) -> str:
        """Where the frames of a batch come from, for messages."""
        paths = [system.path for system in self.dataset.systems]
        if batch.systems is None:
            return paths[batch.system]
        found = (f"{paths[k]} frame {frame}" for k, frame in zip(batch.systems, batch.frames, strict=True))
        return f"a batch of {', '.join(found)}"

    def _draw(self) -> Batch:
        """Frames of one system."""
        system = int(np.searchsorted(self._edges, self._draws.random(), side="right"))
        number = int(self._counts[system])
        self._counts[system] += 1
        shuffle, place = divmod(number, self._lengths[system])
        if self._shuffles[system] is None or self._shuffles[system][0] != shuffle:
            self._shuffles[system] = (shuffle, self._shuffle(system, shuffle))
        size = self.dataset.batch_sizes[system]
        frames = self._shuffles[system][1][place * size : (place + 1) * size]
        return self.dataset.systems[system].batch(frames, system)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as JSON data; the same on every rank that drew as many batches."""
        return {"version": 1, "seed": list(self.seed), "drawn": self.drawn, "world": self.world, "data": self._data}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken: all later batches are those of the undisturbed sequence.

        Raises ModelFileError for a state that is none, and InputError where it was taken with other data, batch sizes,
        probabilities or another number of processes. The sampler is unchanged then.
        """
        try:
            version, drawn, world = state["version"], int(state["drawn"]), int(state["world"])
            seed, data = tuple(int(part) for part in state["seed"]), state["data"]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"sampler state: expected version, seed, drawn, world and data, got {state!r}"
            ) from error
        if version != 1 or drawn < 0 or not seed or min(seed) < 0:
            raise ModelFileError(f"sampler state: expected version 1 with counts of at least 0, got {state!r}")
        if world != self.world:
            raise InputError(
                f"sampler state: it was saved with {world} processes, this run has {self.world}. An exact restart "
                f"needs the same number; to go on with another one, start from the model with --init-model"
            )
        if data != self._data:
            raise InputError(
                "sampler state: it was saved with other systems, frames, batch sizes or probabilities. An exact "
                "restart needs the same data; to go on with other data, start from the model with --init-model"
            )
        self.seed = seed
        self._rewind()
        # A stream gives the same numbers one by one and many at a time, so replaying is a count.
        todo = drawn * max(1, self.dataset.mixed)
        while todo:
            count = min(_REPLAY, todo)
            systems = np.searchsorted(self._edges, self._draws.random(count), side="right")
            self._counts += np.bincount(systems, minlength=len(self._counts))
            todo -= count
        self.drawn = drawn

    def _rewind(self) -> None:
        """To before the first batch."""
        count = len(self.dataset.systems)
        self.drawn = 0
        """Batches drawn so far."""
        self._draws: np.random.Generator = self._generator(0, self.rank)
        self._counts: Integers = np.zeros(count, np.int64)
        self._shuffles: list[Any] = [None] * count
        shares = [len(_share(np.arange(len(pool)), self.rank, self.world)) for pool in self.dataset.frames]
        self._lengths = [-(-share // size) for share, size in zip(shares, self.dataset.batch_sizes, strict=True)]

    def _shuffle(self, system: int, number: int) -> Integers:
        """This process's frames of a shuffle, in order."""
        order = self._generator(1, system, number).permutation(self.dataset.frames[system])
        return _share(order, self.rank, self.world)

    def _generator(self, *key: int) -> np.random.Generator:
        # PCG64 is named, because numpy may change what default_rng returns.
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))

    def _fingerprint(self) -> str:
        """Of what decides the sequence besides the seed."""
        digest = hashlib.sha256()
        for size, pool in zip(self.dataset.batch_sizes, self.dataset.frames, strict=True):
            digest.update(f"{size} {len(pool)};".encode())
            digest.update(pool.astype("<i8").tobytes())
        digest.update(",".join(f"{p:.12g}" for p in self.dataset.probabilities).encode())
        if self.dataset.mixed:
            digest.update(f";mixed {self.dataset.mixed}".encode())
        return digest.hexdigest()


def _share(order: Integers, rank: int, world: int) -> Integers:
    """Every `world`-th entry; a process for which none is left takes one that another has."""
    mine = order[rank::world]
    return mine if len(mine) else order[rank % len(order) :][:1]


def _seed(seed: int | Sequence[int] | None) -> tuple[int, ...]:
    """Integers of at least 0 for a SeedSequence; negative ones are taken modulo 2^64."""
    if seed is None:
        return (secrets.randbits(64),)
    parts: list[Any] = list(seed) if isinstance(seed, list | tuple) else [seed]
    if not parts or any(isinstance(part, bool) or not isinstance(part, int | np.integer) for part in parts):
        raise InputError(f"seed: expected an integer, several, or null, got {seed!r}")
    return tuple(int(part) % 2**64 for part in parts)
