"""The JAX backend: jitted evaluation with derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, ClassVar

import jax

from dpmodel.backend import Artefact, Evaluator
from dpmodel.errors import BackendError
from dpmodel.files.model_file import ModelFile
from dpmodel.models import Model
from dpmodel.op import Op
from dpmodel.training.stepper import Loss, StepOptions
from dpmodel.training.world import World, alone

from .evaluator import JaxEvaluator
from .export import freeze, open_artefact
from .overrides import OVERRIDES

__all__ = ["BACKEND", "OVERRIDES", "JaxBackend", "JaxEvaluator", "pick_devices"]


def pick_devices(device: str | None) -> list[Any]:
    """All devices of a kind ("cpu", "cuda"; None: the best there is), or the one that is named ("cuda:1").

    Raises BackendError.
    """
    kind, _, index = ("", "", "") if device is None else device.replace("cuda", "gpu").partition(":")
    try:
        found = jax.local_devices(backend=kind or None)
        return [found[int(index)]] if index else found
    except (RuntimeError, ValueError, IndexError) as problem:
        raise BackendError(f"device {device!r} is not available to JAX: {problem}") from problem


class JaxBackend:
    """JAX."""

    name: ClassVar[str] = "jax"
    has_gradients: ClassVar[bool] = True
    compiles_training: ClassVar[bool] = True
    several_tasks: ClassVar[bool] = False
    optimizers: ClassVar[frozenset[str]] = frozenset(("Adam", "AdamW"))

    def evaluator(self, model: Model, *, device: str | None = None, compile: bool = False) -> Evaluator:
        """See `Backend.evaluator`."""
        if compile:
            raise BackendError("backend='jax' always compiles (jit); leave compile out")
        return JaxEvaluator(model, None if device is None else pick_devices(device)[0])

    def stepper(
        self,
        model: Op,
        losses: Mapping[str, Loss],
        optimizer: Any,
        *,
        options: StepOptions,
        device: str | None = None,
        world: World | None = None,
    ) -> Any:
        """See `dpmodel.backend.Trainer`. Training is compiled whatever the options say.

        A kind of device ("cpu", "cuda"), or None for the best there is, means all devices of the kind, which share each
        batch; "cuda:1" means that one.
        """
        try:
            training = import_module(".training", __name__)
        except ModuleNotFoundError as problem:
            if problem.name != "optax":
                raise
            raise BackendError(
                'training on JAX needs the package optax, which is not installed: pip install "dpmodel[jax]"'
            ) from problem
        devices = pick_devices(device)
        return training.JaxStepper(model, losses, optimizer, devices=devices, options=options)

    def join(self, device: str | None = None) -> AbstractContextManager[World]:
        """See `dpmodel.backend.Trainer`: one process, which may have several devices."""
        return alone(self.name)

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that take part."""
        return {"jax": jax.__version__, "optax": metadata.version("optax")}

    def freeze(self, file: ModelFile, output: Path, *, atomic_virial: bool = False) -> None:
        """See `Exporter.freeze`. The program always has per-atom virials: what is not asked for is not computed."""
        freeze(file, output)

    def open_artefact(self, path: Path, *, device: str | None = None) -> tuple[ModelFile, Artefact]:
        """See `Exporter.open_artefact`."""
        return open_artefact(path, None if device is None else pick_devices(device)[0])


BACKEND = JaxBackend()
