"""Results: medians over rounds, ratios to the peer, the table and the JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

from cases import PEER, Case

__all__ = ["Row", "compare", "notes", "scaling", "table", "write_json"]

MIB = 2**20


@dataclasses.dataclass
class Row:
    """What was measured of one case, round by round."""

    case: Case
    atoms: int
    first: float | None = None
    """Seconds with an empty compilation cache: of the first evaluation in a process, or of a training without its steps."""
    skipped: str | None = None
    """Why there are no figures."""
    energy_only: bool = False
    seconds: list[float] = dataclasses.field(default_factory=list)
    floor: list[int] = dataclasses.field(default_factory=list)
    peak: list[int] = dataclasses.field(default_factory=list)
    ratios: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """By name: ours divided by the peer's, round by round."""
    against: str | None = None
    """The way of the peer that the ratios `time` and `memory` are to: its fastest one."""

    def take(self, answer: dict[str, Any]) -> None:
        """Take in the answer of one process: the median of its calls counts."""
        if "skipped" in answer:
            self.skipped = answer["skipped"]
            return
        self.seconds.append(median(answer["seconds"]))
        self.floor.append(answer["floor"])
        self.peak.append(answer["peak"])
        self.energy_only = bool(answer.get("energy_only", False))

    def above(self) -> list[int]:
        """Bytes above the import floor, round by round."""
        return [peak - floor for peak, floor in zip(self.peak, self.floor, strict=True)]

    def content(self) -> dict[str, Any]:
        """For the JSON file: seconds, and MiB."""
        case = self.case
        out: dict[str, Any] = {
            "model": case.model, "quantity": case.quantity, "backend": case.name, "atoms": self.atoms,
        }  # fmt: skip
        if case.quantity == "lammps":
            out |= {"ranks": case.ranks, "setting": case.setting}
        if self.skipped is not None:
            return out | {"skipped": self.skipped}
        out |= {"energy_only": self.energy_only, "seconds": median(self.seconds), "seconds_of_rounds": self.seconds}
        for name, values in (("floor", self.floor), ("peak", self.peak), ("above_floor", self.above())):
            out |= {f"{name}_mib": _mib(median(values)), f"{name}_mib_of_rounds": [_mib(value) for value in values]}
        if self.first is not None:
            out["first_seconds"] = self.first
        if self.against is not None:
            out["against"] = self.against
        for name, values in self.ratios.items():
            out |= {f"{name}_ratio": median(values), f"{name}_ratio_of_rounds": values}
        return out


def compare(rows: list[Row]) -> None:
    """Fill in the ratios ours : peer, round by round, where both computed the same.

    `time` and `memory` are to the way of the peer that has the smallest median time, `pt_time` and `pt_memory` to its
    eager training.
    """
    for row in rows:
        if row.case.way.side == "peer" or row.skipped is not None or row.energy_only:
            continue
        same = [r for r in rows if r.case.question() == row.case.question() and r.case.way.side == "peer" and r.seconds]
        if not same:
            continue
        best = min(same, key=lambda other: median(other.seconds))
        row.against = best.case.name + (f", {best.case.setting}" if best.case.setting else "")
        _divide(row, best, "")
        for other in same:
            if other.case.name == f"{PEER} pt" and row.case.quantity == "training":
                _divide(row, other, "pt_")


def _divide(row: Row, other: Row, prefix: str) -> None:
    # A slow way of the peer may have taken part in fewer rounds.
    row.ratios[f"{prefix}time"] = [a / b for a, b in zip(row.seconds, other.seconds, strict=False)]
    memory = zip(row.above(), other.above(), strict=False)
    row.ratios[f"{prefix}memory"] = [a / max(b, 1) for a, b in memory]


HEADER = ("model", "what", "atoms", "backend", "seconds", "spread", "first", "peak", "floor", "above", "time", "memory", "time/pt", "mem/pt")  # fmt: skip
RATIOS = ("time", "memory", "pt_time", "pt_memory")


def table(rows: list[Row]) -> str:
    """A table in Markdown; memory in MiB, the last columns are ratios to the peer."""
    lines = [list(HEADER)]
    for row in rows:
        if row.skipped is not None:
            continue
        what = row.case.what() + (" (energy)" if row.energy_only else "")
        spread = f"{min(row.seconds):.4f}-{max(row.seconds):.4f}"
        memory = [f"{_mib(median(values)):.0f}" for values in (row.peak, row.floor, row.above())]
        ratios = [f"{median(row.ratios[name]):.2f}" if name in row.ratios else "" for name in RATIOS]
        first = "" if row.first is None else f"{row.first:.2f}"
        words = [row.case.model, what, str(row.atoms), row.case.name]
        lines.append([*words, f"{median(row.seconds):.4f}", spread, first, *memory, *ratios])
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


def scaling(rows: list[Row]) -> list[str]:
    """One line for each program and size: the best time per step of LAMMPS on several ranks, relative to that on one."""
    best: dict[tuple[str, int, str], dict[int, float]] = {}
    for row in rows:
        if row.case.quantity == "lammps" and row.seconds:
            of = best.setdefault((row.case.model, row.atoms, row.case.name), {})
            of[row.case.ranks] = min(median(row.seconds), of.get(row.case.ranks, float("inf")))
    return [
        f"{model}, {atoms} atoms, {name}: a step on {ranks} ranks takes {seconds / of[1]:.2f} of one on 1 rank"
        for (model, atoms, name), of in best.items()
        for ranks, seconds in of.items()
        if ranks > 1 and 1 in of
    ]


def notes(rows: list[Row]) -> list[str]:
    """One line for each thing that a backend cannot do."""
    found = [f"{r.case.model}, {r.case.what()}, {r.case.name}: {r.skipped}" for r in rows if r.skipped is not None]
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
