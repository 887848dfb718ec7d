"""Pictures of a training run: learning curves, and predictions against labels. PNG, SVG or PDF, by the suffix.

    plot_lcurve("lcurve.out", "lcurve.png")
    plot_parity("results/water", "parity.svg")      # after `dpmodel test -d results/water`

matplotlib is imported when a picture is drawn; it comes with the extra `plot`. No display is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from dpmodel.details import detail_path, other_quantities, read_detail
from dpmodel.errors import DPError, InputError
from dpmodel.files.atomic import atomic_write
from dpmodel.metrics import title_of
from dpmodel.training.lcurve import read_lcurve

__all__ = ["plot_lcurve", "plot_parity"]

FORMATS = ("png", "svg", "pdf")

_INK, _GRID = "#2b2f36", "#d9dde3"
_TRAINING, _VALIDATION, _RATE = "#8fb3d9", "#c2410c", "#5b6470"
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "svg.hashsalt": "dpmodel",
}

_METRICS = {
    "rmse_e": "Energy RMSE, eV/atom",
    "rmse_f": "Force RMSE, eV/Å",
    "rmse_v": "Virial RMSE, eV/atom",
    "rmse_ae": "Atomic energy RMSE, eV",
    "mae_e": "Energy MAE, eV/atom",
    "mae_f": "Force MAE, eV/Å",
    "mae_v": "Virial MAE, eV/atom",
}
"""Titles of the columns that users look at; of a task that has none of these, others are drawn."""
_LINES = ("-", "--", ":", "-.")
"""One for each task, in turn."""

_PARITY = (
    ("energy_per_atom", "Energy", "meV/atom", 1000.0, True),
    ("force", "Force components", "eV/Å", 1.0, False),
    ("virial_per_atom", "Virial components", "meV/atom", 1000.0, False),
    ("force_mag", "Magnetic force components", "eV per unit of spin", 1.0, False),
    ("hessian", "Hessian elements", "eV/Å²", 1.0, False),
)
"""Quantity, title, unit, factor to the unit, whether the mean of the labels is taken off both axes. Other quantities have
no unit, and those of frames are drawn per atom where they are sums."""
_MANY = 4000
"""From so many points on, density is drawn instead of points."""


def plot_lcurve(lcurve: str | os.PathLike[str], output: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Draw the training and validation columns of a learning curve, and the learning rate, over the steps.

    Raises InputError for a file that is no learning curve or has no rows, DPError where matplotlib is missing,
    OSError where the picture cannot be written.
    """
    target, form = _target(output)
    table = read_lcurve(lcurve)
    step = table["step"]
    if not len(step):
        raise InputError(f"{lcurve}: there are no rows yet; the first one comes with the first step")
    panels = _panels(table)
    tasks = sorted({task for columns in panels.values() for _, _, task in columns})
    with _load("matplotlib").rc_context(_STYLE):
        figure, axes = _figure(len(panels) + ("lr" in table), 3.9, 3.2)
        for k, (axis, (metric, columns)) in enumerate(zip(axes, panels.items(), strict=False)):
            axis.set_title(_METRICS.get(metric, metric))
            for part, column, task in columns:
                validated = part == "val"
                label = f"{'validation' if validated else 'training'}{task}"
                _curve(axis, step, table[column], label, validated, _LINES[tasks.index(task) % len(_LINES)])
            _scales(axis, step)
            if k == 0 or len(tasks) > 1:
                axis.legend(loc="upper right")
        if "lr" in table:
            _curve_rate(axes[-1], step, table["lr"])
        return _finish(figure, target, form, title)


