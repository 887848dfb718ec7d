"""`dpmodel show`: what a model file holds. Needs no backend."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dpmodel.errors import InputError
from dpmodel.files.codecs import write_model_tree
from dpmodel.files.model_file import ModelFile, TasksFile, read_model, read_models
from dpmodel.models import StandardModel
from dpmodel.op import Kind, walk

__all__ = ["count_parameters", "run"]


def run(args: argparse.Namespace) -> None:
    """Print the attributes that were asked for, or a summary."""
    wanted = [name.lower().replace("_", "-") for name in args.attributes]
    unknown = [name for name in wanted if name not in ATTRIBUTES]
    if unknown:
        raise InputError(f"show: expected attributes out of {', '.join(ATTRIBUTES)}; got {', '.join(unknown)}")
    several = read_models(args.model) if args.head is None else read_model(args.model, args.head)
    files = several.heads() if isinstance(several, TasksFile) else {"": several}
    if "model-branch" in wanted and isinstance(several, TasksFile):
        print(_branches_of(several))
        wanted = [name for name in wanted if name != "model-branch"]
        if not wanted:
            return
    if not wanted:
        print(args.model)
    for task, file in files.items():
        if task:
            print(f"task {task}")
        if not wanted:
            print(_summary(file))
        for name in wanted:
            print(ATTRIBUTES[name](file))


def count_parameters(file: ModelFile) -> dict[str, int]:
    """Trained numbers by part of the model, then `total` (buffers such as statistics are not counted)."""
    out: dict[str, int] = {}
    for path, kind, array, _ in walk(file.model):
        if kind is Kind.PARAM:
            part = path.split(".")[0]
            out[part] = out.get(part, 0) + int(np.size(array))
    return {**out, "total": sum(out.values())}


# --- attributes ------------------------------------------------------------------------------------------


def _type_map(file: ModelFile) -> str:
    return f"The type_map is {list(file.model.type_map)}"


def _descriptor(file: ModelFile) -> str:
    return f"The descriptor parameter is {json.dumps(_standard(file, 'descriptor').descriptor.config.to_dict())}"


def _fitting(file: ModelFile) -> str:
    return f"The fitting_net parameter is {json.dumps(_standard(file, 'fitting-net').fitting.config.to_dict())}"


def _standard(file: ModelFile, attribute: str) -> StandardModel:
    if not isinstance(file.model, StandardModel):
        raise InputError(f"a {type(file.model).__name__} has no {attribute} of its own; see serialization-tree")
    return file.model


def _size(file: ModelFile) -> str:
    counts = count_parameters(file)
    return "Parameter counts:\n" + "\n".join(f"  {name:<12}{count:>12,}" for name, count in counts.items())


def _observed(file: ModelFile) -> str:
    info = file.definition.get("info")
    found = info.get("observed_type") if isinstance(info, Mapping) else None
    if found is None:
        return "The observed types are not stored in this file"
    return f"The observed types are {len(found)} of {file.model.ntypes}: {list(found)}"


def _branch(file: ModelFile) -> str:
    return f"A {type(file.model).__name__} is a model of a single task; it has no branches"


def _branches_of(file: TasksFile) -> str:
    aliases = {name: f" (also {', '.join(more)})" if more else "" for name, more in file.aliases().items()}
    return f"The branches of the multi-task model are {', '.join(name + also for name, also in aliases.items())}"


def _provenance(file: ModelFile) -> str:
    lines = ["Provenance:"]
    for key, value in file.provenance.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        lines.append(f"  {key}: {text}")
    if file.min_nbor_dist is not None:
        lines.append(f"  min_nbor_dist: {file.min_nbor_dist:g}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nothing is stored"])


def _tree(file: ModelFile) -> str:
    tree = write_model_tree(file.model)
    return "\n".join([_title("model", tree), *_branches(tree, "")])


def _title(key: str, node: Mapping[str, Any]) -> str:
    """Such as "descriptor: Descriptor se_e2_a, version 2"."""
    kind = node.get("type", node.get("network_type", ""))
    title = " ".join(str(word) for word in (node.get("@class", ""), kind) if word)
    version = f", version {node['@version']}" if "@version" in node else ""
    return f"{key}: {title}{version}"


def _branches(node: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Lines for the dictionaries with a class below a node, at any depth of plain lists, and for its arrays."""
    items: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, list):
            items += [(f"{key}[{k}]", item) for k, item in enumerate(value) if _is_node(item)]
        elif _is_node(value):
            items.append((key, value))
    arrays = [(name, array) for name, array in (node.get("@variables") or {}).items() if array is not None]
    count = len(items) + len(arrays)
    for k, (key, value) in enumerate([*arrays, *items]):
        last = k == count - 1
        line = (
            _title(key, value) if isinstance(value, Mapping) else f"{key}: {np.asarray(value).dtype} {np.shape(value)}"
        )
        yield f"{indent}{'└─ ' if last else '├─ '}{line}"
        if isinstance(value, Mapping):
            yield from _branches(value, indent + ("   " if last else "│  "))


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "@class" in value


