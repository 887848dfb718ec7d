"""The dictionaries of models: old versions, bad ones, and what DeePMD-kit wrote."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.backend import NUMPY
from dpmodel.config import option
from dpmodel.descriptors.base import Descriptor, DescriptorConfig, Features
from dpmodel.errors import ModelFileError
from dpmodel.files.codecs import base, read_model_tree, write_model_tree
from dpmodel.files.container import read_tree
from dpmodel.files.model_file import ModelFile, from_tree, read_model, to_tree, write_model
from dpmodel.files.nodes import Node
from dpmodel.fittings import EnerFittingConfig
from dpmodel.graph import Graph, NeighbourRequest
from dpmodel.input.sections import ModelConfig
from dpmodel.models import Model, StandardModel
from dpmodel.models.build import build_model
from dpmodel.op import Array, Op, buffer, param
from dpmodel.ops import array_namespace, segment_sum
from dpmodel.potential import Potential

DATA = Path(__file__).parents[1] / "data"
OLD = sorted(file for file in (DATA / "old").iterdir() if file.suffix in (".json", ".yaml"))
GOLDEN = sorted((DATA / "golden").glob("*.dp"))
Path_ = tuple[str | int, ...]

RICH: dict[str, Any] = {
    "type_map": ["O", "H"],
    "atom_exclude_types": [1],
    "pair_exclude_types": [[1, 1]],
    "descriptor": {
        "type": "se_e2_a", "rcut": 3.5, "rcut_smth": 0.75, "sel": [5, 6], "neuron": [3, 6], "axis_neuron": 2,
        "resnet_dt": True, "type_one_side": True, "exclude_types": [[0, 0]], "env_protection": 0.1,
        "activation_function": "silu", "trainable": False, "precision": "float64",
    },
    "fitting_net": {
        "type": "ener", "neuron": [4, 4], "numb_fparam": 2, "default_fparam": [0.5, -0.25], "numb_aparam": 1,
        "dim_case_embd": 2, "activation_function": "gelu", "trainable": [True, False, True], "atom_ener": [-1.5, None],
    },
}  # fmt: skip
"""No option has its default."""


def make_model(section: dict[str, Any] = RICH) -> Model:
    """With statistics that change numbers."""
    rng = np.random.default_rng(4)
    model = build_model(ModelConfig.from_dict(section), seed=1)
    neutral = {path for path, value in model.state().items() if len(np.unique(value)) == 1}
    return model.with_state({path: rng.uniform(0.2, 0.6, model.state()[path].shape) for path in neutral}, strict=False)


def numbers(model: Model) -> np.ndarray:
    """Per-atom energies of a small molecule, fparam and aparam given; NaN would not equal itself."""
    coord = np.array([[0.0, 0.1, 0.0], [1.0, 0.2, 0.0], [-0.3, 1.1, 0.3], [1.5, 1.4, 0.2], [2.2, -0.6, 0.8]])
    given = {"fparam": np.array([0.3, -0.7])[: model.dim_fparam], "aparam": np.full((5, model.dim_aparam), 0.4)}
    potential = Potential(ModelFile(model=model), NUMPY, NUMPY.evaluator(model))
    given = {name: value for name, value in given.items() if value.size}
    return potential.evaluate(coord, [0, 1, 1, 0, 0], **given, atomic=True)["atom_energy"]


def tree_of(model: Model) -> dict[str, Any]:
    """As a file would give it: plain data, arrays below @variables."""
    return to_tree(ModelFile(model=model, min_nbor_dist=0.9, provenance={"software": "other", "backend": "any"}))


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every place in a tree, dictionaries and lists included."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))


def plain(tree: Any) -> dict[Path_, Any]:
    return {path: value for path, value in leaves(tree) if not isinstance(value, dict | list) or not value}


DELETE: Any = object()


def edited(value: Any, path: Path_, new: Any) -> Any:
    """A copy with one place changed or deleted; what is not on the way is shared."""
    if not path:
        return new
    out = copy.copy(value)
    if len(path) == 1 and new is DELETE:
        del out[path[0]]
    else:
        out[path[0]] = edited(value[path[0]], path[1:], new) if len(path) > 1 else new
    return out


MODEL = make_model()
TREE = tree_of(MODEL)
PLACES = list(leaves(TREE))
NUMBERS = numbers(MODEL)


# --- versions ---------------------------------------------------------------------------------------------


def test_the_rich_model_is_sensitive() -> None:
    """What the following tests compare is not all zero."""
    assert np.count_nonzero(NUMBERS) == 3  # the other two are excluded
    np.testing.assert_array_equal(numbers(read_model_tree(TREE["model"])), NUMBERS)


@pytest.mark.parametrize("file", OLD, ids=lambda file: file.name)
def test_old_files_load_and_give_the_same_numbers(file: Path) -> None:
    expected = read_model(DATA / "old" / "current.json").model
    model = read_model(file).model
    np.testing.assert_array_equal(numbers(model), numbers(expected))
    for path, value in expected.state().items():
        np.testing.assert_array_equal(model.state()[path], value, err_msg=path)
    assert write_model_tree(model)["fitting"]["@version"] == 4
    assert json.dumps(write_model_tree(model), default=str) == json.dumps(write_model_tree(expected), default=str)


def test_every_older_version_has_a_file() -> None:
    names = {file.stem for file in OLD}
    assert {"layer_1", "embedding_1", "se_e2_a_1", "fitting_1", "fitting_2", "fitting_3", "model_1"} <= names


@pytest.mark.parametrize("file", [*OLD, *GOLDEN], ids=lambda file: file.name)
def test_reading_changes_nothing_in_the_tree(file: Path) -> None:
    tree, before = read_tree(file), plain(read_tree(file))
    from_tree(tree, "x")
    after = plain(tree)
    assert list(after) == list(before)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=str(path))


def test_upgrades_are_pure() -> None:
    data = {"@version": 1, "type": "x", "old": [1]}
    upgrade = Node(data, "a").upgraded(3, {1: lambda d: {"new": 2, **d}})
    assert data == {"@version": 1, "type": "x", "old": [1]}
    assert upgrade.data == {"@version": 3, "type": "x", "old": [1], "new": 2}


VERSIONED = [path for path, _ in PLACES if path[-1] == "@version"]


@pytest.mark.parametrize("version", [99, 0, -1, 1.5, "2", True, None])
def test_versions_that_are_not_known(version: Any) -> None:
    for path in VERSIONED:
        with pytest.raises(ModelFileError, match=r"version|whole number") as error:
            from_tree(edited(TREE, path, version), "m.dp")
        assert str(error.value).startswith("m.dp: model")
        if version == 99:
            assert "update dpmodel" in str(error.value)


# --- bad dictionaries: an error with the path, or the same numbers ------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model",), 3, "model: expected a dictionary, got int"),
        (("model", "type"), "SeZM", "a model of type 'sezm' is out of scope of dpmodel; use dpa3 instead"),
        (("model", "type"), "frozen", "out of scope of dpmodel; use the model file itself"),
        (("model", "type"), "pairwise_dprc", "out of scope"),
        (("model", "type"), "sezm_native_spin", "out of scope of dpmodel; use the virtual-atom spin model"),
        (("model", "type"), "surprise", r"a model of type 'surprise' is not known here; known are \["),
        (("model", "descriptor", "type"), "dpa4", "a descriptor of type 'dpa4' is out of scope of dpmodel; use dpa3"),
        (("model", "descriptor", "type"), DELETE, "the key 'type' is missing"),
        (("model", "fitting", "type"), "dens", "out of scope of dpmodel; use ener"),
        (("model", "fitting", "type"), "denoise", "a fitting net of type 'denoise' is out of scope"),
        (("model", "descriptor", "compress"), {"@variables": {}}, "use the model before compression"),
        (("model", "descriptor", "spin"), {"use_spin": [True]}, "use a spin model"),
        (("model", "descriptor", "rcut"), DELETE, "model.descriptor: the key 'rcut' is missing; found"),
        (("model", "descriptor", "rcut"), "long", "'rcut' should be a number, got \"long\""),
        (("model", "descriptor", "rcut"), -1.0, "'rcut' should be a number above 0"),
        (("model", "descriptor", "rcut"), float("inf"), "finite"),
        (("model", "descriptor", "rcut_smth"), 5.0, "should be below rcut"),
        (("model", "descriptor", "axis_neuron"), 7, "at most the last of neuron"),
        (("model", "descriptor", "neuron"), [], "at most the last of neuron"),
        (("model", "descriptor", "precision"), "float7", "unknown precision 'float7'"),
        (("model", "descriptor", "sel"), [5], "expected 1 networks"),
        (("model", "descriptor", "sel"), [0, 0], "at least one in all"),
        (("model", "descriptor", "neuron"), [3, 7], "the widths .* are .*, but the section implies"),
        (("model", "descriptor", "type_one_side"), False, "expected 4 networks"),
        (("model", "descriptor", "type_map"), ["H", "O"], "that of the model is"),
        (("model", "descriptor", "@variables", "davg"), np.ones((2, 4)), "has shape .* expected"),
        (("model", "descriptor", "@variables", "dstd"), np.zeros((2, 11, 4)), "deviations divide"),
        (("model", "descriptor", "embeddings", "network_type"), "fitting_network", "expected networks of type"),
        (("model", "descriptor", "embeddings", "networks", 1), None, r"networks\[1\]: expected a dictionary"),
        (("model", "descriptor", "embeddings", "networks", 0, "layers"), [], "the widths"),
        (("model", "descriptor", "embeddings", "networks", 0, "@class"), "NN", "expected a EmbeddingNetwork"),
        (("model", "fitting", "nets", "networks", 0, "layers", 1), DELETE, "layer 0 is|widths"),
        (("model", "fitting", "nets", "networks", 0, "layers", 0, "activation_function"), "tan", "unknown activation"),
        (("model", "fitting", "nets", "networks", 0, "layers", 0, "@variables", "b"), None, "the array 'b' is missing"),
        (("model", "fitting", "nets", "networks", 0, "layers", 0, "@variables", "b"), np.ones(9), "has 9 numbers"),
        (("model", "fitting", "nets", "networks", 0, "layers", 0, "@variables", "w"), np.ones(4), "expected 2 axes"),
        (("model", "fitting", "nets", "networks", 0, "layers", 0, "resnet"), "no", "should be true or false"),
        (("model", "fitting", "default_fparam"), [1.0], "default_fparam has 1 numbers, but numb_fparam is 2"),
        (("model", "fitting", "trainable"), [True], "one flag per layer"),
        (("model", "fitting", "atom_ener"), ["low", None], "'atom_ener' should hold"),
        (("model", "fitting", "tot_ener_zero"), True, "not supported"),
        (("model", "fitting", "dim_descrpt"), 13, "the widths"),
        (("model", "fitting", "ntypes"), 3, "expected 3 networks"),
        (("model", "type_map"), ["O", "H", "C"], "numbers of types differ|shape"),
        (("model", "type_map"), "OH", "'type_map' should be a list, got str"),
        (("model", "type_map"), ["O", "O"], "different symbols"),
        (("model", "atom_exclude_types"), [2], "are not types from 0 to 1"),
        (("model", "pair_exclude_types"), [[0]], "are not types"),
        (("model", "preset_out_bias"), {"energy": [1.0]}, "expected 2 values"),
        (("model", "preset_out_bias"), {"dos": [None, None]}, "'energy'"),
        (("model", "@variables"), [1], "expected a dictionary"),
        (("model", "@variables", "out_bias"), np.array([["a"]]), "dtype"),
        (("model", "@variables", "out_bias"), np.full((1, 2, 1), np.nan), "NaN"),
        (("model_def_script",), "text", "should be a dictionary"),
        (("@variables",), [0.9], "expected a dictionary"),
        (("@variables", "min_nbor_dist"), np.ones(2), "one number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(path: Path_, value: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as error:
        from_tree(edited(TREE, path, value), "m.dp")
    assert str(error.value).startswith("m.dp: ")


def test_statistics_along_the_slots_are_refused() -> None:
    davg = np.array(TREE["model"]["descriptor"]["@variables"]["davg"])
    davg[1, 3, 2] += 1e-9
    with pytest.raises(ModelFileError, match=r"model\.descriptor: 'davg' varies along the neighbour axis"):
        from_tree(edited(TREE, ("model", "descriptor", "@variables", "davg"), davg), "m.dp")


def test_inconsistent_numbers_of_features() -> None:
    """A fitting net that is whole, but was made for another descriptor."""
    other = copy.deepcopy(RICH)
    other["descriptor"]["axis_neuron"] = 3
    tree = edited(TREE, ("model", "fitting"), tree_of(make_model(other))["model"]["fitting"])
    with pytest.raises(ModelFileError, match="the fitting net takes 18 features, the descriptor makes 12"):
        from_tree(tree, "m.dp")


def loads_equal_or_is_refused(tree: Any) -> bool:
    """Whether it loads. Any other error, or other numbers, fail the test."""
    try:
        model = from_tree(tree, "m.dp").model
    except ModelFileError as error:
        if not str(error).startswith("m.dp"):
            pytest.fail(f"the file is not named: {error}")
        return False
    np.testing.assert_array_equal(numbers(model), NUMBERS)
    return True


def test_without_any_one_key() -> None:
    """Whatever numbers depend on has to be there; no default takes its place."""
    free = set()
    for path, _ in PLACES:
        if not isinstance(path[-1], str):
            continue
        if loads_equal_or_is_refused(edited(TREE, path, DELETE)) and "env_mat" not in path[:-1] and path[0] == "model":
            free.add(path[-1])
    # Written for other readers, or null in this model.
    assert free == {
        "@class", "@version", "dim_out", "env_mat", "exclude_types", "idt", "in_dim", "layer_name", "neuron",
        "ntypes", "out_dim", "preset_out_bias", "rcond", "resnet_dt", "bias_out", "precision", "spin", "tot_ener_zero",
        "trainable", "type", "type_map", "var_name", "bias", "activation_function",
    }  # fmt: skip


def test_without_any_one_item_of_a_list() -> None:
    for path, _ in PLACES:
        # A shorter list of these is another model.
        other = {"exclude_types", "atom_exclude_types", "pair_exclude_types", "atom_ener"} & set(path)
        if isinstance(path[-1], int) and not other:
            loaded = loads_equal_or_is_refused(edited(TREE, path, DELETE))
            # The widths that networks repeat for other readers; their layers say them.
            assert not loaded or (path[-2] == "neuron" and len(path) > 4)


JUNK = st.sampled_from(
    [None, "junk", {}, {"a": 1}, [], [None], [[1], 2], float("nan"), float("inf"), 1j, b"x", object()]
)
OPTIONAL = ("atom_ener", "default_fparam", "preset_out_bias")  # null is another model, or has no effect here


@settings(max_examples=200)
@given(st.sampled_from(PLACES), JUNK)
def test_with_junk_in_any_place(place: tuple[Path_, Any], junk: Any) -> None:
    path, value = place
    legal = (
        (junk is None and OPTIONAL[0] in path)
        or (isinstance(value, list) and junk == [])
        or (path[-1] == "exclude_types" and path[-2] == "fitting")
        or path[0] == "model_def_script"
        or (path[-1] == "atom_ener" and isinstance(junk, list))  # may be shorter than the types
    )
    if not legal:
        loads_equal_or_is_refused(edited(TREE, path, junk))


def test_with_any_one_array_damaged() -> None:
    arrays = [(path, value) for path, value in PLACES if isinstance(value, np.ndarray)]
    assert len(arrays) > 25
    for path, value in arrays:
        if path[-1] == "min_nbor_dist":
            continue
        hole = np.array(value, dtype=float)
        hole.flat[-1] = np.nan
        for bad in (
            hole,
            value[..., :-1],
            value[None, None, ..., None, None, None, None].astype(str),
            value.astype(complex),
        ):
            with pytest.raises(ModelFileError, match="the array"):
                from_tree(edited(TREE, path, bad), "m.dp")


def test_unit_axes_of_vectors_and_integer_arrays_are_read() -> None:
    layer: Path_ = ("model", "fitting", "nets", "networks", 0, "layers", 0, "@variables")
    b = TREE["model"]["fitting"]["nets"]["networks"][0]["layers"][0]["@variables"]["b"]
    assert loads_equal_or_is_refused(edited(TREE, (*layer, "b"), b[None]))
    model = from_tree(edited(TREE, (*layer, "b"), np.ones(4, np.int32)), "m.dp").model
    assert isinstance(model, StandardModel)
    assert model.fitting.networks[0].layers[0].b.dtype == np.float64


def test_an_op_without_a_format() -> None:
    class Odd(Op):
        pass

    with pytest.raises(ModelFileError, match="Odd has no file format; known are"):
        base.write_op(Odd(), (), ("O",))


# --- what DeePMD-kit wrote ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.name)
def test_every_key_of_deepmd_kit_is_written_with_an_equal_value(file: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "m.dp", read_model(file))
    theirs, ours = plain(read_tree(file)), plain(read_tree(tmp_path / "m.dp"))
    assert [path for path in theirs if path not in ours] == []
    # Ours alone: who wrote the file again, and when.
    assert {path[0] for path in ours if path not in theirs} == {"dpmodel"}
    for path, value in theirs.items():
        assert type(ours[path]) is type(value), path
        if (path, value) == (("model", "type"), "linear"):  # which its own PyTorch does not read
            value = "linear_ener"  # noqa: PLW2901
        np.testing.assert_array_equal(ours[path], value, err_msg=str(path), strict=isinstance(value, np.ndarray))


@pytest.mark.parametrize("suffix", ["dp", "yaml", "json"])
def test_round_trip_of_every_option(suffix: str, tmp_path: Path) -> None:
    definition = {"type_map": ["O", "H"], "descriptor": {"sel": [5, 6]}}
    written = ModelFile(model=MODEL, definition=definition, min_nbor_dist=0.875)
    write_model(tmp_path / f"m.{suffix}", written, provenance={"input": {"a": 1}})
    found = read_model(tmp_path / f"m.{suffix}")
    assert found.definition == definition
    assert found.min_nbor_dist == 0.875
    assert found.provenance["dpmodel"]["input"] == {"a": 1}
    assert {"software", "version", "time", "backend"} <= found.provenance.keys()
    assert repr(found.model.descriptor.config) == repr(MODEL.descriptor.config)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(numbers(found.model), NUMBERS)
    for path, value in MODEL.state().items():
        np.testing.assert_array_equal(found.model.state()[path], value, err_msg=path, strict=True)


@pytest.mark.parametrize("place", ["@variables", "constants", None])
def test_smallest_distance_in_three_places(place: str | None) -> None:
    tree = {key: value for key, value in TREE.items() if key not in ("@variables", "min_nbor_dist")}
    value = np.float32(0.75) if place == "@variables" else 0.75
    tree.update({place: {"min_nbor_dist": value}} if place else {"min_nbor_dist": value})
    assert from_tree(tree, "x").min_nbor_dist == 0.75
    written = to_tree(from_tree(tree, "x"))
    assert written["min_nbor_dist"] == float(written["@variables"]["min_nbor_dist"]) == 0.75
    assert from_tree({"model": TREE["model"]}, "x").min_nbor_dist is None


def test_provenance_is_kept_and_added_to(tmp_path: Path) -> None:
    file = read_model(GOLDEN[0])
    assert file.provenance["software"] == "deepmd-kit"
    write_model(tmp_path / "a.yaml", file, provenance={"input": {"x": 1}})
    write_model(tmp_path / "b.dp", read_model(tmp_path / "a.yaml"))
    again = read_model(tmp_path / "b.dp").provenance
    for key in ("software", "version", "time", "backend"):
        assert again[key] == file.provenance[key]
    assert again["dpmodel"]["input"] == {"x": 1}
    assert again["dpmodel"]["time"] > read_model(tmp_path / "a.yaml").provenance["dpmodel"]["time"]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ((), "model: not known here, and without effect: colour, size"),
        (("descriptor",), "model.descriptor: not known here, and without effect: colour, size"),
        (("fitting",), "model.fitting: not known here, and without effect: colour, size"),
    ],
)
def test_keys_without_meaning_are_named(path: Path_, message: str, caplog: pytest.LogCaptureFixture) -> None:
    tree = TREE["model"]
    for key in ("size", "colour"):
        tree = edited(tree, (*path, key), 1)
    read_model_tree(tree)
    assert warned(caplog) == [message]


def test_the_mode_of_hessians_needs_no_word(caplog: pytest.LogCaptureFixture) -> None:
    """They are computed for whoever asks."""
    for mode in (False, True):
        read_model_tree(edited(TREE["model"], ("hessian_mode",), mode))
        from_tree(edited(TREE, ("model_def_script",), {"hessian_mode": mode}), "a file")
    assert warned(caplog) == []


@pytest.mark.parametrize("file", [*OLD, *GOLDEN], ids=lambda file: file.name)
def test_known_files_warn_of_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_model(file)
    assert warned(caplog) == []


@pytest.mark.parametrize("part", ["descriptor", "fitting"])
@pytest.mark.parametrize("name", ["foo", "", "silut:x", 3])
def test_activations_that_do_not_exist(part: str, name: Any) -> None:
    with pytest.raises(ModelFileError, match=rf"model\.{part}: 'activation_function'"):
        read_model_tree(edited(TREE["model"], (part, "activation_function"), name))


# --- a descriptor of our own: the layout follows from the fields -----------------------------------------------


class ToyConfig(DescriptorConfig, key="toy_radial"):
    """Sums of Gaussians of the distance."""

    rcut: float = option(3.0, "Cutoff.")
    sel: tuple[int, ...] = option((30,), "Neighbours.")
    width: int = option(3, "Number of features.")
    seed: Any = option(None, "Seed.")

    def build(self, ntypes: int, type_map: tuple[str, ...], *, seed: Any = None) -> Toy:
        rng = np.random.default_rng(seed)
        return Toy(config=self, ntypes=ntypes, decay=rng.uniform(0.2, 2.0, self.width), shift=np.zeros(self.width))


class Toy(Descriptor):
    mixed_types: ClassVar[bool] = True
    config: ToyConfig
    ntypes: int
    decay: Array = param()
    shift: Array = buffer()

    @property
    def dim_out(self) -> int:
        return self.config.width

    def requests(self) -> tuple[NeighbourRequest, ...]:
        return (NeighbourRequest(rcut=self.config.rcut, sel=tuple(self.config.sel), layout="slots"),)

    def bytes_per_atom(self) -> int:
        return 8 * self.config.width * sum(self.config.sel)

    def call(self, graph: Graph, *, rotation: bool = True) -> Features:
        xp = array_namespace(graph.edge_vec)
        r = xp.sqrt(xp.sum(graph.edge_vec**2, axis=1))[:, None]
        return Features(node=segment_sum(xp.exp(-self.decay * r) - self.shift, graph.centre, graph.frame.shape[0]))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(base, "CONFIGS", (*base.CONFIGS, ToyConfig))
    descriptor = ToyConfig(rcut=2.5, width=4, seed=7).build(2, ("O", "H"), seed=7).replace(shift=np.arange(4) / 10)
    fitting = EnerFittingConfig(neuron=(3,)).build(2, 4, True, seed=1)
    return StandardModel.assemble(descriptor, fitting, ("O", "H"))


@pytest.mark.parametrize("suffix", ["dp", "yaml", "json"])
def test_derived_layout(toy: Model, suffix: str, tmp_path: Path) -> None:
    write_model(tmp_path / f"m.{suffix}", ModelFile(model=toy))
    found = read_model(tmp_path / f"m.{suffix}").model
    assert isinstance(found, StandardModel)
    assert found.descriptor.config == ToyConfig(rcut=2.5, width=4, seed=7)
    assert np.count_nonzero(numbers(toy)) == 5
    np.testing.assert_array_equal(numbers(found), numbers(toy))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("config",), DELETE, "'config' is missing"),
        (("config", "rcut"), DELETE, r"model\.descriptor\.config: the key 'rcut' is missing"),
        (("config", "rcut"), "x", "'rcut' should be a number"),
        (("config", "colour"), 1, "no option"),
        (("config", "width"), 5, r"decay: expected shape \(5,\), got \(4,\)"),
        (("ntypes",), 3, "'ntypes' is 3"),
        (("@variables", "decay"), DELETE, "missing .*decay"),
        (("@variables", "more"), np.ones(1), "unknown .*more"),
        (("@variables", "decay"), np.full(4, np.nan), "NaN"),
        (("@variables",), None, "expected a dictionary"),
        (("@version",), 2, "update dpmodel"),
        (("type",), "dpmodel:other", "not known here"),
    ],
)
def test_bad_derived_layouts(toy: Model, path: Path_, value: Any, message: str) -> None:
    tree = edited(tree_of(toy), ("model", "descriptor", *path), value)
    with pytest.raises(ModelFileError, match=message) as error:
        from_tree(tree, "m.dp")
    assert "the dictionary of the model is damaged" not in str(error.value)
