"""The sampler: nothing is left out, nothing comes twice, and a restart continues the sequence exactly."""

import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.data import Dataset, Sampler, labels
from dpmodel.data.system import Batch
from dpmodel.errors import InputError, ModelFileError

SEEDS = st.one_of(st.integers(-5, 2**40), st.lists(st.integers(0, 100), min_size=1, max_size=3))


class Frames:
    """A system without files: only indices matter here."""

    path, natoms, pbc, copies = "none", 1, False, None

    def __init__(self, nframes):
        self.found = {}
        self.nframes = nframes

    def batch(self, frames, index=0):
        zero = np.zeros((len(frames), 1, 3))
        kinds = np.zeros((len(frames), 1), np.int64)
        return Batch(
            coord=zero, atype=kinds, cell=None, pbc=False, labels={}, found={}, system=index, frames=np.array(frames)
        )


def dataset(counts, sizes, weights=None):
    shares = np.array(weights or [1.0] * len(counts))
    return Dataset(
        systems=tuple(Frames(n) for n in counts),
        batch_sizes=tuple(sizes),
        frames=tuple(np.arange(n) for n in counts),
        probabilities=shares / shares.sum(),
        labels=(),
    )


@st.composite
def datasets(draw):
    counts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    sizes = [draw(st.integers(1, 7)) for _ in counts]
    weights = [draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])) for _ in counts]
    return dataset(counts, sizes, weights if sum(weights) else None)


def sequence(sampler, steps):
    return [(b.system, tuple(b.frames.tolist())) for b in (sampler.next() for _ in range(steps))]


@settings(max_examples=40, deadline=None)
@given(data=datasets(), seed=SEEDS, world=st.integers(1, 4))
def test_every_shuffle_shows_every_frame_once(data, seed, world):
    samplers = [Sampler(data, seed, rank, world) for rank in range(world)]
    drawn = [[[] for _ in data.systems] for _ in samplers]
    for sampler, mine in zip(samplers, drawn, strict=True):
        for system, frames in sequence(sampler, 120):
            assert data.probabilities[system] > 0
            assert 1 <= len(frames) <= data.batch_sizes[system]
            mine[system].append(frames)
    for k, (system, size) in enumerate(zip(data.systems, data.batch_sizes, strict=True)):
        if system.nframes < world:
            continue  # some frame must then be shown by several processes
        shares = [len(range(rank, system.nframes, world)) for rank in range(world)]
        lengths = [-(-share // size) for share in shares]
        for shuffle in range(min(len(mine[k]) // n for mine, n in zip(drawn, lengths, strict=True))):
            parts = [mine[k][shuffle * n : (shuffle + 1) * n] for mine, n in zip(drawn, lengths, strict=True)]
            frames = [frame for part in parts for batch in part for frame in batch]
            assert sorted(frames) == list(range(system.nframes))


@settings(max_examples=40, deadline=None)
@given(data=datasets(), seed=SEEDS, before=st.integers(0, 60), rank=st.integers(0, 2))
def test_a_restored_sampler_continues_the_sequence(data, seed, before, rank):
    sampler = Sampler(data, seed, rank, 3)
    sequence(sampler, before)
    state = json.loads(json.dumps(sampler.state()))
    expected = sequence(sampler, 50)
    other = Sampler(data, None, rank, 3)
    sequence(other, 7)
    other.restore(state)
    assert other.state() == state
    assert sequence(other, 50) == expected
    # One process's state is everyone's.
    third = Sampler(data, seed, (rank + 1) % 3, 3)
    sequence(third, before)
    assert third.state() == state


@settings(max_examples=60, deadline=None)
@given(
    data=datasets(), seed=SEEDS,
    parts=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 30)), min_size=1, max_size=3),
)  # fmt: skip
def test_another_number_of_processes_goes_on_with_the_frames_that_are_left(data, seed, parts):
    """What was dealt, with what comes next, shows every frame equally often."""
    parts = [(min(world, *(s.nframes for s in data.systems)), drawn) for world, drawn in parts]
    counts = [np.zeros(s.nframes, int) for s in data.systems]
    state = None
    for world, drawn in parts:
        samplers = [Sampler(data, seed, rank, world) for rank in range(world)]
        for sampler in samplers:
            if state is not None:
                sampler.restore(state)
            for system, frames in sequence(sampler, drawn):
                np.add.at(counts[system], list(frames), 1)
        (state,) = {
            json.dumps(sampler.state()): json.loads(json.dumps(sampler.state())) for sampler in samplers
        }.values()
    last = Sampler(data, None, 0, 1)
    last.restore(state)
    if parts[-1][0] == 1:
        assert last.state() == state
        return
    assert last.state()["before"] == state and last.drawn == 0
    left = [len(rest) for rest in last._start.rest]
    for system, frames in sequence(last, 200):
        take = frames[: left[system]]
        left[system] -= len(take)
        np.add.at(counts[system], list(take), 1)
        assert len(take) in (0, len(frames))  # no batch holds frames of the rest and of a new shuffle
    for k, seen in enumerate(counts):
        assert left[k] or set(seen) == {last._start.first[k]}


def test_the_processes_of_a_changed_number_share_what_is_left():
    data = dataset([10], [2])
    sampler = Sampler(data, 3)
    dealt = sequence(sampler, 2)
    pair = [Sampler(data, None, rank, 2) for rank in range(2)]
    for each in pair:
        each.restore(sampler.state())
    halves = [sequence(each, 2) for each in pair]
    assert [[len(frames) for _, frames in half] for half in halves] == [[2, 1], [2, 1]]
    assert sorted(f for _, frames in [*dealt, *halves[0], *halves[1]] for f in frames) == list(range(10))
    # Both go on, and back to one process.
    again = Sampler(data, None)
    again.restore(pair[1].state())
    assert sorted(f for _, frames in sequence(again, 5) for f in frames) == list(range(10))
    assert again._start.first == (1,) and again._start.part == 2


def test_long_sequences_are_replayed_in_pieces(monkeypatch):
    monkeypatch.setattr("dpmodel.data.sampler._REPLAY", 64)
    data = dataset([7, 3, 11], [2, 2, 3])
    sampler = Sampler(data, 5)
    sequence(sampler, 1000)
    other = Sampler(data, 6)
    other.restore(sampler.state())
    assert sequence(other, 100) == sequence(sampler, 100)


def test_seeds():
    data = dataset([50, 20], [3, 2])
    draw = functools.partial(sequence, steps=40)
    first = draw(Sampler(data, 1))
    assert draw(Sampler(data, 1)) == first
    assert draw(Sampler(data, [1])) == first
    assert draw(Sampler(data, 2)) != first
    assert draw(Sampler(data, 1, 1, 2)) != draw(Sampler(data, 1, 0, 2))
    random = Sampler(data)
    assert Sampler(data).seed != random.seed
    assert draw(Sampler(data, random.state()["seed"])) == draw(random)
    for bad in (1.5, True, [], ["1"]):
        with pytest.raises(InputError, match="seed"):
            Sampler(data, bad)
    for rank, world in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="rank"):
            Sampler(data, 1, rank, world)


