"""From `model` sections to models: with spin, with pair tables (ZBL), sums of models, hybrids."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel import Potential
from dpmodel.data import Dataset, LabelRequest
from dpmodel.data.write import write_system
from dpmodel.errors import InputError
from dpmodel.input import load_input
from dpmodel.models import LinearModel, Model, PairTable, SpinModel, StandardModel, ZBLModel, builder_of
from dpmodel.models.build import build_model
from dpmodel.statistics.neighbour import neighbour_statistics, resolve_sel

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TABLE = GOLDEN / "zbl.txt"
"""Types O, H, B; 0.01 Å to 4 Å, then 0."""

SEA: dict[str, Any] = {
    "type": "se_e2_a", "sel": [10, 12], "rcut": 3.0, "rcut_smth": 0.5, "neuron": [3, 6], "axis_neuron": 2, "seed": 1,
}  # fmt: skip
DPA1: dict[str, Any] = {
    "type": "dpa1", "sel": 14, "rcut": 2.5, "rcut_smth": 0.5, "neuron": [3, 6], "axis_neuron": 2, "attn_layer": 0, "seed": 2,
}  # fmt: skip
NET: dict[str, Any] = {"neuron": [5, 5], "seed": 3}
LOSSES = {
    "dipole": {"type": "tensor", "pref": 1.0, "pref_atomic": 1.0},
    "dos": {"type": "dos"},
    "property": {"type": "property", "property_name": "property"},
}
LOSSES["polar"] = LOSSES["dipole"]


def section(**changes: Any) -> dict[str, Any]:
    """Of a standard model."""
    return {"type_map": ["O", "H"], "descriptor": dict(SEA), "fitting_net": dict(NET), **changes}


def load(model: dict[str, Any]) -> Any:
    """The `model` section as the input is read. Raises InputError."""
    kind = model.get("fitting_net", {}).get("type", "ener")
    loss = {"type": "ener_spin"} if "spin" in model else LOSSES.get(kind, {"type": "ener"})
    training = {"training_data": {"systems": ["data"]}, "numb_steps": 1}
    rate = {"start_lr": 1e-3, "stop_lr": 1e-5}
    return load_input({"model": model, "loss": loss, "learning_rate": rate, "training": training}).model


def build(model: dict[str, Any]) -> Any:
    return build_model(load(model), seed=5)


def refuse(model: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(model)


def atoms(seed: int = 0, nframes: int = 2, natoms: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """(frames, atoms, 3) Å in a box of 6 Å, no two close to each other, and types."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:natoms] * 2.0
    return grid + rng.uniform(0.0, 0.8, (nframes, natoms, 3)), np.arange(natoms) % 2


BOX = np.eye(3) * 6.0


def energies(model: Model, **given: Any) -> np.ndarray:
    """(frames, atoms, 1)."""
    coord, atype = atoms()
    return Potential.from_model(model, "numpy").evaluate(coord, atype, BOX, atomic=True, **given)["atom_energy"]


# --- spin -------------------------------------------------------------------------------------------------

SPIN = {"use_spin": [True, False], "virtual_scale": 0.3}


