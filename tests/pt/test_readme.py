"""The example of the README runs as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_example(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- a test runs this block -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    shutil.copy(ROOT / "tests" / "data" / "golden" / "se_e2_a.dp", tmp_path / "model.dp")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    # The golden model holds fewer neighbours than water has; the warning of it is on purpose.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(1, 192, 3)" in done.stdout
