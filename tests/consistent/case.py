"""What a case is, and how its patches are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["Case", "Section", "descriptor", "fitting"]

Section = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model section, and patches of it by name. Nested dictionaries of a patch are merged, all else is replaced."""

    section: Section
    variations: Mapping[str, Section]
    """One option at a time."""
    combinations: Mapping[str, Section]
    """All options in few models, for what takes seconds per model (compilers); with all variations it is nightly."""


def descriptor(**options: Any) -> Section:
    """A patch of the descriptor's section."""
    return {"descriptor": options}


def fitting(**options: Any) -> Section:
    """A patch of the fitting net's section."""
    return {"fitting_net": options}
