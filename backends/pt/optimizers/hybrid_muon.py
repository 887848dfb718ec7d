"""HybridMuon: Muon for matrices (Jordan et al. 2024, Moonlight's scale), Adam for the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .muon import Muon, scale_of
from .orthogonal import PRECISE, Quintic, gram_newton_schulz, newton_schulz
from .shards import AdamRoute, part, sharded, whole

__all__ = ["HybridMuon", "leaf", "matrices"]


class HybridMuon(Muon):
    """Routes, by the last part of the parameter's path (case and numbers at its end do not count) and its shape::

        "b", names with "bias", "adam_..."                    Adam without decay
        "adamw_..."                                           AdamW
        vectors: fewer than two axes longer than 1            Adam without decay
        no matrix in this mode, or a side below `min_side`    AdamW
        else                                                  Muon

    Muon, per matrix (m, n), with b the momentum's decay::

        M = b M + (1 - b) g
        U = (1 - b) g + b M
        O = orthogonal(U)    square: `newton_schulz` with PRECISE; else `gram_newton_schulz`, or as square without `gram`
        p = p (1 - lr weight_decay) - lr s d O    s: `scale_of`

    d is 1, or with `magma` the damping 0.1 + 0.9 a, where the alignment a (0.5 at first) follows the cosine of M and g:
    a = 0.9 a + 0.1 f(cos), f(x) = (sigmoid(x / 2) - sigmoid(-1/2)) / (sigmoid(1/2) - sigmoid(-1/2)). (Joo et al., arXiv
    2602.15322, without its random masks, and with the sigmoid stretched to [0, 1].)

    Adam and AdamW: moments in float32, eps 1e-20, with lr, or lr / lr_adjust if that is above 0.
    Its blocks are the parameters: stacks of matrices have one damping.
    State: momentum_buffer (the parameter's type) and magma_score (a, float32 scalar), or exp_avg, exp_avg_sq (float32), step.
    """

    def __init__(
        self, named: Sequence[tuple[str, torch.nn.Parameter]], *, lr: float, momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 1e-3, lr_adjust: float = 0.0,
        lr_adjust_coeff: float = 0.18, mode: str = "slice", gram: bool = True, magma: bool = True, min_side: int = 1,
        coefficients: Sequence[Quintic] = PRECISE,
    ) -> None:  # fmt: skip
        self.mode = mode
        self.gram = gram
        self.magma = magma
        self.min_side = min_side
        self.coefficients = tuple(coefficients)
        super().__init__(
            named, lr=lr, momentum=momentum, weight_decay=weight_decay, lr_adjust=lr_adjust,
            lr_adjust_coeff=lr_adjust_coeff, adam=AdamRoute(betas=betas, eps=1e-20),
        )  # fmt: skip

    def route(self, name: str, shape: tuple[int, ...]) -> str:
        """See the class."""
        last = leaf(name)
        if last == "b" or "bias" in last or last.startswith("adam_"):
            return "adam"
        if last.startswith("adamw_"):
            return "adamw"
        if sum(size > 1 for size in shape) < 2:
            return "adam"
        found = matrices(shape, self.mode)
        return "muon" if found is not None and min(found[1:]) >= self.min_side else "adamw"

    def muon_step(self, parameters: Sequence[Any], lr: float) -> None:
        """See `Muon.muon_step`. Whole matrices of one shape are orthogonalised together; sharded ones each by itself."""
        together: dict[tuple[int, int], list[tuple[Any, Tensor, Tensor | None]]] = {}
        for p in parameters:
            update, damping = self._update(p)
            _, m, n = _sizes(p, self.mode)
            if sharded(p):
                self._move([(p, update, damping)], (m, n), lr)
            else:
                together.setdefault((m, n), []).append((p, update, damping))
        for sides, entries in together.items():
            self._move(entries, sides, lr)

    def _update(self, p: Any) -> tuple[Tensor, Tensor | None]:
        """The whole update as a stack (k, m, n), and its damping, a scalar."""
        sizes = _sizes(p, self.mode)
        buffer = self.accumulate(p)
        if not self.magma:
            return self.nesterov(p, buffer).reshape(sizes), None
        gradient, mean = whole(p.grad), whole(buffer)
        state = self.state[p]
        if "magma_score" not in state:
            state["magma_score"] = torch.tensor(0.5, device=mean.device)
        state["magma_score"].lerp_(_alignment(mean, gradient), 0.1)
        return gradient.lerp(mean, self.momentum).reshape(sizes), 0.1 + 0.9 * state["magma_score"]

    def _move(
        self, entries: Sequence[tuple[Any, Tensor, Tensor | None]], sides: tuple[int, int], lr: float
    ) -> None:  # fmt: skip
        m, n = sides
        stack = torch.cat([update for _, update, _ in entries]) if len(entries) > 1 else entries[0][1]
        # One matrix as such: what multiplies stacks may round differently.
        stack = stack[0] if stack.shape[0] == 1 else stack
        turned = gram_newton_schulz(stack) if self.gram and m != n else newton_schulz(stack, self.coefficients)
        steps = turned.reshape(-1, m, n).split([update.shape[0] for _, update, _ in entries])
        scale = scale_of(m, n, self.lr_adjust, self.lr_adjust_coeff)
        for (p, _, damping), step in zip(entries, steps, strict=True):
            full = step.to(p.dtype)
            full = full if damping is None else full * damping.to(p.dtype)
            self.move(p, part(full.reshape(p.shape), p), lr, scale)


def leaf(name: str) -> str:
    """The last part of a parameter's path, in lower case, without numbers at the end: "net.1.W_2" and "net.w.0" -> "w"."""
    parts = [text for text in name.lower().split(".") if not text.isdigit()]
    return re.sub(r"_?\d+$", "", parts[-1]) if parts else ""


def matrices(shape: tuple[int, ...], mode: str) -> tuple[int, int, int] | None:
    """(number, rows, columns) of the matrices of an array in a `muon_mode`; None if it holds none. Axes of 1 do not count."""
    sides = tuple(size for size in shape if size > 1)
    if len(sides) < 2 or (mode == "2d" and len(sides) > 2):
        return None
    if mode == "flat":
        return 1, math.prod(sides[:-1]), sides[-1]
    return math.prod(sides[:-2]), sides[-2], sides[-1]


def _sizes(p: Any, mode: str) -> tuple[int, int, int]:
    found = matrices(tuple(p.shape), mode)
    assert found is not None, "only matrices are routed here"
    return found


def _alignment(mean: Tensor, gradient: Tensor) -> Tensor:
    """f(cos) of the class: float32 scalar."""
    norms = torch.linalg.vector_norm(mean) * torch.linalg.vector_norm(gradient)
    cosine = ((mean * gradient).sum() / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(-1, 1)
    low, high = (1 / (1 + math.exp(-x / 2)) for x in (-1, 1))
    return ((torch.sigmoid(cosine / 2) - low) / (high - low)).float()
