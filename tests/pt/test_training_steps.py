"""One training step: its gradient, clipping, frozen layers, and numbers that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpmodel.backends.pt.bridge import override_table
from dpmodel.backends.pt.overrides import OVERRIDES, spectral
from dpmodel.backends.pt.training import TorchStepper
from dpmodel.config import Config
from dpmodel.data import Dataset
from dpmodel.data.labels import as_request
from dpmodel.errors import InputError
from dpmodel.files.model_file import read_model
from dpmodel.input import load_model
from dpmodel.input.sections import AdamConfig, AdamWConfig
from dpmodel.losses import EnerLossConfig, build_loss
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.statistics.fit import fit_statistics
from dpmodel.training.batches import Prepared, prepare
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.run import train
from dpmodel.training.stepper import NonFiniteError, StepOptions

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::dpmodel.geometry.build.TruncationWarning"),  # of the golden models
]
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TERMS = {"start_pref_v": 0.5, "start_pref_ae": 3.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "energy": {"start_pref_f": 0.0, "limit_pref_f": 0.0},
    "force": {"start_pref_e": 0.0, "limit_pref_e": 0.0},
    "every_term": {**TERMS, "start_pref_pf": 2.0, "start_pref_gf": 0.7, "numb_generalized_coord": 2},
    "intensive": {**TERMS, "intensive_ener_virial": True},
    "relative": {**TERMS, "relative_f": 0.7, "start_pref_pf": 2.0},
    "coefficients": {**TERMS, "enable_atom_ener_coeff": True},
    "default_pf": {"start_pref_pf": 2.0, "use_default_pf": True},
    "huber": {**TERMS, "use_huber": True, "huber_delta": (0.02, 0.1, 0.03)},
    "huber_norm": {"use_huber": True, "huber_delta": 0.2, "f_use_norm": True},
    "mae": {**TERMS, "loss_func": "mae", "start_pref_pf": 1.0},
    "mae_norm": {**TERMS, "loss_func": "mae", "f_use_norm": True},
}  # fmt: skip


def stepper_of(model: Any, overrides: Any = OVERRIDES, optimizer: Config | None = None, **options: Any) -> TorchStepper:
    norm = options.pop("gradient_max_norm", None)
    return TorchStepper(
        model, {"": build_loss(EnerLossConfig(**options), 0.001)}, optimizer or AdamConfig(), device=torch.device("cpu"),
        overrides=override_table(overrides), options=StepOptions(gradient_max_norm=norm),
    )  # fmt: skip


def batch_of(model: Any, sizes: tuple[int, ...], seed: int = 0) -> Prepared:
    """Frames of different sizes: padded with virtual atoms to the largest."""
    rng = np.random.default_rng(seed)
    f, n = len(sizes), max(sizes)
    atype = np.where(np.arange(n) < np.array(sizes)[:, None], rng.integers(0, model.ntypes, (f, n)), -1)
    builder = builder_of(model)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n] * 2.2
    coord = grid + rng.uniform(0, 0.8, (f, n, 3))
    more = {"fparam": rng.normal(size=(f, model.dim_fparam)), "aparam": rng.normal(size=(f, n, model.dim_aparam))}
    given = {name: value for name, value in more.items() if value.shape[-1]}
    graph = builder.build(coord, atype, np.tile(np.eye(3) * 6.6, (f, 1, 1)), **given)
    atoms = {"force": (3,), "atom_ener": (1,), "atom_pref": (3,), "atom_ener_coeff": (1,), "drdq": (3, 2)}
    labels = {name: rng.normal(size=(f * n, *shape)) for name, shape in atoms.items()}
    labels["atom_pref"] **= 2
    labels |= {"energy": rng.normal(size=(f, 1)), "virial": rng.normal(size=(f, 9))}
    return Prepared(graph, labels, dict.fromkeys(labels, 1.0))


def gradient(stepper: TorchStepper, batch: Prepared, lr: float) -> dict[str, torch.Tensor]:
    loss, _ = stepper._loss(*batch, lr, create_graph=True)
    found = torch.autograd.grad(loss, list(stepper._trained.values()), allow_unused=True)
    pairs = zip(stepper._trained.items(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


@pytest.mark.parametrize("overrides", [{}, OVERRIDES], ids=["reference", "overrides"])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients(name: str, overrides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expanded = []
    plain = spectral.coefficients
    monkeypatch.setattr(spectral, "coefficients", lambda *args: expanded.append(plain(*args)) or expanded[-1])
    # With fparam and aparam where every term is there.
    model = read_model(GOLDEN / ("se_e2_a_fparam_aparam.dp" if name == "every_term" else "se_e2_a.dp")).model
    batch = batch_of(model, (27, 20))
    stepper, lr = stepper_of(model, overrides, **OPTIONS[name]), 0.00037
    slopes = gradient(stepper, batch, lr)
    # The expansion takes part exactly where it is asked for.
    assert any(item is not None for item in expanded) == bool(overrides)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        direction = {k: torch.randn(g.shape, generator=generator, dtype=g.dtype) for k, g in slopes.items()}
        size = float(sum((d**2).sum() for d in direction.values())) ** 0.5

        def value(shift: float, direction: dict[str, torch.Tensor] = direction) -> float:
            with torch.no_grad():
                for key, p in stepper._trained.items():
                    p.add_(direction[key], alpha=shift)
            found = float(stepper._loss(*batch, lr, create_graph=True)[0].detach())
            with torch.no_grad():
                for key, p in stepper._trained.items():
                    p.sub_(direction[key], alpha=shift)
            return found

        h = 1e-3 / size
        numerical = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
        expected = float(sum((slopes[k] * d).sum() for k, d in direction.items()))
        assert abs(expected) > 1e-6
        np.testing.assert_allclose(numerical, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["every_term", "mae_norm"])
def test_overrides_give_the_same_gradient(name: str) -> None:
    model = read_model(GOLDEN / "se_e2_a_fparam_aparam.dp").model
    batch = batch_of(model, (27, 20, 1))
    one, two = (gradient(stepper_of(model, table, **OPTIONS[name]), batch, 0.001) for table in ({}, OVERRIDES))
    largest = max(float(g.abs().max()) for g in one.values())
    for key, value in one.items():
        np.testing.assert_allclose(two[key], value, rtol=0, atol=1e-10 * largest, err_msg=key)


def tiny_model(**fitting: Any) -> Any:
    section = {
        "type_map": ["A", "B"],
        "descriptor": {"type": "se_e2_a", "sel": [30, 30], "rcut": 4.0, "neuron": [3, 6], "axis_neuron": 2, "seed": 1,
                       "trainable": fitting.pop("descriptor_trainable", True)},
        "fitting_net": {"neuron": [4, 4], "seed": 1, **fitting},
    }  # fmt: skip
    return build_model(load_model(section))


@pytest.mark.parametrize("optimizer", [AdamConfig(weight_decay=0.1), AdamWConfig(weight_decay=0.5)])
@pytest.mark.parametrize("trainable", [[True, False, True], [False, False, True], False, True])
@pytest.mark.parametrize("descriptor", [True, False])
def test_frozen_layers_stay(trainable: Any, descriptor: bool, optimizer: Config) -> None:
    model = tiny_model(trainable=trainable, descriptor_trainable=descriptor)
    if trainable is False and not descriptor:
        with pytest.raises(InputError, match="nothing to train"):
            stepper_of(model)
        return
    stepper, batch = stepper_of(model, optimizer=optimizer), batch_of(model, (9, 12))
    for _ in range(2):
        stepper.step([batch], 0.01)
    before, after = model.state(), stepper.model().state()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    layers = trainable if isinstance(trainable, list) else [trainable] * 3
    for name in before:
        if name.startswith("descriptor.networks"):
            assert (name in moved) == descriptor, name
        elif name.startswith("fitting") and ".layers." in name:
            layer = int(name.split(".layers.")[1].split(".")[0])
            # No gradient of the last bias is lost: energies are in the loss.
            assert (name in moved) == layers[layer], name
        else:
            assert name not in moved, name


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e5, 3e307, 1e-300, 0.0])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping(size: float, max_norm: float) -> None:
    stepper = stepper_of(tiny_model(), gradient_max_norm=max_norm)
    generator = torch.Generator().manual_seed(0)
    given = {k: size * torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in stepper._trained.items()}
    for key, p in stepper._trained.items():
        p.grad = given[key].clone()
    stepper._check_and_clip([torch.tensor(0.0)])
    clipped = {key: p.grad for key, p in stepper._trained.items()}
    largest = max(float(g.abs().max()) for g in given.values())
    scaled = {key: g / largest if largest else g for key, g in given.items()}
    relative = float(sum((g**2).sum() for g in scaled.values())) ** 0.5
    norm = relative * largest  # may be infinite
    for key, g in clipped.items():
        expected = given[key] if norm <= max_norm else scaled[key] * (max_norm / relative)
        np.testing.assert_allclose(g, expected, rtol=1e-5 if norm < 1 else 1e-6, atol=0, err_msg=key)
    if 1e-100 < size < 1e100:
        parameters = list(stepper._trained.values())
        for key, p in stepper._trained.items():
            p.grad = given[key].clone()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        for key, p in stepper._trained.items():
            np.testing.assert_allclose(clipped[key], p.grad, rtol=1e-13, err_msg=key)


def test_clipping_of_huge_numbers_in_float32() -> None:
    model = tiny_model(precision="float32")
    stepper = stepper_of(model, gradient_max_norm=1.0)
    for p in stepper._trained.values():
        p.grad = torch.full_like(p, 1e38)
    stepper._check_and_clip([torch.tensor(0.0)])
    norm = float(sum((p.grad.double() ** 2).sum() for p in stepper._trained.values())) ** 0.5
    np.testing.assert_allclose(norm, 1.0, rtol=1e-6)


class Sizes(TorchDispatchMode):
    """Notes how many numbers the largest new tensor has."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not function.is_view:
            self.largest = max(self.largest, found.numel())
        return found


