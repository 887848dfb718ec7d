"""Wrong inputs: the message names the path, what was expected, what came, and the nearest known key."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dpmodel.errors import InputError
from dpmodel.input import load_input

DATA = Path(__file__).parents[1] / "data" / "input"
BASE: dict[str, Any] = json.loads((DATA / "sea.json").read_text())
ABSENT = object()


def changed(path: str, value: Any) -> dict[str, Any]:
    """sea.json with one value replaced, or removed where it is ABSENT."""
    data = copy.deepcopy(BASE)
    *sections, key = path.split(".")
    here = data
    for section in sections:
        here = here.setdefault(section, {})
    if value is ABSENT:
        del here[key]
    else:
        here[key] = value
    return data


def message(path: str, value: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_input(changed(path, value))
    return str(caught.value)


CASES = re.findall(r"^(\S+) = (.+)\n    (.+)$", (DATA / "messages.txt").read_text(), re.MULTILINE)
"""(path, value as JSON or `absent`, the message, which may end in ` ...` where another part of the library words it)."""


@pytest.mark.parametrize(("path", "value", "says"), CASES)
def test_message(path: str, value: str, says: str) -> None:
    found = message(path, ABSENT if value == "absent" else json.loads(value))
    if says.endswith(" ..."):
        assert found.startswith(says.removesuffix("..."))
    else:
        assert found == says


def test_all_cases_are_read() -> None:
    assert len(CASES) == (DATA / "messages.txt").read_text().count("\n") / 2 > 80


def test_values_that_json_cannot_hold() -> None:
    assert message("model.info", {"a": {1: 2}}) == "model.info.a: expected keys to be strings, got 1"
    assert message("model.info", {"a": {1}}) == "model.info.a: expected a value that JSON can hold, got set {1}"


@pytest.mark.parametrize(
    ("place", "kinds", "available"),
    [
        ("model.descriptor", ["dpa4", "DPA4", "SeZM", "sezm"],
         '"se_e2_a", "se_e2_r", "se_e3", "se_e3_tebd", "dpa1", "se_atten_v2", "dpa2", "dpa3", "hybrid"'),
        ("model.fitting_net", ["population", "dpa4_ener"], '"ener", "dos", "property", "dipole", "polar"'),
        ("model", ["frozen", "pairwise_dprc", "pairtab", "dpa4"], '"standard", "linear_ener"'),
        ("loss", ["dens", "denoise", "population"], '"ener", "ener_spin", "dos", "tensor", "property"'),
    ],
)  # fmt: skip
def test_kinds_of_the_family_are_refused_by_name(place: str, kinds: list[str], available: str) -> None:
    for kind in kinds:
        found = message(f"{place}.type", kind)
        assert found.startswith(f'{place}.type: "{kind}" is not available in this version')
        assert found.endswith(f"Available: {available}")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '{"model": {"rcut": 1, "rcut": 2}}', "model.rcut: the key is given twice; keep one"),
        ("a.yaml", "model:\n  rcut: 1\n  rcut: 2\n", "model.rcut: the key is given twice; keep one"),
        ("a.json", '{"model": {', "not valid JSON at line 1, column 12"),
        ("a.json", "", "not valid JSON at line 1, column 1"),
        ("a.json", "[1]", "expected an input with the sections model, training, ...; got list"),
        ("a.json", '{"training": {"save_freq": NaN}}', "training.save_freq: expected a finite number, got nan"),
        ("a.json", '{"training": {"save_freq": 1e999}}', "training.save_freq: expected a finite number, got inf"),
        ("a.json", "[" * 100000, "nested too deeply"),
        ("a.json", '{"a":' * 150 + "1" + "}" * 150, "a: nested more than 100 levels deep"),
        ("a.yaml", "", "expected an input with the sections model, training, ...; got nothing"),
        ("a.yaml", "a: [1", "not valid YAML"),
        ("a.yaml", "a: {1: 2}", "a: expected keys to be strings, got 1"),
        ("a.yaml", "[1]: 2", "line 1: expected keys to be strings"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a.yaml", "a: 2020-01-01", "a: expected a value that JSON can hold, got date"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_input(path)
    assert str(caught.value).startswith(f"{path}: {says}")


def test_bfloat16_is_refused_with_a_reason() -> None:
    found = message("model.descriptor.precision", "bfloat16")
    assert found.startswith("model.descriptor.precision: expected one of default, float16")
    assert found.endswith('(NumPy, the reference, has no bfloat16: use float32), got "bfloat16"')


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the input file .*none\.json: No such file"):
        load_input(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"cannot read the input file .*: Is a directory"):
        load_input(tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"b\.json: expected text in UTF-8"):
        load_input(tmp_path / "b.json")


def test_comments_may_repeat(tmp_path: Path) -> None:
    path = tmp_path / "input.json"
    path.write_text(json.dumps(BASE).replace("{", '{"_comment": "a", "_comment": "b", ', 1))
    assert load_input(path) == load_input(BASE)


def test_itself_in_itself() -> None:
    data = copy.deepcopy(BASE)
    data["model"]["info"] = {"again": data}
    with pytest.raises(InputError, match="model: nested more than 100 levels deep"):
        load_input(data)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "energy", "mask", "virial", "stress", "coord"])
def test_names_of_properties(name: str) -> None:
    """They are keys of outputs and names of files, which others have."""
    found = message("model.fitting_net", {"type": "property", "property_name": name})
    assert found.startswith(
        "model.fitting_net.property_name: expected a name without spaces and slashes that is none of"
    )


@pytest.mark.parametrize(
    ("net", "output", "why"),
    [
        ({"type": "dipole"}, "dipole", "a shift of vectors would not turn with the system"),
        ({"type": "polar", "shift_diag": False}, "polarizability", "shift_diag is false"),
        ({"type": "property", "property_name": "2nd", "distinguish_types": False}, "2nd", "distinguish_types is false"),
    ],
)
def test_biases_that_are_nowhere(net: dict[str, Any], output: str, why: str) -> None:
    data = changed("model.fitting_net", net)
    data["loss"] = {"type": "property"} if output == "2nd" else {"type": "tensor", "pref": 1.0, "pref_atomic": 0.0}
    for given, said in (([None, None], False), ([1.0 if output == "2nd" else None, None], output == "2nd")):
        data["model"]["preset_out_bias"] = {output: given}
        found = [note for note in load_input(data).notes if note.startswith("model.preset_out_bias: has no effect, as")]
        assert bool(found) is said
    size = {"dipole": 3, "polarizability": 9, "2nd": 1}[output]
    data["model"]["preset_out_bias"] = {output: [[1.0] * size, None]}
    assert f"model.preset_out_bias: has no effect, as {why}" in " ".join(load_input(data).notes)


def test_options_of_a_part_that_the_whole_has() -> None:
    data = changed("model.type", "linear_ener")
    part = {name: data["model"].pop(name) for name in ("descriptor", "fitting_net")}
    options = {"data_stat_protect": 0.1, "data_stat_nbatch": 10, "finetune_head": ""}
    data["model"]["models"] = [{**part, **options}]
    data["model"]["data_stat_nbatch"] = 5
    found = [note for note in load_input(data).notes if note.startswith("model.models.0.")]
    assert found == ["model.models.0.data_stat_protect: has no effect in a part; that of the whole model counts"]


@pytest.mark.parametrize("value", [0, -1.0])
def test_layer_normalisation_adds_a_positive_number(value: float) -> None:
    attention = {"type": "dpa1", "sel": 20, "rcut": 4.0, "ln_eps": value}
    assert message("model.descriptor", attention).startswith("model.descriptor.ln_eps: expected a number above 0, got")


@pytest.mark.parametrize("value", ["x", {"a": 1}, [1.0, None], True, [], [float("nan"), 1.0]])
def test_scales_of_polarizabilities(value: Any) -> None:
    found = message("model.fitting_net", {"type": "polar", "scale": value})
    one = isinstance(value, list) and len(value) > 1 and value[1] == 1.0  # NaN is found before
    what = (
        "[0]: expected a finite number, got nan" if one else ": expected a finite number, or a list with one for every"
    )
    assert found.startswith(f"model.fitting_net.scale{what}")


def test_as_many_scales_as_types() -> None:
    found = message("model.fitting_net", {"type": "polar", "scale": [1.0, 2.0, 3.0]})
    assert found == "model.fitting_net.scale: expected one number or 2, one per type of type_map, got 3"


def test_pair_tables_of_too_few_types() -> None:
    data = changed("model.type", "linear_ener")
    part = {name: data["model"].pop(name) for name in ("descriptor", "fitting_net")}
    table = {"type": "pairtab", "tab_file": "t.txt", "rcut": 4.0, "sel": 10, "type_map": data["model"]["type_map"][:1]}
    data["model"]["models"] = [part, table]
    with pytest.raises(InputError, match=r"models\.1\.type_map: lacks .*, which are types of the whole model"):
        load_input(data)


def test_one_capacity_for_all_types_may_be_a_list() -> None:
    data = changed("model.descriptor", {"type": "dpa1", "sel": [20], "rcut": 4.0})
    assert load_input(data).model.environment.sel == (20,)
    assert message("model.descriptor", {"type": "dpa1", "sel": [20, 20, 20], "rcut": 4.0}).startswith(
        "model.descriptor.sel: expected 2 numbers, one per type of type_map, got 3"
    )
