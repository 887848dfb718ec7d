"""The profiler of PyTorch behind `training.profiling` and `training.enable_profiler`."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from dpmodel.training.profiling import ACTIVE, WAIT, WARMUP

__all__ = ["TorchProfiler"]


class TorchProfiler:
    """See `dpmodel.training.profiling.Profiler`."""

    def __init__(self, trace: Path | None, folder: Path | None) -> None:
        self._trace, self._folder = trace, folder
        self._written = self._stopped = False
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )

    def start(self) -> None:
        """Before the first step."""
        self._profile.start()

    def step(self) -> None:
        """After every step."""
        if not self._stopped:
            self._profile.step()
            if self._written:  # the rest of the run costs nothing
                self.stop()

    def stop(self) -> bool:
        """At the end; whether the traces were written."""
        if not self._stopped:
            self._stopped = True
            self._profile.stop()
        return self._written

    def _write(self, profile: Any) -> None:
        if self._stopped:
            return  # the run ended while steps were recorded: not the profile that was asked for
        places = [] if self._trace is None else [self._trace]
        if self._folder is not None:
            # The name that TensorBoard's plugin looks for.
            places.append(self._folder / f"{socket.gethostname()}_{os.getpid()}.{time.time_ns()}.pt.trace.json")
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(places[0]))  # once: the trace is moved, not copied
        for place in places[1:]:
            shutil.copyfile(places[0], place)
        self._written = True