def test_the_norm_of_the_gradient_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk, cut within tensors and across them: the same number."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (5, 64, 3, 0, 40, 20, 1)]
    given[2] = given[2].float()
    store = stepper_of(tiny_model()).store
    expected = store.report(given)
    whole = torch.cat(given)
    assert expected.largest == float(whole.abs().max())
    assert expected.relative == pytest.approx(float(torch.linalg.vector_norm(whole)) / expected.largest, rel=1e-14)
    monkeypatch.setattr("dpmodel.backends.pt.store.CHUNK", 16)
    with Sizes() as sizes:
        found = store.report(given)
    assert found.largest == expected.largest
    assert found.relative == pytest.approx(expected.relative, rel=1e-14)
    assert sizes.largest <= 16
    assert store.report(given) == found


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_gradient_that_is_no_number(bad: float, max_norm: float | None) -> None:
    model = tiny_model()
    stepper = stepper_of(model, gradient_max_norm=max_norm)
    for p in stepper._trained.values():
        p.grad = torch.ones_like(p)
    name = "descriptor.networks.2.layers.1.w"
    stepper._trained[name].grad[0, 0] = bad
    with pytest.raises(NonFiniteError, match=rf"loss 7.*in {name}$"):
        stepper._check_and_clip([torch.tensor(7.0)])
    batch = batch_of(model, (9, 12))
    batch.labels["force"][0] = bad
    with pytest.raises(NonFiniteError, match=r"fitting.*and \d+ more|descriptor.*and \d+ more"):
        stepper.step([batch], 0.01)
    assert all(np.array_equal(value, stepper.model().state()[key]) for key, value in model.state().items())


