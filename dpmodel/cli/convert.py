"""`dpmodel convert`: between the forms of a model file. Numbers and their dtypes are kept."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from dpmodel.errors import ModelFileError
from dpmodel.files.model_file import ModelFile, TasksFile, read_model, read_models, write_model

__all__ = ["run"]

log = logging.getLogger(__name__)

READABLE = (".dp", ".yaml", ".yml", ".json", ".hlo", ".pt")
WRITABLE = (".dp", ".yaml", ".yml", ".json")

_PEER = "`dp convert-backend {name} {stem}.dp` of DeePMD-kit turns it into a file that can be read here"
SOURCES = {
    ".pth": f"a frozen TorchScript model; {_PEER}",
    ".pt2": "a compiled model; `dpmodel.save(dpmodel.load('{name}'), '{stem}.dp')` writes the model inside where it was "
    f"made by `dpmodel freeze`; else {_PEER}",
    ".pte": f"an exported PyTorch model; {_PEER}",
    ".pb": f"a TensorFlow graph; {_PEER}",
    ".pbtxt": f"a TensorFlow graph; {_PEER}",
    ".pd": f"a Paddle checkpoint; {_PEER}",
    ".jax": f"a JAX checkpoint; {_PEER}",
    ".savedmodel": f"a TensorFlow SavedModel; {_PEER}",
    ".savedmodeltf": f"a TensorFlow SavedModel; {_PEER}",
}
"""What a suffix that cannot be read means, and what to do."""

_WRITE_DP = "write {stem}.dp here, then `dp convert-backend {stem}.dp {name}` of DeePMD-kit makes it"
TARGETS = {
    ".pth": f"TorchScript is not written; {_WRITE_DP}",
    ".pt": f"PyTorch checkpoints are not written; {_WRITE_DP}",
    ".pt2": "`dpmodel freeze` compiles models",
    ".pte": f"exporting compiled models is not available in this version; {_WRITE_DP}",
    ".pb": f"TensorFlow graphs are not written; {_WRITE_DP}",
    ".pd": f"Paddle checkpoints are not written; {_WRITE_DP}",
    ".hlo": "`dpmodel freeze -o {name}` exports programs",
    ".jax": f"Orbax checkpoints are not written; {_WRITE_DP}",
    ".savedmodel": f"TensorFlow SavedModels are not written; {_WRITE_DP}",
    ".savedmodeltf": f"TensorFlow SavedModels are not written; {_WRITE_DP}",
}
"""The same for suffixes that cannot be written."""


def run(args: argparse.Namespace) -> None:
    """Read, check, write; the target is complete or as it was."""
    source, target = Path(args.source), Path(args.target)
    _check(source, READABLE, SOURCES, "read")
    _check(target, WRITABLE, TARGETS, "written")
    if args.atomic_virial:
        log.warning("--atomic-virial: has no effect on model files; it is an option of `dpmodel freeze`")
    file: ModelFile | TasksFile = read_models(source) if args.head is None else read_model(source, args.head)
    write_model(target, file if args.type_map is None else file.with_type_map(args.type_map))
    print(f"{source} -> {target}")


def _check(path: Path, known: tuple[str, ...], advice: dict[str, str], verb: str) -> None:
    suffix = path.suffix.lower()
    if suffix in known:
        return
    what = (
        advice[suffix].format(name=path, stem=path.with_suffix("")) if suffix in advice else "the suffix is not known"
    )
    raise ModelFileError(f"{path} cannot be {verb}: {what}. The suffixes here are {', '.join(known)}")