@pytest.mark.parametrize(
    ("use_spin", "flags"),
    [
        ([True, False], (True, False)), ([False, True], (False, True)), ([True, True], (True, True)),
        ([0], (True, False)), ([1], (False, True)), ([1, 0], (True, True)),
        (["O"], (True, False)), (["H"], (False, True)), (["H", "O"], (True, True)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("descriptor", [SEA, DPA1], ids=["se_e2_a", "dpa1"])
def test_use_spin(use_spin: list[Any], flags: tuple[bool, ...], descriptor: dict[str, Any]) -> None:
    model = build(section(spin={"use_spin": use_spin, "virtual_scale": 0.3}, descriptor=dict(descriptor)))
    assert isinstance(model, SpinModel) and model.use_spin == flags
    assert model.spin_scales == tuple(0.3 * flag for flag in flags)
    assert model.backbone.type_map == ("O", "H", "O_spin", "H_spin")
    assert set(model.backbone.atom_exclude_types) == {2, 3}
    spin = np.random.default_rng(1).normal(size=(2, 6, 3))
    both = [energies(model, spin=s) for s in (spin, np.where(np.array(flags)[atoms()[1]][:, None], spin, 0.0))]
    np.testing.assert_array_equal(*both)  # spins of types without spin do not act
    changed = energies(model, spin=1.1 * spin)
    assert np.max(np.abs(changed - both[0])) > 1e-6


def test_no_type_has_spin() -> None:
    model = build(section(spin={"use_spin": [False, False], "virtual_scale": 0.3}))
    spin = np.random.default_rng(1).normal(size=(2, 6, 3))
    np.testing.assert_array_equal(energies(model, spin=spin), energies(model, spin=0.0 * spin))


@pytest.mark.parametrize(
    ("use_spin", "given", "scales"),
    [
        (["O", "H"], 0.3, (0.3, 0.3)),
        (["O"], 0.3, (0.3, 0.0)),
        (["H"], [0.4], (0.0, 0.4)),
        (["H"], [0.3, 0.4], (0.0, 0.4)),
        (["O"], [0.3, 0.0], (0.3, 0.0)),
        ([True, True], [0.3, 0.4], (0.3, 0.4)),
        ([True, False], 1, (1.0, 0.0)),
    ],
)
def test_virtual_scale(use_spin: list[Any], given: Any, scales: tuple[float, ...]) -> None:
    model = section(spin={"use_spin": use_spin, "virtual_scale": given})
    assert load(model).spin_scales() == scales
    assert build(model).spin_scales == scales


@pytest.mark.parametrize(
    ("spin", "words"),
    [
        (
            {"use_spin": [True], "virtual_scale": 0.3},
            "spin.use_spin: expected 2 flags, one per type of type_map, got 1",
        ),
        ({"use_spin": [2], "virtual_scale": 0.3}, "names of type_map .* or their indices, got 2"),
        ({"use_spin": [-1], "virtual_scale": 0.3}, "got -1"),
        ({"use_spin": ["Ni"], "virtual_scale": 0.3}, "got 'Ni'"),
        ({"use_spin": [], "virtual_scale": 0.3}, "use_spin"),
        ({"use_spin": True, "virtual_scale": 0.3}, "use_spin"),
        ({"use_spin": [True, 1], "virtual_scale": 0.3}, "use_spin"),
        ({"use_spin": [0.0], "virtual_scale": 0.3}, "use_spin"),
        ({"use_spin": ["O"]}, "virtual_scale"),
        ({"virtual_scale": 0.3}, "use_spin"),
        ({"use_spin": ["O"], "virtual_scale": "0.3"}, "virtual_scale"),
        ({"use_spin": ["O"], "virtual_scale": []}, "virtual_scale"),
        (
            {"use_spin": ["O"], "virtual_scale": [0.1, 0.2, 0.3]},
            r"expected one number, 2 \(one per type\) or 1 .*, got 3",
        ),
        ({"use_spin": ["O"], "virtual_scale": True}, "virtual_scale"),
        ({"use_spin": ["O"], "virtual_scale": 0.0}, "above 0 for types with spin, got others for .'O'."),
        ({"use_spin": ["O", "H"], "virtual_scale": [0.3, -0.1]}, "above 0 for types with spin, got others for .'H'."),
        ({**SPIN, "scheme": "native"}, "scheme"),
        ({**SPIN, "allow_missing_label": True}, "allow_missing_label"),
        ({**SPIN, "spin_norms": [1.0]}, "spin_norms: unknown key"),
    ],
)
def test_bad_spin_sections(spin: dict[str, Any], words: str) -> None:
    refuse(section(spin=spin), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_srtab": str(TABLE), "sw_rmin": 0.2, "sw_rmax": 0.5}, "use_srtab: does not go with spin"),
        ({"fitting_net": {**NET, "type": "dos", "numb_dos": 4}}, "spin: goes with fitting_net.type ener, got dos"),
        ({"descriptor": {**DPA1, "use_econf_tebd": True}}, "use_econf_tebd: does not go with spin"),
    ],
)
def test_what_does_not_go_with_spin(changes: dict[str, Any], words: str) -> None:
    refuse(section(spin=SPIN, **changes), words)


def test_options_of_models_with_spin() -> None:
    model = build(
        section(
            spin=SPIN, pair_exclude_types=[[0, 1]], atom_exclude_types=[1], preset_out_bias={"energy": [-1.0, None]},
            fitting_net={**NET, "atom_ener": [-2.0, -3.0]},
        )
    )  # fmt: skip
    inner = model.backbone
    assert inner.preset_out_bias == {"energy": (-1.0, None, None, None)}
    assert inner.fitting.config.atom_ener == (-2.0, -3.0, None, None)
    assert set(inner.atom_exclude_types) == {1, 2, 3}
    # Virtual atoms of H, which has no spin, are nobody's neighbours.
    assert {(0, 1), (3, 0), (3, 1), (3, 2), (3, 3)} <= set(inner.pair_exclude_types)
    assert inner.descriptor.config.sel == (10, 12, 10, 12) and inner.descriptor.config.env_protection == 0.01
    kept = build(section(spin=SPIN, descriptor={**SEA, "env_protection": 0.5}))
    assert kept.backbone.descriptor.config.env_protection == 0.5


def test_spins_of_hybrids() -> None:
    model = build(section(spin=SPIN, descriptor={"type": "hybrid", "list": [dict(SEA), dict(DPA1)]}))
    one, other = model.backbone.descriptor.config.parts
    assert one.sel == (10, 12, 10, 12) and other.sel == 14
    assert one.env_protection == other.env_protection == 0.01
    energies(model, spin=np.zeros((2, 6, 3)))


def spin_data(folder: Path, *, scale: float = 1.0) -> Dataset:
    """Frames of O and H atoms, dense enough that virtual atoms cross the cutoff."""
    rng, (coord, atype) = np.random.default_rng(3), atoms(nframes=4, natoms=18)
    labels = {"energy": rng.normal(size=4), "spin": scale * rng.normal(size=(4, 18, 3))}
    write_system(folder, coord, atype, BOX, type_map=("O", "H"), labels=labels)
    wanted = (LabelRequest(name="energy"), LabelRequest(name="spin", shape=(3,), atomic=True, everywhere=True))
    return Dataset.from_config(folder, batch_size=1, type_map=("O", "H"), labels=wanted)


@pytest.mark.parametrize("scales", [(0.6, 0.0), (0.4, 0.7)])
def test_neighbours_of_virtual_atoms(tmp_path: Path, scales: tuple[float, ...]) -> None:
    data, rcut = spin_data(tmp_path / "data"), 3.0
    found = neighbour_statistics(data, rcut, 2, spin_scales=scales)
    plain = neighbour_statistics(data, rcut, 2)
    batch = data.systems[0].batch(np.arange(4), 0)
    most, total = np.zeros(4, int), 0
    images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3) @ BOX
    for coord, spin, atype in zip(batch.coord, batch.labels["spin"], batch.atype, strict=True):
        places = np.concatenate([coord, coord + np.array(scales)[atype][:, None] * spin])
        kinds = np.concatenate([atype, atype + 2])
        for i, place in enumerate(places):
            near = np.linalg.norm(places[:, None] + images - place, axis=2) < rcut
            near[i, len(images) // 2] = False  # the atom itself
            counts = np.array([np.sum(near[kinds == t]) for t in range(4)])
            most, total = np.maximum(most, counts), max(total, int(np.sum(counts)))
    assert found.by_type == tuple(np.maximum(most[:2], most[2:])) and found.total == total
    assert found.min_distance == plain.min_distance and found.total > plain.total + 10
    # What is chosen by it holds all neighbours: graphs are made without a warning, which would be an error.
    sel = resolve_sel("auto:1.0", found)
    model = build(
        section(
            spin={"use_spin": [s > 0 for s in scales], "virtual_scale": list(scales)},
            descriptor={**SEA, "sel": list(sel)},
        )
    )
    builder_of(model).build(batch.coord, batch.atype, batch.cell, spin=batch.labels["spin"])


# --- ZBL --------------------------------------------------------------------------------------------------


def zbl(path: Path | str = TABLE, **changes: Any) -> dict[str, Any]:
    three = {"type_map": ["O", "H", "B"], "descriptor": {**SEA, "sel": [10, 12, 1]}}
    return section(**{**three, "use_srtab": str(path), "sw_rmin": 0.5, "sw_rmax": 1.5, **changes})


def test_zbl() -> None:
    model = build(zbl(smin_alpha=0.2))
    assert isinstance(model, ZBLModel) and (model.sw_rmin, model.sw_rmax, model.smin_alpha) == (0.5, 1.5, 0.2)
    net, table = model.parts
    assert isinstance(net, StandardModel) and isinstance(table, PairTable)
    assert table.cutoff == 3.0 and table.sel == 23 and build(zbl()).smin_alpha == 0.1
    for r in (0.3, 1.0, 2.0):  # two atoms: the distance is its own soft minimum
        coord = np.array([[[0.0, 0.0, 0.0], [r, 0.0, 0.0]]])
        mixed, ours, theirs = (
            Potential.from_model(part, "numpy").evaluate(coord, np.array([0, 1]), None)["energy"]
            for part in (model, net, table)
        )
        u = min(max(r - 0.5, 0.0), 1.0)
        w = 1.0 - 10.0 * u**3 + 15.0 * u**4 - 6.0 * u**5
        np.testing.assert_allclose(mixed, (1 - w) * ours + w * theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sw_rmin": None}, "expected 0 <= sw_rmin < sw_rmax with use_srtab, got None and 1.5"),
        ({"sw_rmax": None}, "got 0.5 and None"),
        ({"sw_rmin": 1.5}, "got 1.5 and 1.5"),
        ({"sw_rmin": -0.1}, "got -0.1 and 1.5"),
        ({"smin_alpha": 0.0}, "smin_alpha"),
        ({"use_srtab": None}, "sw_rmin: belongs to models with a pair table"),
        (
            {"use_srtab": None, "sw_rmin": None, "sw_rmax": None, "smin_alpha": 0.1},
            "smin_alpha: belongs to models with",
        ),
        ({"fitting_net": {**NET, "type": "dos", "numb_dos": 3}}, "use_srtab: goes with fitting_net.type ener, got dos"),
        ({"sw_rmax": 4.5}, r"zbl.txt ends at 4 Å, before sw_rmax \(4.5 Å\)"),
    ],
)
def test_bad_zbl_sections(changes: dict[str, Any], words: str) -> None:
    refuse(zbl(**changes), words)


# --- linear -----------------------------------------------------------------------------------------------


def linear(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"type": "linear_ener", "type_map": ["O", "H"], "models": list(models), **changes}


SHORT = {"descriptor": SEA, "fitting_net": NET}
OTHER = {"type_map": ["H", "B", "O"], "descriptor": DPA1, "fitting_net": NET}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """The table of O and H."""
    rows = np.loadtxt(TABLE)[:, [0, 1, 2, 4]]
    np.savetxt(tmp_path / "two.txt", rows)
    return tmp_path / "two.txt"


@pytest.mark.parametrize(
    ("weights", "numbers"), [("sum", (1.0,) * 3), ("mean", (1 / 3,) * 3), ([0.5, -2.0, 1], (0.5, -2.0, 1.0))]
)
def test_linear(two: Path, weights: Any, numbers: tuple[float, ...]) -> None:
    table = {"type": "pairtab", "tab_file": str(two), "rcut": 2.8, "sel": [8, 9]}
    model = build(linear(SHORT, OTHER, table, weights=weights))
    assert isinstance(model, LinearModel) and [part.rcut for part in model.parts] == [3.0, 2.5, 2.8]
    coord, atype = atoms()
    kinds = (atype, np.array([2, 0])[atype], atype)
    parts = [
        Potential.from_model(part, "numpy").evaluate(coord, t, BOX, atomic=True)["atom_energy"]
        for part, t in zip(model.parts, kinds, strict=True)
    ]
    expected = sum(weight * part for weight, part in zip(numbers, parts, strict=True))
    np.testing.assert_allclose(energies(model), expected, rtol=1e-12, atol=1e-12)


def test_seeds_of_parts_differ() -> None:
    free = {"descriptor": {**DPA1, "seed": None}, "fitting_net": {"neuron": [5, 5]}}
    model = build_model(load(linear(free, free)), seed=1)
    again = build_model(load(linear(free, free)), seed=1)
    one, other = (part.state() for part in model.parts)
    name = next(name for name in one if name.endswith("w") or "matrix" in name or "weight" in name)
    assert not np.array_equal(one[name], other[name])
    np.testing.assert_array_equal(one[name], again.parts[0].state()[name])


TAB = {"type": "pairtab", "tab_file": "no.txt", "rcut": 3.0, "sel": 9}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (linear(), "models: expected at least one model"),
        (linear(TAB), "models: expected at least one model with a descriptor, got none"),
        (linear(SHORT, weights=[1.0, 2.0]), "weights: expected 1 numbers, one per model, got 2"),
        (linear(SHORT, weights="max"), "weights"),
        (linear(SHORT, weights=[math.nan]), "weights"),
        (linear(SHORT, {**SHORT, "fitting_net": {**NET, "type": "dos", "numb_dos": 3}}), "expected fitting nets of type ener"),
        (linear({**SHORT, "spin": SPIN}), "models.0.spin: belongs to the whole model"),
        (linear({**SHORT, "pair_exclude_types": [[0, 1]]}), "models.0.pair_exclude_types: belongs to the whole"),
        (linear({**SHORT, "preset_out_bias": {"energy": [1, 2]}}), "models.0.preset_out_bias: belongs to the whole"),
        (linear({**SHORT, "use_srtab": "x", "sw_rmin": 0.1, "sw_rmax": 0.2}), "models.0.use_srtab: belongs to the whole"),
        (linear({**SHORT, "fitting_net": {**NET, "atom_ener": [1.0, 2.0]}}), "models.0.fitting_net.atom_ener: a part has no"),
        (linear(SHORT, {**OTHER, "type_map": ["H"]}), r"models.1.type_map: lacks \['O'\]"),
        (linear({**SHORT, "type_map": ["H", "O"]}), r"models.0.type_map: se_e2_a counts neighbours by type"),
        (linear(SHORT, shared_dict={"a": {}}), "shared_dict"),
        (linear({**SHORT, "fitting_net": {**NET, "numb_fparam": 1}}, {**OTHER, "fitting_net": {**NET, "numb_fparam": 2}}),
         "numb_fparam and numb_aparam must be the same"),
        (linear(SHORT, {**TAB, "sel": 0}), "sel: expected a number above 0, or one per type, got 0"),
        (linear(SHORT, {**TAB, "sel": "many"}), "sel"),
        (linear(SHORT, {**TAB, "rcut": -1.0}), "rcut"),
        (linear(SHORT, TAB), r"model.models.1.tab_file: cannot read no.txt \(.*; name the file of the table"),
        (linear(SHORT, {"type": "pairtab", "rcut": 3.0, "sel": 9}), "tab_file"),
    ],
)  # fmt: skip
def test_bad_linear_sections(model: dict[str, Any], words: str) -> None:
    refuse(model, words)


def test_types_that_a_descriptor_counts_may_be_spelled_out() -> None:
    assert isinstance(build(linear({**SHORT, "type_map": ["O", "H"]})), LinearModel)


# --- hybrids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "list"),
        ([{**SEA, "sel": [10]}], r"sel: expected 2 numbers, one per type of type_map, got 1"),
        ([dict(SEA), {**DPA1, "sel": [10, 10, 10]}], "sel"),
        ([dict(SEA), {**DPA1, "rcut_smth": 2.5}], "rcut_smth: expected a number below rcut"),
        ([dict(SEA), {**SEA, "rcut": -3.0}], "rcut"),
        ([dict(SEA), {**SEA, "exclude_types": [[0, 2]]}], "exclude_types: expected type indices from 0 to 1"),
        ([{"type": "se_e2_z"}], "se_e2_z"),
    ],
)
def test_bad_hybrids(parts: list[dict[str, Any]], words: str) -> None:
    refuse(section(descriptor={"type": "hybrid", "list": parts}), words)
