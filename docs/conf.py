"""Configuration of sphinx; `nox -s docs` builds the pages."""

import importlib.metadata
from pathlib import Path

from dpmodel.input import document

project = "dpmodel"
author = "the dpmodel developers"
copyright = "2026, the dpmodel developers"  # noqa: A001 # the name that sphinx reads
release = importlib.metadata.version("dpmodel")
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"dpmodel {release}"

# The reference of the input file is generated from the declarations, so it cannot drift from them.
(Path(__file__).parent / "input.md").write_text(document("md"), encoding="utf-8")
