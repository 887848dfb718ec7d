"""Log lines, the estimate of what is left, and the bar on a terminal."""

from __future__ import annotations

import errno
import io
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from dpmodel.training.progress import Progress, hours, metric_lines, time_line


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    broken = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


class Lines:
    """What was logged since the last look."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog

    def take(self) -> list[str]:
        out = [record.getMessage() for record in self.caplog.records]
        self.caplog.clear()
        return out


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, logger="dpmodel")
    return Lines(caplog)


def test_metric_lines() -> None:
    assert metric_lines(1000, {"rmse_e": 10.26, "rmse": 33.3}, {"rmse": float("nan")}, 1e-3) == [
        "Batch    1000: trn: rmse = 3.33e+01, rmse_e = 1.03e+01, lr = 1.00e-03",
        "Batch    1000: val: rmse =      nan",
    ]
    assert metric_lines(7, {"rmse": 1.0}, None, 1e-3) == ["Batch       7: trn: rmse = 1.00e+00, lr = 1.00e-03"]
    assert [line[15:] for line in metric_lines(7, {"b": {"x": 1.0}, "a": {"x": 2.0}}, {"a": {"x": 3.0}}, 1e-3)] == [
        "b_trn: x = 1.00e+00, lr = 1.00e-03",
        "a_trn: x = 2.00e+00, lr = 1.00e-03",
        "a_val: x = 3.00e+00",
    ]


def test_time_line() -> None:
    assert time_line(1000, 12.314) == "Batch    1000: total wall time = 12.31 s"
    line = time_line(1000, 12.3, 3600 * 26 + 63.9, datetime(2025, 6, 1, 23, 30, tzinfo=UTC))
    assert line == "Batch    1000: total wall time = 12.30 s, eta = 26:01:03 at 2025-06-03 01:31"
    assert hours(0.0) == "0:00:00"


def run(progress: Progress, clock: Clock, steps: range, seconds: float, every: int) -> None:
    for step in steps:
        clock.now += seconds
        progress.advance(step)
        if step == 1 or step % every == 0:
            progress.report(step, {"rmse": 1.0}, None, 1e-3)


def test_plain_lines(lines: Lines) -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(40, disp_freq=10, stream=stream, clock=clock) as progress:
        clock.now += 50.0
        run(progress, clock, range(1, 11), 1.0, 10)
        run(progress, clock, range(11, 41), 2.0, 10)
    said = lines.take()
    assert said[:2] == [
        "Batch       1: trn: rmse = 1.00e+00, lr = 1.00e-03",
        "Batch       1: total wall time = 51.00 s",
    ]
    assert said[3].startswith("Batch      10: total wall time = 9.00 s, eta = 0:00:30 at ")
    assert said[5].startswith("Batch      20: total wall time = 20.00 s, eta = 0:00:40 at ")
    assert said[-1] == "Average training time: 2.0000 s/batch (10 batches excluded)"
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("num_steps", "done"), [(19, 19), (100, 10), (100, 1)])
def test_average_of_short_and_stopped_runs(num_steps: int, done: int, lines: Lines) -> None:
    clock = Clock()
    with Progress(num_steps, disp_freq=10, stream=io.StringIO(), clock=clock) as progress:
        run(progress, clock, range(1, done + 1), 3.0, 1000)
    assert lines.take()[-1] == "Average training time: 3.0000 s/batch (0 batches excluded)"


def test_restart_counts_what_is_left(lines: Lines) -> None:
    clock = Clock()
    with Progress(100, start_step=80, disp_freq=10, stream=io.StringIO(), clock=clock) as progress:
        run(progress, clock, range(81, 101), 1.0, 5)
    said = [line for line in lines.take() if "eta" in line]
    assert said[0].startswith("Batch      90: total wall time = 5.00 s, eta = 0:00:10 at ")
    with Progress(5, start_step=5, stream=io.StringIO()):
        pass
    assert not lines.take()


def test_disabled(lines: Lines) -> None:
    terminal = Terminal()
    with Progress(10, enabled=False, stream=terminal) as progress:
        run(progress, Clock(), range(1, 11), 1.0, 1)
    assert not lines.take()
    assert not terminal.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_bar_on_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of the log stand above the bar, and the handler gets its stream back."""
    # Here and not in the fixture: pytest sets sys.stderr anew for each phase.
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.getLogger("dpmodel")
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logger, "handlers", [handler])
    logger.setLevel(logging.INFO)
    try:
        clock = Clock()
        with Progress(20, disp_freq=10, stream=terminal, clock=clock) as progress:
            assert handler.stream is not terminal
            run(progress, clock, range(1, 21), 1.0, 10)
    finally:
        logger.setLevel(logging.NOTSET)
    assert handler.stream is terminal
    assert sys.stderr is terminal
    text = plain(terminal.getvalue())
    assert "20/20" in text
    assert "rmse 1.00e+00  lr 1.0e-03" in text
    assert any(line.strip().startswith("Batch      10: trn: rmse = 1.00e+00") for line in re.split(r"[\r\n]", text))
    assert "Average training time" in text


def test_bar_is_drawn_seldom(terminal: Terminal) -> None:
    clock = Clock()
    with Progress(1000, stream=terminal, clock=clock) as progress:
        run(progress, clock, range(1, 1000), 0.001, 10_000)
    assert plain(terminal.getvalue()).count("/1000") < 15


def test_vanished_terminal_does_not_stop_the_run(terminal: Terminal, lines: Lines) -> None:
    clock = Clock()
    with Progress(20, disp_freq=10, stream=terminal, clock=clock) as progress:
        run(progress, clock, range(1, 5), 1.0, 10)
        terminal.broken = True
        run(progress, clock, range(5, 21), 1.0, 10)
    assert lines.take()[-1].startswith("Average")


def test_errors_close_the_bar(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)

    def fails(progress: Progress) -> None:
        progress.advance(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Progress(20, stream=terminal) as progress:
        fails(progress)
    assert sys.stderr is terminal


def test_dumb_terminal_and_missing_rich(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with Progress(2, stream=terminal) as progress:
        progress.advance(1)
    monkeypatch.undo()
    monkeypatch.setenv("TERM", "dumb")
    with Progress(2, stream=terminal) as progress:
        progress.advance(1)
    assert terminal.getvalue() == ""


def test_rich_is_imported_lazily() -> None:
    script = "import sys, dpmodel.training.progress as p\nwith p.Progress(1): pass\nassert 'rich' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
