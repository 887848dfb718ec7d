"""What ranks compute in the tests: the same functions run in one process and on two, with the same global batches.

Every function takes the world first; `worker.py` calls those by name.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dpmodel.backend import get_trainer
from dpmodel.errors import DPError
from dpmodel.input import load_model
from dpmodel.input.optimizers import AdamConfig, AdaMuonConfig, AdamWConfig, HybridMuonConfig, LKFConfig
from dpmodel.losses import EnerLossConfig, build_loss
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.models.multi_task import MultiTask
from dpmodel.training.batches import Prepared
from dpmodel.training.freezing import frozen_paths
from dpmodel.training.stepper import StepOptions

LR = 0.003
DPA3 = {
    "type": "dpa3", "seed": 1,
    "repflow": {
        "e_rcut": 4.0, "e_rcut_smth": 2.5, "e_sel": 60, "a_rcut": 3.0, "a_rcut_smth": 2.0, "a_sel": 30, "n_dim": 5,
        "e_dim": 3, "a_dim": 3, "nlayers": 2, "axis_neuron": 2, "update_residual": 2.0,
    },
}  # fmt: skip
SE_A = {"type": "se_e2_a", "sel": [30, 30], "rcut": 4.0, "neuron": [3, 6], "axis_neuron": 2, "seed": 1}
DPA1 = {
    "type": "dpa1", "sel": 60, "rcut": 4.0, "neuron": [3, 6], "axis_neuron": 2, "attn": 4, "attn_layer": 1, "seed": 1,
}  # fmt: skip
NARROW = {**SE_A, "neuron": [3], "type_one_side": True}
DESCRIPTORS = {"dpa3": DPA3, "se_e2_a": SE_A, "narrow": NARROW}
OPTIMIZERS: dict[str, Any] = {
    "Adam": AdamConfig(weight_decay=0.01),
    "AdamW": AdamWConfig(),
    "HybridMuon": HybridMuonConfig(),
    "AdaMuon": AdaMuonConfig(),
    "LKF": LKFConfig(kf_blocksize=100),
}
TASKS = ("a", "b", "a", "b", "b", "a")
"""In the order of steps, of a model of several tasks."""


@functools.cache
def model_of(multi: bool, descriptor: str = "dpa3") -> Any:
    """One model, or two with one descriptor and fitting nets of other widths."""
    section: dict[str, Any] = {"type_map": ["A", "B"], "descriptor": DESCRIPTORS[descriptor]}
    one, two = (
        build_model(load_model({**section, "fitting_net": {"neuron": list(neuron), "seed": seed}}))
        for seed, neuron in ((2, (5, 5)), (3, (4,)))
    )
    if not multi:
        return one
    return MultiTask(names=("a", "b"), tasks=(one, two.replace(descriptor=one.descriptor)))


def batch_of(multi: bool, seed: int, frames: Sequence[int], *, descriptor: str = "dpa3", model: Any = None) -> Prepared:
    """Some frames of the global batch of that seed; all frames have 7 atoms."""
    model = model_of(multi, descriptor) if model is None else model
    rng, count, atoms = np.random.default_rng(seed), 4, 7
    atype = np.tile(np.arange(atoms) % 2, (count, 1))
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:atoms] * 2.2
    coord = grid + rng.uniform(0, 0.8, (count, atoms, 3))
    labels = {"force": rng.normal(size=(count, atoms, 3)), "energy": rng.normal(size=(count, 1))}
    labels["virial"] = rng.normal(size=(count, 9))
    chosen = list(frames)
    builder = builder_of(model.tasks[0] if multi else model)
    graph = builder.build(coord[chosen], atype[chosen], np.tile(np.eye(3) * 6.6, (len(chosen), 1, 1)))
    own = {name: value[chosen].reshape(-1, value.shape[-1]) for name, value in labels.items()}
    return Prepared(graph, own, dict.fromkeys(own, 1.0))


def share(world: Any, batches: int = 1) -> list[list[int]]:
    """The frames of this rank's batches, of four."""
    parts = np.array_split(np.arange(4), world.size * batches)
    return [part.tolist() for part in parts[world.rank * batches : (world.rank + 1) * batches]]


