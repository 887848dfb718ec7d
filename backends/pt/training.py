"""The training step on PyTorch: what the one loop of `dpmodel.training` asks of a backend."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from dpmodel.errors import BackendError, InputError
from dpmodel.graph import Graph
from dpmodel.models import HessianRequest, predict
from dpmodel.models.multi_task import MultiTask
from dpmodel.op import Kind, Op, walk
from dpmodel.training.batches import Prepared
from dpmodel.training.stepper import Loss, NonFiniteError, OptimizerState, StepOptions
from dpmodel.training.world import Alone, World

from .average import Average
from .bridge import Overrides, from_torch, graph_to_torch, to_torch, torch_curvature, torch_gradient
from .distributed.replicas import Replicas, Shares, broadcast_from_chief
from .distributed.sharded import Sharded
from .live import LiveEvaluator
from .memory import keep_freed_memory
from .optimizers import LKF, SLOTS, Observation, kalman_step, make_optimizer
from .slots import load_slots, read_slots
from .store import Store, local

__all__ = ["TorchStepper"]

logger = logging.getLogger(__name__)

_DERIVATIVES = frozenset(("force", "virial", "force_mag", "hessian"))


class TorchStepper:
    """A model, its losses and its optimizer (see `dpmodel.training.stepper.Stepper`)."""

    compiles = False

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
        keep_freed_memory()
        self.options, self.losses, self.world = options, dict(losses), Alone() if world is None else world
        self.device = getattr(self.world, "device", device)
        self._check(model, optimizer)
        if any("hessian" in loss.outputs for loss in self.losses.values()):
            overrides = {}  # third derivatives, several at once: overrides may be written for fewer
        self._derivatives = {task: not _DERIVATIVES.isdisjoint(loss.outputs) for task, loss in self.losses.items()}
        norm = options.gradient_max_norm
        self.max_norm = norm if norm and norm > 0 else None
        self.gradient_norm = math.nan
        """2-norm of the gradient of the last step, over all ranks, before clipping."""
        self.gradient_norms: dict[str, float] = {}
        """The same by parameter, where `StepOptions.norms` asks for it."""
        self.store = self._stored(model, overrides)
        self.module = self.store.module
        self._trained = {name: p for name, p in self.store.parameters.items() if p.requires_grad}
        self._tell_precision()
        self._slots = SLOTS[optimizer.key]
        own = [(name, self._trained[name]) for name in self.store.owned(list(self._trained))]
        self.optimizer = (
            make_optimizer(optimizer, own, start_lr=options.start_lr, num_steps=options.num_steps, seed=options.seed)
            if own
            else None
        )
        self.average = None if options.ema_decay is None else Average(self.store, options.ema_decay)

    def _check(self, model: Op, optimizer: Any) -> None:
        """Raise before any work where something cannot be had."""
        tasks = model.names if isinstance(model, MultiTask) else ("",)
        if set(tasks) != set(self.losses):
            raise InputError(f"expected a loss for each of the tasks {sorted(tasks)}, got {sorted(self.losses)}")
        if optimizer.key not in SLOTS:
            raise BackendError(f"optimizer: expected one of {', '.join(SLOTS)}, got {optimizer.key}")
        if optimizer.key == "LKF" and self.options.zero_stage:
            raise InputError(
                "training.zero_stage: the optimizer LKF, whose state is matrices over several parameters, needs stage 0; "
                f"got {self.options.zero_stage}. Set zero_stage to 0 or choose another optimizer"
            )
        cuda = self.device.type == "cuda"
        if self.options.tf32 and not cuda:
            logger.warning("TF32 is a format of CUDA devices: on %s it changes nothing", self.device)
        # Of the process: a run before may have left it otherwise.
        torch.backends.cuda.matmul.allow_tf32 = self.options.tf32 and cuda

    def _tell_precision(self) -> None:
        """Warn of options that only products of float32 matrices heed, where there are none."""
        names = [n for n, on in (("enable_bf16", self.options.amp), ("enable_tf32", self.options.tf32)) if on]
        if names and not any(p.dtype is torch.float32 for p in self._trained.values()):
            logger.warning(
                "training.%s: changes products of float32 matrices alone, and no trained parameter is float32; set the "
                "precision of descriptor or fitting net to float32, or leave it out",
                " and training.".join(names),
            )

    def _stored(self, model: Op, overrides: Overrides) -> Store:
        """The model on the device, and where its parameters lie."""
        module = to_torch(model, device=self.device, overrides=overrides)
        for path in self.options.frozen:
            module.get_parameter(path).requires_grad_(False)
        if not any(p.requires_grad for p in module.parameters()):
            raise InputError(
                "nothing to train: every part of the model has trainable = false, or is frozen by "
                "training.freeze_parameters"
            )
        parts, stage = _parts(module), self.options.zero_stage
        if self.world.size == 1:
            if stage:
                logger.warning(
                    "training.zero_stage = %d has nothing to share in one process: it runs as stage 0", stage
                )
            return Store(module, parts)
        world: Any = self.world
        broadcast_from_chief(module, world)
        if stage < 2:
            return (Replicas, Shares)[stage](module, parts, world)
        skeleton = to_torch(model, device="meta", overrides=overrides)
        return Sharded(module, parts, world, stage=stage, skeleton=(skeleton, _parts(skeleton)))

    # --- steps ------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[Prepared], lr: float, task: str = "") -> Callable[[], dict[str, float]]:
        """See `Stepper.step`."""
        if isinstance(self.optimizer, LKF):
            return self._filtered(self.optimizer, batches, lr, task)
        for p in self._trained.values():
            p.grad = None
        metrics, losses = [], []
        for together in [batches] if self.store.together else [[batch] for batch in batches]:
            with self.store.whole():
                leaves = self.store.leaves()
                for batch in together:
                    loss, found = self._loss(*batch, lr, task=task, create_graph=True)
                    # Naming the inputs spares the second derivatives with respect to coordinates.
                    torch.autograd.backward(loss, inputs=leaves)
                    metrics.append(found)
                    losses.append(loss.detach())
                    del loss
                self.store.absorb()
        self.store.reduce(self._trained, len(batches))
        self._check_and_clip(losses)
        updated = [name for name, p in self._trained.items() if p.grad is not None]
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.store.updated(updated)
        if self.average is not None:
            self.average.update()
        return functools.partial(_numbers, metrics)

    def _filtered(
        self, optimizer: LKF, batches: Sequence[Prepared], lr: float, task: str
    ) -> Callable[[], dict[str, float]]:
        """A step of the Kalman filter, whose updates are by residuals and not by the gradient of the loss."""
        metrics = [self._loss(*batch, lr, task=task, create_graph=False)[1] for batch in batches]
        kalman_step(optimizer, [self._observed(batch, task) for batch in batches], total=self.store.total)
        if self.average is not None:
            self.average.update()
        return functools.partial(_numbers, metrics)

    def _observed(self, batch: Prepared, task: str) -> Observation:
        graph = graph_to_torch(batch.graph, self.device)
        labels = {
            name: torch.as_tensor(batch.labels[name], device=self.device)
            if wanted and batch.found.get(name, 0.0)
            else None
            for name, wanted in (("energy", True), ("force", self._derivatives[task]))
        }
        atoms = len(batch.graph.frame)
        return Observation(
            predict=lambda forces: self.outputs(graph, task=task, create_graph=True, forces=forces),
            energy=labels["energy"],
            force=labels["force"],
            atype=batch.graph.atype[:atoms],
            frame=batch.graph.frame,
            natoms=batch.graph.natoms,
        )

    def measure(self, batch: Prepared, lr: float, task: str = "") -> dict[str, float]:
        """See `Stepper.measure`."""
        with self.store.whole():
            _, metrics = self._loss(*batch, lr, task=task, create_graph=False)
        return _numbers([metrics])

    def outputs(
        self,
        graph: Graph,
        *,
        task: str = "",
        create_graph: bool,
        hessian: HessianRequest | None = None,
        forces: bool = True,
    ) -> dict[str, torch.Tensor]:
        """What the loss reads, for a graph of tensors. create_graph: gradients of the parameters will be asked for.

        forces: False where derivatives are not needed, even if the loss reads them.
        """
        wanted = forces and self._derivatives[task]
        gradient = functools.partial(torch_gradient, create_graph=create_graph) if wanted else None
        curvature = functools.partial(torch_curvature, create_graph=create_graph)
        return predict(self.store.function(task), graph, gradient, curvature=curvature, request=hessian)

    @contextmanager
    def evaluating(self, task: str = "", *, averaged: bool = False) -> Iterator[LiveEvaluator]:
        """See `Stepper.evaluating`."""
        with self._weights(averaged), self.store.whole():
            state = {name: value.detach() for name, value in self.store.state(task).items()}
            yield LiveEvaluator(self.store.parts[task], self.store.called(task), state, self.device)

    # --- states -----------------------------------------------------------------------------------------

    def model(self, *, averaged: bool = False) -> Any:
        """See `Stepper.model`."""
        with self._weights(averaged), self.store.whole():
            return from_torch(self.module)

    def load_buffers(self, model: Op) -> None:
        """See `Stepper.load_buffers`. Raises InputError where names or shapes do not fit."""
        given = {path: np.asarray(value) for path, kind, value, _ in walk(model) if kind is Kind.BUFFER}
        for path, own in self.module.named_buffers():
            if path not in given or given[path].shape != tuple(own.shape):
                shape = given[path].shape if path in given else "nothing"
                raise InputError(f"buffer {path}: expected shape {tuple(own.shape)}, got {shape}")
        with torch.no_grad():
            for path, own in self.module.named_buffers():
                own.copy_(torch.tensor(given[path]))

    def optimizer_state(self) -> OptimizerState:
        """See `Stepper.optimizer_state`; empty before the first step."""
        if isinstance(self.optimizer, LKF):  # the same on all ranks
            return self.optimizer.filter_state()
        return read_slots(self.optimizer, self._trained, self.store, self._slots)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """See `Stepper.load_optimizer_state`."""
        if isinstance(self.optimizer, LKF):
            self.optimizer.load_filter_state(state)
            return
        load_slots(self.optimizer, self._trained, self.store, self._slots, state)

    def averaged_state(self) -> dict[str, np.ndarray]:
        """See `Stepper.averaged_state`."""
        return {} if self.average is None else self.average.state()

    def load_averaged_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Stepper.load_averaged_state`."""
        self._averages().load(state)

    def _averages(self) -> Average:
        if self.average is None:
            raise InputError("this run keeps no averaged parameters: set training.enable_ema")
        return self.average

    def _weights(self, averaged: bool) -> Any:
        return self._averages().applied() if averaged else nullcontext()

    # --- one batch --------------------------------------------------------------------------------------

    def _loss(
        self,
        graph: Graph,
        labels: Mapping[str, np.ndarray],
        found: Mapping[str, float],
        lr: float,
        *,
        task: str = "",
        create_graph: bool,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        inputs = graph_to_torch(graph, self.device)
        targets = {key: torch.as_tensor(value, device=self.device) for key, value in labels.items()}
        request = self._hessian(labels, found, task)
        with torch.set_grad_enabled(create_graph):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
                prediction = self.outputs(inputs, task=task, create_graph=create_graph, hessian=request)
            loss, metrics = self.losses[task](prediction, targets, found, inputs, lr)
        return loss, {key: value.detach() for key, value in metrics.items()}

    def _hessian(
        self, labels: Mapping[str, np.ndarray], found: Mapping[str, float], task: str
    ) -> HessianRequest | None:
        """Whether the batch needs a Hessian."""
        if "hessian" not in self.losses[task].outputs or not found.get("hessian", 0.0):
            return None
        return HessianRequest.all_columns(labels["hessian"])

    def _check_and_clip(self, losses: Sequence[torch.Tensor]) -> None:
        """Scale gradients down to the largest allowed norm; refuse, on all ranks, to go on with NaN or infinite ones."""
        gradients = {name: local(p.grad) for name, p in self._trained.items() if p.grad is not None and p.numel()}
        self.gradient_norms = {}
        if not gradients:
            return
        top, length = self.store.report(list(gradients.values()))
        self.gradient_norm = top * length
        if not math.isfinite(top):
            bad = self.store.bad(gradients)
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            loss = float(torch.stack(list(losses)).mean())
            raise NonFiniteError(f"the gradient is not finite (loss {loss:g}) in {', '.join(bad[:3])}{more}")
        if self.options.norms:
            self.gradient_norms = dict(zip(gradients, self.store.norms(list(gradients.values())), strict=True))
        if self.max_norm is None or top * length + 1e-6 <= self.max_norm:
            return
        # In two steps: the factor itself may be too small for the type of the gradient.
        rest = self.max_norm / (length + 1e-6 / top)
        for g in gradients.values():
            g.div_(top).mul_(rest)


def _parts(module: Any) -> dict[str, torch.nn.Module]:
    """The model of every task."""
    several = isinstance(module, MultiTask)
    modules: tuple[Any, ...] = module.tasks if several else (module,)
    return dict(zip(module.names if several else ("",), modules, strict=True))


def _numbers(metrics: Sequence[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Metrics as Python numbers, in one transfer from the device: means over the batches that have them."""
    if len(metrics) == 1:
        return dict(zip(metrics[0], torch.stack(list(metrics[0].values())).tolist(), strict=True))
    rows = torch.stack([torch.stack(list(each.values())) for each in metrics])
    return dict(zip(metrics[0], torch.nanmean(rows, dim=0).tolist(), strict=True))
