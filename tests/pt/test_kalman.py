"""The Kalman filter: recursive least squares, blocks, and training steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.optimizers import LKF, Observation, kalman_step, make_optimizer
from dpmodel.backends.pt.optimizers.kalman import _blocks
from dpmodel.errors import BackendError, InputError
from dpmodel.input.optimizers import LKFConfig
from dpmodel.training.stepper import NonFiniteError

pytestmark = pytest.mark.usefixtures("one_thread")
Named = list[tuple[str, torch.nn.Parameter]]


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> Named:
    rng = torch.Generator().manual_seed(seed)
    return [
        (f"p{k}", torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=rng)))
        for k, shape in enumerate(shapes)
    ]


# --- the filter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "largest", "blocks"),
    [
        ([3, 4], 10, [[(0, 0, 3), (1, 0, 4)]]),
        ([3, 4], 7, [[(0, 0, 3), (1, 0, 4)]]),
        ([3, 4], 6, [[(0, 0, 3)], [(1, 0, 4)]]),
        ([25, 4, 2], 10, [[(0, 0, 10)], [(0, 10, 20)], [(0, 20, 25), (1, 0, 4)], [(2, 0, 2)]]),
    ],
)
def test_blocks(sizes: list[int], largest: int, blocks: Any) -> None:
    assert _blocks(sizes, largest) == blocks


def test_one_block_is_recursive_least_squares() -> None:
    """The textbook's: k = P x / (lambda + x P x), w += k (y - w x), P = (P - k x^T P) / lambda."""
    rng = np.random.default_rng(0)
    named = parameters((7,))
    optimizer = LKF(named)
    w, p, forgetting = named[0][1].detach().numpy().copy(), np.eye(7), 0.98
    truth = rng.normal(size=7)
    for _ in range(200):
        x = rng.normal(size=7)
        residual = truth @ x - w @ x
        gain = p @ x / (forgetting + x @ p @ x)
        w, p = w + gain * residual, (p - np.outer(gain, x @ p)) / forgetting
        forgetting = 0.9987 * forgetting + 1 - 0.9987
        error = truth @ x - named[0][1].detach().numpy() @ x
        optimizer.update(torch.tensor(error), [torch.tensor(x)])
    assert np.allclose(named[0][1].detach().numpy(), w, rtol=0, atol=1e-12)
    assert np.allclose(optimizer.covariances[0].numpy(), p, rtol=0, atol=1e-10)
    assert np.allclose(w, truth, atol=1e-2)
    assert optimizer.forgetting == pytest.approx(forgetting, abs=1e-15)


def pack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([a.T.ravel() for a in arrays])


def test_blocks_share_one_gain() -> None:
    """Matrices are packed transposed; one that is too large lies in several blocks."""
    rng = np.random.default_rng(1)
    shapes = [(3, 4), (5,), (2, 3)]
    named = parameters(*shapes)
    optimizer = LKF(named, blocksize=8)
    w = pack([p.detach().numpy() for _, p in named])
    ends = np.cumsum([0, *(len(p) for p in optimizer.covariances)])
    assert list(ends) == [0, 8, 12, 17, 23]
    covariances = [np.eye(b - a) for a, b in itertools.pairwise(ends)]
    forgetting = 0.98
    for _ in range(5):
        slopes = [rng.normal(size=shape) for shape in shapes]
        error = rng.normal()
        h = pack(slopes)
        rows = [h[a:b] for a, b in itertools.pairwise(ends)]
        gains = [p @ row for p, row in zip(covariances, rows, strict=True)]
        scale = 1 / sum(forgetting + row @ gain for row, gain in zip(rows, gains, strict=True))
        w = w + scale * error * np.concatenate(gains)
        covariances = [(p - scale * np.outer(k, k)) / forgetting for p, k in zip(covariances, gains, strict=True)]
        forgetting = 0.9987 * forgetting + 1 - 0.9987
        optimizer.update(torch.tensor(error, dtype=torch.float64), [torch.tensor(g) for g in slopes])
    assert np.allclose(pack([p.detach().numpy() for _, p in named]), w, rtol=0, atol=1e-12)
    for own, expected in zip(optimizer.covariances, covariances, strict=True):
        assert np.allclose(own.numpy(), expected, rtol=0, atol=1e-12)
        assert torch.equal(own, own.T)


