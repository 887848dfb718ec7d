"""Models with other types: another order changes nothing, fewer and more types keep what stays."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest

import dpmodel
from dpmodel.cli import main
from dpmodel.errors import InputError
from dpmodel.files.model_file import read_model, write_model
from dpmodel.input import load_model
from dpmodel.models.build import build_model
from dpmodel.nn.type_embedding import TypeEmbedding, make_type_embedding
from dpmodel.potential import Potential
from dpmodel.type_map import TypeChange

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.dp"))
TYPED = ("se_e2_a", "se_e2_r", "se_e3", "se_e3_b", "dipole_sea", "polar_sea", "property_sea", "dos_sea", "spin_sea")
MIXED = (
    "dpa1_oneside", "dpa1_econf", "dpa1_mixed_3types", "dpa1_strip_smooth", "dpa2_3types", "dpa3_4types", "dpa3_excl",
    "se_e3_tebd", "hybrid_dpa2_dpa3", "linear_mean", "polar_dpa2", "dipole_dpa3", "property_dpa3", "dos_dpa3", "spin_dpa3",
)  # fmt: skip
EXTRA = ("fparam", "aparam", "spin", "charge_spin")

pytestmark = pytest.mark.filterwarnings("ignore::dpmodel.geometry.build.TruncationWarning")


KINDS = (
    "se_e2_a_fparam_aparam", "mixed_precision_sea", "se_e2_r_excl", "se_e3", "se_e3_tebd_strip", "dpa1_econf", "dpa1_lmax",
    "se_atten_v2_attn", "dpa2_threebody", "dpa3_case_embd", "hybrid_sea_ser", "linear_sea_pairtab", "zbl_dpa1", "spin_sea",
    "polar_full_dpa1", "dipole_dpa1_sel", "dos_sea", "property_dpa3",
)  # fmt: skip
"""One for every kind of part that a file can have."""


def systems(name):
    """(coord, atype (f, n), box, parameters) of every system of a golden with few atoms."""
    data = np.load(GOLDEN / f"{name}.npz")
    for system in sorted({key.split("/")[0] for key in data}):
        given = {key.split("/")[2]: data[key] for key in data if key.startswith(f"{system}/in/")}
        if given["atype"].shape[-1] > 8:
            continue
        coord = given["coord"].reshape(-1, given["atype"].shape[-1], 3)
        atype = np.broadcast_to(given["atype"], coord.shape[:2])
        yield coord, atype, given.get("box"), {key: given[key] for key in EXTRA if key in given}


def assert_same(old, new, name, *, only=None):
    """Both models give the same outputs; of frames of the types `only` alone."""
    table = np.array([new.type_map.index(symbol) if symbol in new.type_map else -2 for symbol in old.type_map])
    single = any(np.asarray(value).dtype == np.float32 for value in old.model.state().values())
    seen = 0
    kept = [old.type_map.index(symbol) for symbol in (old.type_map if only is None else only)]
    for coord, kinds, box, given in systems(name):
        atype = np.where(np.isin(kinds, kept), kinds, -1)
        if not (atype >= 0).any(axis=1).all():
            continue
        renamed = np.where(atype < 0, -1, table[atype])
        a = old.evaluate(coord, atype, box, atomic=True, **given)
        b = new.evaluate(coord, renamed, box, atomic=True, **given)
        assert a.keys() == b.keys()
        for key, value in a.items():
            bound = (2e-5 if single else 1e-12) * max(1.0, np.abs(value).max())
            assert np.abs(b[key] - value).max() <= bound, key
        seen += 1
    assert seen


# --- another order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_another_order_changes_no_number(tmp_path, name):
    old = dpmodel.load(GOLDEN / f"{name}.dp", "numpy")
    order = (*old.type_map[1:], old.type_map[0])
    file = old.file.with_type_map(order)
    write_model(tmp_path / "m.dp", file)
    new = dpmodel.load(tmp_path / "m.dp", "numpy")
    assert new.type_map == order
    assert_same(old, new, name)
    back = new.file.with_type_map(old.type_map).model.state()
    for path, value in old.model.state().items():
        np.testing.assert_allclose(back[path], value, rtol=0, atol=1e-15 if value.dtype == np.float64 else 1e-7)


def test_forces_of_another_order():
    """Through the exact path of users: load, on a backend with derivatives."""
    old = dpmodel.load(GOLDEN / "dpa1_mixed_3types.dp", "pt")
    new = dpmodel.load(GOLDEN / "dpa1_mixed_3types.dp", "pt", type_map=old.type_map[::-1])
    assert_same(old, new, "dpa1_mixed_3types")


def test_only_models_whose_empty_slots_count_have_the_key(tmp_path):
    """A mean of the environment matrix: empty slots count as a type. Without one, no other program sees a new key."""
    for name, has in (("dpa1_oneside", True), ("dpa1_strip_smooth", False), ("dpa2_min", True), ("dpa3", False)):
        file = read_model(GOLDEN / f"{name}.dp")
        write_model(tmp_path / "m.json", file)
        assert '"empty_type"' not in (tmp_path / "m.json").read_text()
        write_model(tmp_path / "m.json", file.with_type_map(file.model.type_map[::-1]))
        assert ('"empty_type"' in (tmp_path / "m.json").read_text()) == has, name
    text = (tmp_path / "m.json").read_text()
    write_model(tmp_path / "m.json", read_model(GOLDEN / "dpa1_oneside.dp").with_type_map(("H", "O")))
    text = (tmp_path / "m.json").read_text().replace('"empty_type": 1', '"empty_type": 7')
    text = text.replace('"empty_type":1', '"empty_type":7')
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(dpmodel.errors.ModelFileError, match="'empty_type' is 7"):
        read_model(tmp_path / "m.json")


# --- fewer and more ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MIXED)
def test_fewer_types_keep_the_others(name):
    old = dpmodel.load(GOLDEN / f"{name}.dp", "numpy")
    kept = old.type_map[:-1]
    new = Potential.from_model(old.model.with_type_map(kept), "numpy")
    assert_same(old, new, name, only=kept)
    assert not any(t >= len(kept) for t in new.model.atom_exclude_types)


@pytest.mark.parametrize("name", MIXED)
def test_more_types_keep_the_others(tmp_path, name, caplog):
    old = dpmodel.load(GOLDEN / f"{name}.dp", "numpy")
    wider = ("Xe", *old.type_map[::-1], "Kr")
    file = old.file.with_type_map(wider)
    assert "types Xe, Kr are new" in caplog.text
    write_model(tmp_path / "m.dp", file)
    new = dpmodel.load(tmp_path / "m.dp", "numpy")
    assert_same(old, new, name)
    model = new.model
    bias = getattr(model, "backbone", model).out_bias[: len(wider)]
    np.testing.assert_array_equal(bias[[0, -1]], bias[[0, 0]] * 0)
    # New types are there: an atom of one counts, always in the same way.
    coord, atype, box, given = next(systems(name))
    table = np.array([wider.index(symbol) for symbol in old.type_map])
    renamed = np.where(atype < 0, -1, table[atype])
    other = np.where(np.arange(atype.shape[1]) == 0, 0, renamed)
    outputs = [new.evaluate(coord, kinds, box, **given) for kinds in (renamed, other, other)]
    key = model.output().reduced
    assert np.isfinite(outputs[1][key]).all()
    assert np.abs(outputs[1][key] - outputs[0][key]).max() > 1e-12
    np.testing.assert_array_equal(outputs[1][key], outputs[2][key])
    again = old.file.with_type_map(wider).model.state()
    for path, value in model.state().items():
        np.testing.assert_array_equal(again[path], value)


@pytest.mark.parametrize("name", TYPED)
def test_nets_by_type_take_another_order_alone(name):
    model = read_model(GOLDEN / f"{name}.dp").model
    for types in ((*model.type_map, "Xe"), model.type_map[:-1]):
        with pytest.raises(InputError, match=r"another order alone, got .*Train a model"):
            model.with_type_map(types)


def test_what_cannot_be_changed():
    model = read_model(GOLDEN / "zbl_dpa3.dp").model
    with pytest.raises(InputError, match="a pair table cannot learn of Xe"):
        model.with_type_map((*model.type_map, "Xe"))
    model = read_model(GOLDEN / "dpa3.dp").model
    for types, message in (
        ((), "different symbols"),
        (("O", "O"), "different symbols"),
        (("Xe", "Kr"), r"none of which is in \['Xe', 'Kr'\]"),
    ):
        with pytest.raises(InputError, match=message):
            model.with_type_map(types)
    model = read_model(GOLDEN / "dpa1_econf.dp").model
    with pytest.raises(InputError, match="are none"):
        model.with_type_map((*model.type_map, "water"))
    model = read_model(GOLDEN / "dpa1_oneside.dp").model
    with pytest.raises(InputError, match=rf"empty slots .* count as {model.type_map[0]}"):
        model.with_type_map(model.type_map[1:])


def test_new_types_of_models_with_spin_have_no_spin():
    """They leave out what a model made for these types leaves out."""
    dpa1 = {"type": "dpa1", "rcut": 4.0, "rcut_smth": 0.5, "sel": 20, "neuron": [2], "axis_neuron": 2, "attn_layer": 0}
    for descriptor in (dpa1, {"type": "hybrid", "list": [dpa1, {**dpa1, "rcut": 3.0}]}):
        old, expected = (
            build_model(load_model({
                "type_map": types, "descriptor": descriptor, "fitting_net": {"neuron": [2]},
                "spin": {"use_spin": ["A"], "virtual_scale": 0.3},
            }), seed=1)
            for types in (["A", "B"], ["C", "B", "A"])
        )  # fmt: skip
        new = old.with_type_map(("C", "B", "A"))
        assert new.use_spin == expected.use_spin and new.spin_scales == expected.spin_scales
        assert new.backbone.type_map == expected.backbone.type_map
        assert sorted(new.backbone.atom_exclude_types) == sorted(expected.backbone.atom_exclude_types)
        for one, other in zip(excluded_pairs(new.backbone), excluded_pairs(expected.backbone), strict=True):
            assert {tuple(sorted(pair)) for pair in one} == {tuple(sorted(pair)) for pair in other}


def excluded_pairs(backbone):
    """Of the model, of its descriptor, and of the parts and the section of a hybrid."""
    descriptor = backbone.descriptor
    parts = getattr(descriptor, "parts", (descriptor,))
    sections = [part.config for part in parts] + list(getattr(descriptor.config, "list", ()))
    return [backbone.pair_exclude_types, *(section.exclude_types for section in sections)]


def test_fewer_types_of_pair_tables_and_spins():
    for name in ("zbl_dpa3", "spin_dpa3"):
        old = dpmodel.load(GOLDEN / f"{name}.dp", "numpy")
        kept = old.type_map[:-1]
        assert_same(old, Potential.from_model(old.model.with_type_map(kept), "numpy"), name, only=kept)


# --- the parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "width"), [(3, 2, 4), (4, 2, 4), (2, 4, 4), (2, 2, 4), (4, 4, 4), (2, 5, 4), (3, 4, 4)]
)
def test_rows_survive_skip_connections_that_come_and_go(old, new, width):
    """The layer skips where it is as wide, or twice as wide, as there are types."""
    names = "ABCDE"
    embedding = make_type_embedding(old, width, seed=1, dtype="float64", bias=True)
    change = TypeChange(old=tuple(names[:old]), new=tuple(names[:new][::-1]))
    changed = embedding.with_types(change)
    assert changed.ntypes == new
    for k, name in enumerate(change.new):
        if name in change.old:
            np.testing.assert_allclose(
                changed.table()[k], embedding.table()[change.old.index(name)], rtol=0, atol=1e-15
            )
    layer = embedding.embedding.layers[0].replace(activation="tanh")
    bent = TypeEmbedding(ntypes=old, embedding=embedding.embedding.replace(layers=(layer,)))
    if {old, new} & {2, 4}:
        with pytest.raises(InputError, match="skip connection"):
            bent.with_types(change)


def test_lists_of_types():
    change = TypeChange(old=("A", "B", "C"), new=("C", "X", "A"))
    assert (change.added, change.dropped, change.sources) == (("X",), ("B",), (2, None, 0))
    assert change.types((0, 1, 2)) == (2, 0)
    assert change.pairs([(0, 1), (0, 2), (2, 2)]) == ((2, 0), (0, 0))
    assert change.values((1.0, 2.0, 3.0), None) == (3.0, None, 1.0)
    np.testing.assert_array_equal(change.rows(np.arange(6.0).reshape(3, 2), 9), [[4, 5], [9, 9], [0, 1]])


# --- the programs -----------------------------------------------------------------------------------------


def test_convert_with_another_type_map(tmp_path, capsys):
    source = GOLDEN / "dpa1_mixed_3types.dp"
    old = dpmodel.load(source, "numpy")
    main(["convert", str(source), str(tmp_path / "m.json"), "--type-map", *old.type_map[::-1]])
    new = dpmodel.load(tmp_path / "m.json", "numpy")
    assert new.type_map == old.type_map[::-1]
    assert_same(old, new, "dpa1_mixed_3types")
    assert new.file.definition["type_map"] == list(new.type_map)
    assert main(["convert", str(GOLDEN / "se_e2_a.dp"), str(tmp_path / "n.dp"), "--type-map", "O"]) != 0
    assert "another order alone" in capsys.readouterr().err
    assert not (tmp_path / "n.dp").exists()


@pytest.mark.parametrize("name", KINDS)
def test_convert_keeps_every_number(tmp_path, name):
    """.dp -> .yaml -> .json -> .dp, of every kind of model."""
    steps = [GOLDEN / f"{name}.dp", tmp_path / "m.yaml", tmp_path / "m.json", tmp_path / "m.dp"]
    for source, target in itertools.pairwise(steps):
        main(["convert", str(source), str(target)])
    first, last = (read_model(path) for path in (steps[0], steps[-1]))
    assert type(last.model) is type(first.model)
    assert repr(last.model) == repr(first.model)
    state = last.model.state()
    assert state.keys() == first.model.state().keys()
    for path, value in first.model.state().items():
        assert state[path].dtype == value.dtype
        np.testing.assert_array_equal(state[path], value)
    assert json.dumps(last.definition, sort_keys=True) == json.dumps(first.definition, sort_keys=True)


def test_the_log_says_what_is_new(caplog):
    with caplog.at_level(logging.WARNING):
        dpmodel.load(GOLDEN / "dpa3.dp", "numpy", type_map=("H", "O"))
    assert not caplog.records
