"""The section of dpa3: names, defaults, and what contradicts itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dpmodel.descriptors.dpa3 import DPA3Config
from dpmodel.errors import InputError
from dpmodel.input import document, load_input
from dpmodel.models.build import build_model

BASE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "input" / "sea.json").read_text())
FLOW: dict[str, Any] = {
    "e_rcut": 6.0, "e_rcut_smth": 5.0, "e_sel": 120, "a_rcut": 4.0, "a_rcut_smth": 3.5, "a_sel": 20,
}  # fmt: skip


def section(descriptor: dict[str, Any] | None = None, **flow: Any) -> dict[str, Any]:
    """sea.json with a dpa3 descriptor. Options that are None are left out."""
    data = copy.deepcopy(BASE)
    repflow = {key: value for key, value in {**FLOW, **flow}.items() if value is not None}
    data["model"]["descriptor"] = {"type": "dpa3", "repflow": repflow, **(descriptor or {})}
    return data


def test_defaults() -> None:
    config = load_input(section()).model.descriptor
    assert isinstance(config, DPA3Config)
    flow = config.repflow
    assert (flow.n_dim, flow.e_dim, flow.a_dim, flow.nlayers, flow.axis_neuron) == (128, 64, 64, 6, 4)
    assert (flow.update_style, flow.update_residual, flow.update_residual_init) == ("res_residual", 0.1, "const")
    assert (flow.fix_stat_std, flow.sel_reduce_factor, flow.a_compress_rate) == (0.3, 10.0, 0)
    assert flow.update_angle
    assert flow.optim_update
    assert not (flow.smooth_edge_update or flow.use_dynamic_sel or flow.sequential_update or flow.use_exp_switch)
    assert (config.activation_function, config.concat_output_tebd, config.use_loc_mapping) == ("silu", False, True)
    assert config.default_chg_spin is None


def test_other_spellings() -> None:
    found = load_input(section(edge_use_dist=True, use_env_envelope=True))
    flow = found.model.descriptor.repflow  # type: ignore[attr-defined]  # of dpa3
    assert flow.edge_init_use_dist
    assert flow.use_exp_switch
    assert load_input(found.normalised).model == found.model


def test_the_former_name_of_a_fixed_deviation() -> None:
    flow = load_input(section(skip_stat=True, fix_stat_std=0.0)).model.descriptor.repflow  # type: ignore[attr-defined]
    assert flow.deviation == 0.3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (section(e_rcut=None), ".repflow.e_rcut: missing; expected a number (Cutoff radius of the edges)"),
        (section(e_sel=None), ".repflow.e_sel: missing; expected any value (Capacity"),
        (section(e_sel=0), '.repflow.e_sel: expected an integer above 0, "auto" or "auto:f", got 0'),
        (section(e_sel=[120]), '.repflow.e_sel: expected an integer above 0, "auto" or "auto:f", got [120]'),
        (section(e_sel="many"), '.repflow.e_sel: expected "auto" or "auto:f" with a factor f above 0, as in "auto:1.1"'),
        (section(a_sel=True), ".repflow.a_sel: expected an integer above 0"),
        (section(a_rcut=7.0), ".repflow: a_rcut = 7.0 must not exceed e_rcut = 6.0"),
        (section(a_sel=121), ".repflow: a_sel = 121 must not exceed e_sel = 120"),
        (section(e_rcut_smth=6.0), ".repflow: e_rcut_smth = 6.0 must be below e_rcut = 6.0"),
        (section(a_rcut_smth=4.5), ".repflow: a_rcut_smth = 4.5 must be below a_rcut = 4.0"),
        (section(use_exp_switch=True, a_rcut_smth=0.0), ".repflow: use_exp_switch needs e_rcut_smth and a_rcut_smth"),
        (section(use_dynamic_sel=True), ".repflow: use_dynamic_sel needs smooth_edge_update = true"),
        (section(sequential_update=True, update_style="res_avg"), ".repflow: sequential_update needs update_style = 'res_re"),
        (section(sequential_update=True, update_angle=False), ".repflow: sequential_update needs update_style"),
        (section(a_compress_rate=3), ".repflow: a_dim * a_compress_e_rate must be a multiple of 2 * a_compress_rate = 6"),
        (section(a_compress_rate=1, a_compress_use_split=True, n_dim=32), ".repflow: a_compress_use_split takes 64 columns"),
        (section(axis_neuron=65), ".repflow: axis_neuron = 65 must not exceed n_dim and e_dim"),
        (section(sel_reduce_factor=0), ".repflow.sel_reduce_factor: expected a number above 0, got 0"),
        (section(n_multi_edge_message=0), ".repflow.n_multi_edge_message: expected a number above 0"),
        (section(update_style="res_average"), '.repflow.update_style: expected one of "res_avg", "res_incr", "res_residual"'),
        (section(fix_stat_std=-0.1), ".repflow.fix_stat_std: expected a number of at least 0"),
        (section(n_dims=3), '.repflow.n_dims: unknown key; did you mean "n_dim"?'),
        (section({"sel": 3}), '.sel: unknown key; "sel" belongs to model.descriptor of several types or to'),
        (section({"n_dim": 3}), '.n_dim: unknown key; "n_dim" belongs to model.descriptor.repflow'),
        (section({"repflow": 3}), ".repflow: expected a section {...}, got 3"),
        (section({"exclude_types": [[0, 5]]}), ".exclude_types: expected type indices from 0 to 1"),
        (section({"activation_function": "swish"}), ".activation_function: expected a known activation"),
        (section({"precision": "float8"}), ".precision: expected one of"),
        (section({"default_chg_spin": [1]}), ".default_chg_spin: expected a list of 2 numbers or null, got [1]"),
        (section({"default_chg_spin": [101, 0]}), ".default_chg_spin: expected charges from -100 to 100 and spins from 0 to 100"),
        (section({"default_chg_spin": [0, -1]}), ".default_chg_spin: expected charges from -100 to 100"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(data: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        load_input(data)
    assert str(error.value).startswith(f"model.descriptor{says}")


def test_a_section_without_the_message_passing() -> None:
    data = section()
    del data["model"]["descriptor"]["repflow"]
    with pytest.raises(InputError, match=r"^model\.descriptor\.repflow: missing; expected a section"):
        load_input(data)


def test_capacities_of_the_data_must_be_resolved() -> None:
    config = load_input(section(e_sel="auto", a_sel="auto:1.5")).model
    descriptor: Any = config.descriptor
    assert [(c.option, c.value, c.rcut, c.typed) for c in descriptor.capacities()] == [
        ("repflow.e_sel", "auto", 6.0, False), ("repflow.a_sel", "auto:1.5", 4.0, False),
    ]  # fmt: skip
    with pytest.raises(InputError, match="a_sel = 50 must not exceed e_sel = 40"):
        build_model(config.replace(descriptor=descriptor.with_capacities([(40,), (50,)])))
    found = descriptor.with_capacities([(40,), (12,)]).repflow
    assert (found.e_sel, found.a_sel) == (40, 12)


def test_electron_configurations_need_elements() -> None:
    data = section({"use_econf_tebd": True})
    data["model"]["type_map"] = ["O", "water"]
    with pytest.raises(
        InputError, match=r"^model\.type_map: use_econf_tebd needs the symbols of elements in type_map; \['water'\]"
    ):
        load_input(data)


def test_charge_and_spin_in_frame_parameters_are_pointed_out() -> None:
    data = section({"add_chg_spin_ebd": True})
    assert not [note for note in load_input(data).notes if "charge_spin" in note]
    data["model"]["fitting_net"]["numb_fparam"] = 2
    (note,) = [note for note in load_input(data).notes if "charge_spin" in note]
    assert note.startswith("model.fitting_net.numb_fparam: 2 looks like charge and spin in fparam")
    data["model"]["descriptor"] = section({"default_chg_spin": [0, 1]})["model"]["descriptor"]
    assert "model.descriptor.default_chg_spin: has no effect without add_chg_spin_ebd: true" in load_input(data).notes


def test_reference() -> None:
    text = document("md")
    assert "## `model.descriptor.repflow`" in text
    for name in ("repflow", "e_sel", "sequential_update", "add_chg_spin_ebd"):
        assert f"`{name}`" in text