def stepper_of(
    world: Any, *, multi: bool = False, optimizer: str = "Adam", descriptor: str = "dpa3", backend: str = "pt",
    model: Any = None, **options: Any,
) -> Any:  # fmt: skip
    loss = build_loss(EnerLossConfig(start_pref_v=0.3, limit_pref_v=0.3), 0.001)
    losses = dict.fromkeys(("a", "b") if multi else ("",), loss)
    return get_trainer(backend).stepper(
        model_of(multi, descriptor) if model is None else model, losses, OPTIMIZERS[optimizer], device="cpu",
        options=StepOptions(**options), world=world,
    )  # fmt: skip


def gradients_of(stepper: Any) -> dict[str, np.ndarray]:
    """Of the last step, whole."""
    return stepper.store.gather({n: p.grad for n, p in stepper._trained.items() if p.grad is not None})


def states_of(stepper: Any) -> dict[str, Any]:
    return {
        "parameters": stepper.model().state(),
        "optimizer": stepper.optimizer_state(),
        "average": stepper.averaged_state(),
        "averaged": stepper.model(averaged=True).state() if stepper.average is not None else {},
    }


def cell(
    world: Any, *, multi: bool, ema: bool, optimizer: str, stage: int = 0, first: int = 0, last: int = 3,
    start: Mapping[str, Any] | None = None, accumulate: int = 1, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Steps `first` to `last`; with what validation does between them, which must change nothing."""
    model = model_of(multi)
    if start is not None:
        model = model.with_state(start["parameters"])
    stepper = stepper_of(
        world, multi=multi, optimizer=optimizer, zero_stage=stage, ema_decay=0.7 if ema else None,
        gradient_max_norm=0.5, model=model, norms=True, **options,
    )  # fmt: skip
    if start is not None:
        stepper.load_optimizer_state(start["optimizer"])
        if ema:
            stepper.load_averaged_state(start["average"])
    found: dict[str, Any] = {"norms": [], "measured": []}
    for k in range(first, last):
        task = TASKS[k] if multi else ""
        stepper.step([batch_of(multi, k, frames) for frames in share(world, accumulate)], LR, task)()
        own = list(stepper.gradient_norms.values())
        found["norms"] += [stepper.gradient_norm, math.hypot(*own), *own]
        if k == first:
            found["gradients"] = gradients_of(stepper)
        check = batch_of(multi, 99, range(4))
        found["measured"].append(stepper.measure(check, LR, task)["rmse"])
        if ema:
            with stepper.evaluating(task, averaged=True) as evaluator:
                found["measured"].append(float(evaluator(check.graph, forces=True, atomic=False)["force"][0, 0]))
    return {**found, **states_of(stepper)}


# --- one thing at a time -----------------------------------------------------------------------------------


def control(world: Any) -> dict[str, Any]:
    """What `World` promises, and its failures, which all ranks must see."""
    mine = {"x": np.full((2, 0), world.rank), "y": np.float32([[world.rank + 1, 2]]), "z": np.array(world.rank == 0)}
    found: dict[str, Any] = {
        "integers": world.integers([5 - world.rank, -(2**62) + world.rank]),
        "plain": world.plain({"a": [1, 2.5, None, "ä"]} if world.chief else None),
        "arrays": world.arrays(mine),
        "total": world.total(np.array([1.0, world.rank])).tolist(),
        "any": world.any([False, world.rank == 1, True]),
        "each": world.each({"rank": world.rank, "text": "x" * (1 + world.rank)}),
    }
    world.same(num_steps=3)
    attempts = {
        "same": lambda: world.same(num_steps=3, num_epochs=world.rank + 7),
        "arrays that differ": lambda: world.arrays({"x": np.zeros(2 + world.rank)}),
        "not plain": lambda: world.plain({"a": {1, 2}} if world.chief else None),
        "agreement": lambda: agreed(world, {1: OSError("the disk is full")}),
        "both": lambda: agreed(world, {0: ValueError("one"), 1: ValueError("two")}),
        "none": lambda: agreed(world, {}),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = None
        except (DPError, OSError, ValueError) as problem:
            found[name] = f"{type(problem).__name__}: {problem}"
    return found


def agreed(world: Any, problems: Mapping[int, Exception]) -> None:
    with world.agreement("saving"):
        if world.rank in problems:
            raise problems[world.rank]


def not_a_number(world: Any, stage: int, max_norm: float | None) -> tuple[str, bool]:
    """One rank's labels are bad: the message, and whether nothing has changed."""
    stepper = stepper_of(world, zero_stage=stage, gradient_max_norm=max_norm)
    before = stepper.model().state()
    batch = batch_of(False, 0, share(world)[0])
    if world.rank == 1:
        batch.labels["force"][0] = np.nan
    try:
        stepper.step([batch], LR)
    except DPError as problem:
        after = stepper.model().state()
        return str(problem), all(np.array_equal(value, after[name]) for name, value in before.items())
    return "", False


def lacking(world: Any, stage: int, ranks: Sequence[int]) -> dict[str, Any]:
    """On some ranks the loss does not depend on the last parameter. Two steps; the gradient of the first."""
    stepper = stepper_of(world, zero_stage=stage, optimizer="AdamW")
    if world.rank in ranks:
        plain = stepper.store.leaves
        stepper.store.leaves = lambda: plain()[:-1]
    batches = [batch_of(False, k, frames) for k in range(2) for frames in share(world)]
    stepper.step(batches[:1], LR)
    gradients = gradients_of(stepper)
    stepper.step(batches[1:], LR)
    return {"gradients": gradients, **states_of(stepper)}


def threaded(world: Any, stage: int) -> dict[str, np.ndarray]:
    """The inner derivative in a thread of its own, as on devices: its nodes are numbered apart from the others."""
    stepper = stepper_of(world, zero_stage=stage)
    plain = torch.autograd.grad

    def elsewhere(*args: Any, **options: Any) -> Any:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(plain(*args, **options)))
        thread.start()
        thread.join()
        return found[0]

    torch.autograd.grad = elsewhere
    try:
        stepper.step([batch_of(False, 0, frames) for frames in share(world)], LR)
    finally:
        torch.autograd.grad = plain
    return gradients_of(stepper)


