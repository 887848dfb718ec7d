"""Configuration of sphinx; `nox -s docs` builds the pages."""

import importlib.metadata

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
