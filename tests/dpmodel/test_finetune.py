"""Fine-tuning: what a run takes of a pre-trained model, by task; types, statistics, shared parts, what is missing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpmodel.data.dataset import Dataset
from dpmodel.data.write import write_system
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.model_file import ModelFile, TasksFile, write_model
from dpmodel.input import load_model
from dpmodel.losses import EnerLossConfig, build_loss
from dpmodel.models import builder_of
from dpmodel.models.build import build_model
from dpmodel.models.multi_task import MultiTask
from dpmodel.potential import Potential
from dpmodel.statistics.change import with_bias
from dpmodel.statistics.fit import fit_statistics
from dpmodel.training.bias import change_bias, change_biases
from dpmodel.training.finetune import Origin, Plan, fine_tune, plan_tasks
from dpmodel.training.pretrained import open_origin, with_pretrained_section
from dpmodel.training.tasks import labels_of

DPA1 = {
    "type": "dpa1", "rcut": 4.0, "rcut_smth": 0.5, "sel": 20, "neuron": [2, 4], "axis_neuron": 2, "tebd_dim": 2, "attn_layer": 0,
    "precision": "float64",
}  # fmt: skip
SEA = {"type": "se_e2_a", "rcut": 4.0, "rcut_smth": 0.5, "sel": [10, 10], "neuron": [2, 4], "axis_neuron": 2}
TYPES = ("O", "H")


def section(descriptor: Any = DPA1, types: tuple[str, ...] = TYPES, fitting: Any = None, **options: Any) -> Any:
    given = {"neuron": [5, 5], "precision": "float64", **(fitting or {})}
    return load_model(
        {"type_map": list(types), "descriptor": copy.deepcopy(descriptor), "fitting_net": given, **options}
    )


def trained(seed: int = 7, *given: Any, **options: Any) -> Any:
    """A model whose numbers are all random, as after a training."""
    rng = np.random.default_rng(seed)
    model = build_model(section(*given, **options), seed=seed)
    return model.with_state(
        {name: rng.uniform(0.5, 1.5, np.shape(v)).astype(v.dtype) for name, v in model.state().items()}
    )


def origin(**heads: Any) -> Origin:
    files = {name: head if isinstance(head, ModelFile) else ModelFile(model=head) for name, head in heads.items()}
    return Origin(where="old.dp", heads=files)


def never(*given: Any) -> Any:
    pytest.fail("not needed here")


def shifted(task: str, model: Any) -> Any:
    """A bias that is larger by 1, in a copy that shares nothing with the model."""
    new = model.map_arrays(np.copy)
    return with_bias(new, np.asarray(new.out_bias) + 1.0)


def state(model: Any, part: str = "") -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in model.state().items() if part in name}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys() and one
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


# --- plans -------------------------------------------------------------------------------------------------

ONE = origin(Default=None)
TWO = origin(water=ModelFile(model=None, definition={"model_branch_alias": ["H2O", "ice"]}), metal=None)


@pytest.mark.parametrize(("old", "head", "branch", "plan"), [
    (ONE, None, None, Plan("inherit", "Default")), (ONE, "RANDOM", None, Plan("random", "Default")),
    (ONE, None, "RANDOM", Plan("random", "Default")), (ONE, "Default", None, Plan("inherit", "Default")),
    (TWO, None, None, Plan("random", "water")), (TWO, "metal", None, Plan("inherit", "metal")),
    (TWO, "metal", "H2O", Plan("inherit", "water")), (TWO, "RANDOM", "ice", Plan("inherit", "water")),
    (TWO, "metal", "RANDOM", Plan("random", "water")),
])  # fmt: skip
def test_plan_of_one_task(old: Origin, head: str | None, branch: str | None, plan: Plan) -> None:
    assert plan_tasks(old, {"": head}, branch) == {"": plan}


def test_plans_of_several_tasks(caplog: pytest.LogCaptureFixture) -> None:
    heads = {"water": None, "ice": None, "new": None, "other": "metal", "fresh": "RANDOM"}
    assert plan_tasks(TWO, heads) == {
        "water": Plan("resume", "water"), "ice": Plan("resume", "water"), "new": Plan("random", "water"),
        "other": Plan("inherit", "metal"), "fresh": Plan("random", "water"),
    }  # fmt: skip
    assert plan_tasks(ONE, {"a": None, "b": "Default"}) == {
        "a": Plan("random", "Default"), "b": Plan("inherit", "Default"),
    }  # fmt: skip


def test_a_model_of_several_tasks_says_that_a_head_was_not_named(caplog: pytest.LogCaptureFixture) -> None:
    plan_tasks(TWO, {"": None})
    assert "has the heads water, metal and none is named" in caplog.text


@pytest.mark.parametrize(("old", "heads", "branch", "message"), [
    (TWO, {"": "steel"}, None, r"model\.finetune_head: there is no head 'steel': old\.dp has the heads water, metal"),
    (ONE, {"": None}, "water", r"--model-branch: there is no head 'water': old\.dp holds a single model"),
    (TWO, {"a": "steel"}, None, r"model\.model_dict\.a\.finetune_head: there is no head 'steel'"),
    (TWO, {"a": None, "b": None}, "water", r"--model-branch: the input has several tasks"),
    (TWO, {"a": None, "RANDOM": None}, None, r"model\.model_dict\.RANDOM: the name stands for"),
])  # fmt: skip
def test_bad_plans(old: Origin, heads: dict[str, str | None], branch: str | None, message: str) -> None:
    """C18, and heads that there are not."""
    with pytest.raises(InputError, match=message):
        plan_tasks(old, heads, branch)


# --- one task ----------------------------------------------------------------------------------------------


def test_everything_is_inherited_but_the_bias_changes() -> None:
    old, new = trained(), build_model(section(), seed=1)
    found = fine_tune(new, origin(Default=old), {"": Plan("inherit", "Default")}, fit=never, change=shifted)
    wanted = state(old)
    wanted["out_bias"] = wanted["out_bias"] + 1.0
    assert_equal(state(found), wanted)


def test_random_takes_the_descriptor_alone() -> None:
    old, new, fitted = trained(), build_model(section(), seed=1), trained(9)
    found = fine_tune(new, origin(Default=old), {"": Plan("random", "Default")}, fit=lambda model: fitted, change=never)
    assert_equal(state(found, "descriptor."), state(old, "descriptor."))
    rest = {name: value for name, value in state(fitted).items() if not name.startswith("descriptor.")}
    assert_equal({name: state(found)[name] for name in rest}, rest)


def test_random_may_have_another_fitting_net() -> None:
    old, new = trained(), build_model(section(fitting={"neuron": [3]}), seed=1)
    found = fine_tune(new, origin(Default=old), {"": Plan("random", "Default")}, fit=lambda m: m, change=never)
    assert_equal(state(found, "descriptor."), state(old, "descriptor."))
    assert_equal(state(found, "fitting."), state(new, "fitting."))


def test_r_m_11_missing_arrays_are_an_error_that_lists_them(caplog: pytest.LogCaptureFixture) -> None:
    old, new = trained(fitting={"resnet_dt": False}), build_model(section(), seed=1)
    plans = {"": Plan("inherit", "Default")}
    with pytest.raises(ModelFileError, match=r"missing \['fitting\.networks\.0\.layers\.1\.idt'\]"):
        fine_tune(new, origin(Default=old), plans, fit=never, change=never)
    found = fine_tune(new, origin(Default=old), plans, fit=never, change=lambda task, model: model, force=True)
    assert "keep their initial values: fitting.networks.0.layers.1.idt" in caplog.text
    wanted = {**state(old), "fitting.networks.0.layers.1.idt": state(new)["fitting.networks.0.layers.1.idt"]}
    assert_equal(state(found), {name: wanted[name] for name in state(found)})
    wide = build_model(section(fitting={"neuron": [6, 6]}), seed=1)
    with pytest.raises(ModelFileError, match="expected shape"):  # what is there must fit
        fine_tune(wide, origin(Default=old), plans, fit=never, change=never, force=True)


def test_other_kinds_do_not_fit() -> None:
    spin = {"use_spin": [True, False], "virtual_scale": [0.3]}
    for kind in ("inherit", "random"):
        with pytest.raises(ModelFileError, match="is a StandardModel, the input describes a SpinModel"):
            fine_tune(
                build_model(section(SEA, spin=spin), seed=1), origin(Default=trained(7, SEA)), {"": Plan(kind, "Default")},
                fit=lambda m: m, change=never,
            )  # fmt: skip
    with pytest.raises(ModelFileError, match=r"old\.dp has other cutoffs or sel"):
        fine_tune(
            build_model(section({**DPA1, "rcut": 5.0}), seed=1), origin(Default=trained()),
            {"": Plan("inherit", "Default")}, fit=never, change=never,
        )  # fmt: skip


def test_spin_takes_the_descriptor_of_its_backbone() -> None:
    spin = {"use_spin": [True, False], "virtual_scale": [0.3]}
    old, new = trained(7, SEA, spin=spin), build_model(section(SEA, spin=spin), seed=1)
    found = fine_tune(new, origin(Default=old), {"": Plan("random", "Default")}, fit=lambda m: m, change=never)
    assert_equal(state(found, "backbone.descriptor."), state(old, "backbone.descriptor."))
    assert_equal(state(found, "fitting."), state(new, "fitting."))
    found = fine_tune(new, origin(Default=old), {"": Plan("inherit", "Default")}, fit=never, change=lambda t, m: m)
    # The displacement of virtual atoms is an option: data are read with that of the input.
    assert_equal(state(found), {**state(old), **state(new, "virtual_scale")})


def test_a_bias_that_all_types_share_stays_that_of_the_old_ones() -> None:
    net = {"type": "property", "property_name": "gap", "distinguish_types": False}
    old = trained(7, DPA1, ("O", "H"), fitting=net)
    new = build_model(section(DPA1, ("C", "O", "H"), fitting=net), seed=1)
    fitted = new.with_state({name: np.full_like(np.asarray(value), 9.0) for name, value in state(new).items()})
    found = fine_tune(
        new, origin(Default=old), {"": Plan("inherit", "Default")}, fit=lambda m: fitted, change=lambda t, m: m
    )
    for name in ("out_bias", "out_std"):
        np.testing.assert_array_equal(getattr(found, name), np.repeat(np.asarray(getattr(old, name))[:1], 3, axis=0))


def test_a_model_with_spin_learns_of_another_type() -> None:
    old = trained(7, DPA1, ("O", "Ni"), spin={"use_spin": ["Ni"], "virtual_scale": [0.0, 0.3]})
    given = section(DPA1, ("Ni", "Co", "O"), spin={"use_spin": ["Ni", "Co"], "virtual_scale": [0.3, 0.2, 0.0]})
    new = build_model(given, seed=1)
    fitted = new.with_state({name: np.full_like(np.asarray(value), 2.0) for name, value in state(new).items()})
    found = fine_tune(
        new, origin(Default=old), {"": Plan("inherit", "Default")}, fit=lambda m: fitted, change=lambda t, m: m
    )
    assert found.spin_scales == (0.3, 0.2, 0.0) and found.use_spin == (True, True, False)
    assert found.backbone.pair_exclude_types == new.backbone.pair_exclude_types
    for name in ("davg", "dstd"):
        rows, before = getattr(found.backbone.descriptor, name), getattr(old.backbone.descriptor, name)
        np.testing.assert_array_equal(rows[[0, 2, 3, 5]], before[[1, 0, 3, 2]])
        assert np.all(rows[[1, 4]] == 2.0)  # Co and its virtual atoms
    bias, before = np.asarray(found.backbone.out_bias), np.asarray(old.backbone.out_bias)
    np.testing.assert_array_equal(bias[[0, 2, 3, 5]], before[[1, 0, 3, 2]])
    assert bias[1] == 2.0 and bias[4] == 0.0


@pytest.mark.parametrize("kind", ["inherit", "random"])
def test_types_are_matched_by_symbol_and_new_ones_take_statistics_from_the_data(kind: str) -> None:
    old = trained(7, DPA1, ("O", "H"))
    new, fitted = build_model(section(DPA1, ("H", "C", "O")), seed=1), trained(9, DPA1, ("H", "C", "O"))
    old = old.replace(descriptor=old.descriptor.replace(davg=np.zeros_like(old.descriptor.davg)))
    found = fine_tune(
        new, origin(Default=old), {"": Plan(kind, "Default")}, fit=lambda m: fitted, change=lambda task, model: model
    )
    assert found.type_map == ("H", "C", "O")
    for name in ("davg", "dstd"):
        rows, before = getattr(found.descriptor, name), getattr(old.descriptor, name)
        np.testing.assert_array_equal(rows[[2, 0]], before)
        np.testing.assert_array_equal(rows[1], getattr(fitted.descriptor, name)[1])
    np.testing.assert_array_equal(found.out_bias[1], fitted.out_bias[1])
    if kind == "inherit":
        np.testing.assert_array_equal(found.out_bias[[2, 0]], old.out_bias)


def test_descriptors_without_new_types_say_so() -> None:
    new = build_model(section({**SEA, "sel": [10, 10, 10]}, ("O", "H", "C")), seed=1)
    with pytest.raises(ModelFileError, match=r"--finetune old\.dp: type_map"):
        fine_tune(new, origin(Default=trained(7, SEA)), {"": Plan("inherit", "Default")}, fit=never, change=never)


# --- several tasks -----------------------------------------------------------------------------------------


def tasks(*names: str, seed: int = 1, types: tuple[str, ...] = TYPES) -> MultiTask:
    """Models that share the descriptor."""
    models = [build_model(section(types=types), seed=seed + k) for k in range(len(names))]
    shared = [model.replace(descriptor=models[0].descriptor) for model in models]
    return MultiTask(names=names, tasks=tuple(shared))


def shares(model: MultiTask) -> bool:
    return all(task.descriptor is model.tasks[0].descriptor for task in model.tasks)


def test_from_several_tasks_to_several() -> None:
    water, metal = trained(7), trained(8)
    metal = metal.replace(descriptor=water.descriptor)
    old, new, fitted = (
        origin(water=water, metal=metal),
        tasks("fresh", "water", "other"),
        tasks("fresh", "water", "other", seed=9),
    )
    plans = plan_tasks(old, {"fresh": None, "water": None, "other": "metal"})
    called = []
    found = fine_tune(
        new,
        old,
        plans,
        fit=lambda model: fitted,
        change=lambda name, model: called.append(name) or shifted(name, model),
    )
    assert shares(found) and found.names == new.names
    assert_equal(state(found.task("water")), state(water))  # bit for bit, the bias too
    assert_equal(state(found.task("fresh"), "descriptor."), state(water, "descriptor."))
    assert_equal(state(found.task("fresh"), "fitting."), state(fitted.task("fresh"), "fitting."))
    wanted = state(metal)
    wanted["out_bias"] = wanted["out_bias"] + 1.0
    assert_equal(state(found.task("other")), wanted)
    assert called == ["other"]
    assert len({id(value) for value in found.state().values()}) < len(found.state())


def test_a_resumed_task_decides_on_what_is_shared(caplog: pytest.LogCaptureFixture) -> None:
    water, metal = trained(7), trained(8)  # with descriptors of their own
    old, new = origin(water=water, metal=metal), tasks("other", "metal")
    plans = plan_tasks(old, {"other": "water", "metal": None})
    found = fine_tune(new, old, plans, fit=never, change=lambda name, model: model)
    assert shares(found)
    assert_equal(state(found.task("metal")), state(metal))
    assert_equal(state(found.task("other"), "fitting."), state(water, "fitting."))
    assert "share descriptor, which differ in the heads that they come from: those of metal are taken" in caplog.text
    with pytest.raises(ModelFileError, match=r"the tasks water and metal share descriptor, .* cannot both go on"):
        fine_tune(
            tasks("water", "metal"), old, plan_tasks(old, {"water": None, "metal": None}), fit=never, change=never
        )


def cases(*names: str, seed: int, rows: tuple[int, ...] | None = None) -> MultiTask:
    """Models of two or more tasks that share a fitting net, with their rows of the case embedding."""
    nets = {"dim_case_embd": len(names)}
    found = [trained(seed, fitting=nets) for _ in names]
    numbers = rows or [sorted(names).index(name) for name in names]
    units = np.eye(len(names))
    return MultiTask(names=names, tasks=tuple(
        model.replace(
            descriptor=found[0].descriptor,
            fitting=model.fitting.replace(networks=found[0].fitting.networks, case_embd=units[k]),
        )
        for model, k in zip(found, numbers, strict=True)
    ))  # fmt: skip


def rows_of(model: MultiTask) -> list[int]:
    assert len({id(task.fitting.networks[0]) for task in model.tasks}) == 1  # type: ignore[attr-defined]
    return [int(np.argmax(task.fitting.case_embd)) for task in model.tasks]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("names", "kinds", "rows"), [
    (("b", "c"), {"b": "resume", "c": "random"}, [1, 0]),  # b was the second, and c would be that now
    (("c", "b"), {"b": "resume", "c": "random"}, [0, 1]),
    (("a", "c"), {"a": "resume", "c": "random"}, [0, 1]),
    (("b", "c"), {"b": "inherit", "c": "random"}, [1, 0]),
    (("c", "d"), {"c": "random", "d": "random"}, [0, 1]),
])  # fmt: skip
def test_tasks_that_share_a_fitting_net_have_rows_of_their_own(
    names: tuple[str, ...], kinds: dict[str, str], rows: list[int]
) -> None:
    old = origin(**cases("a", "b", seed=5).models())
    plans = {name: Plan(kinds[name], name if name in "ab" else "a") for name in names}
    found = fine_tune(cases(*names, seed=1), old, plans, fit=lambda model: model, change=shifted)
    assert rows_of(found) == rows
    for name, plan in plans.items():
        if plan.kind == "resume":
            assert_equal(state(found.task(name)), state(old.heads[name].model))


def test_two_heads_with_one_row_cannot_share_a_fitting_net() -> None:
    old = origin(**cases("a", "b", seed=5).models())
    plans = {"c": Plan("inherit", "b"), "d": Plan("inherit", "b")}
    with pytest.raises(
        ModelFileError, match=r"tasks c and d share a fitting net .* same row \[0\.0, 1\.0\] of the case"
    ):
        fine_tune(cases("c", "d", seed=1), old, plans, fit=never, change=shifted)


def test_from_one_task_to_several_and_back() -> None:
    old = trained(7)
    fitted = tasks("a", "b", seed=9)
    found = fine_tune(
        tasks("a", "b"), origin(Default=old), plan_tasks(ONE, {"a": "Default", "b": None}), fit=lambda m: fitted,
        change=lambda name, model: model,
    )  # fmt: skip
    assert_equal(state(found.task("a")), state(old))
    assert_equal(state(found.task("b"), "fitting."), state(fitted.task("b"), "fitting."))
    heads = Origin(where="many.dp", heads={name: ModelFile(model=model) for name, model in found.models().items()})
    back = fine_tune(
        build_model(section(), seed=3), heads, plan_tasks(heads, {"": None}, "a"), fit=never, change=lambda n, m: m
    )
    assert_equal(state(back), state(old))


def test_new_types_of_a_task_that_goes_on() -> None:
    old = trained(7)
    old = old.replace(descriptor=old.descriptor.replace(davg=np.zeros_like(old.descriptor.davg)))
    heads, fitted = origin(a=old, b=old), tasks("a", "b", seed=9, types=("O", "H", "C"))
    new = tasks("a", "b", types=("O", "H", "C"))
    found = fine_tune(new, heads, plan_tasks(heads, {"a": None, "b": None}), fit=lambda m: fitted, change=never)
    assert shares(found)
    np.testing.assert_array_equal(found.tasks[1].descriptor.dstd[:2], old.descriptor.dstd)
    np.testing.assert_array_equal(found.tasks[1].descriptor.dstd[2], fitted.tasks[0].descriptor.dstd[2])


# --- with data ---------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Callable[[Any], Dataset]:
    """Makes data for a section: energies of -3 for O and +5 for H, of both and of C."""
    rng = np.random.default_rng(0)
    for k, symbols in enumerate((("O", "H", "H", "C"), ("O", "O", "H"), ("C", "C", "H", "O", "H"))):
        n = len(symbols)
        energy = sum({"O": -3.0, "H": 5.0, "C": 1.0}[symbol] for symbol in symbols)
        grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)[:n] * 2.0
        write_system(
            tmp_path / f"s{k}", grid + rng.uniform(0, 0.3, (4, n, 3)), np.array([["O", "H", "C"].index(s) for s in symbols]),
            np.tile(8 * np.eye(3), (4, 1, 1)), type_map=["O", "H", "C"],
            labels={"energy": np.full((4, 1), energy), "force": np.zeros((4, n, 3))},
        )  # fmt: skip

    def make(model: Any) -> Dataset:
        labels = labels_of(model, build_loss(EnerLossConfig(), 1e-3, model.output()))
        return Dataset.from_config(str(tmp_path), batch_size=2, type_map=model.type_map, labels=labels)

    return make


def test_biases_fit_the_data(data: Callable[[Any], Dataset]) -> None:
    given = section(types=("H", "C", "O"))
    dataset = data(given)
    old = trained(7, DPA1, ("O", "H"))
    old = old.replace(descriptor=old.descriptor.replace(davg=np.zeros_like(old.descriptor.davg)))
    new = build_model(given, seed=1)

    def fit(model: Any) -> Any:
        return fit_statistics(model, dataset, builder_of(model), nbatch=10, protect=0.01)

    def change(task: str, model: Any) -> Any:
        return change_bias(model, dataset, nbatch=10, backend="numpy")

    kept = fine_tune(new, origin(Default=old), {"": Plan("inherit", "Default")}, fit=fit, change=change)
    # Least squares: what is left is orthogonal to the numbers of atoms of each type.
    batches = [system.batch(np.arange(system.nframes)) for system in dataset.systems]
    potential = Potential.from_model(kept, "numpy")
    off = np.concatenate([b.labels["energy"] - potential.evaluate(b.coord, b.atype, b.cell)["energy"] for b in batches])
    counts = np.concatenate([[[np.sum(row == t) for t in range(3)] for row in b.atype] for b in batches])
    np.testing.assert_allclose(counts.T @ off, 0.0, atol=1e-8)
    fresh = fine_tune(new, origin(Default=old), {"": Plan("random", "Default")}, fit=fit, change=never)
    np.testing.assert_allclose(fresh.out_bias[:, 0], [5.0, 1.0, -3.0], atol=1e-9)


def test_biases_after_a_run(data: Callable[[Any], Dataset]) -> None:
    model = tasks("a", "b", types=("O", "H", "C"))
    dataset = data(section(types=("O", "H", "C")))
    found = change_biases(model, {"a": dataset, "b": dataset}, nbatch={"a": 10, "b": 10}, backend="numpy")
    assert shares(found) and found.tasks[0].descriptor is model.tasks[0].descriptor
    for name in "ab":
        alone = change_biases(model.task(name), {"": dataset}, nbatch={"": 10}, backend="numpy")
        assert np.abs(np.asarray(alone.out_bias)).max() > 0.1
        np.testing.assert_array_equal(found.task(name).out_bias, alone.out_bias)


# --- files -------------------------------------------------------------------------------------------------


def test_files_of_one_task_and_of_several(tmp_path: Path) -> None:
    write_model(tmp_path / "one.dp", ModelFile(model=trained(7)))
    one = open_origin(tmp_path / "one")
    assert not one.several and list(one.heads) == ["Default"]
    assert_equal(state(one.heads["Default"].model), state(trained(7)))
    definition = {
        "model_dict": {"a": {**section().to_dict(), "model_branch_alias": ["water"]}, "b": section().to_dict()}
    }
    write_model(tmp_path / "two.dp", TasksFile(model=tasks("a", "b"), definition=definition))
    two = open_origin(tmp_path / "two.dp")
    assert two.several and plan_tasks(two, {"": "water"}) == {"": Plan("inherit", "a")}
    assert_equal(state(two.heads["b"].model), state(tasks("a", "b").task("b")))
    with pytest.raises(ModelFileError, match=r"--finetune .*none\.dp: there is no such file"):
        open_origin(tmp_path / "none.dp")


def test_sections_of_the_pretrained_model() -> None:
    old = build_model(section({**DPA1, "neuron": [3, 6], "trainable": True}, fitting={"neuron": [4, 4, 4]}), seed=1)
    given = section({**DPA1, "trainable": False, "seed": 5}, ("H", "O"), {"numb_fparam": 2})
    files = origin(Default=old)
    found = with_pretrained_section(given, files, Plan("inherit", "Default"))
    assert found.descriptor.neuron == (3, 6) and found.fitting_net.neuron == (4, 4, 4)
    assert found.fitting_net.numb_fparam == 0 and found.type_map == ("H", "O")
    assert found.descriptor.trainable is False and found.descriptor.seed == 5
    half = with_pretrained_section(given, files, Plan("random", "Default"))
    assert half.descriptor.neuron == (3, 6) and half.fitting_net == given.fitting_net


def test_sections_of_models_with_spin_are_in_their_files() -> None:
    spin = {"use_spin": [True, False], "virtual_scale": [0.3]}
    old = section({**SEA, "neuron": [3, 6]}, spin=spin)
    file = ModelFile(model=build_model(old, seed=1), definition=old.to_dict())
    found = with_pretrained_section(section(SEA, spin=spin), origin(Default=file), Plan("inherit", "Default"))
    assert found == old
    other = section(SEA, ("H", "O"), spin=spin)
    with pytest.raises(InputError, match="does not say its sections for other types"):
        with_pretrained_section(other, origin(Default=file), Plan("inherit", "Default"))
