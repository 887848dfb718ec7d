"""Adam and AdamW by optax, and their state as checkpoints have it.

All parameters of a type are one long vector, so that few operations are compiled however many there are. Every number
has a step count of its own: parameters without a gradient are not moved, not decayed, and their steps do not count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from dpmodel.errors import BackendError, InputError
from dpmodel.training.stepper import OptimizerState

__all__ = ["Adam"]

_MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
"""Names of the moments: in checkpoints, in optax."""

Arrays = Mapping[str, Any]
"""By path."""
State = dict[str, Any]
"""`optax.ScaleByAdamState` by type of parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015), or AdamW (Loshchilov and Hutter 2019) where the decay is decoupled."""

    beta1: float
    beta2: float
    decay: float
    decoupled: bool

    @classmethod
    def of(cls, config: Any) -> Adam:
        """That of an `optimizer` section. Raises BackendError for another kind."""
        if config.key not in ("Adam", "AdamW"):
            raise BackendError(
                f"optimizer: the jax backend trains with Adam and AdamW, not with {config.key}; use one of them, or "
                "--backend pt"
            )
        return cls(
            beta1=config.adam_beta1, beta2=config.adam_beta2, decay=config.weight_decay, decoupled=config.key == "AdamW"
        )

    @property
    def _scale(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.beta1, self.beta2, eps=1e-8)

    def start(self, parameters: Arrays) -> State:
        """The state before the first step."""
        found = {}
        for dtype in sorted({str(value.dtype) for value in parameters.values()}):
            size = sum(parameters[path].size for path in _paths(parameters, dtype))
            found[dtype] = self._scale.init(jnp.zeros(size, dtype))._replace(count=jnp.zeros(size, jnp.int32))
        return found

    def step(self, parameters: Arrays, slopes: Arrays, state: State, lr: Any) -> tuple[dict[str, Any], State]:
        """New parameters and state; a parameter that `slopes` lacks, and its state, stay as they are."""
        new, states = dict(parameters), dict(state)
        for dtype, before in state.items():
            paths = _paths(parameters, dtype)
            x = _concatenated([parameters[path] for path in paths])
            slope = _concatenated([slopes.get(path, jnp.zeros_like(parameters[path])) for path in paths])
            update, after = self._scale.update(
                slope if self.decoupled or not self.decay else slope + self.decay * x, before
            )
            if self.decoupled and self.decay:
                update = update + self.decay * x
            moved = optax.apply_updates(x, -lr * update)
            has = np.concatenate([np.full(parameters[path].size, path in slopes) for path in paths])
            after = type(before)(*(jnp.where(has, new, old) for new, old in zip(after, before, strict=True)))
            new |= {path: part for path, part in _cut(parameters, dtype, moved).items() if path in slopes}
            states[dtype] = after
        return new, states

    def export(self, state: State, parameters: Arrays) -> OptimizerState:
        """The state by slot and path, for parameters that had a gradient."""
        found: OptimizerState = {name: {} for name in (*_MOMENTS, "step")}
        for dtype, each in state.items():
            steps = {
                path: int(count.max(initial=0)) for path, count in _cut(parameters, dtype, np.array(each.count)).items()
            }
            for path, step in steps.items():
                if step > 0:
                    found["step"][path] = np.asarray(float(step))
            for name, field in _MOMENTS.items():
                moments = _cut(parameters, dtype, np.array(getattr(each, field)))
                found[name] |= {path: part for path, part in moments.items() if steps[path] > 0}
        return found

    def restored(self, state: OptimizerState, parameters: Arrays) -> State:
        """The inverse of `export`, whatever backend wrote it. Raises InputError where names or shapes do not fit."""
        slots = {name: state[name] for name in (*_MOMENTS, "step") if name in state}
        missing = [name for name in (*_MOMENTS, "step") if name not in slots]
        unknown = sorted({path for slot in slots.values() for path in slot} - parameters.keys())
        if missing or unknown:
            raise InputError(
                f"the optimizer state does not fit this run: missing {missing or 'nothing'}, for parameters that are not "
                f"trained here {unknown[:4] or 'nothing'}. Go on with the same input, or begin anew with --init-model"
            )
        for name in _MOMENTS:
            for path, value in slots[name].items():
                if np.shape(value) != (shape := parameters[path].shape):
                    raise InputError(f"optimizer state {name} of {path}: expected shape {shape}, got {np.shape(value)}")
        found = {}
        for dtype, each in self.start(parameters).items():
            paths = _paths(parameters, dtype)
            fields = {}
            for name, field in _MOMENTS.items():
                parts = [np.asarray(slots[name].get(path, np.zeros(parameters[path].shape))) for path in paths]
                fields[field] = jnp.asarray(np.concatenate([part.ravel() for part in parts]).astype(dtype))
            steps = [np.full(parameters[path].shape, int(slots["step"].get(path, 0)), np.int32) for path in paths]
            found[dtype] = each._replace(count=jnp.asarray(np.concatenate([part.ravel() for part in steps])), **fields)
        return found


def _paths(parameters: Arrays, dtype: str) -> list[str]:
    return [path for path in sorted(parameters) if str(parameters[path].dtype) == dtype]


def _cut(parameters: Arrays, dtype: str, vector: Any) -> dict[str, Any]:
    """A vector over all parameters of a type, by path."""
    found, first = {}, 0
    for path in _paths(parameters, dtype):
        last = first + parameters[path].size
        found[path] = vector[first:last].reshape(parameters[path].shape)
        first = last
    return found


def _concatenated(parts: list[Any]) -> Any:
    return jnp.concatenate([jnp.ravel(part) for part in parts])
