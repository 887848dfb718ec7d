"""Export: a model as one compiled file (`.pt2`) that runs without Python, on one process or many."""

from __future__ import annotations

from .artefact import ArtefactEvaluator, open_artefact
from .freezing import freeze

__all__ = ["ArtefactEvaluator", "freeze", "open_artefact"]
