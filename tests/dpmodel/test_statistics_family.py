"""The cache of statistics with descriptors of several environment matrices, and with spins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.data import Dataset, labels
from dpmodel.data.write import write_system
from dpmodel.errors import DataError
from dpmodel.input import load_model
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.statistics import environment
from dpmodel.statistics.cache import StatCache
from dpmodel.statistics.fit import fit_statistics

FLOW = {
    "e_rcut": 4.0, "e_rcut_smth": 2.0, "e_sel": 20, "a_rcut": 3.0, "a_rcut_smth": 2.0, "a_sel": 20, "n_dim": 4, "e_dim": 4,
    "a_dim": 4, "nlayers": 1, "axis_neuron": 2, "fix_stat_std": 0.0,
}  # fmt: skip
DPA2 = {
    "type": "dpa2",
    "repinit": {
        "rcut": 4.0, "rcut_smth": 0.5, "nsel": 20, "neuron": [4], "axis_neuron": 2, "set_davg_zero": False,
        "use_three_body": True, "three_body_rcut": 3.0, "three_body_sel": 20, "three_body_neuron": [4],
    },
    "repformer": {
        "rcut": 3.5, "rcut_smth": 0.5, "nsel": 20, "nlayers": 1, "g1_dim": 4, "g2_dim": 4, "attn1_hidden": 4,
        "attn2_hidden": 4, "attn1_nhead": 1, "attn2_nhead": 1, "axis_neuron": 2,
    },
}  # fmt: skip
RADIAL = {"type": "se_e2_r", "sel": [20, 20], "rcut": 4.0, "neuron": [4]}
SPIN = {
    "descriptor": {"type": "se_e2_a", "sel": [20, 20], "rcut": 4.0, "neuron": [4], "axis_neuron": 2},
    "spin": {"use_spin": [True, False], "virtual_scale": 0.3},
}
SECTIONS: dict[str, Any] = {
    "hybrid": {"descriptor": {"type": "hybrid", "list": [RADIAL, {"type": "dpa3", "repflow": FLOW}, DPA2]}},
    "spin": SPIN,
    "linear": {"type": "linear_ener", "models": [{"descriptor": RADIAL, "fitting_net": {}}, {"descriptor": DPA2, "fitting_net": {}}]},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    write_system(
        tmp_path / "data", rng.uniform(0, 8, (3, 7, 3)), [0, 0, 1, 1, 1, 0, 1], np.tile(8.0 * np.eye(3), (3, 1, 1)),
        type_map=["A", "B"], labels={"energy": rng.normal(size=(3, 1)), "spin": rng.normal(size=(3, 21))},
    )  # fmt: skip
    return tmp_path


def fitted(name: str, folder: Path, **changes: Any) -> dict[str, np.ndarray]:
    """Arrays of a model with statistics, by way of a cache."""
    section = {"type_map": ["A", "B"], **SECTIONS[name], **changes}
    if name != "linear":
        section.setdefault("fitting_net", {})
    model = build_model(load_model(section), seed=1)
    requests = (labels.ENERGY, *([labels.SPIN] if model.spin_scales else []))
    data = Dataset.from_config(folder / "data", batch_size=1, type_map=["A", "B"], labels=requests)
    cache = StatCache(folder / "stat.h5", model.graph_model.type_map)
    found = fit_statistics(model, data, builder_of(model), nbatch=3, protect=0.01, cache=cache)
    return {path: np.asarray(value) for path, value in found.state().items()}


@pytest.mark.parametrize("name", SECTIONS)
def test_what_is_kept_is_used(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fitted(name, folder)
    assert any(path.endswith("dstd") and not np.all(value == 1.0) for path, value in before.items())

    def computed(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(environment, "environment_items", computed)
    after = fitted(name, folder)
    assert all(np.array_equal(after[path], value) for path, value in before.items())
    with pytest.raises(AssertionError, match="computed again"):
        fitted(name, folder, pair_exclude_types=[[0, 1]])


def test_the_scale_of_spins_counts(folder: Path) -> None:
    fitted("spin", folder)
    other = fitted("spin", folder, spin={"use_spin": [True, False], "virtual_scale": 0.5})
    again = fitted("spin", folder, spin={"use_spin": [True, False], "virtual_scale": 0.5})
    assert all(np.array_equal(again[path], value) for path, value in other.items())
    cache = StatCache(folder / "stat.h5", ["A", "B", "A_spin", "B_spin"], "read")
    key = environment.environment_key(ntypes=4, rcut=4.0, rcut_smth=0.5, sel=(20,) * 4, mixed_types=False)
    with pytest.raises(DataError, match="spin_scales"):
        cache.environment(key, {"env_protection": 0.01, "exclude_types": [[0, 3], [1, 3], [2, 3], [3, 3]]})
