"""DeePMD-kit's PyTorch checkpoints: their numbers, their heads, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import dpmodel
from dpmodel.backends.pt.checkpoint import read_checkpoint
from dpmodel.cli import main
from dpmodel.data import Dataset
from dpmodel.errors import InputError, ModelFileError
from dpmodel.files.codecs import read_model_tree, write_model_tree
from dpmodel.files.container import read_tree
from dpmodel.files.torch_state import _canonical, _leaves, tree_of_state
from dpmodel.training.run import train

DATA = Path(__file__).parents[1] / "data"
FOLDER = DATA / "checkpoints"
HEADS = [("sea", None), ("dpa1", None), ("dpa3", None), ("multi", "water_a"), ("multi", "water_b")]


def assert_golden(potential, name, head):
    data = np.load(FOLDER / f"{name}.npz")
    out = potential.evaluate(data["in/coord"], data["in/atype"], data["in/box"])
    for key in ("energy", "force", "virial"):
        expected = data[f"out/{head}/{key}" if head else f"out/{key}"]
        assert np.abs(out[key] - expected).max() <= 1e-10 * max(1.0, np.abs(expected).max()), key


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_numbers(name, head):
    assert_golden(dpmodel.load(FOLDER / f"{name}.pt", "pt", head=head), name, head)


@pytest.mark.parametrize("suffix", [".dp", ".yaml", ".json"])
def test_convert(tmp_path, capsys, suffix):
    for name, head in (("sea", None), ("multi", "water_b")):
        target = tmp_path / f"{name}{suffix}"
        main(["convert", str(FOLDER / f"{name}.pt"), str(target), *(["--head", head] if head else [])])
        assert_golden(dpmodel.load(target, "pt"), name, head)
    assert "sea.pt ->" in capsys.readouterr().out
    tree = read_tree(tmp_path / f"sea{suffix}")
    assert tree["model_def_script"]["info"] == {"observed_type": ["H", "O"]}


def test_heads():
    with pytest.raises(InputError, match=r"multi\.pt.*heads with head \(water_a, water_b\)"):
        dpmodel.load(FOLDER / "multi.pt")
    with pytest.raises(InputError, match=r"head='nobody'.*has the heads water_a, water_b"):
        dpmodel.load(FOLDER / "multi.pt", head="nobody")
    with pytest.raises(InputError, match="single model, which has no heads"):
        dpmodel.load(FOLDER / "sea.pt", head="water_a")
    params, state = read_checkpoint(FOLDER / "multi.pt")
    params = copy.deepcopy(dict(params))
    params["model_dict"]["water_b"]["model_branch_alias"] = ["wet"]
    one, other = (tree_of_state(params, state, head, "x") for head in ("water_b", "wet"))
    np.testing.assert_array_equal(one["model"]["@variables"]["out_bias"], other["model"]["@variables"]["out_bias"])


def test_training_begins_with_a_checkpoint(workshop, one_thread):
    _, state = read_checkpoint(FOLDER / "sea.pt")
    params, _ = read_checkpoint(FOLDER / "sea.pt")
    config = workshop.input(workshop.system(names=("O", "H")), training__numb_steps=1)
    config["model"] = {key: params[key] for key in ("type_map", "descriptor", "fitting_net")}
    config["learning_rate"] |= {"start_lr": 1e-12, "stop_lr": 1e-13}
    last = train(config, init_model=FOLDER / "sea.pt", backend="pt", skip_neighbor_stat=True)
    found = dpmodel.load(last, "pt").model.state()
    expected = state["model.Default.atomic_model.fitting_net.filter_layers.networks.1.layers.0.matrix"]
    np.testing.assert_allclose(found["fitting.networks.1.layers.0.w"], expected, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(found["out_bias"], state["model.Default.atomic_model.out_bias"][0])


def test_training_takes_weights_for_other_types(workshop, one_thread, caplog):
    """Types in another order are the same model, also where empty slots count as a type (set_davg_zero false)."""
    data = workshop.system(names=("O", "H"))
    descriptor = {"type": "dpa1", "rcut": 3.0, "rcut_smth": 0.5, "sel": 20, "neuron": [2, 4], "axis_neuron": 2, "attn": 4,
                  "attn_layer": 1, "tebd_dim": 4, "set_davg_zero": False, "precision": "float64"}  # fmt: skip
    config = workshop.input(data, training__numb_steps=2, model__type_map=["O", "H"], model__descriptor=descriptor)
    first = dpmodel.load(train(config, backend="pt", skip_neighbor_stat=True), "pt")
    assert np.any(first.model.descriptor.davg)
    config["model"]["type_map"] = ["H", "O"]
    for _ in range(2):  # the second time from a file that has another type of empty slots
        origin = Path("former.dp")
        dpmodel.save(first, origin)
        last = train(config, init_model=origin, backend="pt", skip_neighbor_stat=True, stop_at=0)
        found = dpmodel.load(last, "pt")
        assert found.type_map == ("H", "O")
        assert found.model.descriptor.empty_type == 1
        batch = Dataset.from_config(data, type_map=["O", "H"]).systems[0].batch(np.arange(3))
        symbols = np.array(["O", "H"])[batch.atype[0]]
        a, b = (pot.evaluate(batch.coord, list(symbols), batch.cell) for pot in (first, found))
        for key in ("energy", "force", "virial"):
            np.testing.assert_allclose(b[key], a[key], rtol=0, atol=1e-12)
        first = found
    assert "become ['H', 'O']" in caplog.text


# --- the names of every kind of model --------------------------------------------------------------------

GOLDEN = sorted(path.stem for path in (DATA / "golden").glob("*.dp"))
TABLES = {"zbl_dpa1", "zbl_dpa3", "linear_sea_pairtab"}
"""Their sections name a file of the machine that made them."""


def section(model, given):
    """The section of a model with all options, as checkpoints have it: those of model files have other defaults."""
    if hasattr(model, "parts"):
        return {**given, "models": [section(*pair) for pair in zip(model.parts, given["models"], strict=True)]}
    part = getattr(model, "backbone", model)
    own = {"descriptor": part.descriptor.config.to_dict(), "fitting_net": part.fitting.config.to_dict()}
    if part is not model:
        del own["descriptor"]["exclude_types"]
        own["descriptor"] |= given["descriptor"]  # without what virtual atoms add
    return {**given, **own}


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in TABLES])
def test_every_array_has_one_name(name):
    """A state made from a model file, by the rules of names, comes back as that file's arrays, each in its place."""
    file = read_tree(DATA / "golden" / f"{name}.dp")
    model = read_model_tree(file["model"])
    tree = write_model_tree(model)
    rng = np.random.default_rng(0)
    expected, state = {}, {}
    for holder, key, path in _leaves(tree):
        value = rng.normal(size=np.shape(holder[key]))
        if key in ("davg", "dstd"):
            value[:] = np.abs(value[:, :1]) + 1.0
        state["model.Default.atomic_model." + ".".join(_canonical(path))] = value
        expected[path] = value
    if name.startswith("polar"):  # states have neither: the scales are in the section
        (path,) = [path for path in expected if path[-1] == "scale"]
        state = {key: value for key, value in state.items() if key.split(".")[-1] not in ("scale", "constant_matrix")}
        expected[path][:] = model.fitting.scale
        expected[(*path[:-1], "constant_matrix")][:] = 0.0
    found = tree_of_state(section(model, file["model_def_script"]), state, None, "x")["model"]
    arrays = {path: holder[key] for holder, key, path in _leaves(found)}
    assert arrays.keys() == expected.keys()
    for path, value in arrays.items():
        np.testing.assert_array_equal(value, expected[path])


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_of_the_section(name):
    """A state has the coefficients with four axes, and not the rows: these are in the file that the section names."""
    file = read_tree(DATA / "golden" / f"{name}.dp")
    model = read_model_tree(file["model"])
    table = str(DATA / "golden" / "zbl.txt")
    given = dict(file["model_def_script"])
    if "models" in given:
        parts = zip(model.parts, given["models"], strict=True)
        given["models"] = [
            {**part, "tab_file": table} if "tab_file" in part else section(own, part) for own, part in parts
        ]
    else:
        given = {**section(model.parts[0], given), "use_srtab": table}
    state = {}
    for holder, key, path in _leaves(write_model_tree(model)):
        if key == "vdata":
            continue
        shape = (model.ntypes, model.ntypes, -1, 4) if key == "tab_data" else np.shape(holder[key])
        state["model.Default.atomic_model." + ".".join(_canonical(path))] = np.reshape(holder[key], shape)
    found = read_model_tree(tree_of_state(given, state, None, "x")["model"])
    for key, value in model.state().items():
        np.testing.assert_allclose(
            found.state()[key], value, rtol=0, atol=1e-15 if key.endswith("rows") else 0, err_msg=key
        )