def plot_parity(prefix: str | os.PathLike[str], output: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Draw predictions against labels with their errors: energy per atom, forces, virials, Hessians, or what other models
    predict.

    prefix: as given to `dpmodel test -d`. Raises InputError where its files are missing or of another kind, DPError
    where matplotlib is missing, OSError where the picture cannot be written.
    """
    target, form = _target(output)
    found = [(row, pair) for row in (*_PARITY, *_others(prefix)) if (pair := read_detail(prefix, row[0])) is not None]
    if not found:
        names = ", ".join(str(detail_path(prefix, row[0])) for row in _PARITY[:3])
        raise InputError(f"no details to draw: expected {names}; write them with `dpmodel test ... -d {prefix}`")
    with _load("matplotlib").rc_context(_STYLE):
        figure, axes = _figure(len(found), 4.2, 4.0)
        for axis, ((_, name, unit, factor, centred), (label, prediction)) in zip(axes, found, strict=True):
            _parity(axis, factor * label.ravel(), factor * prediction.ravel(), name, unit, centred)
        return _finish(figure, target, form, title)


def _others(prefix: str | os.PathLike[str]) -> list[tuple[str, str, str, float, bool]]:
    """Rows like those of `_PARITY` for quantities of other models."""
    names = other_quantities(prefix)
    drawn = [name for name in names if f"{name}_per_atom" not in names]
    return [(name, "/".join(filter(None, title_of(name))), "", 1.0, False) for name in drawn]


# --- the sheet -------------------------------------------------------------------------------------------


def _target(output: str | os.PathLike[str]) -> tuple[Path, str]:
    path = Path(output)
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise InputError(f"{path}: pictures end in .{', .'.join(FORMATS)}; got {path.suffix or 'no suffix'!r}")
    return path, form


def _load(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as problem:
        raise DPError(f"plots need matplotlib ({problem}); install it with: pip install matplotlib") from problem


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure without pyplot: no window, no global state."""
    figure_type = _load("matplotlib.figure").Figure
    figure = figure_type(figsize=(width * columns, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    axes = [figure.add_subplot(1, columns, k + 1) for k in range(columns)]
    for axis in axes:
        axis.grid(visible=True, which="major", color=_GRID, linewidth=0.6)
    return figure, axes


def _finish(figure: Any, target: Path, form: str, title: str | None) -> Path:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
    atomic_write(target, lambda path: figure.savefig(path, format=form, dpi=160, metadata=metadata))
    return target


# --- learning curves -------------------------------------------------------------------------------------


def _panels(table: dict[str, np.ndarray]) -> dict[str, list[tuple[str, str, str]]]:
    """By metric, (trn or val, column, task as part of a label); training first, so that validation lies on top."""
    panels: dict[str, list[tuple[str, str, str]]] = {}
    for column, values in table.items():
        form = re.fullmatch(r"(.+?)_(trn|val)(?:_(.+))?", column)
        if form is not None and np.any(np.isfinite(values) & (values > 0)):
            panels.setdefault(form[1], []).append((form[2], column, f" {form[3]}" if form[3] else ""))
    if not panels:
        raise InputError("the learning curve has no column with numbers above 0 to draw")
    drawn = {name: panels[name] for name in _METRICS if name in panels}
    served = {task for columns in drawn.values() for _, _, task in columns}
    others = {name: [column for column in columns if column[2] not in served] for name, columns in panels.items()}
    others = {name: columns for name, columns in others.items() if columns}
    if served and len(others) > 1:
        others.pop("rmse", None)  # the root of the loss, beside what it consists of
    return {name: sorted(columns) for name, columns in {**drawn, **others}.items()}


def _curve(axis: Any, step: np.ndarray, values: np.ndarray, label: str, validated: bool, line: str) -> None:
    kept = np.isfinite(values) & (values > 0)
    colour = _VALIDATION if validated else _TRAINING
    axis.plot(
        step[kept], values[kept], line, color=colour, linewidth=1.8 if validated else 1.4, label=label,
        marker="o" if np.count_nonzero(kept) < 3 else None, markersize=4, solid_joinstyle="round",
    )  # fmt: skip
    if validated:
        last = float(values[kept][-1])
        axis.annotate(
            f"{last:.3g}", (step[kept][-1], last), xytext=(4, 0), textcoords="offset points", color=colour,
            va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip


def _curve_rate(axis: Any, step: np.ndarray, rate: np.ndarray) -> None:
    kept = rate > 0
    axis.set_title("Learning rate")
    axis.plot(step[kept], rate[kept], color=_RATE, linewidth=1.4)
    _scales(axis, step)


def _scales(axis: Any, step: np.ndarray) -> None:
    """Steps along x; y logarithmic, with plain numbers at 1, 2, 5 of every decade where there are few decades."""
    axis.set_xlabel("step")
    axis.set_xlim(0, max(1, int(step[-1])))
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    ticker = _load("matplotlib.ticker")
    if high / low < 1e3:
        subs = (1, 2, 3, 4, 6, 8) if high / low < 8 else (1, 2, 5) if high / low < 50 else (1,)
        axis.yaxis.set_major_locator(
            ticker.MaxNLocator(5, steps=[1, 2, 5, 10]) if high / low < 2.5 else ticker.LogLocator(subs=subs)
        )
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(ticker.NullLocator())


# --- parity ----------------------------------------------------------------------------------------------


def _parity(axis: Any, label: np.ndarray, prediction: np.ndarray, name: str, unit: str, centred: bool) -> None:
    difference = prediction - label
    rmse, mae = float(np.sqrt(np.mean(difference**2))), float(np.mean(np.abs(difference)))
    if centred:
        label, prediction = label - label.mean(), prediction - label.mean()
    low, high = _limits(label, prediction)
    if label.size > _MANY:
        axis.hexbin(
            label, prediction, gridsize=90, extent=(low, high, low, high), bins="log", cmap=_density(), mincnt=1,
            linewidths=0.1, edgecolors="face",
        )  # fmt: skip
    else:
        axis.plot(label, prediction, "o", markersize=3.5, color=_VALIDATION, alpha=0.65, markeredgewidth=0)
    axis.plot((low, high), (low, high), color=_INK, linewidth=0.8, dashes=(4, 3))
    sides = [", ".join(filter(None, (side, unit))) for side in ("label", "prediction")]
    axis.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel=sides[0], ylabel=sides[1])
    axis.set_title(f"{name}{' about the mean of labels' if centred else ''}")
    axis.text(
        0.04, 0.96, f"RMSE {rmse:.3g} {unit}\nMAE {mae:.3g} {unit}\n{label.size:,} numbers", transform=axis.transAxes,
        va="top", fontsize=9, linespacing=1.4, bbox={"color": "white", "alpha": 0.75, "pad": 2, "linewidth": 0},
    )  # fmt: skip


def _limits(*values: np.ndarray) -> tuple[float, float]:
    low, high = min(float(x.min()) for x in values), max(float(x.max()) for x in values)
    margin = 0.05 * (high - low) or max(1e-6, 0.05 * abs(high))
    return low - margin, high + margin


def _density() -> Any:
    """From pale to the colour of validation data."""
    colours: Sequence[str] = ("#fde8dc", "#f3a27a", _VALIDATION, "#5f1d05")
    return _load("matplotlib.colors").LinearSegmentedColormap.from_list("density", list(colours))
