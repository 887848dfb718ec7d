"""Training steps on JAX beside those of PyTorch, and steps shared by several devices beside those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backend import get_trainer
from dpmodel.backends.jax.shards import split_frames
from dpmodel.config import Config
from dpmodel.errors import BackendError, InputError
from dpmodel.geometry.padding import Buckets, pad_graph
from dpmodel.graph import sized
from dpmodel.input import load_model
from dpmodel.input.sections import AdamConfig, AdamWConfig
from dpmodel.losses import (
    DOSLossConfig,
    EnerLossConfig,
    EnerSpinLossConfig,
    PropertyLossConfig,
    TensorLossConfig,
    build_loss,
)
from dpmodel.models import Model, builder_of
from dpmodel.models.build import build_model
from dpmodel.models.multi_task import MultiTask
from dpmodel.training.batches import Prepared
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.freezing import frozen_paths
from dpmodel.training.lcurve import read_lcurve
from dpmodel.training.run import train
from dpmodel.training.stepper import StepOptions

SE_A = {"type": "se_e2_a", "sel": [30, 30], "rcut": 4.0, "neuron": [3], "axis_neuron": 2, "seed": 1}
DPA1 = {"type": "dpa1", "sel": 60, "rcut": 4.0, "neuron": [3], "axis_neuron": 2, "attn": 4, "attn_layer": 1, "seed": 1}
DPA3 = {
    "type": "dpa3", "seed": 1,
    "repflow": {
        "e_rcut": 4.0, "e_rcut_smth": 2.5, "e_sel": 60, "a_rcut": 3.0, "a_rcut_smth": 2.0, "a_sel": 30, "n_dim": 4,
        "e_dim": 3, "a_dim": 3, "nlayers": 1, "axis_neuron": 2, "update_residual": 2.0,
    },
}  # fmt: skip
DPA2 = {
    "type": "dpa2", "seed": 1,
    "repinit": {"rcut": 4.0, "rcut_smth": 0.5, "nsel": 60, "neuron": [3], "axis_neuron": 2, "tebd_dim": 2},
    "repformer": {
        "rcut": 3.5, "rcut_smth": 0.5, "nsel": 50, "nlayers": 1, "g1_dim": 4, "g2_dim": 3, "axis_neuron": 2, "attn1_hidden": 2,
        "attn1_nhead": 2, "attn2_hidden": 2, "attn2_nhead": 2,
    },
}  # fmt: skip
SPIN = {"use_spin": [True, False], "virtual_scale": [0.3, 0.0]}
MODELS: dict[str, dict[str, Any]] = {
    "se_e2_a": {"descriptor": SE_A},
    "dpa1": {"descriptor": DPA1},
    "dpa2": {"descriptor": DPA2},
    "dpa3": {"descriptor": DPA3},
    "hybrid": {"descriptor": {"type": "hybrid", "list": [{**DPA1, "attn_layer": 0}, SE_A]}},
    "spin": {"descriptor": SE_A, "spin": SPIN},
    "spin_dpa3": {"descriptor": DPA3, "spin": SPIN},
    "se_e2_r": {"descriptor": {"type": "se_e2_r", "sel": [30, 30], "rcut": 4.0, "neuron": [3], "seed": 1}},
    "se_e3": {"descriptor": {"type": "se_e3", "sel": [8, 8], "rcut": 3.0, "neuron": [3], "seed": 1}},
    "se_e3_tebd": {
        "descriptor": {"type": "se_e3_tebd", "sel": 16, "rcut": 3.0, "neuron": [3], "tebd_dim": 2, "seed": 1}
    },
    "linear": {
        "type": "linear_ener",
        "weights": [0.4, 0.6],
        "models": [{"descriptor": each, "fitting_net": {"neuron": [4], "seed": 1}} for each in (SE_A, DPA1)],
    },
    "dipole": {"descriptor": SE_A, "fitting_net": {"type": "dipole", "neuron": [4], "seed": 1}},
    "polar": {"descriptor": DPA1, "fitting_net": {"type": "polar", "neuron": [4], "seed": 1, "scale": [0.5, 2.0]}},
    "dos": {"descriptor": SE_A, "fitting_net": {"type": "dos", "neuron": [4], "numb_dos": 3, "seed": 1}},
    "property": {
        "descriptor": DPA1,
        "fitting_net": {
            "type": "property",
            "property_name": "gap",
            "task_dim": 2,
            "intensive": True,
            "neuron": [4],
            "seed": 1,
        },
    },
    "params": {"descriptor": SE_A, "fitting_net": {"neuron": [4], "seed": 1, "numb_fparam": 2, "numb_aparam": 1}},
}


def model_of(name: str) -> Model:
    net = {} if "models" in MODELS[name] else {"fitting_net": {"neuron": [4], "seed": 1}}
    return build_model(load_model({"type_map": ["A", "B"], **net, **MODELS[name]}))


def loss_of(model: Model) -> Any:
    output = model.output()
    others: dict[str, Any] = {
        "tensor": TensorLossConfig(pref=1.0, pref_atomic=0.5),
        "dos": DOSLossConfig(start_pref_dos=1.0, limit_pref_dos=1.0, start_pref_acdf=0.1, limit_pref_acdf=0.1),
        "property": PropertyLossConfig(),
    }
    if output.loss in others:
        return build_loss(others[output.loss], 0.001, output)
    config = (EnerLossConfig if model.spin_scales is None else EnerSpinLossConfig)(start_pref_v=0.3, limit_pref_v=0.3)
    return build_loss(config, 0.001, output)


def arrays_of(model: Model, frames: int, atoms: int, seed: int) -> dict[str, np.ndarray]:
    """What a graph is built from. The last frame has fewer atoms than the others."""
    rng = np.random.default_rng(seed)
    atype = rng.integers(0, model.ntypes, (frames, atoms))
    atype[-1, atoms // 2 :] = -1
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:atoms] * 2.2
    coord = grid + rng.uniform(0, 0.8, (frames, atoms, 3))
    given = {"coord": coord, "atype": atype, "cell": np.tile(np.eye(3) * 6.6, (frames, 1, 1))}
    if model.spin_scales is not None:
        given["spin"] = rng.normal(size=(frames, atoms, 3))
    if model.dim_fparam:
        given["fparam"] = rng.normal(size=(frames, model.dim_fparam))
    if model.dim_aparam:
        given["aparam"] = rng.normal(size=(frames, atoms, model.dim_aparam))
    return given


def batch_of(model: Model, frames: int, atoms: int, seed: int) -> Prepared:
    graph = builder_of(model).build(**arrays_of(model, frames, atoms, seed))
    rng = np.random.default_rng([seed, 1])
    shapes: dict[str, Any] = {"force": (frames * atoms, 3), "energy": (frames, 1), "virial": (frames, 9)}
    if model.spin_scales is not None:
        shapes["force_mag"] = shapes["force"]
    if model.output().loss != "ener":
        shapes = {each.name: (frames * (atoms if each.atomic else 1), *each.shape) for each in loss_of(model).labels}
    labels = {key: rng.normal(size=shape) for key, shape in shapes.items()}
    return Prepared(graph, labels, {**dict.fromkeys(labels, 1.0), "virial": float(seed % 2)})


STEPPED = [
    ("se_e2_a", AdamConfig()),
    ("dpa1", AdamConfig(weight_decay=0.1)),
    ("dpa3", AdamWConfig(weight_decay=0.5)),
    ("hybrid", AdamConfig()),
]
SLOW = [
    ("dpa2", AdamConfig()), ("spin", AdamConfig()), ("spin_dpa3", AdamWConfig(weight_decay=0.1)),
    *((name, AdamConfig()) for name in ("se_e2_r", "se_e3", "se_e3_tebd", "linear", "dipole", "polar", "dos", "property")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "optimizer"), [*STEPPED, *(pytest.param(*each, marks=pytest.mark.nightly) for each in SLOW)]
)
def test_torch_and_jax(name: str, optimizer: Config) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = model_of(name)
    loss = loss_of(model)
    jax, pt = (
        get_trainer(name).stepper(
            model, {"": loss}, optimizer, device="cpu", options=StepOptions(gradient_max_norm=50.0)
        )
        for name in ("jax", "pt")
    )
    compiled = jax.compilations()  # for other models, with the same loss and optimizer
    batches = [batch_of(model, 2, 9, 1), batch_of(model, 3, 6, 2)]
    for k in range(20):
        ours, expected = (stepper.step([batches[k % 2]], 0.001)() for stepper in (jax, pt))
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-9, err_msg=key)
        if k == 0:  # the first moment is a tenth of the gradient
            slopes, references = jax.optimizer_state()["exp_avg"], pt.optimizer_state()["exp_avg"]
            assert slopes.keys() == references.keys()
            largest = max(float(np.abs(g).max()) for g in references.values())
            for key, value in references.items():
                np.testing.assert_allclose(slopes[key], value, rtol=0, atol=1e-10 * largest, err_msg=key)
    torch.set_num_threads(threads)
    own, reference, before = jax.model().state(), pt.model().state(), model.state()
    assert own.keys() == reference.keys()
    for key, value in reference.items():
        np.testing.assert_allclose(own[key], value, rtol=0, atol=1e-8, err_msg=key)
    # What no output depends on stays as it is, decay or not, and has no moments.
    still = {path for path in pt._trained if path not in pt.optimizer_state()["step"]}
    assert all(np.array_equal(own[path], before[path]) for path in still)
    assert bool(still) == ("dpa3" in name or name == "se_e3")  # of a pair of types, one order has a net
    assert jax.compilations() - compiled <= 2


def test_optimizers_that_jax_lacks() -> None:
    class Other(Config, key="Other"):
        """Another one."""

    model, trainer = model_of("se_e2_a"), get_trainer("jax")
    loss = build_loss(EnerLossConfig(), 0.001, model.output())
    with pytest.raises(BackendError, match="Adam and AdamW, not with Other"):
        trainer.stepper(model, {"": loss}, Other(), device="cpu", options=StepOptions())


def test_runs_of_several_tasks_end_before_any_data_is_read() -> None:
    own = {"type_map": "types", "descriptor": {"type": "se_e2_a", "sel": [5]}, "fitting_net": {}}
    data = {
        "model": {"shared_dict": {"types": ["A"]}, "model_dict": {"one": own, "two": own}},
        "learning_rate": {"start_lr": 0.001}, "loss_dict": {"one": {}, "two": {}},
        "training": {
            "data_dict": {name: {"training_data": {"systems": ["nowhere"]}} for name in ("one", "two")}, "numb_steps": 1,
        },
    }  # fmt: skip
    with pytest.raises(InputError, match=r"model\.model_dict: the backend jax trains one task"):
        train(data, backend="jax", output=None)


@pytest.mark.parametrize("kind", ["AdaMuon", "HybridMuon", "LKF"])
def test_runs_with_them_end_before_any_data_is_read(kind: str) -> None:
    data = {
        "model": {"type_map": ["A"], "descriptor": {"type": "se_e2_a", "sel": [5]}, "fitting_net": {}},
        "learning_rate": {"start_lr": 0.001}, "optimizer": {"type": kind}, "loss": {},
        "training": {"training_data": {"systems": ["nowhere"]}, "numb_steps": 1},
    }  # fmt: skip
    with pytest.raises(
        InputError, match=rf"optimizer.type: expected one of Adam, AdamW on the backend jax, got {kind}"
    ):
        train(data, backend="jax")


def test_accumulation_averages_and_frozen_parts() -> None:
    """Against torch: an update of two batches, the averaged parameters, and paths that are not trained."""
    model = model_of("se_e2_a")
    loss = build_loss(EnerLossConfig(start_pref_v=0.3, limit_pref_v=0.3), 0.001, model.output())
    frozen = frozen_paths(model, ["fitting.networks.*.layers.0.*"])
    options = StepOptions(ema_decay=0.8, frozen=frozen, gradient_max_norm=50.0)
    jax, pt = (
        get_trainer(name).stepper(model, {"": loss}, AdamConfig(), device="cpu", options=options)
        for name in ("jax", "pt")
    )
    batches = [batch_of(model, 2, 9, 1), batch_of(model, 3, 6, 2)]  # one of them without virials
    for _ in range(3):
        ours, expected = (stepper.step(batches, 0.001)() for stepper in (jax, pt))
        for key, value in expected.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-9, err_msg=key)
    assert jax.averaged_state().keys() == pt.averaged_state().keys()
    pairs = [
        (jax.model(averaged=averaged).state(), pt.model(averaged=averaged).state()) for averaged in (False, True)
    ] + [(jax.averaged_state(), pt.averaged_state())]
    for own, reference in pairs:
        for key, value in reference.items():
            np.testing.assert_allclose(own[key], value, rtol=0, atol=1e-9, err_msg=key)
    assert all(np.array_equal(value, model.state()[key]) for key, value in pairs[0][0].items() if ".layers.0." in key and "fitting" in key)  # fmt: skip
    moved = model.replace(out_bias=model.out_bias + 1.0)
    for stepper in (jax, pt):
        stepper.load_averaged_state(pairs[2][1])
        stepper.load_buffers(moved)
        with stepper.evaluating(averaged=True) as evaluator:
            found = evaluator(batches[0].graph, forces=True, atomic=False)["energy"]
            assert np.allclose(evaluator.model().out_bias, moved.out_bias)
        if stepper is jax:
            energy = found
    np.testing.assert_allclose(energy, found, rtol=1e-9)
    with pytest.raises(InputError, match="expected shape"):
        jax.load_averaged_state({})
    with pytest.raises(KeyError, match="fitting"):
        get_trainer("jax").stepper(model, {"": loss}, AdamConfig(), options=StepOptions(frozen=("fitting.*",)))


def test_what_jax_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, trainer = model_of("se_e2_a"), get_trainer("jax")
    loss = build_loss(EnerLossConfig(), 0.001, model.output())
    both = MultiTask(names=("a", "b"), tasks=(model, model))
    with pytest.raises(BackendError, match="one task at a time, got a, b"):
        trainer.stepper(both, {"a": loss, "b": loss}, AdamConfig(), options=StepOptions())
    for options in (StepOptions(tf32=True), StepOptions(amp=True)):
        with pytest.raises(BackendError, match="does not have it"):
            trainer.stepper(model, {"": loss}, AdamConfig(), options=options)
    with trainer.join() as world:
        assert world.size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BackendError, match="jax backend trains in one process"), trainer.join():
        pass


# --- several devices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize("name", ["se_e2_a", "dpa3", "spin", "spin_dpa3", "params"])
def test_parts_are_graphs_of_their_frames(name: str, parts: int) -> None:
    """What is cut from a batch is what would have been built of these frames alone, even of none."""
    model = model_of(name)
    builder, given = builder_of(model), arrays_of(model, 4, 6, parts)
    found = split_frames(builder.build(**given), parts)
    ends = [part.frames.stop for part in found]
    assert [part.frames.start for part in found] == [0, *ends[:-1]] and ends[-1] == 4
    for part in found:
        assert part.atoms == slice(6 * part.frames.start, 6 * part.frames.stop)
        if part.frames.start == part.frames.stop:
            assert all(
                0 in leaf.array.shape for leaf in sized(part.graph) if leaf.axes[0] in ("atoms", "frames", "edges")
            )
            continue
        alone = builder.build(**{key: value[part.frames] for key, value in given.items()})
        sizes = Buckets().choose(part.graph, alone)
        for one, other in zip(*(sized(pad_graph(graph, sizes)) for graph in (part.graph, alone)), strict=True):
            assert one.path == other.path and one.array.dtype == other.array.dtype
            np.testing.assert_array_equal(one.array, other.array, err_msg=one.path)


DEVICES = """
import importlib.util, json, sys
import jax, numpy as np
spec = importlib.util.spec_from_file_location("steps", sys.argv[1])
steps = importlib.util.module_from_spec(spec)
spec.loader.exec_module(steps)
name, count = sys.argv[2], int(sys.argv[3])
assert len(jax.devices()) == count
model = steps.model_of(name)
loss = steps.loss_of(model)
make = lambda device: steps.get_trainer("jax").stepper(
    model, {"": loss}, steps.AdamConfig(), device=device, options=steps.StepOptions()
)
several, one = make("cpu"), make("cpu:1")
found = {"devices": [len(several.devices), len(one.devices)], "metrics": 0.0}
for k, (frames, atoms) in enumerate(((count + 1, 6), (1, 6), (count, 6))):
    batch = steps.batch_of(model, frames, atoms, k)
    ours, expected = (stepper.step([batch], 0.001)() for stepper in (several, one))
    for key, value in expected.items():
        assert np.isnan(value) == np.isnan(ours[key])
        found["metrics"] = max(found["metrics"], 0.0 if np.isnan(value) else abs(ours[key] - value) / max(1.0, abs(value)))
