"""From a model to a compiled artefact that was compared with it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpmodel.descriptors.message_passing import MessagePassing
from dpmodel.errors import BackendError, InputError
from dpmodel.files.atomic import atomic_write
from dpmodel.files.model_file import ModelFile, write_model
from dpmodel.graph import Graph
from dpmodel.models import Model, predict
from dpmodel.models.sample import sample_graph

from ...pt.bridge import Overrides, graph_to_torch, override_table, to_torch, torch_gradient
from ..compile import use_own_cache
from ..ghosts import GhostExchange, load_ops
from .archive import METADATA, MODEL, pack
from .artefact import Runner, hash_of, load_code, run_program
from .compiler import compile_program
from .metadata import Comparison, describe_model, describe_program, describe_runtime
from .program import export_program, graph_like

__all__ = ["compare", "freeze", "precision_of", "sample_graphs", "with_ghosts"]


def freeze(file: ModelFile, output: str | Path, *, overrides: Overrides, atomic_virial: bool = False) -> None:
    """Compile a model and write it to `output` (`.pt2`), after comparing it with the model.

    Raises BackendError where the model cannot be exported, does not compile, or gives other numbers when compiled;
    there is no file then.
    """
    output, model = Path(output), file.model
    _check_target(output)
    use_own_cache()
    if model.message_passing:
        load_ops()
    module = (
        to_torch(model, overrides=override_table(overrides, {MessagePassing: GhostExchange}))
        .eval()
        .requires_grad_(False)
    )
    derivatives = model.output().differentiable
    program = export_program(module, graph_like(model), derivatives=derivatives, atomic_virial=atomic_virial)
    with tempfile.TemporaryDirectory(prefix="dpmodel-") as folder:
        inside = Path(folder) / "model.dp"
        write_model(inside, file)
        image = inside.read_bytes()
        metadata = {
            **describe_runtime(),
            "precision": precision_of(module),
            "model_hash": hash_of(image),
            **describe_model(model),
            **describe_program(program),
            "compared": [],
        }
        code = compile_program(program.exported, Path(folder))
        trial = Path(folder) / "trial.pt2"
        trial.write_bytes(_pack(code, metadata, image))
        runner = load_code(trial)
        found = compare(runner, metadata, model, module)
        metadata["compared"] = [vars(each) for each in found]
        final = _pack(code, metadata, image)
    atomic_write(output, lambda temporary: temporary.write_bytes(final))


def _check_target(output: Path) -> None:
    """Refuse now what could not be written in the end: compiling takes minutes."""
    if output.suffix.lower() != ".pt2":
        raise InputError(f"{output}: artefacts have the suffix .pt2")
    if output.is_dir():
        raise InputError(f"{output} is a folder; give the name of a file")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}; create it first")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{output}: the folder {output.parent.absolute()} cannot be written to")


def _pack(code: list[Path], metadata: dict[str, Any], model: bytes) -> bytes:
    return pack(code, {METADATA: json.dumps(metadata, indent=1).encode(), MODEL: model})


def precision_of(module: torch.nn.Module) -> str:
    """float32 where any parameter is, else float64."""
    return "float32" if any(p.dtype != torch.float64 for p in module.parameters()) else "float64"


# --- comparison --------------------------------------------------------------------------------------------

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
"""Of the larger of 1 and the largest value of an output."""


def compare(run: Runner, metadata: dict[str, Any], model: Model, module: torch.nn.Module) -> list[Comparison]:
    """Compare a program with the model on several graphs. Raises BackendError naming the output that differs."""
    return [_compare(run, metadata, graph, module) for graph in sample_graphs(model)]


def _compare(run: Runner, metadata: dict[str, Any], graph: Graph, module: torch.nn.Module) -> Comparison:
    derivatives = any(each["name"] == "virial" for each in metadata["outputs"])
    gradient = torch_gradient if derivatives else None
    expected = predict(module, graph_to_torch(graph), gradient, atomic_virial=metadata["atomic_virial"])
    try:
        found = run_program(run, metadata, graph)
    except (RuntimeError, ValueError) as problem:
        raise BackendError(
            f"export: compiled, the model does not run on a graph of {len(graph.frame)} atoms: "
            f"{str(problem)[-500:]}. No file was written. Please report this with the model"
        ) from problem
    worst = 0.0
    for key, value in expected.items():
        if found[key].shape != value.shape or found[key].dtype != value.dtype:
            raise BackendError(
                f"export: compiled, {key} is {found[key].dtype} {tuple(found[key].shape)} instead of {value.dtype} "
                f"{tuple(value.shape)}"
            )
        reference, other = (x.detach().double().numpy() for x in (value, found[key]))
        difference = np.max(np.abs(other - reference), initial=0.0) / max(1.0, np.max(np.abs(reference), initial=0.0))
        if not difference <= TOLERANCE[metadata["precision"]]:
            raise BackendError(
                f"export: compiled, {key} of a graph of {len(graph.frame)} atoms and {len(graph.centre)} edges is "
                f"{difference:.1e} away from the model (allowed: {TOLERANCE[metadata['precision']]:.0e}). No file was "
                "written. Please report this with the model"
            )
        worst = max(worst, float(difference))
    return Comparison(len(graph.frame), len(graph.centre), worst)


def sample_graphs(model: Model) -> Iterator[Graph]:
    """Graphs (NumPy) to compare on: larger and smaller than the sample that was traced, with and without ghosts."""
    yield sample_graph(model, 2, 4)
    yield with_ghosts(sample_graph(model, 1, 27))
    yield sample_graph(model, 1, 1)
    yield sample_graph(model, 1, 0)


def with_ghosts(graph: Graph) -> Graph:
    """The same system in which every second edge sees a ghost of its own (with virtual atoms: a pair of its own)."""
    n, pick = len(graph.frame), np.arange(0, len(graph.centre), 2)
    copied, count = graph.neighbour[pick], len(pick)
    neighbour = graph.neighbour.copy()
    neighbour[pick] = n + np.arange(count)
    if (virtual := graph.virtual) is not None:
        real, moved, pair = virtual.real, virtual.virtual, np.zeros(n, np.int64)
        pair[real] = pair[moved] = np.arange(len(real))
        pair = pair[copied]
        neighbour[pick] += count * (copied == moved[pair])
        ghosts = n + np.arange(2 * count)
        virtual = virtual.replace(
            real=np.append(real, ghosts[:count]),
            virtual=np.append(moved, ghosts[count:]),
            **{key: np.concatenate([x := getattr(virtual, key), x[pair]]) for key in ("shift", "scale", "frame")},
        )
        copied = np.append(real[pair], moved[pair])
    owner = np.concatenate([np.arange(n), copied])
    return graph.replace(neighbour=neighbour, owner=owner, atype=graph.atype[owner], virtual=virtual)
