"""The JAX backend: jitted evaluation with derivatives."""

from __future__ import annotations

from importlib import import_module, metadata
from pathlib import Path
from typing import Any, ClassVar

import jax

from dpmodel.backend import Artefact, Evaluator
from dpmodel.errors import BackendError
from dpmodel.files.model_file import ModelFile
from dpmodel.models import Model

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

    def evaluator(self, model: Model, *, device: str | None = None, compile: bool = False) -> Evaluator:
        """See `Backend.evaluator`."""
        if compile:
            raise BackendError("backend='jax' always compiles (jit); leave compile out")
        return JaxEvaluator(model, None if device is None else pick_devices(device)[0])

    def stepper(
        self,
        model: Model,
        loss: Any,
        optimizer: Any,
        *,
        device: str | None = None,
        gradient_max_norm: float | None = None,
        compile: bool = False,
    ) -> Any:
        """See `dpmodel.backend.Trainer`. compile: training is compiled either way.

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
        return training.JaxStepper(model, loss, optimizer, devices=devices, gradient_max_norm=gradient_max_norm)

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
