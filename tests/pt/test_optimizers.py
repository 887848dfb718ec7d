"""Steps of the optimizers against formulas, against torch, and through saved states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backend import get_trainer
from dpmodel.backends.pt.optimizers import LKF, SLOTS, AdaMuon, HybridMuon, make_optimizer
from dpmodel.backends.pt.optimizers.hybrid_muon import leaf, matrices
from dpmodel.backends.pt.optimizers.orthogonal import PUBLISHED
from dpmodel.input.optimizers import OPTIMIZERS

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {
    "net.0.w": (6, 6), "net.0.b": (6,), "net.1.w": (6, 4), "net.1.idt": (4,), "net.2.w": (3, 7), "out.w": (7, 1),
    "more.w": (6, 4),
}  # fmt: skip
Named = list[tuple[str, torch.nn.Parameter]]


def parameters(
    dtype: torch.dtype = torch.float64, shapes: Mapping[str, tuple[int, ...]] = SHAPES, seed: int = 0
) -> Named:  # fmt: skip
    rng = torch.Generator().manual_seed(seed)
    return [
        (name, torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=rng).to(dtype)))
        for name, shape in shapes.items()
    ]


def slope(named: Named, step: int, leave_out: tuple[str, ...] = ()) -> None:
    """Gradients of a step, the same for the same step."""
    for index, (name, p) in enumerate(named):
        rng = torch.Generator().manual_seed(100 * step + index)
        new = torch.randn(*p.shape, dtype=torch.float64, generator=rng).to(p.dtype)
        p.grad = None if name in leave_out else new


def values(named: Named) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in named}


def configured(key: str, named: Named, **options: Any) -> torch.optim.Optimizer:
    config = next(kind for kind in OPTIMIZERS if kind.key == key)(**options)
    return make_optimizer(config, named, start_lr=0.01, num_steps=20)


# --- formulas --------------------------------------------------------------------------------------------------


def quintics(matrix: np.ndarray, coefficients: Any) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.linalg.norm(s)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vh


JORDAN = (3.4445, -4.7750, 2.0315)
POLAR = [
    (a / 1.05, b / 1.05**3, c / 1.05**5)
    for a, b, c in [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    ]
]


def adam(p: np.ndarray, gradients: list[np.ndarray], lr: float, betas: tuple[float, float], eps: float) -> np.ndarray:
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("adjust", [10.0, 0.0])
def test_ada_muon_is_its_formula(adjust: float) -> None:
    named = parameters()
    optimizer = AdaMuon(named, lr=0.02, momentum=0.9, weight_decay=0.1, lr_adjust=adjust)
    start, b = values(named), 0.9
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in SHAPES}
    for step in range(3):
        slope(named, step)
        for name, p in named:
            gradients[name].append(p.grad.numpy().copy())
        optimizer.step()
    for name, p in named:
        x = start[name]
        if x.ndim == 1:
            expected = adam(x, gradients[name], 0.02 / (adjust or 1.0), (0.9, 0.95), 1e-8)
            assert np.allclose(p.detach().numpy(), expected, rtol=0, atol=1e-7), name
            continue
        momentum = second = np.zeros_like(x)
        rows, columns = x.shape
        scale = math.sqrt(max(1, rows / columns)) if adjust else 0.2 * math.sqrt(max(rows, columns))
        for g in gradients[name]:
            momentum = b * momentum + (1 - b) * g
            turned = quintics(np.sign((1 - b) * g + b * momentum), [JORDAN] * 5)
            second = b * second + (1 - b) * turned**2
            turned = turned / (np.sqrt(second) + 1e-8)
            turned *= 0.2 * math.sqrt(rows * columns) / (np.linalg.norm(turned) + 1e-8)
            x = x * (1 - 0.02 * 0.1) - 0.02 * scale * turned
        assert np.allclose(p.detach().numpy(), x, rtol=0, atol=2e-7), name  # second moments are float32


@pytest.mark.parametrize("magma", [True, False])
@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("adjust", [2.0, 0.0])
def test_hybrid_muon_is_its_formula(magma: bool, gram: bool, adjust: float) -> None:
    shapes = {name: shape for name, shape in SHAPES.items() if len(shape) == 2 and 1 not in shape}
    named = parameters(shapes=shapes)
    optimizer = HybridMuon(named, lr=0.02, momentum=0.9, weight_decay=0.1, lr_adjust=adjust, gram=gram, magma=magma)
    expected, b = values(named), 0.9
    momenta = {name: np.zeros(shape) for name, shape in shapes.items()}
    scores = dict.fromkeys(shapes, 0.5)
    for step in range(3):
        slope(named, step)
        for name, p in named:
            g, (rows, columns) = p.grad.numpy(), p.shape
            m = momenta[name] = b * momenta[name] + (1 - b) * g
            schedule = POLAR if gram and rows != columns else [JORDAN] * 8 + [(2, -1.5, 0.5)] * 2
            turned = quintics((1 - b) * g + b * m, schedule)
            cosine = (m * g).sum() / np.linalg.norm(m) / np.linalg.norm(g)
            stretched = (sigmoid(cosine / 2) - sigmoid(-0.5)) / (sigmoid(0.5) - sigmoid(-0.5))
            scores[name] = 0.9 * scores[name] + 0.1 * stretched
            damping = 0.1 + 0.9 * scores[name] if magma else 1.0
            scale = math.sqrt(max(1, rows / columns)) if adjust else 0.18 * math.sqrt(max(rows, columns))
            expected[name] = expected[name] * (1 - 0.02 * 0.1) - 0.02 * scale * damping * turned
        optimizer.step()
    for name, p in named:
        assert np.allclose(p.detach().numpy(), expected[name], rtol=0, atol=1e-7 if magma else 1e-11), name


def test_weights_keep_their_orientation() -> None:
    """(in, out): a matrix and its transpose are not trained alike once the shape enters."""
    wide, tall = parameters(shapes={"w": (3, 12)}), parameters(shapes={"w": (12, 3)})
    steps = []
    for named in (wide, tall):
        slope(named, 0)
        named[0][1].grad = wide[0][1].grad.T.clone() if named is tall else named[0][1].grad
        before = named[0][1].detach().clone()
        HybridMuon(named, lr=1.0, weight_decay=0.0, lr_adjust=1.0).step()
        steps.append(named[0][1].detach() - before)
    assert torch.allclose(steps[1], steps[0].T * 2, rtol=0, atol=1e-12)


# --- torch's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ours", "theirs"), [((1.0, 0.2), "original"), ((0.0, 0.2), "match_rms_adamw")])
def test_hybrid_muon_with_published_iterations_is_torchs(
    dtype: torch.dtype, ours: tuple[float, float], theirs: str
) -> None:
    shapes = {"a.w": (6, 6), "b.w": (5, 9), "c.w": (9, 4)}
    named, others = parameters(dtype, shapes), parameters(dtype, shapes)
    optimizer = HybridMuon(
        named, lr=0.02, momentum=0.9, weight_decay=0.1, lr_adjust=ours[0], lr_adjust_coeff=ours[1], gram=False, magma=False,
        coefficients=PUBLISHED,
    )  # fmt: skip
    reference = torch.optim.Muon(
        [p for _, p in others], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn=theirs
    )  # fmt: skip
    for step in range(4):
        for each in (named, others):
            slope(each, step)
        optimizer.step()
        reference.step()
    for (name, p), (_, other) in zip(named, others, strict=True):
        assert torch.equal(p, other), name


@pytest.mark.parametrize(("name", "decay"), [("net.b", 0.0), ("net.adam_w", 0.0), ("net.adamw_w", 0.3)])
def test_routes_that_are_torchs_adam(name: str, decay: float) -> None:
    named, others = parameters(torch.float32, {name: (4, 5)}), parameters(torch.float32, {name: (4, 5)})
    optimizer = HybridMuon(named, lr=0.02, weight_decay=0.3, lr_adjust=4.0)
    reference = torch.optim.AdamW([others[0][1]], lr=0.005, betas=(0.9, 0.95), eps=1e-20, weight_decay=decay)
    for step in range(4):
        for each in (named, others):
            slope(each, step)
        optimizer.step()
        reference.step()
    assert torch.allclose(named[0][1], others[0][1], rtol=2e-6, atol=1e-7)
    assert optimizer.state[named[0][1]]["exp_avg"].equal(reference.state[others[0][1]]["exp_avg"])


@pytest.mark.parametrize("key", ["Adam", "AdamW"])
def test_adam_is_torchs(key: str) -> None:
    named, others = parameters(), parameters()
    optimizer = configured(key, named, adam_beta1=0.8, adam_beta2=0.9, weight_decay=0.1)
    reference = getattr(torch.optim, key)(
        [p for _, p in others], lr=0.01, betas=(0.8, 0.9), weight_decay=0.1, fused=True
    )
    for step in range(3):
        for each in (named, others):
            slope(each, step)
        optimizer.step()
        reference.step()
    assert all(torch.equal(p, other) for (_, p), (_, other) in zip(named, others, strict=True))


# --- routes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "mode", "route"),
    [
        ("net.layers.0.w", (8, 4), "slice", "muon"),
        ("net.layers.0.w", (8, 4), "2d", "muon"),
        ("net.layers.0.w", (8, 1), "slice", "adam"),
        ("net.layers.0.w", (1, 1), "slice", "adam"),
        ("net.layers.0.idt", (8,), "slice", "adam"),
        ("net.layers.0.b", (8, 4), "slice", "adam"),
        ("net.layers.0.B_2", (8, 4), "slice", "adam"),
        ("net.type_Bias.3", (8, 4), "slice", "adam"),
        ("net.adam_scale", (8, 4), "slice", "adam"),
        ("net.adamw_scale", (8, 4), "slice", "adamw"),
        ("net.adamw_scale", (8,), "slice", "adamw"),
        ("bias.w", (8, 4), "slice", "muon"),
        ("w", (2, 8, 4), "slice", "muon"),
        ("w", (2, 8, 4), "flat", "muon"),
        ("w", (2, 8, 4), "2d", "adamw"),
        ("w", (1, 8, 4), "2d", "muon"),
        ("w", (8, 3), "slice", "adamw"),  # a side below min_side
        ("w", (0, 4), "slice", "adam"),
    ],
)
def test_routes(name: str, shape: tuple[int, ...], mode: str, route: str) -> None:
    named: Named = [(name, torch.nn.Parameter(torch.zeros(shape)))]
    assert HybridMuon(named, lr=0.1, mode=mode, min_side=4).routes == (route,)


def test_routes_of_ada_muon() -> None:
    assert AdaMuon(parameters(), lr=0.1).routes == ("muon", "adam", "muon", "adam", "muon", "muon", "muon")


def test_names_and_matrices() -> None:
    assert [leaf(name) for name in ("a.b.w", "w.0", "x.W_12", "x.b1", "adam_q.3.0")] == ["w", "w", "w", "b", "adam_q"]
    assert matrices((2, 3, 4, 5), "slice") == (6, 4, 5)
    assert matrices((2, 3, 4, 5), "flat") == (1, 24, 5)
    assert matrices((2, 3, 4, 5), "2d") is None
    assert matrices((1, 4, 1, 5), "2d") == (1, 4, 5)


@pytest.mark.parametrize("mode", ["slice", "flat"])
def test_stacks_of_matrices(mode: str) -> None:
    """Each of its own in slices, as one where they are joined."""
    named = parameters(shapes={"w": (3, 4, 5)})
    slope(named, 0)
    g = named[0][1].grad.clone()
    parts = g if mode == "slice" else g.reshape(1, 12, 5)
    single: Named = [(f"p{k}.w", torch.nn.Parameter(torch.zeros_like(part))) for k, part in enumerate(parts)]
    for (_, p), part in zip(single, parts, strict=True):
        p.grad = part.clone()
    named[0][1].data.zero_()
    for each in (named, single):
        HybridMuon(each, lr=1.0, weight_decay=0.0, mode=mode, magma=False).step()
    expected = torch.stack([p for _, p in single]).reshape(3, 4, 5)
    assert torch.allclose(named[0][1], expected, rtol=0, atol=1e-12)


# --- states ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["AdaMuon", "HybridMuon"])
def test_types_of_states(key: str) -> None:
    named = parameters()
    optimizer = configured(key, named)
    slope(named, 0)
    optimizer.step()
    for name, p in named:
        state = optimizer.state[p]
        assert state.keys() <= set(SLOTS[key]), name
        for slot, value in state.items():
            assert value.dtype == (torch.float64 if slot == "momentum_buffer" else torch.float32), (name, slot)
            assert value.shape in (p.shape, ()), (name, slot)
            assert not value.requires_grad


@pytest.mark.parametrize("key", ["Adam", "AdamW", "AdaMuon", "HybridMuon"])
def test_parameters_without_a_gradient_are_left_alone(key: str) -> None:
    named = parameters()
    out = ("net.0.w", "net.0.b", "net.2.w")
    optimizer = configured(key, named, weight_decay=0.5)
    before = values(named)
    slope(named, 0, leave_out=out)
    optimizer.step()
    for name, p in named:
        assert np.array_equal(p.detach().numpy(), before[name]) == (name in out), name
        assert bool(optimizer.state.get(p)) != (name in out), name


def saved(key: str, named: Named, optimizer: torch.optim.Optimizer) -> Any:
    """As a checkpoint has it: NumPy, by slot and path."""
    if isinstance(optimizer, LKF):
        return optimizer.filter_state()
    return {
        slot: {name: optimizer.state[p][slot].numpy().copy() for name, p in named if slot in optimizer.state.get(p, {})}
        for slot in SLOTS[key]
    }


def restored(key: str, named: Named, optimizer: torch.optim.Optimizer, state: Any) -> None:
    if isinstance(optimizer, LKF):
        return optimizer.load_filter_state(state)
    for name, p in named:
        found = {slot: torch.tensor(state[slot][name]) for slot in SLOTS[key] if name in state[slot]}
        if found:
            optimizer.state[p] = found
    return None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("key", list(SLOTS))
def test_restart_is_exact(key: str, dtype: torch.dtype) -> None:
    """2n steps are n steps, a saved state, and n more, to the bit. Gradients come and go, as in training of several tasks."""

    def run(named: Named, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            slope(named, step, leave_out=("net.1.w", "net.1.idt") if step % 3 == 0 else ("net.2.w",))
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            if isinstance(optimizer, LKF):
                optimizer.update(torch.tensor(0.1), [p.grad for _, p in named])
            else:
                optimizer.step()

    options = {"kf_blocksize": 30} if key == "LKF" else {}
    through = parameters(dtype)
    run(through, configured(key, through, **options), range(8))
    first = parameters(dtype)
    optimizer = configured(key, first, **options)
    run(first, optimizer, range(4))
    state, weights = saved(key, first, optimizer), values(first)
    run(first, optimizer, range(4, 6))  # what was saved does not change with it
    second: Named = [(name, torch.nn.Parameter(torch.tensor(value))) for name, value in weights.items()]
    again = configured(key, second, **options)
    restored(key, second, again, state)
    run(second, again, range(4, 8))
    for (name, p), (_, other) in zip(through, second, strict=True):
        assert torch.equal(p, other), name


def test_every_kind_has_slots() -> None:
    assert set(SLOTS) == {kind.key for kind in OPTIMIZERS}


@pytest.mark.parametrize("key", ["AdaMuon", "HybridMuon"])
def test_flat_valley(key: str) -> None:
    """A least-squares problem is solved, in float32 as models have it."""
    named = parameters(torch.float32, {"w": (6, 4), "b": (4,)})
    optimizer = configured(key, named, weight_decay=0.0)
    (_, w), (_, b) = named
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    y = x @ torch.full((6, 4), 0.3) + 0.2
    losses = []
    for step in range(300):
        loss = ((x @ w + b - y) ** 2).mean()
        w.grad, b.grad = torch.autograd.grad(loss, (w, b))
        optimizer.param_groups[0]["lr"] = 0.2 * 0.98**step
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize("backend", ["pt", "pt_expt"])
def test_backends_say_what_they_have(backend: str) -> None:
    assert get_trainer(backend).optimizers == set(SLOTS)
