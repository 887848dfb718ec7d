"""The state of an optimizer as checkpoints have it: slots by path of the parameter, whole, the same for every stage.

Slots are arrays of the shape of their parameter, which lie as it does, or smaller ones that every rank has whole.
`optimizers.SLOTS` names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dpmodel.errors import InputError
from dpmodel.training.stepper import OptimizerState

from .store import Store

__all__ = ["load_slots", "read_slots"]


def read_slots(
    optimizer: torch.optim.Optimizer | None,
    trained: Mapping[str, torch.nn.Parameter],
    store: Store,
    names: Sequence[str],
) -> OptimizerState:
    """All slots, whole on every rank; those of a parameter that never had a gradient are absent. Collective.

    optimizer: None where this rank updates nothing. names: of the slots.
    """
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for path in store.owned(list(trained)):
        slots = {} if optimizer is None else optimizer.state.get(trained[path], {})
        for name in names:
            if name in slots:
                found[name][path] = torch.as_tensor(slots[name])
    return store.slots(found, list(trained))


def load_slots(
    optimizer: torch.optim.Optimizer | None,
    trained: Mapping[str, torch.nn.Parameter],
    store: Store,
    names: Sequence[str],
    state: OptimizerState,
) -> None:
    """The inverse. Raises InputError where names or shapes do not fit, before anything is changed."""
    missing = [name for name in names if name not in state]
    own = {name: state[name] for name in names if name in state}  # other backends may have more
    unknown = sorted({path for slot in own.values() for path in slot} - trained.keys())
    if missing or unknown:
        raise InputError(
            f"the optimizer state does not fit this run: missing {missing or 'nothing'}, for parameters that are not "
            f"trained here {unknown[:4] or 'nothing'}. Go on with the same input, or begin anew with --init-model"
        )
    for name, slot in own.items():
        for path, value in slot.items():
            shape, expected = np.shape(value), tuple(trained[path].shape)
            if shape not in ((), expected, expected[:-2]):  # the last: one number for each matrix of a stack
                raise InputError(f"optimizer state {name} of {path}: expected shape {expected}, got {shape}")
    for path in store.owned(list(trained)):
        slots = {name: np.asarray(slot[path]) for name, slot in own.items() if path in slot}
        if slots and optimizer is not None:
            optimizer.state[trained[path]] = {
                name: _slot(store, path, trained[path], name, v) for name, v in slots.items()
            }


def _slot(store: Store, path: str, p: torch.Tensor, name: str, value: np.ndarray) -> torch.Tensor:
    if name == "step":  # the fused optimizers count in float32 on the parameter's device
        return torch.tensor(float(value), dtype=torch.float32, device=store.device)
    if value.shape == tuple(p.shape):
        return store.part(path, value)
    return torch.tensor(value, device=store.device)
