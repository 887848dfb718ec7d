"""Environment statistics of dpa3, against loops over all pairs of atoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.descriptors.dpa3 import DPA3, DPA3Config
from dpmodel.geometry import GraphBuilder
from dpmodel.graph import Graph
from dpmodel.statistics.cache import StatCache
from dpmodel.statistics.environment import environment_key

FLOW: dict[str, Any] = {
    "e_rcut": 3.0, "e_rcut_smth": 1.0, "e_sel": 30, "a_rcut": 2.0, "a_rcut_smth": 0.5, "a_sel": 10, "n_dim": 4, "e_dim": 4,
    "a_dim": 2, "nlayers": 1,
}  # fmt: skip


def descriptor(*, fix_stat_std: float = 0.0, skip_stat: bool = False, e_sel: int = 30, **options: Any) -> DPA3:
    flow = {**FLOW, "fix_stat_std": fix_stat_std, "skip_stat": skip_stat, "e_sel": e_sel}
    return DPA3Config.from_dict({"repflow": flow, **options}).build(3, ("O", "H", "C"), seed=1)


def atoms() -> tuple[np.ndarray, np.ndarray]:
    """Two frames of open boundaries; type 2 does not occur, one atom is virtual."""
    rng = np.random.default_rng(5)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[:12]
    return 1.1 * grid + rng.uniform(-0.2, 0.2, (2, 12, 3)), np.tile([0, 1, 1, -1] * 3, (2, 1))


def graphs(op: DPA3) -> list[Graph]:
    coord, atype = atoms()
    builder = GraphBuilder(requests=op.requests(), ntypes=3, group_by_type=False)
    return [builder.build(coord[k : k + 1], atype[k : k + 1], None) for k in range(2)]


def dense_deviations(slots: int, protection: float = 0.0, excluded: tuple[int, int] | None = None) -> np.ndarray:
    """(2, 4) of types 0 and 1; every slot counts, empty ones with 0."""
    coord, atype = atoms()
    values: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for x, kinds in zip(coord, atype, strict=True):
        for i in np.flatnonzero(kinds >= 0):
            rows = np.zeros((slots, 4))
            near = [j for j in np.flatnonzero(kinds >= 0) if j != i and np.linalg.norm(x[j] - x[i]) <= 3.0]
            for slot, j in enumerate(near):
                d, r = x[j] - x[i], np.linalg.norm(x[j] - x[i])
                u = (max(r, 1.0) - 1.0) / 2.0
                w = 1 + u**3 * (-6 * u**2 + 15 * u - 10)
                if excluded is None or {kinds[i], kinds[j]} != set(excluded):
                    rows[slot] = [w / (r + protection), *(w * d / (r + protection) ** 2)]
            values[kinds[i]].append(rows)
    out = np.zeros((2, 4))
    for kind, found in values.items():
        table = np.concatenate(found)
        out[kind] = table[:, 0].std(), *([np.sqrt(np.mean(table[:, 1:] ** 2) - np.mean(table[:, 1:]) ** 2)] * 3)
    return out


@pytest.mark.parametrize("switch", [False, True])
def test_deviations(switch: bool) -> None:
    """Always with the polynomial switch."""
    op = descriptor()
    op = op.replace(config=op.config.replace(repflow=op.config.repflow.replace(use_exp_switch=switch)))
    found = op.with_statistics(lambda: graphs(op), protect=1e-2)
    np.testing.assert_allclose(found.dstd[:2], dense_deviations(30), rtol=1e-12)
    assert found.dstd[2].tolist() == [0.1] * 4  # a type that does not occur
    assert not found.davg.any()


def test_more_slots_exclusions_and_protection_count() -> None:
    op = descriptor(e_sel=40, env_protection=0.3, exclude_types=[[1, 0]])
    found = op.with_statistics(lambda: graphs(op), protect=1e-2)
    expected = dense_deviations(40, protection=0.3, excluded=(0, 1))
    np.testing.assert_allclose(found.dstd[:2], expected, rtol=1e-12)
    assert np.abs(expected - dense_deviations(30)).min() > 1e-3
    floor = op.with_statistics(lambda: graphs(op), protect=0.25)
    np.testing.assert_allclose(floor.dstd[:2], np.maximum(expected, 0.25), rtol=1e-12)
    assert (floor.dstd[:2] == 0.25).any()


@pytest.mark.parametrize(("options", "value"), [({"fix_stat_std": 0.7}, 0.7), ({"skip_stat": True}, 0.3)])
def test_fixed_deviations_need_no_data(options: dict[str, Any], value: float) -> None:
    def refuse() -> list[Graph]:
        raise AssertionError("no graph should be built")

    op = descriptor(**options)
    assert (op.dstd == value).all()
    assert (op.replace(dstd=op.dstd * 2).with_statistics(refuse, protect=1e-2).dstd == value).all()


def test_cache(tmp_path: Path) -> None:
    op = descriptor()
    first = op.with_statistics(lambda: graphs(op), protect=1e-2, cache=StatCache(tmp_path / "stat", ("O", "H", "C")))
    again = op.with_statistics(list, protect=1e-2, cache=StatCache(tmp_path / "stat", ("O", "H", "C"), "read"))
    np.testing.assert_array_equal(again.dstd, first.dstd)
    name = environment_key(ntypes=3, rcut=3.0, rcut_smth=1.0, sel=(30,), mixed_types=True)
    assert any(path.name == name for path in (tmp_path / "stat").rglob("*"))
