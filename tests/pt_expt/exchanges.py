"""Small exchanges that the tests of the operators share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpmodel.backends.pt_expt.ghosts import Provider

N, OWNER = 5, np.array([0, 3, 3, 1, 4, 3])
M = N + len(OWNER)

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def handle_of(provider: Provider) -> torch.Tensor:
    return torch.as_tensor(provider.handle)


class Elsewhere(Provider):
    """Ghosts whose owners are in another process: they hold ones; what is sent home is kept."""

    def forward(self, rows, n_owned):
        rows[n_owned:] = 1.0

    def reverse(self, rows, n_owned):
        self.sent = rows[n_owned:].copy()
