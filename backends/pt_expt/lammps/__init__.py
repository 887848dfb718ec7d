"""The LAMMPS plugin: `pair_style dpmodel`, in C++. This package builds it."""

from __future__ import annotations

from .build import build_plugin

__all__ = ["build_plugin"]
