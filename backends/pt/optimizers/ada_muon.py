"""AdaMuon (Si et al., arXiv 2507.11005, 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .muon import Muon, scale_of
from .orthogonal import PUBLISHED, newton_schulz
from .shards import AdamRoute, local, part, sharded

__all__ = ["AdaMuon"]


class AdaMuon(Muon):
    """Arrays of two or more axes, reshaped to (first, rest) = (m, n), with b the momentum's decay::

        M = b M + (1 - b) g
        U = (1 - b) g + b M
        O = NS(sign(U))                       five iterations of Jordan's coefficients (see `orthogonal`)
        v = b v + (1 - b) O^2                 element-wise
        O = O / (sqrt(v) + 1e-8)
        O = 0.2 sqrt(m n) O / (||O|| + 1e-8)  root mean square 0.2, that of AdamW's steps
        p = p (1 - lr weight_decay) - lr s O  s: `scale_of`

    Vectors: Adam in float32 with lr, or lr / lr_adjust, without decay.
    State: momentum_buffer (the parameter's type), v_buffer (float32), or exp_avg, exp_avg_sq (float32), step.
    """

    def __init__(
        self, named: Sequence[tuple[str, torch.nn.Parameter]], *, lr: float, momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 1e-3, lr_adjust: float = 10.0,
        lr_adjust_coeff: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__(
            named, lr=lr, momentum=momentum, weight_decay=weight_decay, lr_adjust=lr_adjust,
            lr_adjust_coeff=lr_adjust_coeff, adam=AdamRoute(betas=betas, eps=1e-8),
        )  # fmt: skip

    def route(self, name: str, shape: tuple[int, ...]) -> str:
        """Vectors and scalars by Adam, all else by Muon."""
        return "muon" if len(shape) >= 2 else "adam"

    def muon_step(self, parameters: Sequence[Any], lr: float) -> None:
        """See `Muon.muon_step`."""
        for p in parameters:
            state = self.state[p]
            update = self.nesterov(p, self.accumulate(p))
            m, n = p.shape[0], p.numel() // p.shape[0]
            matrix = newton_schulz(update.sign().reshape(m, n), PUBLISHED).to(p.dtype).reshape(p.shape)
            if "v_buffer" not in state:
                state["v_buffer"] = torch.zeros_like(p, dtype=torch.float32)
            v, mine = local(state["v_buffer"]), part(matrix, p)
            v.lerp_((mine * mine).float(), 1 - self.momentum)
            step = mine / (v.sqrt() + 1e-8).to(p.dtype)
            step = step * (0.2 * math.sqrt(m * n) / (_norm(step, p) + 1e-8))
            self.move(p, step, lr, scale_of(m, n, self.lr_adjust, self.lr_adjust_coeff))


def _norm(mine: torch.Tensor, like: Any) -> torch.Tensor:
    """The norm of a whole matrix, from this rank's part of it. In float64: hardly any order of summation shows."""
    square = (mine.double() ** 2).sum()
    if sharded(like):
        for axis, placement in enumerate(like.placements):
            if placement.is_shard():
                torch.distributed.all_reduce(square, group=like.device_mesh.get_group(axis))
    return square.sqrt().to(mine.dtype)