measured = [stepper.measure(batch, 0.001)[loss.metrics[0]] for stepper in (several, one)]
found["measured"] = abs(measured[0] - measured[1])
for name, (a, b) in {
    "state": (several.model().state(), one.model().state()),
    "moments": (several.optimizer_state()["exp_avg"], one.optimizer_state()["exp_avg"]),
}.items():
    largest = max(1.0, *(float(np.abs(value).max()) for value in b.values()))
    found[name] = max(float(np.abs(a[key] - b[key]).max()) for key in b) / largest
print(json.dumps(found))
"""


def on_devices(count: int, program: str, *arguments: object, cwd: Path | None = None) -> Any:
    """What a program prints in a process with so many devices."""
    flags = f"--xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=1200, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("se_e2_a", 2),
        *(
            pytest.param(*each, marks=pytest.mark.nightly)
            for each in (
                ("spin", 2),
                ("dpa3", 2),
                ("spin_dpa3", 2),
                ("params", 3),
                ("dipole", 3),
                ("dos", 2),
                ("property", 3),
            )
        ),
    ],
)
def test_several_devices_give_the_numbers_of_one(name: str, count: int) -> None:
    """Frames that do not divide evenly, fewer frames than devices, atoms that do not count."""
    found = on_devices(count, DEVICES, Path(__file__), name, count)
    assert found.pop("devices") == [count, 1]
    assert all(value < 1e-12 for value in found.values()), found


RUN = """
import json
from dpmodel.backends.jax.training import JaxStepper
from dpmodel.training.run import train
devices, plain = [], JaxStepper.__init__
def noted(self, *args, **options):
    plain(self, *args, **options)
    devices.append(len(self.devices))