# --- bad files -------------------------------------------------------------------------------------------


@pytest.fixture
def content():
    return torch.load(FOLDER / "sea.pt", weights_only=True)


def refused(tmp_path, content, message, error=ModelFileError):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(error, match=message):
        dpmodel.load(tmp_path / "a.pt")


NAME = "model.Default.atomic_model.fitting_net.filter_layers.networks.0.layers.0.matrix"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop(NAME), r"needs the array 'fitting_net\.filter_layers\.networks\.0\.layers\.0\.matrix'"),
        (lambda m: m.update({NAME: torch.zeros(3, 16)}), r"has shape \(3, 16\), the model section implies \(32, 16\)"),
        (lambda m: m.update({NAME + "_2": torch.zeros(3)}), "does not explain: .*matrix_2"),
        (lambda m: m.update({NAME: torch.full((32, 16), torch.nan)}), "NaN"),
        (
            lambda m: m.update({"model.Default.atomic_model.descriptor.sea.compress_data.0": torch.ones(3)}),
            "compressed",
        ),
        (lambda m: [m.pop(key) for key in list(m) if key.startswith("model.")], "no arrays of 'model.Default'"),
        (lambda m: m.pop("_extra_state"), "expected a checkpoint of DeePMD-kit"),
        (lambda m: m["_extra_state"].pop("model_params"), "expected a checkpoint of DeePMD-kit"),
        (lambda m: m["_extra_state"]["model_params"].update(bridging_method="zbl"), "DPA4"),
        (lambda m: m["_extra_state"]["model_params"]["descriptor"].update(type="dpa4"), "descriptor.*out of scope"),
        (lambda m: m["_extra_state"]["model_params"]["descriptor"].update(neuron=[4, 9]), "the model section implies"),
        (lambda m: m["_extra_state"]["model_params"].update(model_dict={"a": 3}), "a section for every head"),
        (lambda m: m["_extra_state"]["model_params"].pop("type_map"), "type_map"),
    ],
)
def test_damaged_checkpoints(tmp_path, content, change, message):
    change(content["model"])
    refused(tmp_path, content, message)


