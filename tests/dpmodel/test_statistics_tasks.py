"""Statistics of several tasks: what is shared is normalised by all data, weighted by how often it is met."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.data import Dataset, LabelRequest
from dpmodel.data.write import write_system
from dpmodel.errors import DataError
from dpmodel.geometry.build import GraphBuilder
from dpmodel.input import load_input
from dpmodel.models import builder_of
from dpmodel.models.multi_task import MultiTask, build_tasks
from dpmodel.statistics import StatItem
from dpmodel.statistics.cache import StatCache
from dpmodel.statistics.fit import fit_statistics, fit_tasks

from .several import DESCRIPTORS, several

TYPES = [0, 0, 1, 1, 1, 1]
LABELS = (
    LabelRequest(name="energy", shape=(1,), atomic=False, high_precision=True),
    LabelRequest(name="fparam", shape=(1,), atomic=False),
)


class Run:
    """The tasks of an input and their data: crystals of other lattice constants, so that statistics differ."""

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        inp = load_input(data)
        model = build_tasks(inp, inp.models, 1)
        assert isinstance(model, MultiTask)
        self.model, self.data = model, {}
        for k, name in enumerate(model.names):
            rng = np.random.default_rng(k)
            grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:6] * (1.8 + 0.3 * k)
            coord = grid + rng.uniform(0.0, 0.4, (3, 6, 3))
            labels = {"energy": rng.normal(size=(3, 1)) + 4 * k, "fparam": rng.normal(size=(3, 1)) * (1 + k) + k}
            if not (folder / name).exists():
                write_system(folder / name, coord, np.array(TYPES), np.eye(3) * 8.0, type_map=("O", "H"), labels=labels)
            self.data[name] = Dataset.from_config(folder / name, batch_size=1, type_map=("O", "H"), labels=LABELS)

    @property
    def builders(self) -> dict[str, GraphBuilder]:
        return {name: builder_of(model) for name, model in self.model.models().items()}

    def fitted(self, probabilities: dict[str, float], **options: Any) -> MultiTask:
        return fit_tasks(
            self.model, self.data, self.builders, probabilities, nbatch=dict.fromkeys(self.data, 10), protect=1e-4,
            **options,
        )  # fmt: skip

    def alone(self, name: str) -> Any:
        """One task with the statistics of its own data."""
        model = self.model.task(name)
        return fit_statistics(model, self.data[name], self.builders[name], nbatch=10, protect=1e-4)

    def rows(self, name: str, part: Any, view: int = 0) -> dict[int, np.ndarray]:
        """By type, the radial entries of all slots of all its atoms."""
        cfg, found = part.config, dict[int, list[float]]()
        for frame in range(3):
            batch = self.data[name].systems[0].batch(np.array([frame]))
            coord, box = batch.coord[0], 8.0
            shift = coord[:, None, :] - coord[None, :, :]
            shift -= box * np.round(shift / box)
            r = np.linalg.norm(shift, axis=-1)
            for i, kind in enumerate(batch.atype[0]):
                near = r[i][(r[i] < cfg.rcut) & (r[i] > 0)]
                u = np.clip((near - cfg.rcut_smth) / (cfg.rcut - cfg.rcut_smth), 0, 1)
                s = (u**3 * (-6 * u**2 + 15 * u - 10) + 1) / near
                found.setdefault(int(kind), []).extend([*s, *np.zeros(sum(cfg.capacity) - len(s))])
        return {kind: np.array(values) for kind, values in found.items()}


@pytest.mark.parametrize(
    "probabilities", [{"water": 0.5, "ice": 0.5}, {"water": 0.9, "ice": 0.1}, {"water": 3.0, "ice": 1.0}]
)
def test_a_shared_descriptor_has_the_statistics_of_pooled_data(tmp_path: Path, probabilities: dict[str, float]) -> None:
    """Mean and deviation of weighted numbers, without any running sum."""
    run = Run(tmp_path, several("se_e2_a"))
    found = run.fitted(probabilities)
    first, second = (task.descriptor for task in found.tasks)  # type: ignore[attr-defined]
    assert first is second
    by_task = {name: run.rows(name, first) for name in probabilities}
    for kind in (0, 1):
        values = np.concatenate([by_task[name][kind] for name in probabilities])
        weights = np.concatenate([np.full(len(by_task[name][kind]), p) for name, p in probabilities.items()])
        mean = np.average(values, weights=weights)
        deviation = np.sqrt(np.average((values - mean) ** 2, weights=weights))
        np.testing.assert_allclose(first.davg[kind, 0], mean, rtol=1e-10)
        np.testing.assert_allclose(first.dstd[kind, 0], deviation, rtol=1e-8)
    own = [run.alone(name).descriptor.davg for name in probabilities]
    assert not np.allclose(own[0], own[1], rtol=1e-3)


@pytest.mark.parametrize("name", [*sorted(DESCRIPTORS), "hybrid"])
def test_every_shared_descriptor_is_between_its_tasks(tmp_path: Path, name: str) -> None:
    hybrid = {"type": "hybrid", "list": [DESCRIPTORS["se_e2_r"], DESCRIPTORS["dpa1"]]}
    run = Run(tmp_path, several(hybrid if name == "hybrid" else name))
    only = {task: run.alone(task).state() for task in ("water", "ice")}
    mixed, water = run.fitted({"water": 0.5, "ice": 0.5}).state(), run.fitted({"water": 1.0, "ice": 0.0}).state()
    seen = 0
    for path, value in only["water"].items():
        if path.rsplit(".", 1)[-1] not in ("dstd", "davg"):
            continue
        np.testing.assert_array_equal(water[f"tasks.0.{path}"], value)
        np.testing.assert_array_equal(water[f"tasks.1.{path}"], value)
        np.testing.assert_array_equal(mixed[f"tasks.0.{path}"], mixed[f"tasks.1.{path}"])
        other = only["ice"][path]
        if not np.allclose(value, other, rtol=1e-6):
            assert not np.allclose(mixed[f"tasks.0.{path}"], value, rtol=1e-9)
            seen += 1
    assert seen


def test_a_part_of_a_hybrid_is_merged_by_itself(tmp_path: Path) -> None:
    data = several()
    for task in ("water", "ice"):
        parts = ["own", copy.deepcopy(DESCRIPTORS["se_e2_r"])]
        data["model"]["model_dict"][task]["descriptor"] = {
            "type": "hybrid",
            "list": parts if task == "water" else parts[::-1],
        }
    run = Run(tmp_path, data)
    found = run.fitted({"water": 0.25, "ice": 0.75})
    water, ice = (task.descriptor.parts for task in found.tasks)  # type: ignore[attr-defined]
    assert water[0] is ice[1]
    np.testing.assert_array_equal(water[1].dstd, run.alone("water").descriptor.parts[1].dstd)
    np.testing.assert_array_equal(ice[0].dstd, run.alone("ice").descriptor.parts[0].dstd)
    plain = Run(tmp_path, several()).fitted({"water": 0.25, "ice": 0.75}).tasks[0]
    np.testing.assert_array_equal(water[0].dstd, plain.descriptor.dstd)  # type: ignore[attr-defined]


def test_level_1_keeps_the_statistics_of_every_task(tmp_path: Path) -> None:
    run = Run(tmp_path, several("dpa1", levels=(0, 1)))
    found = run.fitted({"water": 0.5, "ice": 0.5})
    for name in ("water", "ice"):
        np.testing.assert_array_equal(found.task(name).descriptor.davg, run.alone(name).descriptor.davg)  # type: ignore[attr-defined]
    first, second = (task.descriptor.type_embedding for task in found.tasks)  # type: ignore[attr-defined]
    assert first is second


@pytest.mark.parametrize("probabilities", [{"water": 0.5, "ice": 0.5}, {"water": 0.2, "ice": 0.8}])
def test_frame_parameters_of_shared_nets(tmp_path: Path, probabilities: dict[str, float]) -> None:
    run = Run(tmp_path, several(share_fitting=True))
    found = run.fitted(probabilities)
    values, weights = [], []
    for name, p in probabilities.items():
        own = run.data[name].systems[0].batch(np.arange(3)).labels["fparam"].ravel()
        values += own.tolist()
        weights += [p] * len(own)
    mean = np.average(values, weights=weights)
    deviation = np.sqrt(np.average((np.array(values) - mean) ** 2, weights=weights))
    for task in found.tasks:
        net: Any = task.fitting  # type: ignore[attr-defined]
        np.testing.assert_allclose(net.fparam_avg, [mean], rtol=1e-10)
        np.testing.assert_allclose(net.fparam_inv_std, [1 / deviation], rtol=1e-9)
    water, ice = found.tasks
    assert water.fitting.networks[0] is ice.fitting.networks[0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(water.fitting.case_embd, [0.0, 1.0])  # type: ignore[attr-defined]


def test_output_biases_are_of_every_task(tmp_path: Path) -> None:
    run = Run(tmp_path, several(share_fitting=True))
    found = run.fitted({"water": 0.5, "ice": 0.5})
    for name in ("water", "ice"):
        np.testing.assert_array_equal(found.task(name).out_bias, run.alone(name).out_bias)  # type: ignore[attr-defined]


def test_tasks_that_are_never_drawn(tmp_path: Path) -> None:
    run = Run(tmp_path, several())
    first, both = run.fitted({"water": 0.0, "ice": 0.0}).state(), run.fitted({"water": 2.0, "ice": 2.0}).state()
    assert all(np.array_equal(first[path], both[path]) for path in both)
    base = run.fitted({"water": 0.0, "ice": 1.0}).tasks[0]
    np.testing.assert_array_equal(base.descriptor.dstd, run.alone("ice").descriptor.dstd)  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", ["", ".h5"])
def test_every_task_has_a_cache_of_its_own(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, several("dpa2", share_fitting=True))
    weights = {"water": 0.3, "ice": 0.7}

    def caches(mode: str) -> dict[str, StatCache]:
        return {name: StatCache(tmp_path / f"stat_{name}{suffix}", ("O", "H"), mode) for name in weights}

    made = run.fitted(weights, caches=caches("update")).state()
    monkeypatch.setattr(Run, "builders", dict.fromkeys(weights, Refuses()))
    read = run.fitted(weights, caches=caches("read")).state()
    assert all(np.array_equal(made[path], read[path]) for path in made)
    with pytest.raises(AssertionError, match="the cache was not asked"):
        run.fitted(weights)
    # What is stored is of the task alone: other probabilities need nothing new.
    other = run.fitted({"water": 1.0, "ice": 0.0}, caches=caches("read")).state()
    monkeypatch.undo()
    np.testing.assert_array_equal(
        other["tasks.0.descriptor.repinit.dstd"], Run(tmp_path, several("dpa2")).alone("water").descriptor.repinit.dstd
    )


class Refuses:
    """A builder of graphs that nobody may ask."""

    def build(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the cache was not asked")


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    data = several(share_fitting=True)
    run = Run(tmp_path, data)
    plain = tuple(label for label in LABELS if label.name != "fparam")
    run.data["ice"] = Dataset.from_config(tmp_path / "ice", batch_size=1, type_map=("O", "H"), labels=plain)
    with pytest.raises(DataError, match="fparam"):
        run.fitted({"water": 0.5, "ice": 0.5})


def test_scaled_sums() -> None:
    item = StatItem.of([1.0, 3.0])
    assert item.scaled(2.0) == item + item
    assert item.scaled(0.25).avg() == item.avg()
    assert item.scaled(0.25).std() == item.std()
