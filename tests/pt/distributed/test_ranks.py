"""What several ranks must agree on, and how one's failure reaches the others."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backend import get_trainer
from dpmodel.backends.pt.bridge import to_torch
from dpmodel.backends.pt.distributed.replicas import buckets
from dpmodel.backends.pt.distributed.sharded import groups_of
from dpmodel.backends.pt.distributed.world import lost
from dpmodel.errors import BackendError, InputError
from dpmodel.training.world import Alone, RankError

FOLDER = Path(__file__).parent
STAGES = (0, 1, 2, 3)


def neighbour(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cells, launch = neighbour("cells"), neighbour("conftest")
pytestmark = pytest.mark.usefixtures("one_thread")


def assert_gradients(own: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert own.keys() == expected.keys()
    largest = max(float(np.abs(g).max()) for g in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(own[name], value, rtol=0, atol=1e-10 * largest, err_msg=name)


def assert_states(own: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-8) -> None:
    for kind in ("parameters", "average", "averaged"):
        assert own[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            np.testing.assert_allclose(own[kind][name], value, rtol=0, atol=tolerance, err_msg=f"{kind} {name}")
    for slot, values in expected["optimizer"].items():
        assert own["optimizer"][slot].keys() == values.keys()


# --- control -----------------------------------------------------------------------------------------------


def test_control(pair: Any) -> None:
    zero, one = pair("control")
    for found in (zero, one):
        assert found["integers"] == [5, -(2**62)]
        assert found["plain"] == {"a": [1, 2.5, None, "ä"]}
        arrays = found["arrays"]
        assert list(arrays) == ["x", "y", "z"] and arrays["x"].shape == (2, 0)
        assert (
            arrays["y"].tolist() == [[1.0, 2.0]] and arrays["y"].dtype == np.float32 and arrays["z"] == np.array(True)
        )
        assert found["total"] == [2.0, 1.0]
        assert found["any"] == [False, True, True]
        assert [each["rank"] for each in found["each"]] == [0, 1]
        assert found["same"] == "RankError: num_epochs is not the same on all ranks: 7 on rank 0, 8 on rank 1"
        assert "x" in found["arrays that differ"] and found["none"] is None
        assert "no plain data" in found["not plain"]
    assert zero["agreement"] == "RankError: saving: rank 1: OSError: the disk is full"
    assert one["agreement"] == "OSError: the disk is full"
    assert (zero["both"], one["both"]) == ("ValueError: one", "ValueError: two")


def test_ranks_with_other_models_are_told(pair: Any) -> None:
    zero, one = pair("another_model")
    assert "rank 1: this model is not that of rank 0; differences in" in zero
    assert "this model is not that of rank 0" in one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": None}, "RANK, MASTER_ADDR, MASTER_PORT is not set: start .* torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; expected a number"),
    ],
)
def test_environments_that_are_incomplete(
    changes: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with get_trainer("pt").join("cpu") as world:
        assert isinstance(world, Alone)
    for name, value in changes.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(BackendError, match=message), get_trainer("pt").join("cpu"):
        pass


def test_stages_in_one_process(caplog: pytest.LogCaptureFixture) -> None:
    """Decision C2."""
    stepper = cells.stepper_of(Alone(), zero_stage=3)
    assert stepper.store.stage == 0
    assert "zero_stage = 3 has nothing to share in one process" in caplog.text
    with pytest.raises(InputError, match="expected 0, 1, 2 or 3, got 4"):
        cells.stepper_of(Alone(), zero_stage=4)


def test_buckets() -> None:
    f64, f32 = torch.float64, torch.float32
    sizes = {"a": (5, f64), "b": (3, f32), "c": (1 << 24, f64), "d": (2, f64), "e": (1, f32)}
    assert list(buckets(sizes)) == [["a"], ["c"], ["d"], ["b", "e"]]
    assert list(buckets({})) == []


# --- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_one_rank_lacks(stage: int, pair: Any) -> None:
    """It counts as zero there; where all lack it, the parameter stays, and its steps do not count."""
    whole = cells.lacking(Alone(), 0, [])
    name = list(whole["gradients"])[-1]
    for ranks in ([1], [0], [0, 1]):
        found, _ = pair("lacking", stage, ranks)
        expected = dict(whole["gradients"])
        if len(ranks) == 2:
            del expected[name]
            assert name not in found["optimizer"]["step"]
            assert np.array_equal(found["parameters"][name], cells.model_of(False).state()[name])
        else:
            stepper = cells.stepper_of(Alone())
            frames = np.array_split(np.arange(4), 2)[1 - ranks[0]].tolist()
            stepper.step([cells.batch_of(False, 0, frames)], cells.LR)
            expected[name] = 0.5 * cells.gradients_of(stepper)[name]
            assert found["optimizer"]["step"][name] == 2.0
        assert_gradients(found["gradients"], expected)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_numbers_that_are_none_end_all_ranks(stage: int, max_norm: float | None, pair: Any) -> None:
    """R-S3-12, R-M-20, R-M-21: on all ranks, with and without clipping, by name, before anything has changed."""
    (zero, same), (one, kept) = pair("not_a_number", stage, max_norm)
    assert same and kept
    for message in (zero, one):
        assert message.startswith("the gradient is not finite (loss ") and "descriptor." in message
    assert zero.partition(" in ")[2] == one.partition(" in ")[2]
    assert "loss nan" in one and "loss nan" not in zero


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_derivatives_inside_another_thread(stage: int, pair: Any) -> None:
    """The order in which the engine takes nodes must not matter."""
    found, _ = pair("threaded", stage)
    stepper = cells.stepper_of(Alone())
    stepper.step([cells.batch_of(False, 0, range(4))], cells.LR)
    assert_gradients(found, cells.gradients_of(stepper))


@pytest.mark.parametrize("stage", STAGES)
def test_no_parameter_is_stale(stage: int, pair: Any) -> None:
    """After validation, steps, averages that come and go, and changed biases."""
    expected = cells.stale(Alone(), 0)
    for found in pair("stale", stage):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    start, after, averaged, again, _, zero, live, failed, shifted, _ = expected
    assert len({start, after, averaged, zero, shifted}) == 5
    assert after == again == live == failed and shifted == pytest.approx(after + 7.0)


@pytest.mark.parametrize("stage", [3, *(pytest.param(s, marks=pytest.mark.nightly) for s in (0, 1, 2))])
def test_compiled(stage: int, pair: Any) -> None:
    """With tasks, a frozen net and averages; a changed bias is seen without a new compilation."""
    if "compiled" not in REFERENCES:
        REFERENCES["compiled"] = cells.compiled(Alone(), 0)
    expected = REFERENCES["compiled"]
    found, _ = pair("compiled", stage, limit=300.0)  # torch._inductor is imported, models are traced
    assert_gradients(found["gradients"], expected["gradients"])
    assert_states(found, expected)
    np.testing.assert_allclose(found["measured"], expected["measured"], rtol=1e-9)
    before, after, *_ = found["measured"]
    assert found["codes"] == expected["codes"] == {"a": 1, "b": 1} and before != after
    own = cells.model_of(True, "narrow").state()
    for name, value in found["parameters"].items():
        assert np.array_equal(value, own[name]) or not name.startswith("tasks.1.fitting.networks")


REFERENCES: dict[str, Any] = {}


@pytest.mark.parametrize("stage", STAGES)
def test_shared_parts_and_two_precisions(stage: int, pair: Any) -> None:
    if "mixed" not in REFERENCES:
        REFERENCES["mixed"] = cells.mixed(Alone(), 0)
    expected = REFERENCES["mixed"]
    found, _ = pair("mixed", stage)
    assert found["gradients"].keys() == expected["gradients"].keys()
    largest = max(float(np.abs(g).max()) for g in expected["gradients"].values())
    for name, value in expected["gradients"].items():
        near = 1e-5 if value.dtype == np.float32 or ".parts.1." not in name else 1e-6  # the other part is float32
        np.testing.assert_allclose(found["gradients"][name], value, rtol=0, atol=near * largest, err_msg=name)
    assert {str(value.dtype) for value in found["gradients"].values()} == {"float32", "float64"}
    assert_states(found, expected, 1e-4)
    own = found["parameters"]
    places = [f"tasks.{k}.descriptor.parts.1.type_embedding" for k in range(2)]
    shared = [name for name in own if name.startswith(places[0])]
    assert shared and all(np.array_equal(own[name], own[name.replace(places[0], places[1])]) for name in shared)


def test_groups_are_sharded_from_the_inside() -> None:
    """R-S3-08."""
    module = to_torch(cells.model_of(True))
    names = {id(part): name for name, part in module.named_modules()}
    found = [names[id(group)] for group in groups_of(module)]
    assert found == [
        "tasks.0.descriptor.layers.0", "tasks.0.descriptor.layers.1", "tasks.0.descriptor", "tasks.0.fitting",
        "tasks.1.fitting", "",
    ]  # fmt: skip
    mixed = to_torch(cells.mixed_model())
    names = {id(part): name for name, part in mixed.named_modules()}
    groups = groups_of(mixed)
    assert "tasks.0.descriptor.parts.1.type_embedding" in [names[id(group)] for group in groups]
    owner: dict[int, int] = {}
    for k, group in enumerate(groups):
        for p in group.parameters():
            owner.setdefault(id(p), k)
    for k in range(len(groups)):
        assert len({p.dtype for p in mixed.parameters() if owner[id(p)] == k}) <= 1
    assert owner.keys() == {id(p) for p in mixed.parameters()}


def test_the_filter_on_two_ranks(pair: Any) -> None:
    expected = cells.filtered(Alone())
    zero, one = pair("filtered")
    for kind in ("parameters", "averaged"):
        for name, value in expected[kind].items():
            np.testing.assert_allclose(zero[kind][name], value, rtol=0, atol=1e-8, err_msg=name)
            assert np.array_equal(zero[kind][name], one[kind][name])


def test_what_a_rank_holds_between_steps(pair: Any) -> None:
    """In bytes: the benchmark has a wide model; here parts of few rows are not halved."""
    held = {stage: pair("held", stage) for stage in STAGES}
    whole = held[0][0]
    for rank in range(2):
        assert held[0][rank] == whole
        assert {**held[1][rank], "optimizer": 0} == {**whole, "optimizer": 0}
        for stage in (2, 3):
            assert all(value < 0.75 * whole[kind] for kind, value in held[stage][rank].items())
    assert sum(each["optimizer"] for each in held[1]) == whole["optimizer"]
    assert max(each["optimizer"] for each in held[1]) < 0.6 * whole["optimizer"]


@pytest.mark.parametrize("problem", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    torch.distributed.DistBackendError("NCCL error: unhandled cuda error. Cuda failure 2 'out of memory'"),
])  # fmt: skip
def test_memory_that_a_rank_lacks_is_not_blamed_on_others(problem: RuntimeError) -> None:
    with pytest.raises(type(problem)) as found, lost("a sum over ranks"):
        raise problem
    assert found.value is problem
    with (
        pytest.raises(RankError, match=r"a sum over ranks: another process .*closed by peer"),
        lost("a sum over ranks"),
    ):
        raise RuntimeError("Connection closed by peer")


def test_the_allocator_of_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="allocate") as found, lost("gathering parameters"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert not isinstance(found.value, RankError)


# --- the end of a rank -------------------------------------------------------------------------------------

PROGRAM = """
import atexit, os, sys, time
import torch
from dpmodel.backends.pt import BACKEND
from dpmodel.backends.pt.distributed import abort
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import cells

