"""The shape of the code: small files, short functions, one version."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import dpmodel

ROOT = Path(__file__).parents[2]
MAX_FILE = 600
MAX_FUNCTION = 120
FILES = sorted(
    file.relative_to(ROOT).as_posix() for part in ("dpmodel", "backends") for file in (ROOT / part).rglob("*.py")
)


def long_functions(text: str) -> list[str]:
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    ]


def test_there_are_files():
    assert "dpmodel/op.py" in FILES
    assert "backends/pt/bridge.py" in FILES


@pytest.mark.parametrize("file", FILES)
def test_sizes(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE, "split the file: one idea each"
    assert not long_functions(text)


def test_long_functions_are_seen():
    body = "    x = 1\n" * MAX_FUNCTION
    assert long_functions(f"def f():\n{body}") == [f"f: {MAX_FUNCTION + 1} lines"]


def test_packages_have_an_init():
    """setuptools leaves folders without __init__.py out of the wheel."""
    folders = {(ROOT / file).parent for file in FILES}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert dpmodel.__version__ == version, "installed from another version of the sources: pip install again"
