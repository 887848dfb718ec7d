"""The data systems that a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpmodel.errors import InputError

__all__ = ["label_names_of", "systems_of"]


def systems_of(given: Sequence[str] | None, datafile: str | None = None) -> str | list[str]:
    """What `Dataset.from_config` takes: the folders, else the lines of the text file, else the current folder.

    Raises InputError for a file without systems.
    """
    if datafile is None:
        found = list(given or ["."])
        return found[0] if len(found) == 1 else found
    try:
        lines = Path(datafile).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{datafile}: expected a text file with one system per line") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise InputError(f"{datafile}: expected a text file with one system per line, found none")
    return found


def label_names_of(given: Sequence[str] | None) -> dict[str, str]:
    """The table of `--label-names energy=REF_energy ...`. Raises InputError."""
    pairs = [word.partition("=") for word in given or ()]
    for name, sign, own in pairs:
        if not (name and sign and own):
            raise InputError(f"--label-names: expected pairs such as energy=REF_energy, got {name + sign + own!r}")
    return {name: own for name, _, own in pairs}