def stale(world: Any, stage: int) -> list[float]:
    """Every change of the parameters is seen at once by what computes with them."""
    stepper = stepper_of(world, zero_stage=stage, ema_decay=0.5)
    check = batch_of(False, 99, range(4))

    def value(averaged: bool = False) -> float:
        with stepper.evaluating(averaged=averaged) as evaluator:
            return float(evaluator(check.graph, forces=False, atomic=False)["energy"][0, 0])

    found = [value()]
    stepper.step([batch_of(False, 0, frames) for frames in share(world)], 0.1)
    found += [value(), value(averaged=True), value(), stepper.measure(check, LR)["rmse"]]
    stepper.load_averaged_state({n: np.zeros_like(v) for n, v in stepper.averaged_state().items()})
    found += [value(averaged=True), value()]
    try:
        with stepper.evaluating(averaged=True):
            raise KeyError("validation failed")
    except KeyError:
        found.append(value())
    model = stepper.model()
    stepper.load_buffers(model.replace(out_bias=model.out_bias + 1.0))
    found += [value(), stepper.measure(check, LR)["rmse"]]
    return found


def compiled(world: Any, stage: int) -> dict[str, Any]:
    """Two tasks compiled (traced only), a frozen net, averages, and a bias that changes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 itself
        from dpmodel.backends.pt_expt import compile as compilation
    plain, compilation.compile_joint = compilation.compile_joint, compilation.aot_compile_joint_with_descriptors
    try:
        stepper = stepper_of(
            world, multi=True, descriptor="narrow", backend="pt_expt", zero_stage=stage, compile=True, ema_decay=0.7,
            frozen=frozen_paths(model_of(True, "narrow"), ["b.fitting.networks.*"]), optimizer="AdamW",
        )  # fmt: skip
        for k in range(3):
            stepper.step([batch_of(True, k, frames, descriptor="narrow") for frames in share(world)], LR, TASKS[k])
        gradients = gradients_of(stepper)
        check = batch_of(True, 99, range(4), descriptor="narrow")
        before = stepper.measure(check, LR, "b")
        model = stepper.model()
        two = model.task("b")
        stepper.load_buffers(model.with_task("b", two.replace(out_bias=two.out_bias + 1.0)))
        after = stepper.measure(check, LR, "b")
        codes = {task: step.compilations() for task, step in stepper.compiled.items()}
    finally:
        compilation.compile_joint = plain
    measured = [before["rmse"], after["rmse"], before["rmse_e"], after["rmse_e"]]
    return {"gradients": gradients, "measured": measured, "codes": codes, **states_of(stepper)}


@functools.cache
def mixed_model() -> Any:
    """Two tasks that share one type embedding, in a hybrid descriptor of two precisions."""
    small = {**DPA1, "precision": "float32"}
    section: dict[str, Any] = {"type_map": ["A", "B"], "fitting_net": {"neuron": [4], "seed": 2}}
    one, two = (
        build_model(load_model({**section, "descriptor": {"type": "hybrid", "list": [small, {**DPA1, "seed": seed}]}}))
        for seed in (4, 5)
    )
    parts = two.descriptor.parts
    shared = parts[1].replace(type_embedding=one.descriptor.parts[1].type_embedding)
    return MultiTask(
        names=("a", "b"), tasks=(one, two.replace(descriptor=two.descriptor.replace(parts=(parts[0], shared))))
    )


def mixed(world: Any, stage: int) -> dict[str, Any]:
    """Steps of `mixed_model`."""
    stepper = stepper_of(world, multi=True, model=mixed_model(), zero_stage=stage, ema_decay=0.7)
    for k in range(2):
        batches = [batch_of(True, k, frames, model=mixed_model()) for frames in share(world)]
        stepper.step(batches, LR, TASKS[k])
        if k == 0:
            gradients = gradients_of(stepper)
    return {"gradients": gradients, **states_of(stepper)}


def filtered(world: Any) -> dict[str, Any]:
    """Steps of the Kalman filter, whose residuals and gradients are those of all ranks."""
    stepper = stepper_of(world, optimizer="LKF", ema_decay=0.7, num_steps=4)
    for k in range(3):
        stepper.step([batch_of(False, k, frames) for frames in share(world)], LR)
    return states_of(stepper)


def held(world: Any, stage: int) -> dict[str, int]:
    """Bytes of parameters, gradients and state of the optimizer that this rank holds between steps."""
    stepper = stepper_of(world, zero_stage=stage)
    stepper.step([batch_of(False, 0, frames) for frames in share(world)], LR)

    def size(tensors: Any) -> int:
        return sum(
            t.numel() * t.element_size() for t in ((x.to_local() if hasattr(x, "to_local") else x) for x in tensors)
        )

    slots = [] if stepper.optimizer is None else [v for s in stepper.optimizer.state.values() for v in s.values()]
    return {
        "parameters": size(stepper.module.parameters()),
        "gradients": size(p.grad for p in stepper.module.parameters() if p.grad is not None),
        "optimizer": size(slots),
    }


def another_model(world: Any) -> str:
    """Ranks whose models differ are told before anything else."""
    try:
        stepper_of(world, descriptor="dpa3" if world.rank else "se_e2_a")
    except DPError as problem:
        return str(problem)
    return ""