def test_the_sequence_is_the_one_of_this_version():
    """A change of the sequence breaks restarts of older checkpoints: give the state a new version then."""
    assert sequence(Sampler(dataset([5, 3], [2, 2], [1.0, 2.0]), 42), 6) == SEQUENCE


SEQUENCE = [(1, (1, 0)), (1, (2,)), (1, (1, 2)), (0, (2, 4)), (0, (0, 1)), (0, (3,))]


def test_systems_come_as_often_as_asked():
    shares = [0.1, 0.0, 0.6, 0.3, 0.0]
    sampler = Sampler(dataset([4] * 5, [2] * 5, shares), 3)
    counts = np.bincount([system for system, _ in sequence(sampler, 4000)], minlength=5)
    # Five standard deviations of a binomial count of 4000 are below 160.
    np.testing.assert_allclose(counts, np.array(shares) * 4000, atol=160)
    assert counts[1] == counts[4] == 0


def test_more_processes_than_frames():
    data = dataset([2], [3])
    seen = [sequence(Sampler(data, 0, rank, 5), 1)[0][1] for rank in range(5)]
    assert all(len(frames) == 1 for frames in seen)
    assert seen[0] != seen[1]


def test_states_that_do_not_fit():
    sampler = Sampler(dataset([5, 3], [2, 2]), 1)
    expected = sequence(Sampler(sampler.dataset, 1), 20)
    head = sequence(sampler, 5)
    good = sampler.state()
    for other in (
        dataset([5, 4], [2, 2]),
        dataset([5, 3], [2, 1]),
        dataset([5, 3], [2, 2], [1.0, 2.0]),
        dataset([5], [2]),
    ):
        with pytest.raises(InputError, match=r"other systems.*--init-model"):
            sampler.restore(Sampler(other, 1).state())
    for bad in (
        {},
        good | {"world": 0},
        good | {"before": good | {"drawn": None}},
        good | {"version": 2},
        good | {"seed": None},
        good | {"seed": []},
        good | {"drawn": -1},
    ):
        with pytest.raises(ModelFileError, match="sampler state"):
            sampler.restore(bad)
    assert head + sequence(sampler, 15) == expected  # a refused state changes nothing


def test_copies_and_labels_reach_the_batches(tmp_path):
    from dpmodel.data import write_system

    path = write_system(
        tmp_path / "s",
        np.random.default_rng(0).random((3, 2, 3)),
        np.array([0, 1]),
        labels={"energy": np.arange(3.0), "numb_copy": np.array([1, 3, 0])},
        frames_per_set=2,
    )
    sampler = Sampler(Dataset.from_config(path, batch_size=2, labels=(labels.ENERGY,)), 0)
    batches = [sampler.next() for _ in range(2)]
    assert sorted(np.concatenate([b.frames for b in batches]).tolist()) == [0, 1, 1, 1]
    for batch in batches:
        np.testing.assert_array_equal(batch.labels["energy"][:, 0], batch.frames)