def test_what_training_alone_needs_is_left_out(tmp_path, content):
    """DeePMD-kit keeps these in the section of a model that it has fine-tuned, or trained with Hessians."""
    content["model"]["_extra_state"]["model_params"].update(resuming=True, new_type_stat=False, hessian_mode=True)
    torch.save(content, tmp_path / "a.pt")
    found, expected = (dpmodel.load(path).model.state() for path in (tmp_path / "a.pt", FOLDER / "sea.pt"))
    assert list(found) == list(expected)
    assert all(np.array_equal(found[key], value) for key, value in expected.items())


class Evil:
    """Would make a folder if it were unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


def test_nothing_is_executed(tmp_path, content, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    refused(tmp_path, {**content, "optimizer": Evil()}, "it could run code")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelFileError, match=r"could run code|cannot be read"):
        dpmodel.load(tmp_path / "b.pt")
    assert not (tmp_path / "evil").exists()


def test_foreign_files(tmp_path):
    raw = (FOLDER / "sea.pt").read_bytes()
    for data in (raw[: len(raw) // 2], b"", b"no checkpoint", (DATA / "golden" / "se_e2_a.dp").read_bytes()):
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(ModelFileError, match=r"a\.pt: expected a PyTorch checkpoint"):
            dpmodel.load(tmp_path / "a.pt")
    with pytest.raises(ModelFileError, match="cannot be read"):
        dpmodel.load(tmp_path / "nothing.pt")
    refused(tmp_path, [1, 2], "expected a checkpoint of DeePMD-kit")
    refused(tmp_path, {"state": {"w": torch.zeros(3)}}, "expected a checkpoint of DeePMD-kit")
