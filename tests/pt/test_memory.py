"""Freed memory stays with the process, unless the user has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from dpmodel.backends.pt.memory import keep_freed_memory

kept = keep_freed_memory()
for _ in range(3):
    torch.zeros(1 << 21).add(1.0)  # 8 MiB each
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.zeros(1 << 21).add(1.0)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(
    ("name", "value"), [("", ""), ("MALLOC_TRIM_THRESHOLD_", "0"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=0")]
)
def test_pages_are_not_faulted_in_again(name: str, value: str) -> None:
    own = ("MALLOC_", "GLIBC_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    if name:
        environment[name] = value
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    kept, faults = run.stdout.split()
    assert kept == str(not name)
    assert (int(faults) < 10_000) == (not name)  # a pass touches 4096 pages