def test_blocks_without_a_gradient_are_left_alone() -> None:
    named = parameters((4,), (4,))
    optimizer, alone = LKF(named, blocksize=4), LKF(one := parameters((4,)), blocksize=4)
    before = named[1][1].detach().clone()
    slope = torch.arange(4.0, dtype=torch.float64)
    optimizer.update(torch.tensor(0.5), [slope, None])
    alone.update(torch.tensor(0.5), [slope])
    assert torch.equal(named[0][1], one[0][1])
    assert torch.equal(named[1][1], before)
    assert torch.equal(optimizer.covariances[1], torch.eye(4, dtype=torch.float64))


def test_parameters_in_float32_have_a_covariance_in_float64() -> None:
    named: Named = [("w", torch.nn.Parameter(torch.ones(3, 2)))]
    optimizer = LKF(named)
    optimizer.update(torch.tensor(0.5), [torch.ones(3, 2)])
    assert named[0][1].dtype == torch.float32
    assert optimizer.covariances[0].dtype == torch.float64


def test_memory_is_said_and_asked_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def eye(size: int, **options: Any) -> torch.Tensor:
        raise RuntimeError("not enough memory: you tried to allocate 800000000 bytes.\nmore")

    monkeypatch.setattr(torch, "eye", eye)
    named: Named = [("w", torch.nn.Parameter(torch.empty(20000)))]
    with pytest.raises(
        BackendError, match=r"LKF, 2 blocks, take 1.5 GiB, which cpu does not have \(not enough .* bytes"
    ):
        LKF(named, blocksize=10000)
    assert "a smaller optimizer.kf_blocksize takes proportionally less" in caplog.text


@pytest.mark.parametrize("where", ["error", "gradient"])
def test_numbers_that_are_not_finite_change_nothing(where: str) -> None:
    named = parameters((4,), (2,))
    optimizer, before = LKF(named), [p.detach().clone() for _, p in named]
    error = torch.tensor(float("nan") if where == "error" else 1.0)
    slopes = [torch.ones(4, dtype=torch.float64), torch.full((2,), float("inf") if where == "gradient" else 1.0)]
    with pytest.raises(NonFiniteError, match=r"not finite .*gradients of (p1|no parameter)$"):
        optimizer.update(error, slopes)
    assert all(torch.equal(p, old) for (_, p), old in zip(named, before, strict=True))
    assert torch.equal(optimizer.covariances[0], torch.eye(6, dtype=torch.float64))


def test_prefactors_are_geometric() -> None:
    optimizer = LKF(parameters((2,)), pref_e=(4.0, 1.0), pref_f=(1.0, 9.0), num_steps=10)
    found = []
    for optimizer.steps in (0, 5, 10):
        found.append((optimizer.prefactor("energy"), optimizer.prefactor("force")))
    assert np.allclose(found, [(4, 1), (2, 3), (1, 9)])


def test_states_that_do_not_fit_and_plain_steps_are_refused() -> None:
    optimizer = LKF(parameters((4,), (2,)), blocksize=4)
    other = LKF(parameters((6,)), blocksize=6)
    with pytest.raises(
        InputError, match=r"expected blocks \[\(6, 6\)\], got \[\(4, 4\), \(2, 2\)\]. Go on with the same"
    ):
        other.load_filter_state(optimizer.filter_state())
    with pytest.raises(InputError, match="does not fit this run"):
        other.load_filter_state({})
    with pytest.raises(RuntimeError, match="call kalman_step"):
        optimizer.step()


# --- training steps --------------------------------------------------------------------------------------------


