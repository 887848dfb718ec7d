"""Runs that begin with a pre-trained model: single and of several tasks, from files of both kinds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpmodel
from dpmodel.data import Dataset
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.model_file import read_heads, read_model, write_model
from dpmodel.metrics import requests_of
from dpmodel.training.checkpoint import Checkpoint
from dpmodel.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
DPA1 = {
    "type": "dpa1", "rcut": 3.0, "rcut_smth": 0.5, "sel": 20, "neuron": [2, 4], "axis_neuron": 2, "tebd_dim": 2, "attn_layer": 0,
    "seed": 1,
}  # fmt: skip


def system(workshop: Any, name: str, **options: Any) -> str:
    """A system that is made once."""
    path = workshop.folder / name
    return str(path) if path.exists() else workshop.system(name, **options)


def single(workshop: Any, **changes: Any) -> dict[str, Any]:
    data = workshop.input(system(workshop, "own", seed=3), training__numb_steps=3, **changes)
    data["model"]["descriptor"] = copy.deepcopy(DPA1)
    return data


def several(workshop: Any, *names: str, **heads: Any) -> dict[str, Any]:
    """An input of tasks that share their descriptor; heads: by task, keys of its model."""
    data = workshop.input("none", training__numb_steps=4)
    model, training = data["model"], data["training"]
    tasks = {
        name: {"type_map": "types", "descriptor": "shared", "fitting_net": model["fitting_net"], **heads.get(name, {})}
        for name in names
    }
    data["model"] = {"shared_dict": {"types": ["A", "B"], "shared": copy.deepcopy(DPA1)}, "model_dict": tasks}
    data["loss_dict"] = {name: {} for name in names}
    training["data_dict"] = {
        name: {"training_data": {"systems": [system(workshop, name, seed=k)], "batch_size": 2}} for k, name in enumerate(names)
    }  # fmt: skip
    training["model_prob"] = dict.fromkeys(names, 1.0)
    del training["training_data"]
    return data


@pytest.fixture
def pretrained(workshop: Any) -> Path:
    """A model of the tasks water and metal."""
    return train(several(workshop, "water", "metal"), output=None).rename("pre.dp")


def first(data: dict[str, Any], **options: Any) -> Checkpoint:
    """What a run begins with."""
    return Checkpoint.load(train(data, stop_at=0, output="used.json", **options))


def part(state: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    assert found
    return found


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray], *, but: tuple[str, ...] = ()) -> None:
    assert one.keys() == other.keys()
    for name in one.keys() - set(but):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def residual(path: str | Path, data: str) -> float:
    """What energies are off by, on average."""
    potential = dpmodel.load(path, "pt")
    (own,) = Dataset.from_config(data, type_map=potential.type_map, labels=requests_of(potential)).systems
    batch = own.batch(np.arange(own.nframes))
    off = batch.labels["energy"] - potential.evaluate(batch.coord, batch.atype, batch.cell)["energy"]
    return float(np.abs(np.mean(off)))


def test_from_a_head_to_one_task(workshop: Any, pretrained: Path) -> None:
    data = single(workshop)
    begun = first(data, finetune=pretrained, model_branch="metal")
    metal = read_model(pretrained, "metal").model.state()
    assert_equal(begun.state, metal, but=("out_bias",))
    assert not np.allclose(begun.state["out_bias"], metal["out_bias"])
    own = system(workshop, "own")
    assert residual("model.ckpt.dp", own) < 1e-5 < residual_of(pretrained, "metal", own)
    assert not begun.optimizer["exp_avg"] and begun.step == 0
    # The head may stand in the input, and the run trains and goes on.
    data["model"]["finetune_head"] = "metal"
    assert_equal(first(data, finetune=pretrained).state, begun.state)
    final = Checkpoint.load(train(data, finetune=pretrained))
    assert final.step == 3 and not np.array_equal(final.state["out_bias"], metal["out_bias"])
    train(data, finetune=pretrained, stop_at=2)
    again = Checkpoint.load(train(data, restart="model.ckpt"))
    assert_equal(again.state, final.state)


def residual_of(path: Path, head: str, data: str) -> float:
    write_model("head.dp", read_model(path, head))
    return residual("head.dp", data)


def test_without_a_head_the_fitting_net_is_fresh(workshop: Any, pretrained: Path) -> None:
    data = single(workshop)
    begun, fresh = first(data, finetune=pretrained), first(data)
    water = read_model(pretrained, "water").model.state()
    assert_equal(part(begun.state, "descriptor."), part(water, "descriptor."))
    assert_equal(part(begun.state, "fitting."), part(fresh.state, "fitting."))
    np.testing.assert_array_equal(begun.state["out_bias"], fresh.state["out_bias"])
    assert_equal(first(data, finetune=pretrained, model_branch="RANDOM").state, begun.state)


def test_from_several_tasks_to_several(workshop: Any, pretrained: Path) -> None:
    data = several(workshop, "metal", "new", "other", other={"finetune_head": "water"})
    begun = first(data, finetune=pretrained)
    found, old = read_heads("model.ckpt.dp"), read_heads(pretrained)
    assert_equal(found["metal"].model.state(), old["metal"].model.state())  # as it was, the bias too
    assert_equal(found["other"].model.state(), old["water"].model.state(), but=("out_bias",))
    assert_equal(part(found["new"].model.state(), "descriptor."), part(old["water"].model.state(), "descriptor."))
    assert not np.array_equal(found["other"].model.out_bias, old["water"].model.out_bias)
    assert begun.step == 0
    train(data, finetune=pretrained)
    after = read_heads("model.ckpt.dp")
    one, other = (part(after[name].model.state(), "descriptor.") for name in ("metal", "new"))
    assert_equal(one, other)  # still shared


def test_from_one_task(workshop: Any) -> None:
    old = train(single(workshop)).rename("old.dp")
    begun = first(single(workshop), finetune="old")  # the suffix may be left out
    assert_equal(begun.state, Checkpoint.load(old).state, but=("out_bias",))
    first(several(workshop, "a", "b", a={"finetune_head": "Default"}), finetune=old)
    found = read_heads("model.ckpt.dp")
    assert_equal(found["a"].model.state(), Checkpoint.load(old).state, but=("out_bias",))


def test_types_of_the_new_data(workshop: Any) -> None:
    old = train(single(workshop)).rename("old.dp")
    data = single(workshop)
    data["model"]["type_map"] = ["B", "C", "A"]
    data["training"]["training_data"]["systems"] = [workshop.system("c", names=("C", "A"), seed=8)]
    begun = first(data, finetune=old)
    before = Checkpoint.load(old).state["descriptor.dstd"]
    np.testing.assert_array_equal(begun.state["descriptor.dstd"][[2, 0]], before)
    assert not np.any(begun.state["descriptor.dstd"][1] == 1.0)  # from the data
    assert residual("model.ckpt.dp", data["training"]["training_data"]["systems"][0]) < 1e-5
    assert Checkpoint.load(train(data, finetune=old)).step == 3


def test_the_script_of_the_pretrained_model(workshop: Any, pretrained: Path) -> None:
    data = single(workshop)
    data["model"]["descriptor"] |= {"neuron": [3, 3], "sel": 5}
    data["model"]["fitting_net"] = {"neuron": [7]}
    with pytest.raises(ModelFileError, match="has other cutoffs or sel"):
        first(data, finetune=pretrained, model_branch="metal")
    begun = first(data, finetune=pretrained, model_branch="metal", use_pretrain_script=True)
    assert_equal(begun.state, read_model(pretrained, "metal").model.state(), but=("out_bias",))
    used = json.loads(Path("used.json").read_text())["model"]
    assert used["descriptor"]["neuron"] == [2, 4] and used["fitting_net"]["neuron"] == [4, 4]
    # What was used is an input of its own.
    train("used.json", finetune=pretrained, model_branch="metal", output=None, stop_at=1)
    assert Checkpoint.load(train("used.json", restart="model.ckpt", output=None)).step == 3


def test_a_head_with_case_embedding_is_tuned_to_one_task(workshop: Any) -> None:
    data = several(workshop, "water", "metal")
    for model in data["model"]["model_dict"].values():
        model["fitting_net"] = {**model["fitting_net"], "dim_case_embd": 2}
    old = train(data, output=None).rename("cases.dp")
    given = single(workshop)
    options = {"finetune": old, "model_branch": "water", "use_pretrain_script": True}
    final = Checkpoint.load(train(given, output="used.json", **options))
    np.testing.assert_array_equal(final.state["fitting.case_embd"], [0.0, 1.0])  # the row of water
    train(given, output="used.json", stop_at=2, **options)
    again = Checkpoint.load(train("used.json", restart="model.ckpt", output=None))
    assert again.step == 3
    assert_equal(again.state, final.state)
    # Without weights the row is zeros.
    assert not first(json.loads(Path("used.json").read_text())).state["fitting.case_embd"].any()


def test_sections_of_the_pretrained_model_are_checked(workshop: Any) -> None:
    """As those of an input are, before anything is built."""
    data = several(workshop, "water", "metal")
    for model in data["model"]["model_dict"].values():
        model["fitting_net"] = {**model["fitting_net"], "dim_case_embd": 2}
    old = train(data, output=None, stop_at=0).rename("cases.dp")
    new = several(workshop, "water", "metal", "ice", ice={"finetune_head": "RANDOM"})
    with pytest.raises(InputError, match=r"water\.fitting_net\.dim_case_embd: expected 0 in all tasks, or 3"):
        train(new, finetune=old, use_pretrain_script=True, output=None)


def test_force_load(workshop: Any, pretrained: Path) -> None:
    data = single(workshop)
    data["model"]["fitting_net"]["numb_fparam"] = 0
    data["model"]["descriptor"]["resnet_dt"] = True
    data["model"]["descriptor"]["neuron"] = [2, 4]
    with pytest.raises(ModelFileError, match=r"missing \[.*idt"):
        first(data, finetune=pretrained, model_branch="metal")
    begun = first(data, finetune=pretrained, model_branch="metal", force_load=True)
    metal = read_model(pretrained, "metal").model.state()
    assert begun.state.keys() > metal.keys()
    assert_equal({name: begun.state[name] for name in metal}, metal, but=("out_bias",))


def test_bad_starts(workshop: Any, pretrained: Path) -> None:
    data = single(workshop)
    for options, message in (
        ({"finetune": pretrained, "init_model": pretrained}, "--init-model and --finetune exclude each other"),
        ({"model_branch": "metal"}, "--model-branch: belongs to --finetune"),
        ({"finetune": pretrained, "model_branch": "steel"}, "no head 'steel'"),
    ):
        with pytest.raises(InputError, match=message):
            train(data, **options)
    with pytest.raises(InputError, match=r"--model-branch: the input has several tasks"):
        train(several(workshop, "a", "b"), finetune=pretrained, model_branch="metal")
    with pytest.raises(ModelFileError, match=r"--finetune none\.dp: there is no such file"):
        train(data, finetune="none.dp")
    assert not Path("out.json").exists()


def test_averages_begin_with_the_tuned_weights(workshop: Any, pretrained: Path) -> None:
    data = single(workshop, training__enable_ema=True)
    begun = first(data, finetune=pretrained, model_branch="metal")
    assert_equal(begun.ema["state"], {name: begun.state[name] for name in begun.ema["state"]})
    assert_equal(Checkpoint.load("model_ema.ckpt.dp").state, begun.state)


def test_from_checkpoints_of_deepmd_kit(workshop: Any) -> None:
    for name, head in (("multi.pt", "water_b"), ("dpa1.pt", None)):
        source = CHECKPOINTS / name
        old = read_model(source, head).model
        data = workshop.input(system(workshop, "own"), training__numb_steps=1)
        data["model"]["type_map"] = list(old.type_map)
        data["training"]["training_data"]["systems"] = [system(workshop, "real", names=tuple(old.type_map[:2]))]
        begun = first(data, finetune=source, model_branch=head, use_pretrain_script=True)
        assert_equal(begun.state, {n: np.asarray(v) for n, v in old.state().items()}, but=("out_bias",))
        assert Checkpoint.load(train(data, finetune=source, model_branch=head, use_pretrain_script=True)).step == 1
