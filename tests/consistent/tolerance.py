"""Comparison of outputs, as the library states its tolerances: relative to max(1, max abs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["assert_close", "distance"]


def distance(ours: Any, expected: Any) -> float:
    """max |ours - expected| / max(1, max |expected|); infinite for other shapes, NaN or infinite numbers."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    if ours.shape != expected.shape or not np.all(np.isfinite(ours)):
        return np.inf
    return float(np.max(np.abs(ours - expected), initial=0.0) / max(1.0, np.max(np.abs(expected), initial=0.0)))


def assert_close(ours: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> None:
    """Every output of `expected` is in `ours`, of the same dtype, within the tolerance."""
    for key, value in expected.items():
        assert ours[key].dtype == value.dtype, key
        found = distance(ours[key], value)
        assert found <= tolerance, f"{key}: {found:.1e} from the expected values, {tolerance:.0e} allowed"
