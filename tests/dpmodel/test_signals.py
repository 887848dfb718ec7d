"""Signals become a request to save and leave, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from dpmodel.training.signals import SIGNALS, save_and_leave


def send(number: signal.Signals) -> None:
    signal.raise_signal(number)


def send_twice(number: signal.Signals) -> None:
    send(number)
    send(number)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_signal_is_a_request(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = {item: signal.getsignal(item) for item in SIGNALS}
    with save_and_leave() as request:
        assert request.name == ""
        send(number)
        assert request.name == number.name
    assert {item: signal.getsignal(item) for item in SIGNALS} == before
    assert f"{number.name}: saving a checkpoint" in capfd.readouterr().err


def test_second_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), save_and_leave():
        send_twice(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_that_the_launcher_passes_on_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with save_and_leave(several=True) as request:
        send_twice(signal.SIGINT)
        assert request.name == "SIGINT"
        monkeypatch.setattr("dpmodel.training.signals.PATIENCE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_only_ctrl_c_interrupts(capfd: pytest.CaptureFixture[str]) -> None:
    """A batch system repeats SIGTERM, and one Ctrl-C after it is the first."""
    with save_and_leave() as request:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            send(number)
        assert request.name == "SIGTERM"
    assert capfd.readouterr().err.count("saving") == 1


def test_errors_restore_the_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), save_and_leave():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with save_and_leave() as request:
            send(signal.SIGINT)
            assert request.name == ""
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_install_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        with save_and_leave() as request:
            seen.extend([request.name, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["", signal.getsignal(signal.SIGTERM)]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM")
def test_from_outside() -> None:
    """A process that waits in its step notices, saves and ends well."""
    script = (
        "import time\nfrom dpmodel.training.signals import save_and_leave\n"
        "with save_and_leave() as request:\n"
        "    print('ready', flush=True)\n"
        "    while not request.name:\n        time.sleep(0.01)\n"
        "print('saved after', request.name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert out == "saved after SIGTERM\n"
    assert process.returncode == 0
