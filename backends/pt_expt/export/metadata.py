"""What an artefact says about itself: one JSON entry, every key required, nothing assumed.

Part of it follows from the model (`describe_model`), part from the exported program (`describe_program`), the rest from
where and how it was made. A reader compares the first part with the model inside the artefact.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from dpmodel import __version__
from dpmodel.errors import BackendError, ModelFileError
from dpmodel.graph import NeighbourRequest
from dpmodel.models import Model

from ..ghosts import ABI
from .program import Program

__all__ = [
    "FORMAT_VERSION",
    "Comparison",
    "describe_model",
    "describe_program",
    "describe_runtime",
    "parse_metadata",
    "require_model",
    "require_runtime",
]

FORMAT: Final = "dpmodel.pt2"
FORMAT_VERSION: Final = 2

LEVELS: Final = ("DEFAULT", "AVX2", "AVX512")
"""Instruction sets of x86-64 by torch's names, each of which includes those before."""

_KINDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "format_version": (int,),
    "dpmodel_version": (str,),
    "torch_version": (str,),
    "op_abi": (int,),
    "device": (str,),
    "instruction_set": (str,),
    "precision": (str,),
    "model_hash": (str,),
    "output": (str,),
    "type_map": (list,),
    "rcut": (float, int),
    "ntypes": (int,),
    "graph_types": (int,),
    "spin_scales": (list, type(None)),
    "message_passing": (bool,),
    "pair_exclude_types": (list,),
    "allow_overlap": (bool,),
    "group_by_type": (bool,),
    "requests": (list,),
    "dim_fparam": (int,),
    "default_fparam": (list, type(None)),
    "dim_aparam": (int,),
    "charge_spin": (bool,),
    "default_charge_spin": (list, type(None)),
    "inputs": (list,),
    "outputs": (list,),
    "exchanges": (list,),
    "max_bytes_per_row": (int,),
    "atomic_virial": (bool,),
    "compared": (list,),
}
"""Every key and the JSON types that it may have."""

_ARRAY: dict[str, tuple[type, ...]] = {"name": (str,), "dtype": (str,), "axes": (list,), "static": (list,)}
_EXCHANGE: dict[str, tuple[type, ...]] = {"op": (str,), "dtype": (str,), "width": (int,)}


def describe_model(model: Model) -> dict[str, Any]:
    """The part that follows from the model."""
    fparam, charge_spin, scales = model.default_fparam, model.default_charge_spin, model.spin_scales
    return {
        "output": model.output().name,
        "type_map": list(model.type_map),
        "rcut": float(model.rcut),
        "ntypes": model.ntypes,
        "graph_types": model.graph_model.ntypes,
        "spin_scales": None if scales is None else list(scales),
        "message_passing": model.message_passing,
        "pair_exclude_types": [[int(a), int(b)] for a, b in model.graph_model.pair_exclude_types],
        "allow_overlap": model.tolerates_overlap(),
        "group_by_type": model.groups_types(),
        "requests": [_request(each) for each in model.requests()],
        "dim_fparam": model.dim_fparam,
        "default_fparam": None if fparam is None else list(fparam),
        "dim_aparam": model.dim_aparam,
        "charge_spin": model.takes_charge_spin,
        "default_charge_spin": None if charge_spin is None else [float(x) for x in charge_spin],
    }


def _request(request: NeighbourRequest) -> dict[str, Any]:
    angles = request.angles
    return {
        "rcut": float(request.rcut),
        "sel": [int(k) for k in request.sel],
        "layout": request.layout,
        "angles": None if angles is None else {"rcut": float(angles.rcut), "sel": int(angles.sel)},
    }


def describe_program(program: Program) -> dict[str, Any]:
    """The part that follows from the exported program."""
    outputs = [
        {"name": name, "dtype": _dtype(fake), "axes": list(axes), "static": [int(k) for k in fake.shape[len(axes) :]]}
        for name, fake, axes in program.outputs
    ]
    inputs = [
        {"name": leaf.path, "dtype": _dtype(leaf.array), "axes": list(leaf.axes), "static": list(leaf.static)}
        for leaf in program.inputs
    ]
    sizes = [each.width * np.dtype(each.dtype).itemsize for each in program.exchanges]
    return {
        "inputs": inputs,
        "outputs": outputs,
        "exchanges": [each._asdict() for each in program.exchanges],
        "max_bytes_per_row": max(sizes, default=0),
        "atomic_virial": any(name == "atom_virial" for name, _, _ in program.outputs),
    }


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def describe_runtime() -> dict[str, Any]:
    """The part that says where compiled code can run."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dpmodel_version": __version__,
        "torch_version": str(torch.__version__),
        "op_abi": ABI,
        "device": "cpu",
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


# --- reading -----------------------------------------------------------------------------------------------


def parse_metadata(text: bytes, where: str) -> dict[str, Any]:
    """The checked metadata. Raises ModelFileError naming the key that is wrong."""
    try:
        found = json.loads(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as problem:
        raise ModelFileError(f"{where}: the metadata is no JSON ({problem}); the file is damaged") from problem
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ModelFileError(f"{where} is no artefact of `dpmodel freeze`: its metadata has no format {FORMAT!r}")
    version = found.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{where} has the format version {version!r}, this program reads {FORMAT_VERSION}: freeze the model anew with "
            "this version of dpmodel, or use the version that froze it"
        )
    _check_keys(found, _KINDS, f"{where}: metadata")
    for key, kinds in {"inputs": _ARRAY, "outputs": _ARRAY, "exchanges": _EXCHANGE}.items():
        for k, item in enumerate(found[key]):
            _check_keys(item, kinds, f"{where}: metadata: {key}[{k}]")
    return found


def _check_keys(found: Any, kinds: dict[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(found, dict):
        raise ModelFileError(f"{where}: expected a dictionary, got {type(found).__name__}")
    missing, unknown = sorted(kinds.keys() - found.keys()), sorted(found.keys() - kinds.keys())
    if missing or unknown:
        raise ModelFileError(f"{where}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    for key, allowed in kinds.items():
        value = found[key]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ModelFileError(f"{where}: {key} should be {_words(allowed)}, got {value!r}")


def _words(kinds: Sequence[type]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def require_runtime(metadata: dict[str, Any], where: str) -> None:
    """Raises BackendError where compiled code cannot run here: another torch, exchange, device or processor."""
    here = describe_runtime()
    for key, what in (("torch_version", "torch"), ("op_abi", "version of the ghost exchange"), ("device", "device")):
        if metadata[key] != here[key]:
            raise BackendError(
                f"{where} was compiled for {what} {metadata[key]}, here is {here[key]}: freeze the model anew here"
            )
    needed, present = metadata["instruction_set"], here["instruction_set"]
    if needed != present and not (
        needed in LEVELS and present in LEVELS and LEVELS.index(needed) <= LEVELS.index(present)
    ):
        raise BackendError(
            f"{where} was compiled for processors with {needed}, this one has {present}: freeze the model anew here"
        )


def require_model(metadata: dict[str, Any], model: Model, where: str) -> None:
    """Raises ModelFileError where metadata and the model inside the artefact disagree."""
    for key, value in describe_model(model).items():
        if metadata[key] != value:
            raise ModelFileError(
                f"{where}: the metadata says {key} = {metadata[key]!r}, the model inside {value!r}: the file was changed"
            )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far the compiled code was from the model on one graph."""

    atoms: int
    edges: int
    largest_difference: float
    """Of any output, relative to the larger of 1 and its largest value."""
