"""The table of requirements names tests that exist, and leaves none out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
COUNTS = {"S2": 17, "S3": 19, "S4": 7, "M": 25}


def test_every_requirement_has_a_line() -> None:
    found = re.findall(r"^\| R-(S2|S3|S4|M)-(\d\d) \| .+ \| .+ \|$", TEXT, re.MULTILINE)
    assert found == [(kind, f"{k:02d}") for kind, count in COUNTS.items() for k in range(1, count + 1)]


def test_every_requirement_of_several_ranks_has_a_line() -> None:
    found = {int(k) for k in re.findall(r"^\| R-S1-(\d\d) \| .+ \| .+ \|$", TEXT, re.MULTILINE)}
    assert found == set(range(1, 48)) - {*range(22, 27), *range(28, 31)}  # which the line of 21 names


def test_the_tests_exist() -> None:
    missing = []
    for line in TEXT.splitlines():
        file = ""
        for name in re.findall(r"`((?:tests/|dpmodel/|backends/|::)[^`]*)`", line):
            path, _, test = name.partition("::")
            file = path or file
            there = (ROOT / file).exists()
            if not there or (test and f"\ndef {test}(" not in (ROOT / file).read_text(encoding="utf-8")):
                missing.append(name)
    assert not missing
