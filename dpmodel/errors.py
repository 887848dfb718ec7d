"""Errors that users can act on. Each is also a ValueError, so generic handlers keep working."""

from __future__ import annotations

__all__ = ["BackendError", "DPError", "DataError", "InputError", "ModelFileError"]


class DPError(ValueError):
    """Base of the library's own errors: expected, came, what to do."""


class InputError(DPError):
    """An input file or an argument is wrong."""


class DataError(DPError):
    """A data system (training, validation, test) is wrong."""


class ModelFileError(DPError):
    """A model file or a checkpoint is wrong."""


class BackendError(DPError):
    """A backend is unknown, missing, or cannot do what was asked."""
