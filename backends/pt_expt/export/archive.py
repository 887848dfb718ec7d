"""The archive of an artefact: written in one piece, checked before anything of it is used.

A `.pt2` is a zip whose entries lie in one folder and are stored as they are::

    version, byteorder, archive_format, archive_version, .data/...     of torch's own
    data/aotinductor/model/...                                         the compiled code and its weights
    extra/dpmodel.json                                                 what the artefact says about itself
    data/dpmodel/model.dp                                              the model that it was made from

torch extracts the second group into a temporary folder and loads the code, so names, kinds and sizes of all
entries are checked first. This keeps damaged and manipulated archives from writing elsewhere; it does not make
foreign code safe: load artefacts from people you trust.
"""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch._C import PyTorchFileReader
from torch.export.pt2_archive import PT2ArchiveWriter

from dpmodel.errors import ModelFileError

__all__ = ["METADATA", "MODEL", "pack", "read_entries"]

METADATA = "extra/dpmodel.json"
MODEL = "data/dpmodel/model.dp"
CODE = "data/aotinductor/model/"

_NAME = re.compile(
    r"version|byteorder|archive_format|archive_version|\.data/[A-Za-z0-9_]+|\.format_version|\.storage_alignment"
    rf"|{re.escape(CODE)}[A-Za-z0-9_][A-Za-z0-9_.\-]*|{re.escape(METADATA)}|{re.escape(MODEL)}"
)
_ROOT = re.compile(r"[A-Za-z0-9_\-]+")


def pack(code: Sequence[Path], extra: Mapping[str, bytes]) -> bytes:
    """The image of an archive: files of compiled code, and entries by name."""
    image = io.BytesIO()
    with PT2ArchiveWriter(image) as archive:
        for path in code:
            archive.write_bytes(CODE + path.name, path.read_bytes())
        for name, content in extra.items():
            archive.write_bytes(name, content)
    return image.getvalue()


def read_entries(path: Path) -> tuple[bytes, bytes]:
    """(metadata, model file) of an archive all of whose entries were checked. Raises ModelFileError."""
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder; expected an artefact of `dpmodel freeze`")
        if not path.exists():
            raise ModelFileError(f"{path}: there is no such file (in {path.parent.absolute()})")
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            names = _check_entries(path, archive.infolist(), size)
            _check_listing(path, names)
            damaged = archive.testzip()
            if damaged is not None:
                raise ModelFileError(f"{path}: the entry {damaged!r} is damaged; freeze the model anew")
            return archive.read(names[METADATA]), archive.read(names[MODEL])
    except OSError as problem:
        raise ModelFileError(
            f"{path} cannot be read: {problem.strerror or problem}. Expected an artefact of `dpmodel freeze` that this user "
            "may read"
        ) from problem
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as problem:
        if isinstance(problem, ModelFileError):
            raise
        raise ModelFileError(
            f"{path} is no artefact of `dpmodel freeze`, or is damaged or incomplete ({problem}); freeze the model anew"
        ) from problem


def _check_listing(path: Path, names: Mapping[str, str]) -> None:
    """What was checked must be what torch will extract: its reader may find another directory in the same bytes."""
    listed = sorted(PyTorchFileReader(str(path)).get_all_records())
    if listed != sorted(names):
        other = sorted(set(listed) ^ names.keys()) or listed
        raise ModelFileError(
            f"{path}: readers of zip files disagree about its entries ({other[:5]}). It is not loaded; freeze the model anew"
        )


def _check_entries(path: Path, entries: Sequence[zipfile.ZipInfo], size: int) -> dict[str, str]:
    """Full names by the name within the archive's folder. Raises ModelFileError naming the entry."""
    names: dict[str, str] = {}
    roots = set()
    for entry in entries:
        root, _, name = entry.filename.partition("/")
        problem = None
        if (
            not _ROOT.fullmatch(root)
            or not _NAME.fullmatch(name)
            or ".." in name
            or entry.orig_filename != entry.filename
        ):
            problem = "has a name that no artefact has"
        elif name in names:
            problem = "occurs twice"
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            problem = "is not a plain file"
        elif (
            entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1 or entry.file_size != entry.compress_size
        ):
            problem = "is compressed or encrypted; artefacts store their entries as they are"
        if problem is not None:
            raise ModelFileError(
                f"{path}: the entry {entry.filename!r} {problem}. It is not loaded; freeze the model anew"
            )
        names[name] = entry.filename
        roots.add(root)
    if sum(entry.file_size for entry in entries) > size:
        raise ModelFileError(f"{path}: its entries are larger than the file. It is not loaded; freeze the model anew")
    missing = {METADATA, MODEL} - names.keys()
    if missing or len(roots) != 1 or not any(name.startswith(CODE) and name.endswith(".so") for name in names):
        raise ModelFileError(
            f"{path} is no artefact of `dpmodel freeze`: expected one folder with compiled code, {METADATA} and {MODEL}, "
            f"found {sorted(names)[:20]}"
        )
    return names
