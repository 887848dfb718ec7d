"""Results: medians over rounds, ratios to the peer, the table and the JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

from cases import Case

__all__ = ["Row", "compare", "notes", "table", "write_json"]

MIB = 2**20


@dataclasses.dataclass
class Row:
    """What was measured of one case, round by round."""

    case: Case
    atoms: int
    first: float | None = None
    """Seconds of the first evaluation in a process with an empty compilation cache."""
    skipped: str | None = None
    """Why there are no figures."""
    energy_only: bool = False
    seconds: list[float] = dataclasses.field(default_factory=list)
    floor: list[int] = dataclasses.field(default_factory=list)
    peak: list[int] = dataclasses.field(default_factory=list)
    time_ratios: list[float] = dataclasses.field(default_factory=list)
    memory_ratios: list[float] = dataclasses.field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        """Take in the answer of one process: the median of its calls counts."""
        self.seconds.append(median(answer["seconds"]))
        self.floor.append(answer["floor"])
        self.peak.append(answer["peak"])
        self.energy_only = bool(answer.get("energy_only", False))

    def above(self) -> list[int]:
        """Bytes above the import floor, round by round."""
        return [peak - floor for peak, floor in zip(self.peak, self.floor, strict=True)]

    def content(self) -> dict[str, Any]:
        """For the JSON file: seconds, and MiB."""
        out: dict[str, Any] = {
            "model": self.case.model, "quantity": self.case.quantity, "backend": self.case.backend, "atoms": self.atoms,
        }  # fmt: skip
        if self.skipped is not None:
            return out | {"skipped": self.skipped}
        out |= {"energy_only": self.energy_only, "seconds": median(self.seconds), "seconds_of_rounds": self.seconds}
        for name, values in (("floor", self.floor), ("peak", self.peak), ("above_floor", self.above())):
            out |= {f"{name}_mib": _mib(median(values)), f"{name}_mib_of_rounds": [_mib(value) for value in values]}
        if self.first is not None:
            out["first_seconds"] = self.first
        if self.time_ratios:
            out |= {"time_ratio": median(self.time_ratios), "time_ratio_of_rounds": self.time_ratios}
            out |= {"memory_ratio": median(self.memory_ratios), "memory_ratio_of_rounds": self.memory_ratios}
        return out


def compare(rows: list[Row]) -> None:
    """Fill in the ratios ours : peer, round by round, where both computed the same."""
    peers = {(r.case.model, r.case.quantity, r.case.supercell): r for r in rows if r.case.backend == "peer"}
    for row in rows:
        peer = peers.get((row.case.model, row.case.quantity, row.case.supercell))
        if peer is None or peer is row or row.skipped is not None or row.energy_only:
            continue
        row.time_ratios = [a / b for a, b in zip(row.seconds, peer.seconds, strict=True)]
        row.memory_ratios = [a / max(b, 1) for a, b in zip(row.above(), peer.above(), strict=True)]


HEADER = ("model", "what", "atoms", "backend", "seconds", "spread", "first", "peak", "floor", "above", "time", "memory")


def table(rows: list[Row]) -> str:
    """A table in Markdown; memory in MiB, `time` and `memory` are ratios to the peer."""
    lines = [list(HEADER)]
    for row in rows:
        if row.skipped is not None:
            continue
        what = row.case.quantity + (" (energy)" if row.energy_only else "")
        backend = "DeePMD-kit pt" if row.case.backend == "peer" else row.case.backend
        middle = median(row.seconds)
        spread = f"{min(row.seconds):.4f}-{max(row.seconds):.4f}"
        memory = [f"{_mib(median(values)):.0f}" for values in (row.peak, row.floor, row.above())]
        ratios = [f"{median(values):.2f}" if values else "" for values in (row.time_ratios, row.memory_ratios)]
        first = "" if row.first is None else f"{row.first:.2f}"
        lines.append([row.case.model, what, str(row.atoms), backend, f"{middle:.4f}", spread, first, *memory, *ratios])
    widths = [max(len(line[k]) for line in lines) for k in range(len(HEADER))]
    left = 4  # the first columns are words
    text = [
        "| "
        + " | ".join(c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) if k < left else "-" * (w + 1) + ":" for k, w in enumerate(widths)) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def notes(rows: list[Row]) -> list[str]:
    """One line for each thing that a backend cannot do."""
    found = [f"{r.case.model}, {r.case.quantity}, {r.case.backend}: {r.skipped}" for r in rows if r.skipped is not None]
    return list(dict.fromkeys(found))


def write_json(path: Path, facts: dict[str, Any], settings: dict[str, Any], rows: list[Row]) -> None:
    """Write everything, complete or not at all."""
    content = {"machine": facts, "settings": settings, "results": [row.content() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _mib(count: float) -> float:
    return round(count / MIB, 1)
