"""Steps of one process: several tasks, accumulation, averages, frozen parts, filters, and what states hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backend import get_trainer
from dpmodel.backends.pt.bridge import graph_to_torch
from dpmodel.errors import BackendError, InputError
from dpmodel.input import load_model
from dpmodel.input.optimizers import AdamWConfig, LKFConfig
from dpmodel.losses import EnerLossConfig, build_loss
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.models.multi_task import MultiTask
from dpmodel.training.batches import Prepared
from dpmodel.training.freezing import frozen_paths
from dpmodel.training.stepper import StepOptions

pytestmark = pytest.mark.usefixtures("one_thread")
SECTION: dict[str, Any] = {
    "type_map": ["A", "B"],
    "descriptor": {"type": "se_e2_a", "sel": [30, 30], "rcut": 4.0, "neuron": [3, 6], "axis_neuron": 2, "seed": 1},
}
LR = 0.01


def single(seed: int = 2) -> Any:
    return build_model(load_model({**SECTION, "fitting_net": {"neuron": [5], "seed": seed}}))


def several() -> MultiTask:
    one, two = single(2), single(3)
    return MultiTask(names=("x", "y"), tasks=(one, two.replace(descriptor=one.descriptor)))


def stepper_of(model: Any, optimizer: Any = None, **options: Any) -> Any:
    loss = build_loss(EnerLossConfig(start_pref_v=0.3, limit_pref_v=0.3), 0.01)
    losses = dict.fromkeys(model.names if isinstance(model, MultiTask) else ("",), loss)
    return get_trainer("pt").stepper(
        model, losses, optimizer or AdamWConfig(), device="cpu", options=StepOptions(**options)
    )


def batch_of(seed: int, virial: float = 1.0, frames: int = 2) -> Prepared:
    rng, atoms = np.random.default_rng(seed), 6
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:atoms] * 2.2
    coord = grid + rng.uniform(0, 0.8, (frames, atoms, 3))
    graph = builder_of(single()).build(coord, np.tile(np.arange(atoms) % 2, (frames, 1)), np.tile(np.eye(3) * 6.6, (frames, 1, 1)))  # fmt: skip
    labels = {"force": rng.normal(size=(frames * atoms, 3)), "energy": rng.normal(size=(frames, 1))}
    labels["virial"] = rng.normal(size=(frames, 9))
    return Prepared(graph, labels, {**dict.fromkeys(labels, 1.0), "virial": virial})


def gradients(stepper: Any) -> dict[str, np.ndarray]:
    return {name: p.grad.numpy().copy() for name, p in stepper._trained.items() if p.grad is not None}


def test_accumulation_is_the_mean() -> None:
    parts = []
    for k in range(3):
        stepper = stepper_of(single())
        shown = stepper.step([batch_of(k, virial=float(k > 0))], LR)()
        parts.append((gradients(stepper), shown))
    stepper = stepper_of(single())
    shown = stepper.step([batch_of(k, virial=float(k > 0)) for k in range(3)], LR)()
    for name, value in gradients(stepper).items():
        np.testing.assert_allclose(value, sum(each[name] for each, _ in parts) / 3, rtol=1e-12, atol=1e-14)
    assert shown["rmse_f"] == pytest.approx(sum(each["rmse_f"] for _, each in parts) / 3)
    assert shown["rmse_v"] == pytest.approx(sum(each["rmse_v"] for _, each in parts[1:]) / 2)  # the first has none


def test_averages() -> None:
    """R-S2-04, -07, -08, -16: the formula, frozen parameters too, and parameters that come back whatever happens."""
    model = single()
    stepper = stepper_of(model, ema_decay=0.9, frozen=frozen_paths(model, ["fitting.*"]))
    shadow = {name: np.asarray(value) for name, value in model.state().items() if name in stepper.averaged_state()}
    assert {n.partition(".")[0] for n in shadow} == {"descriptor", "fitting"} and "out_bias" not in shadow
    for k in range(3):
        stepper.step([batch_of(k)], LR)
        now = stepper.model().state()
        shadow = {name: value + (1 - 0.9) * (now[name] - value) for name, value in shadow.items()}
    for name, value in stepper.averaged_state().items():
        np.testing.assert_allclose(value, shadow[name], rtol=1e-12, err_msg=name)
        assert np.array_equal(value, np.asarray(model.state()[name])) or not name.startswith("fitting")
    averaged = stepper.model(averaged=True)
    with stepper.evaluating(averaged=True) as evaluator:
        assert all(np.array_equal(v, averaged.state()[n]) for n, v in evaluator.model().state().items())
        found = evaluator(batch_of(0).graph, forces=True, atomic=True)
    assert all(np.array_equal(value, now[name]) for name, value in stepper.model().state().items())
    with pytest.raises(AttributeError), stepper.evaluating(averaged=True) as evaluator:
        evaluator(None, forces=True, atomic=True)
    assert all(np.array_equal(value, now[name]) for name, value in stepper.model().state().items())
    other = get_trainer("pt").evaluator(averaged, device="cpu")(batch_of(0).graph, forces=True, atomic=True)
    for name, value in other.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14)
    again = stepper_of(model, ema_decay=0.5)
    again.load_averaged_state(stepper.averaged_state())
    assert all(np.array_equal(v, again.averaged_state()[n]) for n, v in stepper.averaged_state().items())
    with pytest.raises(InputError, match=r"averaged parameters do not fit this model: missing .*descriptor"):
        again.load_averaged_state({})
    with pytest.raises(InputError, match=r"expected shape .*, got \(1, 9\)"):
        again.load_averaged_state({name: np.zeros((1, 9)) for name in shadow})
    plain = stepper_of(model)
    assert plain.averaged_state() == {}
    for attempt in (lambda: plain.load_averaged_state(shadow), lambda: plain.model(averaged=True)):
        with pytest.raises(InputError, match=r"set training\.enable_ema"):
            attempt()


def test_frozen_parameters() -> None:
    model = several()
    stepper = stepper_of(model, frozen=frozen_paths(model, ["y.descriptor.networks.0.*", "*.fitting.networks.*.b"]))
    stepper.step([batch_of(0)], LR, "x")
    before, after = model.state(), stepper.model().state()
    still = [name for name, value in before.items() if np.array_equal(value, after[name])]
    # Shared: frozen by whichever of its paths.
    assert "tasks.0.descriptor.networks.0.layers.0.w" in still
    moved = sorted(set(before) - set(still))
    assert moved and all(name.endswith(".w") or "descriptor" in name for name in moved)
    with pytest.raises(AttributeError):  # `frozen_paths` alone knows patterns
        stepper_of(model, frozen=("tasks.0.fitting.*",))
    with pytest.raises(InputError, match="nothing to train"):
        stepper_of(model, frozen=frozen_paths(model, ["*"]))


def test_tasks() -> None:
    """A step of one task is that of its model alone; the nets of others stay, decay or not, and shared parts are one."""
    model = several()
    stepper, alone = stepper_of(model), stepper_of(model.task("y"))
    for k in range(2):
        ours, expected = stepper.step([batch_of(k)], LR, "y")(), alone.step([batch_of(k)], LR)()
        assert ours == expected
    assert stepper.measure(batch_of(5), LR, "y") == alone.measure(batch_of(5), LR)
    found, own = stepper.model(), alone.model().state()
    assert found.tasks[0].descriptor is found.tasks[1].descriptor
    assert all(np.array_equal(value, own[name]) for name, value in found.task("y").state().items())
    x = found.task("x").fitting.state()
    assert all(np.array_equal(value, x[name]) for name, value in model.task("x").fitting.state().items())
    steps = stepper.optimizer_state()["step"]
    assert steps and not any(name.startswith("tasks.0.fitting") for name in steps)
    assert not any(name.startswith("tasks.1.descriptor") for name in steps)  # the first path only
    moved = found.with_task("x", found.task("x").replace(out_bias=found.task("x").out_bias + 2.0))
    stepper.load_buffers(moved)
    with stepper.evaluating("x") as evaluator:
        bias = evaluator(batch_of(0).graph, forces=False, atomic=False)["energy"]
    plain = get_trainer("pt").evaluator(found.task("x"), device="cpu")
    np.testing.assert_allclose(bias, plain(batch_of(0).graph, forces=False, atomic=False)["energy"] + 12.0, rtol=1e-12)
    with pytest.raises(InputError, match=r"buffer tasks\.0\..*: expected shape .*, got nothing"):
        stepper.load_buffers(found.task("x"))
    with pytest.raises(InputError, match=r"a loss for each of the tasks \['x', 'y'\], got \[''\]"):
        get_trainer("pt").stepper(model, {"": None}, AdamWConfig(), options=StepOptions())


def test_restart_is_exact() -> None:
    whole = stepper_of(several(), ema_decay=0.9)
    for k in range(4):
        whole.step([batch_of(k), batch_of(k + 10)], LR, "xyyx"[k])
        if k == 1:
            again = stepper_of(whole.model(), ema_decay=0.9)
            again.load_optimizer_state(whole.optimizer_state())
            again.load_averaged_state(whole.averaged_state())
    for k in (2, 3):
        again.step([batch_of(k), batch_of(k + 10)], LR, "xyyx"[k])
    assert all(np.array_equal(value, again.model().state()[n]) for n, value in whole.model().state().items())
    assert all(np.array_equal(value, again.averaged_state()[n]) for n, value in whole.averaged_state().items())


def test_the_filter_lowers_what_it_fits() -> None:
    """LKF through the stepper: residuals of energies and forces fall, its state goes on exactly."""
    model = single()
    stepper = stepper_of(model, LKFConfig(kf_blocksize=64), num_steps=10, ema_decay=0.5)
    first = stepper.measure(batch_of(0), LR)
    for _ in range(4):
        stepper.step([batch_of(0)], LR)
    assert stepper.measure(batch_of(0), LR)["rmse_e"] < 0.5 * first["rmse_e"]
    again = stepper_of(stepper.model(), LKFConfig(kf_blocksize=64), num_steps=10, ema_decay=0.5)
    again.load_optimizer_state(stepper.optimizer_state())
    for each in (stepper, again):
        each.step([batch_of(1), batch_of(2)], LR)
    assert all(np.array_equal(v, again.model().state()[n]) for n, v in stepper.model().state().items())
    with pytest.raises(InputError, match="zero_stage: the optimizer LKF"):
        stepper_of(model, LKFConfig(), zero_stage=1)


def in_float32() -> Any:
    return build_model(load_model({
        **SECTION, "descriptor": {**SECTION["descriptor"], "precision": "float32"},
        "fitting_net": {"neuron": [5], "seed": 2, "precision": "float32"},
    }))  # fmt: skip


def test_numbers_of_lower_precision(caplog: pytest.LogCaptureFixture) -> None:
    model = in_float32()
    plain, mixed = stepper_of(model), stepper_of(model, amp=True, tf32=True)
    assert "TF32 is a format of CUDA devices" in caplog.text and "float32 matrices" not in caplog.text
    ours, expected = (each.step([batch_of(0)], LR)() for each in (mixed, plain))
    assert ours["rmse_f"] == pytest.approx(expected["rmse_f"], rel=0.05) and ours != expected
    assert all(p.dtype is torch.float32 and torch.isfinite(p.grad).all() for p in mixed._trained.values())
    with pytest.raises(BackendError, match=r"enable_bf16 does not go with training\.enable_compile"):
        get_trainer("pt_expt").stepper(
            model, plain.losses, AdamWConfig(), device="cpu", options=StepOptions(compile=True, amp=True)
        )


def test_bfloat16_in_products_alone() -> None:
    """Outputs change; parameters, gradients and slots stay float32, and a restart is exact."""
    model = in_float32()
    plain, whole = stepper_of(model), stepper_of(model, amp=True)
    graph = graph_to_torch(batch_of(0).graph, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        ours = whole.outputs(graph, create_graph=False)["energy"]
    expected = plain.outputs(graph, create_graph=False)["energy"]
    assert not torch.equal(ours, expected) and torch.allclose(ours, expected, rtol=0.05, atol=0.05)
    for k in range(4):
        whole.step([batch_of(k)], LR)
        if k == 1:
            again = stepper_of(whole.model(), amp=True)
            again.load_optimizer_state(whole.optimizer_state())
    for k in (2, 3):
        again.step([batch_of(k)], LR)
    assert all(p.dtype is p.grad.dtype is torch.float32 for p in whole._trained.values())
    state, restored = whole.optimizer_state(), again.optimizer_state()
    for slot in ("exp_avg", "exp_avg_sq"):
        assert all(value.dtype == np.float32 for value in state[slot].values())
        assert all(np.array_equal(value, restored[slot][path]) for path, value in state[slot].items())
    assert all(np.array_equal(value, again.model().state()[n]) for n, value in whole.model().state().items())


@pytest.mark.parametrize(("option", "name"), [("amp", "enable_bf16"), ("tf32", "enable_tf32")])
def test_a_precision_that_nothing_has(option: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    stepper_of(single(), **{option: True})
    assert f"training.{name}: changes products of float32 matrices alone" in caplog.text


def test_tf32_of_a_run_before_is_left() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        stepper_of(single())
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_decays_out_of_range(decay: float) -> None:
    """R-S2-01."""
    with pytest.raises(InputError, match=r"ema_decay: expected a number in \[0, 1\)"):
        StepOptions(ema_decay=decay)