def test_nothing_is_saved_after_a_bad_gradient(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = workshop.input(training__save_freq=2)
    plain, calls = TorchStepper._loss, []

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        loss, metrics = plain(self, *args, **options)
        return (loss * np.nan if len(calls) == 4 else loss), metrics

    with monkeypatch.context() as patch:
        patch.setattr(TorchStepper, "_loss", broken)
        with pytest.raises(NonFiniteError, match=r"step 4: the gradient is not finite .*--restart"):
            train(data)
    assert [p.name for p in Path().glob("model.ckpt-*")] == ["model.ckpt-2.dp"]
    one = Checkpoint.load(train(data, restart="model.ckpt"))
    two = Checkpoint.load(train(data))
    assert all(np.array_equal(one.state[name], two.state[name]) for name in one.state)


def test_a_model_that_is_no_number_is_not_saved(workshop: Any) -> None:
    data = workshop.input(model__descriptor__precision="float32", learning_rate__start_lr=1e300, training__save_freq=1)
    with pytest.raises(NonFiniteError, match=r"after step 1 the model holds NaN or infinite numbers in descriptor"):
        train(data)
    assert not list(Path().glob("model.ckpt*"))


def test_metrics_of_absent_labels(workshop: Any) -> None:
    model = tiny_model()
    stepper, batch = stepper_of(model, start_pref_v=1.0), batch_of(model, (4, 5))
    found = {**batch.found, "virial": 0.0}
    metrics = stepper.step([batch._replace(found=found)], 0.001)()
    assert np.isnan(metrics["rmse_v"]) and np.isfinite(metrics["rmse"])
    again = stepper.measure(batch._replace(found=found), 0.001)
    assert again.keys() == metrics.keys() and again["rmse"] < metrics["rmse"]


def test_optimizer_state_that_does_not_fit() -> None:
    model = tiny_model()
    stepper = stepper_of(model)
    assert not any(stepper.optimizer_state().values())
    stepper.load_optimizer_state(stepper.optimizer_state())
    stepper.step([batch_of(model, (4,))], 0.01)
    state = stepper.optimizer_state()
    with pytest.raises(InputError, match=r"missing .*exp_avg_sq"):
        stepper_of(model).load_optimizer_state({k: v for k, v in state.items() if k != "exp_avg_sq"})
    with pytest.raises(InputError, match=r"not trained here .*descriptor"):
        stepper_of(tiny_model(descriptor_trainable=False)).load_optimizer_state(state)
    name = next(iter(state["exp_avg"]))
    state["exp_avg"][name] = np.zeros((1, 9))
    with pytest.raises(InputError, match="expected shape"):
        stepper_of(model).load_optimizer_state(state)


def test_statistics_of_the_bias(workshop: Any, water_data: Path) -> None:
    """Labels of atoms decide over those of frames, and the input over both."""
    rng = np.random.default_rng(0)
    energies = np.where(np.arange(5) % 2, -2.0, -5.0) + rng.normal(0, 0.1, (6, 5))
    path = workshop.system(labels={"atom_ener": energies[..., None], "energy": np.full((6, 1), 100.0)})
    loss = build_loss(EnerLossConfig(start_pref_ae=1.0), 1.0)
    data = Dataset.from_config([path], type_map=["A", "B"], labels=[as_request(label) for label in loss.labels])
    for preset, first in (({}, np.mean(energies[:, 0::2])), ({"preset_out_bias": {"energy": [7.0, None]}}, 7.0)):
        section = {
            "type_map": ["A", "B"],
            "descriptor": {"type": "se_e2_a", "sel": [9, 9]},
            "fitting_net": {},
            **preset,
        }
        model = build_model(load_model(section), seed=1)
        builder = builder_of(model)
        fitted = fit_statistics(model, data, builder, nbatch=10, protect=0.01)
        np.testing.assert_allclose(fitted.out_bias[:, 0], [first, np.mean(energies[:, 1::2])], rtol=1e-12)
        batch = prepare(data.systems[0].batch(np.arange(2)), builder, frozenset({"force", "atom_ener"}))
        assert batch.labels["atom_ener"].shape == (10, 1)
