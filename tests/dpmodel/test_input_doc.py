"""The reference is generated, complete, and the same on every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpmodel.config import MISSING, Config, thaw
from dpmodel.errors import InputError
from dpmodel.input import document
from dpmodel.input.doc import OUT_TYPES, key_table
from dpmodel.input.sections import InputFile, MultiInputFile
from dpmodel.input.values import hints, option_of, problem

ROOT = Path(__file__).parents[2]


def places(cls: type[Config] | None = None) -> Iterator[type[Config]]:
    if cls is None:
        yield from places(InputFile)
        yield from places(MultiInputFile)
        return
    yield cls
    for name in cls.options():
        info = option_of(cls, name)
        for kind in info.kinds() if info.kinds is not None else ():
            yield from places(kind)


@pytest.mark.parametrize("cls", sorted(set(places()), key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_declarations_are_sound(cls: type[Config]) -> None:
    assert cls.__doc__
    for name, field in cls.options().items():
        info = option_of(cls, name)
        assert info.doc.endswith("."), f"{name} has no sentence that says what it means"
        assert info.effect in ("acts", "ignored", "refused")
        assert info.effect == "acts" or field.default is not MISSING
        if field.default is not MISSING and not isinstance(field.default, Config):
            assert problem(hints(cls)[name], info, field.default, thaw(field.default)) is None, name
        names = [alias for other in cls.options() for alias in (other, *option_of(cls, other).aliases)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("out_type", OUT_TYPES)
def test_every_offered_key_is_documented(out_type: str) -> None:
    for root, several in ((InputFile, False), (MultiInputFile, True)):
        text = document(out_type, multi_task=several)
        for cls in set(places(root)):
            for name in cls.options():
                if option_of(cls, name).effect != "refused":
                    assert name in text


def test_the_reference_of_several_tasks() -> None:
    text = document("md", multi_task=True)
    assert "## `training.data_dict.<task>.training_data`" in text
    assert "| `model_prob` |" in text
    assert "| `model_prob` |" not in document("md")
    assert "axis_neuron" in document("md", "model.model_dict.<task>.descriptor[se_e2_a]", multi_task=True)
    assert "decay_phase_ratio" in document("rst", "learning_rate", multi_task=True)
    schema = json.loads(document("json_schema", multi_task=True))
    assert set(schema["required"]) == {"model", "learning_rate", "training"}


def test_json_schema_holds_for_a_real_input() -> None:
    schema = json.loads(document("json_schema"))
    assert set(schema["properties"]) >= {"model", "learning_rate", "optimizer", "loss", "training", "validating"}
    assert set(schema["required"]) == {"model", "learning_rate", "training"}
    training = schema["properties"]["training"]["properties"]
    assert training["numb_steps"]["type"] == ["integer", "null"]
    assert "stop_batch" in training
    assert json.loads(document("json"))["object"] == "Argument"


def test_sections() -> None:
    assert "axis_neuron" in document("rst", "model.descriptor")
    assert "numb_steps" not in document("rst", "model.descriptor")
    assert document("md", "learning_rate").count("| `start_lr`") == 3
    assert document("md", "learning_rate[wsd]").count("| `start_lr`") == 1
    assert "decay_phase_ratio" in document("rst", "learning_rate[wsd]")
    assert "decay_phase_ratio" not in document("rst", "learning_rate[exp]")
    for out_type in OUT_TYPES:
        for wrong in ("nothing", "training.nothing", "learning_rate[nothing]", "model.descriptor.rcut.x"):
            with pytest.raises(InputError, match=r"section: expected one of model, model\.descriptor"):
                document(out_type, wrong)
    with pytest.raises(InputError, match='out_type: expected one of rst, md, json, json_schema, got "pdf"'):
        document("pdf")


def test_the_three_classes_of_keys() -> None:
    lines = key_table().splitlines()
    assert any(
        line.startswith("| `training`: `stat_file`") and "`numb_steps`" in line and line.endswith("| acts |")
        for line in lines
    )
    assert "| `training.disp_training` | accepted with one warning that it has no effect |" in lines
    assert "| `training.mixed_precision` | an error, unless it has its default |" in lines
    assert key_table() in document("md")


def test_pages_do_not_change_from_run_to_run() -> None:
    code = "from dpmodel.input import document; print([document(t) for t in ('rst', 'md', 'json', 'json_schema')])"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
            text=True, check=True, timeout=120,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1
    assert " at 0x" not in texts.pop()