torch.set_num_threads(1)
atexit.register(time.sleep, 60)  # what would keep others waiting
try:
    with BACKEND.join("cpu") as world:
        stepper = cells.stepper_of(world, zero_stage=int(sys.argv[2]))
        for step in range(10**6):
            if sys.argv[3] == "raise" and step == 3 and world.rank == 1:
                raise OSError("the disk is full")
            stepper.step([cells.batch_of(False, step, frames) for frames in cells.share(world)], cells.LR)
            if step == 2:
                print("ready", flush=True)
except BaseException as problem:
    abort(problem)
"""


@pytest.mark.parametrize(("stage", "how"), [(0, "kill"), (3, "kill"), (2, "raise")])
def test_the_end_of_one_rank_ends_the_others(stage: int, how: str) -> None:
    port = launch.free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(FOLDER / "cells.py"), str(stage), how],
            env=launch.environment(rank, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for rank in ranks:
            assert rank.stdout is not None and rank.stdout.readline() == "ready\n"
        if how == "kill":
            os.kill(ranks[1].pid, signal.SIGKILL)
        begin = time.monotonic()
        _, shown = ranks[0].communicate(timeout=60)
        assert time.monotonic() - begin < 10.0
        _, other = ranks[1].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[0].returncode == 1
    assert "rank 0: " in shown and "another process of this run has ended or does not answer" in shown
    if how == "raise":
        assert ranks[1].returncode == 1 and "rank 1: OSError: the disk is full" in other
