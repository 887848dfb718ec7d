"""`training.freeze_parameters`: which parameters a pattern means."""

from __future__ import annotations

from typing import Any

import pytest

from dpmodel.errors import InputError
from dpmodel.input import load_input
from dpmodel.models.multi_task import build_tasks
from dpmodel.op import Kind, walk
from dpmodel.training.freezing import frozen_paths

from .several import several


def model_of(name: str = "se_e2_a", **options: Any) -> Any:
    inp = load_input(several(name, **options))
    return build_tasks(inp, inp.models, 1)


MODEL = model_of(share_fitting=True)
ONE = MODEL.tasks[0]


def parameters(model: Any) -> list[str]:
    return [path for path, kind, *_ in walk(model) if kind is Kind.PARAM]


def test_patterns_of_one_model() -> None:
    assert frozen_paths(ONE, ["descriptor.*"]) == tuple(p for p in parameters(ONE) if p.startswith("descriptor."))
    assert frozen_paths(ONE, ["*.b", "fitting.networks.0.layers.0.?"]) == tuple(
        p for p in parameters(ONE) if p.endswith(".b") or (p.startswith("fitting.networks.0.layers.0.")
        and len(p.rsplit(".", 1)[-1]) == 1)
    )  # fmt: skip
    assert frozen_paths(ONE, []) == ()
    assert all("davg" not in path and "bias" not in path for path in frozen_paths(ONE, ["*"]))


@pytest.mark.parametrize(
    "pattern",
    ["water.descriptor.*", "ice.descriptor.*", "tasks.0.descriptor.*", "tasks.1.descriptor.*", "*.descriptor.*"],
)
def test_what_tasks_share_is_frozen_for_all_and_named_once(pattern: str) -> None:
    expected = tuple(p for p in parameters(MODEL) if p.startswith("tasks.0.descriptor."))
    assert frozen_paths(MODEL, [pattern]) == expected != ()


def test_names_of_tasks_may_have_dots() -> None:
    model = model_of().replace(names=("v1", "v1.5"))
    for name, number in (("v1", 0), ("v1.5", 1)):
        expected = tuple(p for p in parameters(model) if p.startswith(f"tasks.{number}.fitting."))
        assert frozen_paths(model, [f"{name}.fitting.*"]) == expected != ()


def test_what_a_task_has_alone_is_frozen_alone() -> None:
    model = model_of()
    expected = tuple(p for p in parameters(model) if p.startswith("tasks.1.fitting."))
    assert frozen_paths(model, ["ice.fitting.*"]) == expected != ()


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("descripter.*", r"'descripter\.\*' matches no parameter; did you mean one of descriptor\.\*"),
        ("descriptor.embeddings.0.layers.0.w", r"near are descriptor\.nets\.0\.layers\.0\.w|near are descriptor\."),
        ("fitting.out_bias", "matches no parameter; "),
        ("zzz", r"matches no parameter; they are descriptor\."),
        ("descriptor.davg", "matches no parameter; "),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_near_paths(pattern: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        frozen_paths(ONE, [pattern])


def test_near_paths_of_several_tasks() -> None:
    with pytest.raises(
        InputError, match=r"'ice\.descripter\.\*' matches no parameter; did you mean one of .*tasks\.1\.descriptor\.\*"
    ):
        frozen_paths(MODEL, ["descriptor.*", "ice.descripter.*"][1:])
    with pytest.raises(InputError, match=r"'descriptor\.\*' matches no parameter"):
        frozen_paths(MODEL, ["descriptor.*"])
