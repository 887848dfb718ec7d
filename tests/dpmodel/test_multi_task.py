"""Models of several tasks: what is one Op in them, and what is not; states with shared parts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from dpmodel.descriptors import CONFIGS
from dpmodel.errors import InputError
from dpmodel.input import load_input
from dpmodel.models import Model
from dpmodel.models.multi_task import MultiTask, build_tasks, linked, part_at, with_common_capacities, with_part
from dpmodel.op import Array, Kind, Op, child, param, paths_of, walk

from .several import DESCRIPTORS, edited, several


def built(data: dict[str, Any], seed: int | None = 1) -> MultiTask:
    inp = load_input(data)
    model = build_tasks(inp, inp.models, seed)
    assert isinstance(model, MultiTask)
    return model


def together(model: MultiTask) -> set[str]:
    """Paths below a task of arrays that the first two tasks share."""
    return {
        paths[0].removeprefix("tasks.0.")
        for _, paths in paths_of(model).values()
        if {path.split(".")[1] for path in paths} == {"0", "1"}
    }


def of(model: Model, start: str) -> set[str]:
    return {path for path, *_ in walk(model) if path.startswith(start)}


def test_every_descriptor_has_a_case() -> None:
    assert {config.key for config in CONFIGS} == {*DESCRIPTORS, "hybrid"}


@pytest.mark.parametrize("name", sorted(DESCRIPTORS))
def test_level_0_shares_everything_of_a_descriptor(name: str) -> None:
    model = built(several(name))
    first, second = model.tasks
    assert model.names == ("water", "ice")
    assert first.descriptor is second.descriptor  # type: ignore[attr-defined]
    assert together(model) == of(first, "descriptor.")


@pytest.mark.parametrize("name", ["dpa1", "se_atten_v2", "se_e3_tebd", "dpa2", "dpa3"])
@pytest.mark.parametrize("levels", [(0, 1), (1, 0), (1, 1)])
def test_level_1_shares_the_type_embedding(name: str, levels: tuple[int, int]) -> None:
    model = built(several(name, levels=levels))
    assert together(model) == of(model.tasks[0], "descriptor.type_embedding.") != set()
    nets = [[v for p, k, v, _ in walk(task) if p.startswith("descriptor.") and k is Kind.PARAM] for task in model.tasks]
    assert any(not np.array_equal(a, b) for a, b in zip(*nets, strict=True))


@pytest.mark.parametrize("name", ["se_e2_a", "se_e2_r", "se_e3"])
def test_level_1_needs_a_type_embedding(name: str) -> None:
    with pytest.raises(
        InputError, match=rf'model\.model_dict\.ice\.descriptor: "own:1": expected level 0 .*as {name} has'
    ):
        built(several(name, levels=(0, 1)))


@pytest.mark.parametrize("level", [2, 7])
def test_other_levels_are_refused(level: int) -> None:
    with pytest.raises(InputError, match=rf'"own:{level}": expected level 0 \(everything\) or 1'):
        built(several("dpa1", levels=(0, level)))
    with pytest.raises(InputError, match=r'water\.fitting_net: "net:1": expected level 0'):
        built(edited(several(share_fitting=True), "model.model_dict.water.fitting_net", "net:1"))
    with pytest.raises(InputError, match='"own:-1": expected a level of at least 0, got -1'):
        built(several("dpa1", levels=(0, -1)))
    with pytest.raises(InputError, match='"types:1": expected a level of 0, got 1'):
        built(edited(several(), "model.model_dict.water.type_map", "types:1"))


def hybrid() -> dict[str, Any]:
    data = several()
    data["model"]["shared_dict"]["tebd"] = {"type": "dpa1", **DESCRIPTORS["dpa1"]}
    parts = {"water": ["own", "tebd:0", DESCRIPTORS["se_e2_r"]], "ice": ["tebd:1", DESCRIPTORS["se_e2_r"], "own:0"]}
    for name, part in parts.items():
        data["model"]["model_dict"][name]["descriptor"] = {"type": "hybrid", "list": copy.deepcopy(part)}
    return data


def test_parts_of_hybrids_are_shared_by_themselves() -> None:
    """R-M-05."""
    model = built(hybrid())
    water, ice = (task.descriptor.parts for task in model.tasks)  # type: ignore[attr-defined]
    assert water[0] is ice[2]
    assert water[1] is not ice[0]
    assert water[1].type_embedding is ice[0].type_embedding
    assert together(model) == of(model.tasks[0], "descriptor.parts.0.") | of(
        model.tasks[0], "descriptor.parts.1.type_embedding."
    )


def test_a_hybrid_is_shared_whole() -> None:
    model = built(several({"type": "hybrid", "list": [DESCRIPTORS["se_e2_a"], DESCRIPTORS["dpa1"]]}))
    assert together(model) == of(model.tasks[0], "descriptor.")
    with pytest.raises(InputError, match="expected level 0, as a hybrid descriptor is shared whole"):
        built(several({"type": "hybrid", "list": [DESCRIPTORS["dpa1"]]}, levels=(0, 1)))


def test_a_definition_may_name_another() -> None:
    data = several({"type": "hybrid", "list": [DESCRIPTORS["se_e2_r"], "inner"]})
    data["model"]["shared_dict"]["inner"] = DESCRIPTORS["se_e2_a"]
    data["model"]["model_dict"]["third"] = {**copy.deepcopy(data["model"]["model_dict"]["ice"]), "descriptor": "inner"}
    data["loss_dict"]["third"] = {}
    data["training"]["data_dict"]["third"] = copy.deepcopy(data["training"]["data_dict"]["ice"])
    model = built(data)
    one, two, three = (task.descriptor for task in model.tasks)  # type: ignore[attr-defined]
    assert one.parts[0] is two.parts[0]
    assert one.parts[1] is two.parts[1] is three
    assert load_input(data).normalised["model"]["shared_dict"]["own"]["list"][1] == "inner"
    with pytest.raises(InputError, match=r"shared_dict\.inner: it is a part of itself"):
        load_input(edited(data, "model.shared_dict.inner", {"type": "hybrid", "list": ["inner"]}))


def test_fitting_nets_share_nets_and_keep_biases_and_cases() -> None:
    model = built(several(share_fitting=True))
    water, ice = (task.fitting for task in model.tasks)  # type: ignore[attr-defined]
    assert water.networks[0] is ice.networks[0]
    assert water.bias_atom_e is not ice.bias_atom_e
    # Rows of the embedding by the order of the alphabet: ice, water.
    np.testing.assert_array_equal(water.case_embd, [0.0, 1.0])
    np.testing.assert_array_equal(ice.case_embd, [1.0, 0.0])
    assert together(model) == of(model.tasks[0], "descriptor.") | of(model.tasks[0], "fitting.networks.")


def test_fitting_nets_of_other_widths_cannot_be_one() -> None:
    data = several(share_fitting=True)
    data["model"]["model_dict"]["ice"]["descriptor"] = DESCRIPTORS["se_e2_a"] | {"neuron": [4, 6]}
    with pytest.raises(InputError, match=r"shared_dict\.net, in task ice: its nets have the shapes"):
        built(data)


def test_tasks_have_weights_of_their_own_and_seeds_steer_them() -> None:
    states = [built(several(), seed=seed).state() for seed in (1, 1, 2)]
    assert all(np.array_equal(states[0][path], states[1][path]) for path in states[0])
    name = "fitting.networks.0.layers.0.w"
    assert not np.array_equal(states[0][f"tasks.0.{name}"], states[0][f"tasks.1.{name}"])
    assert not np.array_equal(states[0][f"tasks.0.{name}"], states[2][f"tasks.0.{name}"])


def test_models_with_spin_share() -> None:
    data = several("dpa1", share_fitting=True)
    for name in ("water", "ice"):
        data["model"]["model_dict"][name]["spin"] = {"use_spin": ["O"], "virtual_scale": 0.3}
        data["loss_dict"][name] = {"type": "ener_spin"}
    water, ice = (task.backbone for task in built(data).tasks)  # type: ignore[attr-defined]
    assert water.descriptor is ice.descriptor
    assert water.fitting.networks[0] is ice.fitting.networks[0]
    np.testing.assert_array_equal(water.fitting.case_embd, [0.0, 1.0])
    for name, flags in (("water", ["O"]), ("ice", ["H"])):
        data["model"]["model_dict"][name]["spin"] = {"use_spin": flags, "virtual_scale": 0.3}
        data["model"]["model_dict"][name]["descriptor"] = "own:1"
    water, ice = (task.backbone for task in built(data).tasks)  # type: ignore[attr-defined]
    assert water.descriptor.type_embedding is ice.descriptor.type_embedding
    assert water.descriptor.config.exclude_types != ice.descriptor.config.exclude_types


def test_one_task_is_the_model_itself() -> None:
    data = several()
    single = {
        "model": {"type_map": ["O", "H"], "descriptor": DESCRIPTORS["se_e2_a"], "fitting_net": {"neuron": [6]}},
        "learning_rate": data["learning_rate"],
        "training": {"training_data": {"systems": "nowhere"}, "numb_steps": 1},
    }
    inp = load_input(single)
    assert not inp.multi
    model = build_tasks(inp, inp.models, 3)
    assert type(model).__name__ == "StandardModel"


def test_errors_of_building_have_the_path_of_the_task() -> None:
    table = {"use_srtab": "nowhere.txt", "sw_rmin": 0.5, "sw_rmax": 1.0}
    data = several()
    data["model"]["model_dict"]["ice"] |= table
    with pytest.raises(InputError, match=r"^model\.model_dict\.ice\.use_srtab: "):
        built(data)


def test_one_task_may_be_all_of_a_model_dict() -> None:
    data = several(share_fitting=True)
    for section in (data["model"]["model_dict"], data["loss_dict"], data["training"]["data_dict"]):
        del section["water"]
    data["model"]["shared_dict"]["net"]["dim_case_embd"] = 1
    model = built(data)
    assert model.names == ("ice",)
    np.testing.assert_array_equal(model.tasks[0].fitting.case_embd, [1.0])  # type: ignore[attr-defined]


def test_a_task_is_found_by_its_name() -> None:
    model = built(several())
    assert model.task("ice") is model.tasks[1]
    assert model.with_task("ice", model.tasks[0]).tasks == (model.tasks[0], model.tasks[0])
    with pytest.raises(InputError, match="expected one of the tasks water, ice, got 'steam'"):
        model.task("steam")


def test_capacities_of_shared_descriptors_are_the_largest() -> None:
    data = hybrid()
    for definition in ("own", "tebd"):
        data["model"]["shared_dict"][definition]["sel"] = "auto"
    inp = load_input(data)
    found = with_common_capacities(
        inp.models, inp.shared,
        {"water": [(4, 8), (20,), (8, 16)], "ice": [(24,), (12, 16), (8, 4)]},
    )  # fmt: skip
    sel = {name: [part.sel for part in model.descriptor.parts] for name, model in found.items()}  # type: ignore[attr-defined]
    assert sel == {"water": [(8, 8), 24, (8, 16)], "ice": [24, (12, 16), (8, 8)]}
    assert isinstance(build_tasks(inp, found, 1), MultiTask)
    section = inp.model_section(found)
    assert section["shared_dict"]["own"]["sel"] == [8, 8]
    assert section["model_dict"]["ice"]["descriptor"]["list"][2] == "own:0"
    other = {**found, "ice": found["ice"].with_capacities([(24,), (12, 16), (8, 4)])}
    with pytest.raises(
        InputError, match=r"shared_dict\.own: the tasks water and ice share it, and have different options"
    ):
        build_tasks(inp, other, 1)


def test_places_of_models_of_models() -> None:
    data = several()
    part = {"descriptor": "own", "fitting_net": {"neuron": [6]}}
    plain = {"descriptor": DESCRIPTORS["se_e2_r"], "fitting_net": {"neuron": [6]}}
    data["model"]["model_dict"]["ice"] = {"type": "linear_ener", "type_map": "types", "models": [plain, part]}
    model = built(data)
    place = ("models", 1, "descriptor")
    assert part_at(model.tasks[1], place) is part_at(model.tasks[0], ("descriptor",))
    other = part_at(model.tasks[1], ("models", 0, "fitting_net"))
    assert (
        part_at(with_part(model.tasks[1], ("models", 1, "fitting_net"), other), ("models", 1, "fitting_net")) is other
    )
    with pytest.raises(InputError, match="level 3"):
        linked(other, other, 3)


# --- states with shared parts ------------------------------------------------------------------------------


class Leaf(Op):
    w: Array = param()


class Pair(Op):
    one: Leaf = child()
    two: Leaf = child()
    own: Array = param()


def pair() -> Pair:
    leaf = Leaf(w=np.zeros(2))
    return Pair(one=leaf, two=leaf, own=np.zeros(1))


def test_with_state_keeps_sharing() -> None:
    op = pair()
    assert set(op.state()) == {"one.w", "two.w", "own"}
    new = op.with_state({"one.w": np.ones(2), "two.w": np.ones(2), "own": np.full(1, 3.0)})
    assert new.one is new.two
    assert new.one is not op.one
    np.testing.assert_array_equal(new.one.w, 1.0)
    np.testing.assert_array_equal(op.one.w, 0.0)


@pytest.mark.parametrize("path", ["one.w", "two.w"])
def test_one_path_of_a_shared_part_is_enough(path: str) -> None:
    new = pair().with_state({path: np.ones(2), "own": np.zeros(1)})
    assert new.one is new.two
    np.testing.assert_array_equal(new.two.w, 1.0)


def test_two_arrays_for_one_part_are_an_error() -> None:
    state = {"one.w": np.ones(2), "two.w": np.array([1.0, 2.0]), "own": np.zeros(1)}
    with pytest.raises(ValueError, match=r"one\.w and two\.w are one array here, and the state has two different ones"):
        pair().with_state(state)
    nan = np.array([np.nan, 1.0])
    assert pair().with_state({**state, "one.w": nan, "two.w": nan.copy()}).one.w is nan
    with pytest.raises(ValueError, match=r"missing \['one\.w'\], unknown \['x'\]"):
        pair().with_state({"own": np.zeros(1), "x": np.zeros(1)})
    with pytest.raises(ValueError, match=r"two\.w: expected shape \(2,\), got \(3,\)"):
        pair().with_state({"two.w": np.zeros(3), "own": np.zeros(1)})


def test_walks_of_several_tasks_keep_sharing() -> None:
    model = built(several("dpa1", share_fitting=True))
    for copied in (model.map_arrays(np.copy), model.with_state(model.state()), model.map_ops(lambda _, new: new)):
        assert together(copied) == together(model) != set()
    moved = model.with_state({path: value + 1 for path, value in model.state().items()})
    assert together(moved) == together(model)
