"""The nearest (semi-)orthogonal matrix by products of matrices alone: U V^T for G = U S V^T, roughly.

Every iteration maps the singular values by an odd quintic, x -> a x + b x^3 + c x^5, after the matrix was divided by its
Frobenius norm. Which coefficients are used:

- `JORDAN` (3.4445, -4.7750, 2.0315): Jordan et al., "Muon" (2024). Steep at 0, does not converge: five iterations bring
  singular values into about [0.7, 1.2].
- `POLISH` (2, -1.5, 0.5): fixed point 1 with slope 0; two of them after eight of Jordan's bring singular values above 1e-3
  of the norm to within 1e-3 of 1. This schedule, `PRECISE`, is for square matrices.
- `POLAR_EXPRESS`: Amsel et al., "The Polar Express" (arXiv 2505.16932): the quintic of each iteration is the best
  approximation of 1 (Remez) on the interval to which the ones before have brought [1e-3, 1], lower ends of intervals
  held above 0.02407327424182761 of the upper ends, centred on 1. The first five, with x -> x / 1.05 for rounding.

Numbers: in bfloat16 (Gram form: float16, the norm in float32), as published; in float64 where the matrix is float64, so
that runs can be compared with each other. The Gram form on the CPU is in float32, which is faster there than float16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["JORDAN", "POLAR_EXPRESS", "POLISH", "PRECISE", "PUBLISHED", "gram_newton_schulz", "newton_schulz"]

Quintic = tuple[float, float, float]

JORDAN: Quintic = (3.4445, -4.7750, 2.0315)
POLISH: Quintic = (2.0, -1.5, 0.5)
PUBLISHED: tuple[Quintic, ...] = (JORDAN,) * 5
"""Of Jordan et al., and of `torch.optim.Muon`."""
PRECISE: tuple[Quintic, ...] = (JORDAN,) * 8 + (POLISH,) * 2

_OPTIMAL: tuple[Quintic, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
POLAR_EXPRESS: tuple[Quintic, ...] = tuple((a / 1.05, b / 1.05**3, c / 1.05**5) for a, b, c in _OPTIMAL)

_SMALLEST = 1e-7
"""Of the norm that a matrix is divided by: a zero stays zero."""


def newton_schulz(matrix: torch.Tensor, coefficients: Sequence[Quintic]) -> torch.Tensor:
    """Iterate on the matrix. (..., m, n) -> the same shape, in float64 or bfloat16."""
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=_SMALLEST)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = _fused(x, _fused(gram, gram, gram, b, c), x, a, 1.0)
    return x.mT if tall else x


def gram_newton_schulz(
    matrix: torch.Tensor, coefficients: Sequence[Quintic] = POLAR_EXPRESS, *, restart: int = 2
) -> torch.Tensor:
    """Iterate on the Gram matrix of the shorter side. (..., m, n) -> the same shape, in float64, float32 or float16.

    With R = X X^T and the quintic written X -> (a + b R + c R^2) X, the product Q of these factors and R are iterated,
    (k, k) with k = min(m, n), and Q X is formed at the end; before iteration `restart` as well, from which R is computed
    anew: that keeps half precision from drifting ("Gram Newton-Schulz", tridao.me/blog/2026/gram-newton-schulz).
    """
    exact = matrix.dtype == torch.float64
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x if exact else x.float()
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=_SMALLEST)
    x = x if exact or x.device.type == "cpu" else x.half()
    eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    r, q = x @ x.mT, None
    for index, (a, b, c) in enumerate(coefficients):
        if index == restart and q is not None:
            x = q @ x
            r, q = x @ x.mT, None
        factor = _fused(r, r, r, b, c) + a * eye
        q = factor if q is None else factor @ q
        if index + 1 not in (restart, len(coefficients)):
            r = factor @ r @ factor
    x = x if q is None else q @ x
    return x.mT if tall else x


def _fused(start: torch.Tensor, left: torch.Tensor, right: torch.Tensor, beta: float, alpha: float) -> torch.Tensor:
    """beta start + alpha left right, of matrices or stacks of them."""
    function = torch.addmm if start.ndim == 2 else torch.baddbmm
    return function(start, left, right, beta=beta, alpha=alpha)
