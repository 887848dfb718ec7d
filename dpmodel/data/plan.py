"""Batch sizes and probabilities of systems: the forms an input file may use, and what they mean.

batch_size      4            the same for every system          [4, 8]     one per system
                "auto:n"     ceil(n / atoms); "auto" = "auto:32"
                "max:n"      max(1, floor(n / atoms))
                "filter:n"   systems above n atoms are left out, then as "max:n"
                "mixed:n"    n frames, each drawn by itself from any system
auto_prob       "prob_uniform"      1 / number of systems
                "prob_sys_size"     in proportion to the number of batches
                "prob_sys_size;a:b:w;c:d:x"     systems a to b - 1 (as in Python) share weight w, and so on
sys_probs       explicit; negative entries share the remainder in proportion to the number of batches
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpmodel.errors import DataError, InputError

__all__ = ["batch_sizes", "mixed_frames", "probabilities", "total_batches"]

log = logging.getLogger(__name__)

Probabilities = NDArray[np.float64]


def batch_sizes(batch_size: int | str | Sequence[int], natoms: Sequence[int]) -> list[int | None]:
    """The batch size of every system; None for systems that "filter:n" leaves out.

    With "mixed:n" frames are drawn one by one: 1. Raises InputError for other forms and a list of the wrong length;
    DataError where "filter:n" leaves nothing.
    """
    if isinstance(batch_size, str):
        return _rule(batch_size, natoms)
    sizes: list[Any] = list(batch_size) if isinstance(batch_size, list | tuple) else [batch_size] * len(natoms)
    if any(isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1 for size in sizes):
        raise InputError(f"batch_size: expected integers above 0, got {batch_size!r}")
    if len(sizes) != len(natoms):
        raise InputError(
            f"batch_size: expected one number for each of the {len(natoms)} systems that were found, got {len(sizes)}"
        )
    return [int(size) for size in sizes]


def mixed_frames(batch_size: int | str | Sequence[int]) -> int:
    """n of "mixed:n"; 0 for every other form."""
    form = re.fullmatch(r"mixed:([1-9]\d*)", batch_size) if isinstance(batch_size, str) else None
    return int(form.group(1)) if form else 0


def _rule(text: str, natoms: Sequence[int]) -> list[int | None]:
    form = re.fullmatch(r"auto|(auto|max|filter|mixed):([1-9]\d*)", text)
    if form is None:
        raise InputError(
            f'batch_size: expected a number, a list, "auto", "auto:n", "max:n", "filter:n" or "mixed:n" (n above 0), '
            f"got {text!r}"
        )
    rule, number = form.group(1) or "auto", int(form.group(2) or 32)
    if rule == "mixed":
        return [1 for _ in natoms]
    if rule == "auto":
        return [math.ceil(number / n) for n in natoms]
    sizes: list[int | None] = [max(1, number // n) for n in natoms]
    if rule == "filter":
        sizes = [size if n <= number else None for size, n in zip(sizes, natoms, strict=True)]
        if all(size is None for size in sizes):
            raise DataError(f"batch_size {text!r} leaves no system: the smallest has {min(natoms)} atoms")
    return sizes


def probabilities(auto_prob: str, sys_probs: Sequence[float] | None, nbatches: Sequence[int]) -> Probabilities:
    """(nsystems,) how often each system is drawn; sums to 1. `sys_probs` goes before `auto_prob`.

    Raises InputError for malformed values, a wrong length, and weights that cannot be met.
    """
    size = np.asarray(nbatches, np.float64)
    if sys_probs is not None:
        out = _explicit(list(sys_probs), size)
    elif auto_prob == "prob_uniform":
        out = np.ones(len(size))
    elif auto_prob == "prob_sys_size":
        out = size
    else:
        out = _blocks(auto_prob, size)
    share: Probabilities = out / out.sum()
    return share


def _explicit(given: list[float], size: Probabilities) -> Probabilities:
    if len(given) != len(size):
        raise InputError(f"sys_probs: expected one value for each of the {len(size)} systems found, got {len(given)}")
    out = np.asarray(given, np.float64)
    shares = out < 0
    total = float(out[~shares].sum())
    if not np.all(np.isfinite(out)) or total > 1 + 1e-6:
        raise InputError(f"sys_probs: expected finite values of at least 0 with a sum of at most 1, got {given}")
    if not shares.any():
        # Rounded values such as three times 0.33 are meant to be complete; much less than 1 is a mistake.
        if total < 0.98:
            raise InputError(f"sys_probs: expected a sum of 1, got {total:g}; systems that share the rest are -1")
        return out
    rest = max(0.0, 1.0 - total)
    if rest < 1e-9:
        log.warning("sys_probs: nothing is left for systems %s; they are never drawn", np.flatnonzero(shares).tolist())
    return np.where(shares, rest * size / size[shares].sum(), out)


def _blocks(text: str, size: Probabilities) -> Probabilities:
    head, *parts = text.replace(" ", "").split(";")
    if head != "prob_sys_size" or not parts:
        raise InputError(
            f'auto_prob: expected "prob_uniform", "prob_sys_size" or "prob_sys_size;first:end:weight;...", got {text!r}'
        )
    out, taken = np.zeros(len(size)), np.zeros(len(size), bool)
    for part in parts:
        form = re.fullmatch(r"(-?\d+)?:(-?\d+)?:((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", part)
        if form is None:
            raise InputError(f"auto_prob: expected blocks first:end:weight such as 0:3:0.5, got {part!r}")
        first, end = (int(x) if x else None for x in form.group(1, 2))
        weight = float(form.group(3))
        block = np.zeros(len(size), bool)
        block[first:end] = True
        if not block.any() or (block & taken).any() or not 0 <= weight < math.inf:
            raise InputError(
                f"auto_prob: block {part!r} must have a weight of at least 0 and hold systems (0 to {len(size) - 1}) "
                f"that are in no other block"
            )
        taken |= block
        out[block] = weight * size[block] / size[block].sum()
    if not out.sum() > 0:
        raise InputError(f"auto_prob: expected at least one weight above 0, got {text!r}")
    if not taken.all():
        log.warning("auto_prob: systems %s are in no block and never drawn", np.flatnonzero(~taken).tolist())
    return out


def total_batches(nbatches: Sequence[int], probability: Probabilities) -> int:
    """Length of an epoch: ceil(max_i n_i / p_i) over systems that are drawn at all.

    The expected number of draws until the system that is covered worst has been seen once.
    """
    drawn = probability > 0
    # p_i is n_i / sum n for the default probabilities, so the quotient is an integer up to rounding.
    longest = float(np.max(np.asarray(nbatches, np.float64)[drawn] / probability[drawn]))
    return max(1, math.ceil(longest * (1 - 1e-12)))
