"""Iterations that make matrices orthogonal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from dpmodel.backends.pt.optimizers.orthogonal import (
    _OPTIMAL,
    JORDAN,
    POLAR_EXPRESS,
    PRECISE,
    PUBLISHED,
    Quintic,
    gram_newton_schulz,
    newton_schulz,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = [(8, 8), (5, 12), (12, 5), (1, 7), (3, 4, 9), (2, 6, 6)]


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mapped(matrix: torch.Tensor, coefficients: Sequence[Quintic]) -> torch.Tensor:
    """The matrix with its singular values mapped by the quintics."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag_embed(s) @ vh


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coefficients", [PUBLISHED, PRECISE, POLAR_EXPRESS], ids=["published", "precise", "polar"])
def test_iterations_map_singular_values(shape: tuple[int, ...], coefficients: Sequence[Quintic]) -> None:
    matrix = random(shape)
    expected = mapped(matrix, coefficients)
    assert torch.allclose(newton_schulz(matrix, coefficients), expected, rtol=0, atol=1e-11)
    for restart in (0, 1, 2, len(coefficients)):
        assert torch.allclose(gram_newton_schulz(matrix, coefficients, restart=restart), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = random(shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert (newton_schulz(matrix, PRECISE) - u @ vh).abs().max() < 1e-3
    values = torch.linalg.svdvals(gram_newton_schulz(matrix))
    assert values.min() > 0.8 and values.max() < 1.15


@pytest.mark.parametrize("shape", SHAPES)
def test_lower_precision(shape: tuple[int, ...]) -> None:
    matrix = random(shape, torch.float32)
    found = newton_schulz(matrix, PRECISE)
    assert found.dtype == torch.bfloat16
    assert (found.double() - mapped(matrix.double(), PRECISE)).abs().max() < 0.03
    found = gram_newton_schulz(matrix)
    assert (found.double() - mapped(matrix.double(), POLAR_EXPRESS)).abs().max() < 1e-4


def test_zero_and_tiny_matrices() -> None:
    for function in (lambda x: newton_schulz(x, PRECISE), gram_newton_schulz):
        assert not function(torch.zeros(3, 5, dtype=torch.float64)).any()
        tiny = random((3, 5)) * 1e-5
        assert torch.allclose(function(tiny), function(tiny * 1e4), rtol=0, atol=1e-10)


def test_polar_express_is_the_best_approximation() -> None:
    """The coefficients from the publication's definition: Remez on the interval that is left, centred on 1."""
    low, high = 1e-3, 1.0
    for expected in _OPTIMAL:
        left = max(low, 0.02407327424182761 * high)
        inner, outer = (3 * left + high) / 4, (left + 3 * high) / 4
        for _ in range(60):
            points = np.array([left, inner, outer, high])
            system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], 1)
            a, b, c, _ = np.linalg.solve(system, np.ones(4))
            root = np.sqrt(9 * b * b - 20 * a * c)
            inner, outer = np.sqrt((-3 * b - root) / (10 * c)), np.sqrt((-3 * b + root) / (10 * c))
        ends = [a * x + b * x**3 + c * x**5 for x in (low, high)]
        factor = 2 / sum(ends)
        assert np.allclose([a * factor, b * factor, c * factor], expected, rtol=1e-8)
        low = ends[0] * factor
        high = 2 - low
    assert POLAR_EXPRESS[0] == pytest.approx(
        (_OPTIMAL[0][0] / 1.05, _OPTIMAL[0][1] / 1.05**3, _OPTIMAL[0][2] / 1.05**5)
    )
    assert sum(JORDAN) == pytest.approx(0.701)
