"""The training step with compiled gradients: forces, virials and what the optimizer needs of them in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dpmodel.errors import BackendError, InputError
from dpmodel.graph import Graph
from dpmodel.models import HessianRequest
from dpmodel.models.multi_task import MultiTask
from dpmodel.op import Op
from dpmodel.training.stepper import Loss, StepOptions
from dpmodel.training.world import World

from ..pt.bridge import Overrides
from ..pt.training import TorchStepper
from .compile import CompiledStep

__all__ = ["CompiledStepper"]


class CompiledStepper(TorchStepper):
    """As `TorchStepper`; models and their gradients are compiled on the first step, loss and optimizer run eagerly.

    One compilation serves all sizes of batches, and all tasks whose models compute alike: parameters and buffers are
    inputs. Another one is made for every other structure: optional inputs that come or go, parameters that are frozen or
    thawed. Evaluation (`evaluating`) is eager.
    """

    def __init__(
        self,
        model: Op,
        losses: Mapping[str, Loss],
        optimizer: Any,
        *,
        options: StepOptions,
        device: torch.device,
        overrides: Overrides,
        world: World | None = None,
    ) -> None:
        if any("hessian" in loss.outputs for loss in losses.values()):
            raise InputError(
                "loss: start_pref_h and limit_pref_h do not go with training.enable_compile, which has no third "
                "derivatives; remove one or the other"
            )
        if options.amp:
            raise BackendError(
                "training.enable_bf16 does not go with training.enable_compile: what is compiled has the types of "
                "the model; switch one of them off"
            )
        super().__init__(model, losses, optimizer, options=options, device=device, overrides=overrides, world=world)
        models: Mapping[str, Any] = model.models() if isinstance(model, MultiTask) else {"": model}
        # Losses take the dtype of the frames' values for theirs.
        self.compiled = {
            task: CompiledStep(
                self.store.called(task),
                frozenset((each.output().reduced, *losses[task].outputs)),
                derivatives=self._derivatives[task],
            )
            for task, each in models.items()
        }
        self._met: set[str] = set()

    def outputs(
        self,
        graph: Graph,
        *,
        task: str = "",
        create_graph: bool,
        hessian: HessianRequest | None = None,
        forces: bool = True,
    ) -> dict[str, torch.Tensor]:
        """See `TorchStepper.outputs`. Without `create_graph` the same code runs, and gradients are switched off."""
        with torch.set_grad_enabled(create_graph):
            found = self.compiled[task](graph, self.store.state(task))
        if task not in self._met:
            # Ranks take their time to compile: the exchanges of a step have less patience.
            self._met.add(task)
            self.store.wait("the compilation of the model")
        return found
