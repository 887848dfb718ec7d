"""The tables, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from models import EAGER, GOLDEN, NUMPY, TORCH, Differences, Exchange, worst
from training import ERROR, Training

__all__ = ["exchange_table", "option_table", "training_table"]

OTHERS = ("energy", "force", "virial")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A section with a table and what is said below it."""
    lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), *([""] if notes else [])])


def number(found: Differences | None, *names: str) -> str:
    """The largest difference of some outputs; `-` where there are none, `message` where there is one."""
    if found is None:
        return "-"
    if isinstance(found, str):
        return "message"
    values = [found[name] for name in names if name in found]
    return f"{max(values):.1e}" if values else "-"


def _row(item: Exchange) -> list[str]:
    """Name; loads by NumPy, its largest difference; loads by PyTorch, differences of energy, force, virial, all else."""
    numpy, torch = item.found[NUMPY], item.found.get(TORCH)
    way = "-" if torch is None else loads(torch)
    if not isinstance(torch, dict) and EAGER in item.found:
        torch = item.found[EAGER]
        way = "eager" if isinstance(torch, dict) else way
    others = () if not isinstance(torch, dict) else tuple(name for name in torch if name not in OTHERS)
    cells = [item.name, loads(numpy), number(numpy, *(numpy if isinstance(numpy, dict) else ()))]
    cells += [way, *(number(torch, name) for name in OTHERS), number(torch, *others)]
    return cells


def loads(found: Differences) -> str:
    """Whether a file could be evaluated; eager: only without TorchScript."""
    return "yes" if isinstance(found, dict) else "no"


REASONS = {
    "own": "; the same with DeePMD-kit's own file",
    "other": "; equal by another backend of DeePMD-kit",
    "differs": "",
}
COLUMNS = ("model", "NumPy", "all outputs", "PyTorch", "energy", "force", "virial", "others")


def _notes(items: Sequence[Exchange]) -> list[str]:
    """What needs a word: messages, and what differs."""
    said = []
    for item in items:
        for way, found in item.found.items():
            verdict = item.verdict(way)
            if verdict == "equal":
                continue
            what = found if isinstance(found, str) else f"{worst(found):.1e}"
            said.append(f"`{item.name}`, {way}: {what}{REASONS[verdict]}.")
    return said


def exchange_table(items: Sequence[Exchange]) -> str:
    """The golden models."""
    rows = [[*_row(item), number(item.found[GOLDEN], *item.found[GOLDEN])] for item in items]
    return table("Golden models, saved here", (*COLUMNS, "golden"), rows, _notes(items))


def option_table(items: Sequence[Exchange]) -> str:
    """Models of every option."""
    return table("Every option of the family, random weights", COLUMNS, [_row(item) for item in items], _notes(items))


def training_table(items: Sequence[Training]) -> str:
    """Trained models."""
    rows, notes = [], _notes([item.ours for item in items])
    for item in items:
        theirs = item.theirs
        others = () if not isinstance(theirs, dict) else tuple(name for name in theirs if name not in OTHERS)
        cells = ["yes" if isinstance(theirs, dict) else "no", *(number(theirs, name) for name in ("energy", "force"))]
        rows.append(
            [
                *_row(item.ours),
                *cells,
                number(theirs, *others),
                "error" if item.normalised.startswith(ERROR) else item.normalised,
            ]
        )
        if isinstance(theirs, str):
            notes.append(f"`{item.name}`, trained there: {theirs}.")
        if item.normalised.startswith(ERROR):
            notes.append(f"`{item.name}`, `out.json` here: {item.normalised}.")
    more = ("its `.pt`", "energy", "force", "others", "its `out.json` here")
    return table("Trained here (left), trained there (right)", (*COLUMNS, *more), rows, notes)
