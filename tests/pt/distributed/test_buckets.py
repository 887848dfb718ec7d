"""Gradients and parameters travel in messages of some size; the numbers do not depend on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_numbers_do_not_depend_on_the_size_of_messages(pair: Any, stage: int) -> None:
    options = {"multi": True, "ema": False, "optimizer": "Adam", "stage": stage, "last": 2}
    one, many = pair("buckets:cell", None, **options), pair("buckets:cell", 20, **options)
    assert one[0]["messages"] < many[0]["messages"]
    for whole, parts in zip(one, many, strict=True):
        for kind in ("gradients", "parameters"):
            assert whole[kind].keys() == parts[kind].keys() and whole[kind]
            for name, value in whole[kind].items():
                np.testing.assert_allclose(parts[kind][name], value, rtol=1e-14, atol=1e-15, err_msg=f"{kind} {name}")


@pytest.mark.parametrize("stage", [2, 3])
def test_operators_on_sharded_tensors_exchange_nothing(pair: Any, stage: int) -> None:
    """They would do so one parameter at a time, and outside of what tells the end of another process."""
    for operators, collectives in pair("buckets:hidden", stage):
        assert operators > 100 and collectives == []
