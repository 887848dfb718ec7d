"""What every test shares: where dpmodel was imported from, and how hard hypothesis tries."""

from __future__ import annotations

import signal
from pathlib import Path

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


def pytest_report_header() -> str:
    return f"dpmodel {dpmodel.__version__} from {Path(dpmodel.__file__).parent}"


@pytest.fixture(scope="session")
def water_data() -> Path:
    """Folder of the bundled water systems data_0 ... data_3."""
    return ROOT / "examples" / "water" / "data"
