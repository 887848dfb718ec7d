"""Model files of several tasks, and one head of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.cli import main
from dpmodel.data.write import write_system
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.container import read_tree, write_tree
from dpmodel.files.model_file import (
    ModelFile,
    TasksFile,
    from_tree,
    models_from_tree,
    read_heads,
    read_model,
    read_models,
    to_tree,
    write_model,
)
from dpmodel.input import load_input
from dpmodel.models.multi_task import MultiTask, build_tasks
from dpmodel.training.checkpoint import Checkpoint

from .several import several

COORD = np.random.default_rng(5).uniform(0.0, 6.0, (1, 6, 3))
TYPES = ["O", "H", "H", "O", "H", "H"]
BOX = np.eye(3) * 7.0


def made() -> TasksFile:
    """Tasks that share descriptor and nets, with numbers of their own."""
    data = several("dpa1", share_fitting=True)
    data["model"]["shared_dict"]["net"]["default_fparam"] = [0.5]
    data["model"]["model_dict"]["ice"]["model_branch_alias"] = ["frozen_water", "cold"]
    inp = load_input(data)
    model = build_tasks(inp, inp.models, 1)
    assert isinstance(model, MultiTask)
    rng = np.random.default_rng(2)
    model = model.replace(tasks=tuple(task.replace(out_bias=rng.normal(size=(2, 1))) for task in model.tasks))
    return TasksFile(
        model=model, definition=inp.normalised["model"], min_nbor_dist={"water": 0.9, "ice": None},
        provenance={"software": "a test"},
    )  # fmt: skip


FILE = made()


@pytest.fixture(params=[".dp", ".yaml", ".json"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"several{request.param}"
    write_model(path, FILE)
    return path


def energies(potential: Any) -> np.ndarray:
    out: np.ndarray = potential.evaluate(COORD, TYPES, BOX, forces=False)["energy"]
    return out


def test_all_heads_come_back(path: Path) -> None:
    found = read_models(path)
    assert isinstance(found, TasksFile)
    assert found.names == ("water", "ice")
    state, expected = found.model.state(), FILE.model.state()
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[key], value) and state[key].dtype == value.dtype for key, value in expected.items())
    assert found.definition == FILE.definition
    assert found.min_nbor_dist == {"water": 0.9, "ice": None}
    assert found.provenance["software"] == "a test"
    write_model(path, found)
    again = read_models(path)
    assert again.model.state().keys() == state.keys()
    assert again.definition == found.definition


def test_the_tree_has_the_layout_of_a_multi_task_model() -> None:
    tree = to_tree(FILE)
    assert list(tree["model"]) == ["model_dict"]
    assert list(tree["model"]["model_dict"]) == ["water", "ice"]
    assert tree["model"]["model_dict"]["ice"]["descriptor"]["type"] == "dpa1"
    assert tree["model_def_script"]["model_dict"]["ice"]["descriptor"] == "own"
    assert tree["model_def_script"]["shared_dict"]["own"]["rcut"] == 4.0


@pytest.mark.parametrize(
    ("head", "task"), [("water", "water"), ("ice", "ice"), ("cold", "ice"), ("frozen_water", "ice")]
)
def test_one_head_is_a_plain_model_with_the_numbers_of_its_task(path: Path, head: str, task: str) -> None:
    potential = dpmodel.load(path, "numpy", head=head)
    expected = dpmodel.Potential.from_model(FILE.model.task(task), "numpy")
    assert np.array_equal(energies(potential), energies(expected))
    other = dpmodel.Potential.from_model(FILE.model.task("ice" if task == "water" else "water"), "numpy")
    assert not np.allclose(energies(potential), energies(other))
    file = potential.file
    assert file.definition["descriptor"]["type"] == "dpa1"
    assert file.definition["fitting_net"]["neuron"] == [6]
    assert file.min_nbor_dist == (0.9 if task == "water" else None)
    assert file.provenance["head"] == task
    single = path.with_name(f"one{path.suffix}")
    dpmodel.save(potential, single)
    assert np.array_equal(energies(dpmodel.load(single, "numpy")), energies(expected))
    with pytest.raises(InputError, match="holds a single model, which has no heads"):
        dpmodel.load(single, "numpy", head=task)


def test_without_a_head_the_error_lists_them(path: Path) -> None:
    says = r"several\..* holds a multi-task model: choose one of its heads with head \(water, ice\)"
    for use in (read_model, lambda p: dpmodel.load(p, "numpy"), lambda p: dpmodel.freeze(p, p.with_name("m.pt2"))):
        with pytest.raises(InputError, match=says):
            use(path)
    with pytest.raises(InputError, match=r"head='steam': .* has the heads water, ice"):
        read_model(path, "steam")


def test_a_file_of_one_task_needs_no_head(tmp_path: Path) -> None:
    alone = MultiTask(names=("ice",), tasks=(FILE.model.task("ice"),))
    definition = {**FILE.definition, "model_dict": {"ice": FILE.definition["model_dict"]["ice"]}}
    write_model(tmp_path / "m.dp", TasksFile(model=alone, definition=definition))
    assert read_model(tmp_path / "m.dp").definition["type_map"] == ["O", "H"]
    assert list(read_heads(tmp_path / "m.dp")) == ["ice"]
    write_model(tmp_path / "m.dp", read_model(tmp_path / "m.dp"))
    assert list(read_heads(tmp_path / "m.dp")) == [""]


def test_types_of_all_tasks_change_together() -> None:
    found = FILE.with_type_map(["H", "O"])
    assert [model.type_map for model in found.model.tasks] == [("H", "O")] * 2
    for name in FILE.names:
        one, other = (dpmodel.Potential.from_model(file.model.task(name), "numpy") for file in (FILE, found))
        np.testing.assert_allclose(energies(one), energies(other), rtol=1e-12)
    assert found.definition["model_dict"]["ice"]["type_map"] == ["H", "O"]
    assert FILE.with_type_map(["O", "H"]) is FILE


def test_a_name_goes_before_an_alias() -> None:
    definition = json.loads(json.dumps(FILE.definition))
    definition["model_dict"]["water"]["model_branch_alias"] = ["ice"]
    file = dataclasses.replace(FILE, definition=definition)
    assert file.head("ice").provenance["head"] == "ice"
    assert dataclasses.replace(FILE, definition={}).head("ice").definition == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["model"].update(model_dict={}), "expected a model for every task in model/model_dict"),
        (lambda t: t["model"].update(model_dict=[1]), "expected a model for every task in model/model_dict, got list"),
        (lambda t: t["model"]["model_dict"].update(ice=3), "expected a model for every task"),
        (lambda t: t.update(model_def_script=3), "'model_def_script' should be a dictionary with model_dict"),
        (lambda t: t["model_def_script"]["model_dict"].pop("ice"), "lacks the sections of the tasks ice"),
        (lambda t: t.update(min_nbor_dist=0.5), "'min_nbor_dist' should have a number for every task, got 0.5"),
        (lambda t: t["model"]["model_dict"]["ice"].pop("descriptor"), "x.dp, task ice: "),
        (lambda t: t["min_nbor_dist"].update(water="far"), "'min_nbor_dist' should be one number, got 'far'"),
    ],
)
def test_damaged_files(change: Any, says: str) -> None:
    tree = to_tree(FILE)
    tree = {**tree, "model": {"model_dict": dict(tree["model"]["model_dict"])}, "min_nbor_dist": {"water": 0.9},
            "model_def_script": json.loads(json.dumps(tree["model_def_script"]))}  # fmt: skip
    tree["model"]["model_dict"]["ice"] = dict(tree["model"]["model_dict"]["ice"])
    change(tree)
    with pytest.raises(ModelFileError, match=says.replace("(", r"\(")):
        models_from_tree(tree, "x.dp")


def test_damage_of_another_task_does_not_matter() -> None:
    tree = to_tree(FILE)
    tree["model"]["model_dict"]["ice"] = {"type": "nonsense"}
    assert isinstance(from_tree(tree, "x.dp", "water"), ModelFile)


def test_a_checkpoint_is_a_model_file_of_several_tasks(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt-3.dp"
    Checkpoint(step=3, model=to_tree(FILE), state=FILE.model.state()).save(path)
    assert list(read_heads(path)) == ["water", "ice"]
    assert np.array_equal(
        energies(dpmodel.load(path, "numpy", head="ice")),
        energies(dpmodel.Potential.from_model(FILE.model.task("ice"), "numpy")),
    )
    found = Checkpoint.load(path)
    restored = FILE.model.with_state(found.state)
    assert restored.tasks[0].descriptor is restored.tasks[1].descriptor  # type: ignore[attr-defined]


# --- commands ---------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model and a system of two frames."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m.dp", FILE)
    labels = {"energy": np.array([[1.0], [2.0]]), "force": np.zeros((2, 18))}
    coord = np.concatenate([COORD, COORD + 0.1])
    write_system(tmp_path / "data", coord, np.array([0, 1, 1, 0, 1, 1]), BOX, type_map=("O", "H"), labels=labels)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    try:
        found = main([*arguments, "-v", "ERROR"])
    except SystemExit as stop:
        found = stop.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert (found or 0) == code, err
    return out + err


@pytest.mark.usefixtures("here")
def test_show_of_several_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    branches = "The branches of the multi-task model are water, ice (also frozen_water, cold)\n"
    assert said(capsys, "show", "m.dp", "model-branch") == branches
    both = said(capsys, "show", "m.dp", "model-branch", "type-map")
    assert both == f"{branches}task water\nThe type_map is ['O', 'H']\ntask ice\nThe type_map is ['O', 'H']\n"
    summary = said(capsys, "show", "m.dp")
    assert summary.count("predicts") == 2
    assert said(capsys, "show", "m.dp", "type-map", "--head", "cold") == "The type_map is ['O', 'H']\n"
    assert "has the heads water, ice" in said(capsys, "show", "m.dp", "--head", "x", code=1)


@pytest.mark.parametrize(
    "command",
    [["test", "-m", "m.dp", "-s", "data"], ["embed", "-m", "m.dp", "-s", "data"], ["change-bias", "m.dp", "-s", "data"],
     ["freeze", "m.dp"], ["model-devi", "-m", "m.dp", "m.dp", "-s", "data"]],
)  # fmt: skip
@pytest.mark.usefixtures("here")
def test_commands_without_a_head_list_them(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    backend = [] if command[0] == "freeze" else ["-b", "numpy"]
    assert "choose one of its heads with head (water, ice)" in said(capsys, *command, *backend, code=1)


def test_test_of_one_head(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "test", "-m", "m.dp", "-s", "data", "--head", "ice", "-b", "numpy", "--json", "ice.json")
    found = json.loads((here / "ice.json").read_text())
    ice = dpmodel.load("m.dp", "numpy", head="ice").evaluate(
        np.concatenate([COORD, COORD + 0.1]), TYPES, BOX, forces=False
    )
    error = np.abs(ice["energy"].ravel() - [1.0, 2.0]).mean()
    assert any(np.isclose(value, error) for value in numbers(found))


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for item in value.values() for x in numbers(item)]
    if isinstance(value, list):
        return [x for item in value for x in numbers(item)]
    return [value] if isinstance(value, float) else []


@pytest.mark.usefixtures("here")
def test_test_takes_the_data_of_the_head_from_an_input(capsys: pytest.CaptureFixture[str]) -> None:
    data = several("dpa1", share_fitting=True)
    data["training"]["data_dict"]["ice"]["training_data"]["systems"] = "data"
    Path("input.json").write_text(json.dumps(data))
    options = ("-b", "numpy", "--head", "ice")
    assert "Energy MAE" in said(capsys, "test", "-m", "m.dp", "--train-data", "input.json", *options)
    assert "no training.validation_data" in said(
        capsys, "test", "-m", "m.dp", "--valid-data", "input.json", *options, code=1
    )


def test_change_bias_of_one_head_keeps_the_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "change-bias", "m.dp", "--head", "cold", "--bias-value", "3", "4", "-b", "numpy", "-o", "new.dp")
    found = read_models(here / "new.dp")
    assert isinstance(found, TasksFile)
    np.testing.assert_array_equal(found.model.task("ice").out_bias, [[3.0], [4.0]])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found.model.task("water").out_bias, FILE.model.task("water").out_bias)  # type: ignore[attr-defined]
    assert found.definition == FILE.definition


def test_convert_of_all_heads_and_of_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "convert", "m.dp", "all.yaml")
    assert list(read_heads(here / "all.yaml")) == ["water", "ice"]
    said(capsys, "convert", "m.dp", "one.json", "--head", "cold")
    assert list(read_heads(here / "one.json")) == [""]
    said(capsys, "convert", "m.dp", "turned.dp", "--type-map", "H", "O")
    assert {file.model.type_map for file in read_heads(here / "turned.dp").values()} == {("H", "O")}


def test_deviation_of_heads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    common = ("model-devi", "-m", "m.dp", "m.dp", "-s", "data", "-b", "pt", "--device", "cpu")
    said(capsys, *common, "--head", "ice")
    same = np.loadtxt(here / "model_devi.out")
    said(capsys, *common, "--head", "ice", "water")
    other = np.loadtxt(here / "model_devi.out")
    assert np.all(same[:, 4] == 0)
    assert np.all(other[:, 4] > 0) or np.all(other[:, 7] > 0)
    assert "expected one name for all 2 models, or one for each, got 3" in said(
        capsys, *common, "--head", "a", "b", "c", code=1
    )


def test_trees_of_single_models_are_as_before(tmp_path: Path) -> None:
    file = FILE.head("ice")
    write_model(tmp_path / "m.dp", file)
    tree = read_tree(tmp_path / "m.dp")
    assert "model_dict" not in tree["model"]
    write_tree(tmp_path / "n.dp", tree)
    assert isinstance(read_models(tmp_path / "n.dp"), ModelFile)
