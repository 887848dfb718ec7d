"""`Sampler`: the endless sequence of training batches, a function of the seed.

Each batch comes from one system, drawn with replacement by the dataset's probabilities. Inside a system, frames are
shuffled and dealt out without replacement; the last batch of a shuffle may be smaller; then a new shuffle starts.
So every frame is seen once per shuffle and none is dropped. With "mixed:n" a batch is n such draws of one frame each.

Both are computed from the seed: the k-th draw of a process from one stream per rank, a shuffle from (seed, system,
number of the shuffle). The state is therefore just the seed and the number of batches drawn, and one process's state
restores every process. Where several processes train, each deals out its own stride of the same shuffles
(rank, rank + world, ...): within a shuffle no two processes see the same frame, unless a system has fewer frames
than there are processes. Which system each draws is independent.

A state that another number of processes saved goes on too: the frames that they had not dealt out of the shuffles they
had begun come first, shared by the processes that there are now; then whole shuffles follow. So every frame is still
seen once per shuffle. What came before is kept in the state (`before`), and replayed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpmodel.data.dataset import Dataset
from dpmodel.data.mixing import merge
from dpmodel.data.system import Batch, Integers
from dpmodel.errors import InputError, ModelFileError

__all__ = ["Sampler"]

_REPLAY = 1 << 20


class _Start(NamedTuple):
    """What a number of processes begins with."""

    part: int
    """How often the number of processes has changed."""
    rest: tuple[Integers, ...]
    """Per system, frames that are dealt out first."""
    first: tuple[int, ...]
    """Per system, number of the first whole shuffle after them."""


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
        self._before: Mapping[str, Any] | None = None
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
        frames = self._dealt(system, number)
        return self.dataset.systems[system].batch(frames, system)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as JSON data; the same on every rank that drew as many batches."""
        state = {"version": 1, "seed": list(self.seed), "drawn": self.drawn, "world": self.world, "data": self._data}
        return state if self._before is None else {**state, "before": self._before}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken: all later batches are those of the undisturbed sequence.

        Of another number of processes, the frames that are left of their shuffles come first (see above).

        Raises ModelFileError for a state that is none, and InputError where it was taken with other data, batch sizes
        or probabilities. The sampler is unchanged then.
        """
        states: list[Any] = [state]
        while isinstance(states[0], Mapping) and states[0].get("before") is not None:
            states.insert(0, states[0]["before"])
        parts = [_checked(each) for each in states]
        if any(each["data"] != self._data for each in states):
            raise InputError(
                "sampler state: it was saved with other systems, frames, batch sizes or probabilities. An exact "
                "restart needs the same data; to go on with other data, start from the model with --init-model"
            )
        self.seed, drawn, world = parts[-1]
        before = [(part[1], part[2]) for part in parts[:-1]]
        self._before = state.get("before")
        if world != self.world:
            before.append((drawn, world))
            self._before, drawn = dict(state), 0
        start = self._fresh()
        for earlier, ranks in before:
            start = self._left(start, earlier, ranks)
        self._begin(start)
        self._draws, self._counts = self._counted(start, self.rank, drawn)
        self.drawn = drawn

    def _rewind(self) -> None:
        """To before the first batch."""
        self._before = None
        self._begin(self._fresh())

    def _fresh(self) -> _Start:
        count = len(self.dataset.systems)
        return _Start(0, (np.zeros(0, np.int64),) * count, (0,) * count)

    def _begin(self, start: _Start) -> None:
        """To before the first batch of this number of processes."""
        self.drawn = 0
        """Batches drawn so far, by this number of processes."""
        self._start = start
        self._draws = self._stream(start, self.rank)
        self._counts = np.zeros(len(self.dataset.systems), np.int64)
        self._shuffles: list[Any] = [None] * len(self.dataset.systems)

    def _stream(self, start: _Start, rank: int) -> np.random.Generator:
        """Of which system each batch of a process comes from."""
        return self._generator(0, rank, start.part) if start.part else self._generator(0, rank)

    def _counted(self, start: _Start, rank: int, drawn: int) -> tuple[np.random.Generator, Integers]:
        """The stream of a process after so many batches, and how many draws each system had."""
        draws, counts, done = self._stream(start, rank), np.zeros(len(self.dataset.systems), np.int64), 0
        drawn *= max(1, self.dataset.mixed)  # from batches to draws
        # A stream gives the same numbers one by one and many at a time, so replaying is a count.
        while done < drawn:
            count = min(_REPLAY, drawn - done)
            systems = np.searchsorted(self._edges, draws.random(count), side="right")
            counts += np.bincount(systems, minlength=len(counts))
            done += count
        return draws, counts

    def _left(self, start: _Start, drawn: int, world: int) -> _Start:
        """What `world` processes that drew so many batches each leave to another number of processes."""
        taken = [self._counted(start, rank, drawn)[1] for rank in range(world)]
        rest, first = [], []
        for system, (pool, size) in enumerate(zip(self.dataset.frames, self.dataset.batch_sizes, strict=True)):
            left = []
            # Per process: batches of the rest, whole shuffles, batches of the one that it is in.
            places = [
                _place(int(taken[rank][system]), start.rest[system], len(pool), rank, world, size)
                for rank in range(world)
            ]
            for rank, (batches, _, _) in enumerate(places):
                left.append(start.rest[system][rank::world][batches * size :])
            end = max(shuffle + (place > 0) for _, shuffle, place in places)
            for number in range(min(shuffle for _, shuffle, _ in places), end):
                order = self._order(system, start.first[system] + number)
                for rank, (_, shuffle, place) in enumerate(places):
                    done = 0 if shuffle < number else place * size if shuffle == number else len(pool)
                    left.append(order[rank::world][done:])
            rest.append(np.concatenate(left))
            first.append(start.first[system] + end)
        return _Start(start.part + 1, tuple(rest), tuple(first))

    def _dealt(self, system: int, number: int) -> Integers:
        """The frames of this process's batch of that number from a system."""
        size, rest, first = self.dataset.batch_sizes[system], self._start.rest[system], self._start.first[system]
        pool = len(self.dataset.frames[system])
        batches, shuffle, place = _place(number, rest, pool, self.rank, self.world, size)
        if number < _batches(len(rest[self.rank :: self.world]), size):
            return rest[self.rank :: self.world][batches * size : (batches + 1) * size]
        if self._shuffles[system] is None or self._shuffles[system][0] != shuffle:
            self._shuffles[system] = (shuffle, _share(self._order(system, first + shuffle), self.rank, self.world))
        frames: Integers = self._shuffles[system][1][place * size : (place + 1) * size]
        return frames

    def _order(self, system: int, number: int) -> Integers:
        """The frames of a shuffle, in order."""
        return self._generator(1, system, number).permutation(self.dataset.frames[system])

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