class Toy:
    """Energies of atoms by a small network of their coordinates, per frame summed; forces by differentiation."""

    def __init__(self, seed: int = 0) -> None:
        self.named = parameters((3, 5), (5,), (5, 1), seed=seed)
        self.calls: list[bool] = []

    def energies(self, coord: torch.Tensor, frame: torch.Tensor, frames: int) -> torch.Tensor:
        (_, w), (_, b), (_, v) = self.named
        each = (torch.tanh(coord @ w + b) @ v)[:, 0]
        return torch.zeros(frames, dtype=coord.dtype).index_add(0, frame, each)[:, None]

    def predictor(
        self, coord: np.ndarray, atype: np.ndarray, frame: np.ndarray, frames: int
    ) -> Callable[[bool], Mapping[str, torch.Tensor]]:
        def predict(forces: bool) -> dict[str, torch.Tensor]:
            self.calls.append(forces)
            x, real = torch.tensor(coord, requires_grad=forces), torch.tensor(atype >= 0)
            energy = self.energies(x[real], torch.tensor(frame)[real], frames)
            if not forces:
                return {"energy": energy}
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
            return {"energy": energy, "force": -slope}

        return predict


def data(seed: int = 3, sizes: tuple[int, ...] = (4, 6, 5), virtual: int = 0) -> dict[str, Any]:
    """Frames with labels from another toy; `virtual` atoms at the end of every frame."""
    rng = np.random.default_rng(seed)
    atype = np.concatenate([np.r_[np.zeros(n, int), -np.ones(virtual, int)] for n in sizes])
    frame = np.repeat(np.arange(len(sizes)), [n + virtual for n in sizes])
    coord = np.where(atype[:, None] >= 0, rng.normal(size=(len(atype), 3)), 0.0)
    if virtual:
        coord[atype >= 0] = data(seed, sizes)["coord"]
    found = Toy(seed=9).predictor(coord, atype, frame, len(sizes))(True)
    return {
        "coord": coord, "atype": atype, "frame": frame, "natoms": np.array(sizes), "energy": found["energy"].detach(),
        "force": found["force"].detach(),
    }  # fmt: skip


def observation(toy: Toy, given: dict[str, Any], **changes: Any) -> Observation:
    predict = toy.predictor(given["coord"], given["atype"], given["frame"], len(given["natoms"]))
    labels = {"energy": given["energy"], "force": given["force"], **changes}
    return Observation(
        predict=predict, atype=given["atype"], frame=given["frame"], natoms=given["natoms"], **labels
    )  # fmt: skip


def joined(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    both = {key: np.concatenate([np.asarray(a[key]), np.asarray(b[key])]) for key in a}
    both["frame"] = np.concatenate([a["frame"], b["frame"] + len(a["natoms"])])
    return both | {key: torch.tensor(both[key]) for key in ("energy", "force")}


def weights(toy: Toy) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for _, p in toy.named])


def test_a_step_is_an_energy_update_and_four_of_forces() -> None:
    toy, given = Toy(), data()
    kalman_step(LKF(toy.named), [observation(toy, given)])
    assert toy.calls == [False, True, True, True, True]
    for name, calls in (("energy", [True] * 4), ("force", [False])):
        toy.calls.clear()
        kalman_step(LKF(toy.named), [observation(toy, given, **{name: None})])
        assert toy.calls == calls


def test_updates_are_what_the_formulas_say() -> None:
    """Residuals and gradients of a step, with `update` replaced by its record."""
    toy, given = Toy(), data()
    optimizer = LKF(toy.named, pref_e=(2.0, 2.0), pref_f=(3.0, 3.0))
    record: list[Any] = []
    optimizer.update = lambda error, gradients: record.append((float(error), gradients))  # type: ignore[method-assign]
    kalman_step(optimizer, [observation(toy, given)])
    found = observation(toy, given).predict(True)
    natoms = torch.tensor(given["natoms"], dtype=torch.float64)
    rest = ((given["energy"] - found["energy"])[:, 0]).detach()
    target = (rest.sign() * found["energy"][:, 0] / natoms).sum()
    expected = [((rest.abs() / natoms).mean().item() * 2.0 * 3**0.5, target)]
    starts = np.cumsum([0, *given["natoms"]])
    for group in np.random.default_rng([0, 0]).random((4, 6)):
        error, target = 0.0, torch.zeros((), dtype=torch.float64)
        for f, n in enumerate(given["natoms"]):
            rows = starts[f] + (group * n).astype(int)
            rest = (given["force"][rows] - found["force"][rows]).detach()
            error += rest.abs().mean().item() / n / 3
            target = target + (rest.sign() * found["force"][rows]).sum() / 18 / n
        expected.append((error * 3.0 * 3**0.5, target))
    assert len(record) == 5
    for (error, gradients), (value, target) in zip(record, expected, strict=True):
        assert error == pytest.approx(value, rel=1e-12)
        slopes = torch.autograd.grad(target, optimizer.parameters, retain_graph=True, allow_unused=True)
        for own, other in zip(gradients, slopes, strict=True):
            assert (own is None and other is None) or torch.allclose(own, other, rtol=0, atol=1e-13)


