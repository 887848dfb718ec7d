"""Freed memory stays with the process, unless the user has said otherwise."""

from __future__ import annotations

import os
import platform
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


def run(name: str = "", value: str = "") -> tuple[bool, int]:
    """Whether freed memory is said to be kept, and page faults of 50 passes that touch 4096 pages each."""
    own = ("MALLOC_", "GLIBC_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    if name:
        environment[name] = value
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.fixture(scope="module")
def plain() -> tuple[bool, int]:
    return run()


def test_pages_are_not_faulted_in_again(plain: tuple[bool, int]) -> None:
    kept, faults = plain
    assert kept == (platform.libc_ver()[0] == "glibc")
    if kept:
        assert faults < 10_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such variables")
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "0"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=0")]
)
def test_users_decide(plain: tuple[bool, int], name: str, value: str) -> None:
    """Pages are faulted in again. How many that are depends on their size, which the system chooses."""
    kept, faults = run(name, value)
    assert not kept
    assert faults > 2 * plain[1]


def test_other_tunables_are_no_decision(plain: tuple[bool, int]) -> None:
    assert run("GLIBC_TUNABLES", "glibc.rtld.nns=4")[0] == plain[0]