ATTRIBUTES: dict[str, Callable[[ModelFile], str]] = {
    "type-map": _type_map,
    "descriptor": _descriptor,
    "fitting-net": _fitting,
    "size": _size,
    "observed-type": _observed,
    "serialization-tree": _tree,
    "provenance": _provenance,
    "model-branch": _branch,
}
"""By name, the text about a file."""


# --- summary ---------------------------------------------------------------------------------------------


def _summary(file: ModelFile) -> str:
    """A screen of what matters: what it predicts, from what, how large it is, its biases, who wrote it."""
    model, output = file.model, file.model.output()
    rows: list[tuple[str, str]] = [("predicts", output.name + (", forces, virials" if output.differentiable else ""))]
    rows.append(("types", " ".join(model.type_map)))
    for request in model.requests():
        kind = "neighbours per type" if request.layout == "typed_slots" else "neighbours"
        rows.append(("cutoff", f"{request.rcut:g} Å, at most {' '.join(str(k) for k in request.sel)} {kind}"))
        if request.angles is not None:
            rows.append(("angles", f"{request.angles.rcut:g} Å, at most {request.angles.sel} neighbours"))
    if isinstance(model, StandardModel):
        descriptor, fitting = model.descriptor.config, model.fitting.config
        sizes = {"descriptor": descriptor.sizes(), "fitting net": f"widths {'-'.join(map(str, fitting.neuron))}"}
        for (name, size), config in zip(sizes.items(), (descriptor, fitting), strict=True):
            rows.append((name, f"{config.key}, {size}, precision {config.precision}"))
    counts = count_parameters(file)
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "total")
    rows.append(("parameters", f"{counts['total']:,} ({parts})"))
    if model.dim_fparam or model.dim_aparam:
        optional = " (has defaults)" if model.has_default_fparam else ""
        rows.append(("inputs", f"{model.dim_fparam} per frame{optional}, {model.dim_aparam} per atom"))
    if model.takes_charge_spin:
        default = model.default_charge_spin
        shown = "" if default is None else f" (default {' '.join(f'{value:g}' for value in default)})"
        rows.append(("charge, spin", f"per frame{shown}"))
    if isinstance(model, StandardModel):
        pairs = zip(model.type_map, np.asarray(model.out_bias).reshape(model.ntypes, -1), strict=True)
        rows.append(("bias", ", ".join(f"{name} {' '.join(f'{value:.6g}' for value in bias)}" for name, bias in pairs)))
    for name, excluded in (("atoms excluded", model.atom_exclude_types), ("pairs excluded", model.pair_exclude_types)):
        if excluded:
            rows.append((name, ", ".join(_symbols(model.type_map, item) for item in excluded)))
    if file.min_nbor_dist is not None:
        rows.append(("closest atoms", f"{file.min_nbor_dist:g} Å in the training data"))
    written = [str(file.provenance[key]) for key in ("software", "version", "time") if key in file.provenance]
    rows.append(("written by", " ".join(written) or "unknown"))
    return "\n".join(f"  {name:<15} {text}" for name, text in rows)


def _symbols(type_map: tuple[str, ...], item: Any) -> str:
    return "-".join(type_map[kind] for kind in (item if isinstance(item, tuple) else (item,)))
