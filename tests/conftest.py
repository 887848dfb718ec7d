"""What every test shares: where dpmodel was imported from, and how hard hypothesis tries."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import dpmodel

ROOT = Path(__file__).parents[1]

# Chosen with --hypothesis-profile. No deadlines: the first example may compile.
hypothesis.settings.register_profile("dev", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=500, print_blob=True)
hypothesis.settings.load_profile("dev")


def pytest_configure() -> None:
    """A job in the background of a shell inherits that Ctrl-C is ignored, and so would every program it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _as_failure(report: Any) -> None:
    """A test that was left out because a package is missing fails where all are to be there (nox sets the variable)."""
    if os.environ.get("DPMODEL_NO_SKIPS") and report.skipped and "could not import" in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"left out, though nothing may be: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    _as_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    _as_failure(report)
    return report


_MOST_MAPS = 20_000
"""Memory maps of this process before compiled functions of JAX are let go; Linux allows 65,530."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """JAX keeps all functions that it has compiled, a few memory maps each. Without more maps, the compiler crashes.

    After the test is torn down: what it has patched is as it was.
    """
    yield
    jax, maps = sys.modules.get("jax"), Path("/proc/self/maps")
    if jax is None or not maps.exists():
        return
    with maps.open("rb") as file:
        count = sum(1 for _ in file)
    if count > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_report_header() -> str:
    return f"dpmodel {dpmodel.__version__} from {Path(dpmodel.__file__).parent}"


@pytest.fixture(scope="session")
def water_data() -> Path:
    """Folder of the bundled water systems data_0 ... data_3."""
    return ROOT / "examples" / "water" / "data"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that all processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def made_once(shared_folder: Path) -> Callable[[str], AbstractContextManager[Path]]:
    """`with made_once(name) as folder:` - what one process of this run makes in the folder, the others find there."""

    @contextlib.contextmanager
    def only_one(name: str) -> Iterator[Path]:
        folder = shared_folder / name
        folder.mkdir(exist_ok=True)
        with (shared_folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder

    return only_one