def _place(number: int, rest: Integers, pool: int, rank: int, world: int, size: int) -> tuple[int, int, int]:
    """(batches of the rest, whole shuffles, batches of the next one) that a process has dealt out of a system."""
    batches = min(number, _batches(len(rest[rank::world]), size))
    share = len(_share(np.arange(pool), rank, world))
    return batches, *divmod(number - batches, _batches(share, size))


def _batches(frames: int, size: int) -> int:
    return -(-frames // size)


def world_of(state: Any) -> int:
    """The number of processes that a sampler's state was saved with. Raises ModelFileError for none."""
    return _checked(state)[2]


def _checked(state: Any) -> tuple[tuple[int, ...], int, int]:
    """(seed, drawn, world) of a state. Raises ModelFileError."""
    try:
        version, drawn, world = state["version"], int(state["drawn"]), int(state["world"])
        seed = tuple(int(part) for part in state["seed"])
        state["data"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"sampler state: expected version, seed, drawn, world and data, got {state!r}") from error
    if version != 1 or drawn < 0 or world < 1 or not seed or min(seed) < 0:
        raise ModelFileError(f"sampler state: expected version 1 with counts of at least 0, got {state!r}")
    return seed, drawn, world


def _seed(seed: int | Sequence[int] | None) -> tuple[int, ...]:
    """Integers of at least 0 for a SeedSequence; negative ones are taken modulo 2^64."""
    if seed is None:
        return (secrets.randbits(64),)
    parts: list[Any] = list(seed) if isinstance(seed, list | tuple) else [seed]
    if not parts or any(isinstance(part, bool) or not isinstance(part, int | np.integer) for part in parts):
        raise InputError(f"seed: expected an integer, several, or null, got {seed!r}")
    return tuple(int(part) % 2**64 for part in parts)
