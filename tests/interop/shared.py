"""Makes the package tests/consistent importable as `consistent`.

The folder tests itself cannot be on the path: its folder dpmodel would hide the library.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "consistent"

_spec = importlib.util.spec_from_file_location("consistent", FOLDER / "__init__.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["consistent"] = _module
_spec.loader.exec_module(_module)
