"""An exponential moving average of parameters.

After every update shadow += (1 - decay) (parameter - shadow), from the parameters as they were at first; nothing is
corrected for the beginning. All floating-point parameters are followed, frozen ones too, so that they may be thawed
later; buffers are not: an averaged model has those of the model in training. The shadow lies as the parameters do: whole
on every rank up to stage 1, sharded from stage 2 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from dpmodel.errors import InputError

from .store import Store, local

__all__ = ["Average"]


class Average:
    """The shadow of a store's parameters."""

    def __init__(self, store: Store, decay: float) -> None:
        self.store, self.decay = store, decay
        self._parameters = {n: p for n, p in store.parameters.items() if p.dtype.is_floating_point}
        self._shadow = {name: p.detach().clone() for name, p in self._parameters.items()}

    def update(self) -> None:
        """The parameters have changed."""
        if self._shadow:
            with torch.no_grad():
                torch._foreach_lerp_(
                    [local(value) for value in self._shadow.values()],
                    [local(p) for p in self._parameters.values()],
                    1.0 - self.decay,
                )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters have the values of the average; afterwards their own, whatever happens."""
        pairs = [(local(p), local(self._shadow[name])) for name, p in self._parameters.items()]
        before = [p.clone() for p, _ in pairs]
        try:
            with torch.no_grad():
                for p, value in pairs:
                    p.copy_(value)
            yield
        finally:
            with torch.no_grad():
                for (p, _), value in zip(pairs, before, strict=True):
                    p.copy_(value)

    def state(self) -> dict[str, np.ndarray]:
        """The shadow, whole on every rank. Collective."""
        return self.store.gather(self._shadow)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take it back, whole from every rank. Raises InputError where names or shapes do not fit."""
        missing, unknown = sorted(self._shadow.keys() - state.keys()), sorted(state.keys() - self._shadow.keys())
        if missing or unknown:
            raise InputError(
                f"the averaged parameters do not fit this model: missing {missing[:4] or 'nothing'}, unknown "
                f"{unknown[:4] or 'nothing'}. Go on with the same input, or begin anew with --init-model"
            )
        for name, value in self._shadow.items():
            if np.shape(state[name]) != tuple(value.shape):
                raise InputError(
                    f"averaged parameter {name}: expected shape {tuple(value.shape)}, got {np.shape(state[name])}"
                )
        with torch.no_grad():
            for name, value in self._shadow.items():
                local(value).copy_(local(self.store.part(name, state[name])))