def test_virtual_atoms_and_empty_frames_change_nothing() -> None:
    found = []
    for virtual in (0, 3):
        toy, given = Toy(), data(virtual=virtual)
        if virtual:
            empty = {key: value[:0] for key, value in given.items()}
            empty |= {"natoms": np.array([0]), "energy": torch.zeros(1, 1, dtype=torch.float64)}
            given = joined(given, empty)
        optimizer = LKF(toy.named)
        for _ in range(3):
            kalman_step(optimizer, [observation(toy, given)])
        found.append(weights(toy))
    assert np.allclose(*found, rtol=0, atol=1e-12)


def test_several_batches_are_fitted_as_one() -> None:
    """And those of other ranks with them: here another rank with the same batches."""
    a, b = data(3), data(4, (7,))
    found = []
    for case in ("one", "several", "ranks"):
        toy, given = Toy(), [joined(joined(a, b), joined(a, b))] if case == "one" else [a, b, a, b]
        if case == "ranks":
            given = given[:2]
        optimizer = LKF(toy.named)
        for _ in range(3):
            total = (lambda x: 2 * x) if case == "ranks" else None
            kalman_step(optimizer, [observation(toy, each) for each in given], total=total)
        found.append(weights(toy))
    assert np.allclose(found[0], found[1], rtol=0, atol=1e-12)
    assert np.allclose(found[0], found[2], rtol=0, atol=1e-12)


def test_ranks_without_labels_take_part() -> None:
    """As many collective operations, of the same size, on every rank."""
    toy, given = Toy(), data()
    calls: list[int] = []

    def total(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x

    kalman_step(LKF(toy.named), [observation(toy, given)], total=total)
    kalman_step(LKF(toy.named), [observation(toy, given, energy=None, force=None)], total=total)
    kalman_step(LKF(toy.named), [], total=total)
    assert len(calls) == 15 and len(set(calls)) == 1


def test_the_atoms_depend_on_seed_and_step() -> None:
    def after(seed: int, steps: int) -> np.ndarray:
        toy = Toy()
        optimizer = make_optimizer(LKFConfig(), toy.named, start_lr=1.0, num_steps=1, seed=(seed, 2))
        assert isinstance(optimizer, LKF)
        optimizer.steps = steps
        kalman_step(optimizer, [observation(toy, data(), energy=None)])
        return weights(toy)

    assert np.array_equal(after(0, 0), after(0, 0))
    assert not np.allclose(after(0, 0), after(1, 0))
    assert not np.allclose(after(0, 0), after(0, 1))


@pytest.mark.parametrize("blocksize", [5120, 8])
def test_a_restart_goes_on_to_the_bit_and_learns(blocksize: int) -> None:
    given = [data(seed, (5, 5)) for seed in range(8)]

    def go(toy: Toy, optimizer: LKF, steps: range) -> None:
        for step in steps:
            kalman_step(optimizer, [observation(toy, given[step % 8])])

    def error(toy: Toy) -> float:
        return sum(
            float((observation(toy, g).predict(True)["force"] - g["force"]).detach().abs().mean()) for g in given
        )

    toy = Toy()
    first = error(toy)
    go(toy, LKF(toy.named, blocksize=blocksize), range(24))
    assert error(toy) < 0.6 * first
    again = Toy()
    optimizer = LKF(again.named, blocksize=blocksize)
    go(again, optimizer, range(10))
    state = optimizer.filter_state()
    third = Toy()
    for (_, p), (_, old) in zip(third.named, again.named, strict=True):
        p.data.copy_(old)
    go(again, optimizer, range(10, 12))  # what was saved does not change with it
    other = LKF(third.named, blocksize=blocksize)
    other.load_filter_state(state)
    go(third, other, range(10, 24))
    assert np.array_equal(weights(toy), weights(third))
