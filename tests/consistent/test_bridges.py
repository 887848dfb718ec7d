"""Bridges and files give back what they were given: classes, options, and every bit of every array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dpmodel.backends.jax.bridge import double_precision, from_jax, to_jax
from dpmodel.backends.pt import OVERRIDES as PT_OVERRIDES
from dpmodel.backends.pt.bridge import from_torch, to_torch
from dpmodel.config import Config
from dpmodel.descriptors import HybridConfig
from dpmodel.files.model_file import ModelFile, read_model, write_model
from dpmodel.op import Kind, Op, walk

from .cases import each_case, model_of


def assert_same(a: Any, b: Any, path: str = "model", *, options: bool = True) -> None:
    """Two Op trees are equal. `options` False: options that only steer random starts may differ."""
    assert type(a) is type(b), path
    for name, kind in a.fields():
        x, y, where = getattr(a, name), getattr(b, name), f"{path}.{name}"
        if kind is Kind.STATIC:
            if not options and isinstance(x, Config):
                x, y = comparable(x), comparable(y)
            if name == "activation":  # two names of one function
                x, y = ("linear" if value == "none" else value for value in (x, y))
            assert x == y, where
        elif kind is Kind.CHILD:
            left, right = ((v,) if isinstance(v, Op) or v is None else v for v in (x, y))
            assert isinstance(x, tuple) == isinstance(y, tuple), where
            for k, (p, q) in enumerate(zip(left, right, strict=True)):
                if p is None or q is None:
                    assert p is q, where
                else:
                    assert_same(p, q, f"{where}.{k}", options=options)
        elif x is None or y is None:
            assert x is y, where
        else:
            assert isinstance(y, np.ndarray), where
            assert x.dtype == y.dtype, where
            np.testing.assert_array_equal(x, y, err_msg=where)


def comparable(config: Config) -> dict[str, Any]:
    """Seeds are not stored; precisions are, as dtypes; `trainable` may be spelled per layer."""
    values = {
        name: getattr(config, name) for name in config.options() if name not in ("seed", "precision", "trainable")
    }
    if hasattr(config, "layer_trainable"):
        values["layer_trainable"] = config.layer_trainable()
    elif "trainable" in config.options():
        values["trainable"] = config.trainable
    if isinstance(config, HybridConfig):
        values["list"] = [comparable(part) for part in config.parts]
    return values


@each_case
@pytest.mark.parametrize("suffix", [".dp", ".yaml", ".json"])
def test_files(case: str, suffix: str, tmp_path: Path) -> None:
    path, again = tmp_path / f"model{suffix}", tmp_path / f"again{suffix}"
    file = ModelFile(model=model_of(case), definition={"type_map": list(model_of(case).type_map)}, min_nbor_dist=0.9)
    write_model(path, file)
    read = read_model(path)
    assert_same(file.model, read.model, options=False)
    assert (read.definition, read.min_nbor_dist) == (file.definition, file.min_nbor_dist)
    write_model(again, read)
    twice = read_model(again)
    assert_same(read.model, twice.model)
    assert (twice.definition, twice.min_nbor_dist) == (read.definition, read.min_nbor_dist)


@each_case
def test_torch(case: str) -> None:
    model = model_of(case)
    module = to_torch(model, overrides=PT_OVERRIDES)
    assert_same(model, from_torch(module))
    assert list(module.state_dict()) == list(dict.fromkeys([*dict(module.state_dict())]))
    assert set(module.state_dict()) == set(model.state())
    trainable = {path for path, kind, _, trains in walk(model) if trains and kind is Kind.PARAM}
    assert {name for name, p in module.named_parameters() if p.requires_grad} == trainable
    assert {name for name, _ in module.named_parameters()} == {
        path for path, kind, _, _ in walk(model) if kind is Kind.PARAM
    }


@each_case
def test_jax(case: str) -> None:
    model = model_of(case)
    with double_precision():
        tree = to_jax(model)
        assert_same(model, from_jax(tree))
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    assert set(paths) == set(model.state())


@each_case
def test_state(case: str) -> None:
    model = model_of(case)
    changed = {path: value + 1 for path, value in model.state().items()}
    other = model.with_state(changed)
    for path, value in other.state().items():
        np.testing.assert_array_equal(value, changed[path], err_msg=path)
    assert_same(other.with_state(model.state()), model)
