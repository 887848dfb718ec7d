"""Parts that tasks share stay one Op on the way to JAX and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpmodel.backends.jax.bridge import from_jax, to_jax
from dpmodel.input import load_input
from dpmodel.models.multi_task import build_tasks

INPUT: dict[str, Any] = {
    "model": {
        "shared_dict": {"own": {"type": "dpa1", "sel": 20, "rcut": 4.0, "neuron": [4], "axis_neuron": 2, "attn_layer": 0}},
        "model_dict": {
            name: {"type_map": ["O", "H"], "descriptor": "own", "fitting_net": {"neuron": [4]}} for name in ("a", "b")
        },
    },
    "learning_rate": {"start_lr": 1e-3},
    "training": {"data_dict": {name: {"training_data": {}} for name in ("a", "b")}, "numb_steps": 1},
}  # fmt: skip


def test_there_and_back() -> None:
    inp = load_input(INPUT)
    model: Any = build_tasks(inp, inp.models, 1)
    there = to_jax(model)
    assert there.tasks[0].descriptor is there.tasks[1].descriptor
    back = from_jax(there)
    assert back.tasks[0].descriptor is back.tasks[1].descriptor  # type: ignore[attr-defined]
    assert back.tasks[0].fitting is not back.tasks[1].fitting  # type: ignore[attr-defined]
    own = model.state()
    assert all(np.allclose(value, own[path]) for path, value in back.state().items())
    moved = there.with_state(
        {path: value for path, value in there.state().items() if path.startswith("tasks.0")}, strict=False
    )
    assert moved.tasks[0].descriptor is moved.tasks[1].descriptor
