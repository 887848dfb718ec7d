"""DeePMD-kit's PyTorch checkpoints (`.pt`), read as plain arrays. No code in them is executed."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpmodel.errors import ModelFileError

__all__ = ["read_checkpoint"]


def read_checkpoint(path: Path) -> tuple[Mapping[str, Any], dict[str, np.ndarray]]:
    """(`model_params`, the state dict as arrays). Raises ModelFileError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that are refused in the next line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as problem:
        raise ModelFileError(f"{path}: this checkpoint cannot be read: {problem.strerror or problem}") from problem
    except pickle.UnpicklingError as problem:
        raise ModelFileError(
            f"{path}: expected a PyTorch checkpoint of plain data, but it holds something else, which is not opened because "
            f"it could run code ({_first_line(problem)})"
        ) from problem
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as problem:
        raise ModelFileError(
            f"{path}: expected a PyTorch checkpoint, but it cannot be read ({_first_line(problem)}). It may be truncated, "
            f"or a frozen model (.pth)"
        ) from problem
    state = content.get("model", content) if isinstance(content, Mapping) else None
    extra = state.get("_extra_state") if isinstance(state, Mapping) else None
    if (
        not isinstance(state, Mapping)
        or not isinstance(extra, Mapping)
        or not isinstance(extra.get("model_params"), Mapping)
    ):
        raise ModelFileError(
            f"{path}: expected a checkpoint of DeePMD-kit, with the section of the model in model._extra_state.model_params; "
            f"this file is another one"
        )
    return extra["model_params"], {k: _array(v) for k, v in state.items() if isinstance(v, torch.Tensor)}


def _array(value: torch.Tensor) -> np.ndarray:
    value = value.detach().to_dense() if value.layout != torch.strided else value.detach()
    array: np.ndarray = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def _first_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0][:200] if str(problem).strip() else type(problem).__name__