JaxStepper.__init__ = noted
train("input.json", backend="jax", device="cpu")
print(json.dumps(devices))
"""


@pytest.mark.nightly
def test_a_run_on_several_devices(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the input file to the checkpoint, statistics, validation and learning curve included."""
    for part, systems in (("training_data", ["small", "large"]), ("validation_data", ["large"])):
        data["training"][part]["systems"] = [str(tmp_path / name) for name in systems]
    for name in ("several", "one"):
        (tmp_path / name).mkdir()
    (tmp_path / "several" / "input.json").write_text(json.dumps(data))
    assert on_devices(2, RUN, cwd=tmp_path / "several") == [2]
    monkeypatch.chdir(tmp_path / "one")
    train(data, backend="jax", device="cpu:0")
    ours, expected = (Checkpoint.load(tmp_path / name / "model.ckpt-8.dp") for name in ("several", "one"))
    assert ours.sampler == expected.sampler and ours.schedule == expected.schedule
    for a, b in (
        (ours.state, expected.state),
        *((ours.optimizer[slot], expected.optimizer[slot]) for slot in ("exp_avg", "exp_avg_sq", "step")),
    ):
        assert a.keys() == b.keys()
        for key, value in b.items():
            np.testing.assert_allclose(a[key], value, rtol=0, atol=1e-12, err_msg=key)
    rows, others = (read_lcurve(tmp_path / name / "lcurve.out") for name in ("several", "one"))
    assert rows.keys() == others.keys() and "rmse_val" in rows
    for key, column in others.items():
        np.testing.assert_allclose(rows[key], column, rtol=1e-6, err_msg=key)
