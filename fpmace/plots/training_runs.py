"""Plots of training runs over epochs: losses, errors, learning rates, self-consistency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fpmace.annotations import Values
from fpmace.errors import DataError
from fpmace.metrics.errors import QUANTITIES
from fpmace.plots.canvas import save_figure
from fpmace.plots.run_records import Run
from fpmace.scf.state import ScfStatus

Record = Values
Value = Callable[[Record, str], float | None]
"""(epoch, ``train`` or ``valid``) -> number, None where there is none."""

STATISTICS = ("rmse", "mae", "max")
_COLUMNS = 4
_EXACT = 1e-12
"""What is smaller is rounding, such as the error of a charge that is held."""
_FEW = 30
_SPLITS: dict[str, Literal["-", "--"]] = {"train": "-", "valid": "--"}


_OUTCOMES = {
    ScfStatus.CONVERGED: "fraction converged",
    ScfStatus.MAX_STEPS: "fraction out of steps",
    ScfStatus.DIVERGED: "fraction diverged",
    ScfStatus.STALLED: "fraction stalled",
    ScfStatus.NO_SOLUTION: "fraction without solution",
    ScfStatus.NONFINITE: "fraction not finite",
}
_ALWAYS_SHOWN = (ScfStatus.CONVERGED, ScfStatus.MAX_STEPS, ScfStatus.DIVERGED)


@dataclass(frozen=True)
class _Panel:
    title: str
    value: Value
    splits: tuple[str, ...] = ("train", "valid")
    scale: str = "log"
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Section:
    title: str
    panels: list[_Panel]


def plot_training_runs(runs: Sequence[Run], path: Path, *, statistic: str = "rmse") -> None:
    """:func:`draw_training` to a file, whose suffix chooses the format."""
    save_figure(draw_training(runs, statistic=statistic), path, dpi=110)


def draw_training(runs: Sequence[Run], *, statistic: str = "rmse") -> Figure:
    """Draw losses, errors, learning rate and time per epoch of one or more runs.

    Args:
        runs: drawn over each other, a colour each.
        statistic: which errors: ``rmse``, ``mae`` or ``max``.
    """
    errors = [
        _Panel(_error_title(name), _error(name, statistic), ("valid",))
        for name in _shown_errors(runs)
    ]
    terms = [_Panel(name, _term(name)) for name in _names(runs, "terms")]
    optimiser = [
        _Panel("largest learning rate", _learning_rate, ("train",)),
        _Panel("seconds per epoch", _seconds, ("train",), scale="linear"),
    ]
    sections = [
        _Section("Loss and its weighted terms", [_Panel("loss", _entry("loss")), *terms]),
        _Section(f"Validation errors ({statistic.upper()})", errors),
        _Section("Optimisation", optimiser),
    ]
    return _draw(runs, [item for item in sections if item.panels])


def plot_scf_runs(runs: Sequence[Run], path: Path) -> None:
    """:func:`draw_scf` to a file, whose suffix chooses the format."""
    save_figure(draw_scf(runs), path, dpi=110)


def has_loops(runs: Sequence[Run]) -> bool:
    """Whether any epoch has gone through a self-consistency loop."""
    return any(_scf(item, split) for run in runs for item in run.records for split in _SPLITS)


def draw_scf(runs: Sequence[Run]) -> Figure:
    """Draw steps, outcomes and charge errors of the self-consistency loops over epochs.

    Raises:
        DataError: no epoch of any run has gone through such a loop.
    """
    if not has_loops(runs):
        stages = sorted({name for run in runs for name, _ in run.stages})
        raise DataError(
            f"{', '.join(str(run.path) for run in runs)}: no SCF loop was run (stages: "
            f"{', '.join(stages)}); stages of mode direct have none unless valid_mode is scf"
        )
    share = (-0.04, 1.04)
    outcomes = [
        _Panel(title, _fraction(status), scale="linear", limits=share)
        for status, title in _OUTCOMES.items()
        if status in _ALWAYS_SHOWN or _occurs(runs, status)
    ]
    numbers = [
        _Panel("mean number of steps", _scf_number("mean_n_steps"), scale="linear"),
        _Panel("largest number of steps", _scf_number("max_n_steps"), scale="linear"),
        _Panel("largest charge error / e", _scf_number("max_charge_error")),
        _Panel("structures per second", _rate, ("train",), scale="linear"),
    ]
    sections = [_Section("Outcome", outcomes), _Section("Effort and accuracy", numbers)]
    return _draw(runs, sections, with_end=True)


def _entry(name: str) -> Value:
    def value(record: Record, split: str) -> float | None:
        part = record[split]
        return None if part is None else part.get(name)

    return value


def _term(name: str) -> Value:
    def value(record: Record, split: str) -> float | None:
        part = record[split]
        return None if part is None else part.get("terms", {}).get(name)

    return value


def _error(name: str, statistic: str) -> Value:
    def value(record: Record, split: str) -> float | None:
        part = record[split]
        found = None if part is None else part.get("errors", {}).get(name, {}).get(statistic)
        return None if found is None else 1000.0 * found

    return value


def _learning_rate(record: Record, split: str) -> float | None:
    return max(record["lr"].values(), default=None)


def _seconds(record: Record, split: str) -> float | None:
    return record.get("seconds")


def _scf(record: Record, split: str) -> Values | None:
    return None if record[split] is None else record[split].get("scf")


def _n_graphs(scf: Values) -> int:
    return sum(scf.get(status.name.lower(), 0) for status in ScfStatus)


def _occurs(runs: Sequence[Run], status: ScfStatus) -> bool:
    fraction = _fraction(status)
    return any(fraction(item, name) for run in runs for item in run.records for name in _SPLITS)


def _fraction(status: ScfStatus) -> Value:
    def value(record: Record, split: str) -> float | None:
        scf = _scf(record, split)
        if scf is None or _n_graphs(scf) == 0:
            return None
        return scf.get(status.name.lower(), 0) / _n_graphs(scf)

    return value


def _scf_number(name: str) -> Value:
    def value(record: Record, split: str) -> float | None:
        scf = _scf(record, split)
        return None if scf is None else scf.get(name)

    return value


def _rate(record: Record, split: str) -> float | None:
    """Structures of training and validation through the loop, per second of the epoch."""
    found = [scf for name in _SPLITS if (scf := _scf(record, name)) is not None]
    seconds = record.get("seconds")
    return sum(map(_n_graphs, found)) / seconds if found and seconds else None


def _names(runs: Sequence[Run], part: str) -> list[str]:
    """Names of loss terms or errors in any epoch, in the order they turn up."""
    found: dict[str, None] = {}
    for run in runs:
        for record in run.records:
            for split in _SPLITS:
                found.update(dict.fromkeys((record[split] or {}).get(part, {})))
    return list(found)


def _shown_errors(runs: Sequence[Run]) -> list[str]:
    """Errors without those that another one shows per atom or in parts."""
    names = _names(runs, "errors")
    hidden = {name.removesuffix("_per_atom") for name in names if name.endswith("_per_atom")}
    if "charges" in names:
        hidden.add("atomic_multipoles")
    return [name for name in names if name not in hidden]


def _error_title(name: str) -> str:
    unit = QUANTITIES[name].unit if name in QUANTITIES else "?"
    return f"{name.replace('_', ' ')} / m{unit.replace('A', 'Å')}"


def _draw(runs: Sequence[Run], sections: Sequence[_Section], *, with_end: bool = False) -> Figure:
    """Draw all; ``with_end``: the evaluation of self-consistent solutions at the end as well."""
    span = _span(runs, sections)
    rows = [math.ceil(len(section.panels) / _COLUMNS) for section in sections]
    figure = Figure(figsize=(3.4 * _COLUMNS, 2.5 * sum(rows) + 0.6), layout="constrained")
    parts = figure.subfigures(len(sections) + 1, 1, height_ratios=[0.18, *rows], squeeze=False)
    _legend(parts[0, 0], runs, with_end=with_end and any(run.end for run in runs))
    for part, section, n_rows in zip(parts[1:, 0], sections, rows, strict=True):
        part.suptitle(section.title, fontweight="bold", fontsize=11)
        axes = part.subplots(n_rows, _COLUMNS, squeeze=False).ravel()
        for axis, panel in zip(axes, section.panels, strict=False):
            _panel(axis, panel, runs, span, with_end=with_end)
        for axis in axes[len(section.panels) :]:
            axis.set_axis_off()
    return figure


def _span(runs: Sequence[Run], sections: Sequence[_Section]) -> tuple[float, float]:
    """The epochs where anything is drawn, with a margin."""
    epochs = [
        epoch
        for section in sections
        for panel in section.panels
        for run in runs
        for split in panel.splits
        for points in _segments(run.records, panel, split)
        for epoch, _ in points
    ]
    first, last = min(epochs, default=0), max(epochs, default=0)
    margin = 0.03 * (last - first) + 0.6
    return first - margin, last + margin


def _legend(part: SubFigure, runs: Sequence[Run], *, with_end: bool) -> None:
    lines = [Line2D([], [], color=_colour(index)) for index in range(len(runs))]
    names = [run.label for run in runs]
    for split, style in _SPLITS.items():
        lines.append(Line2D([], [], color="black", linestyle=style))
        names.append(split)
    lines.append(Line2D([], [], color="grey", linestyle=":"))
    stages = " → ".join(name for name, _ in runs[0].stages)
    names.append(f"new stage ({stages})" if len(runs) == 1 else "new stage")
    if with_end:
        lines.append(Line2D([], [], color="black", linestyle="", marker="*"))
        names.append("evaluation at the end")
    part.legend(lines, names, loc="center", ncols=min(len(lines), 5), frameon=False)


def _colour(index: int) -> str:
    return f"C{index % 10}"


def _panel(
    axis: Axes,
    panel: _Panel,
    runs: Sequence[Run],
    span: tuple[float, float],
    *,
    with_end: bool,
) -> None:
    drawn: list[float] = []
    for index, run in enumerate(runs):
        for split in panel.splits if with_end and run.end else ():
            value = panel.value(run.end, split)
            if value is not None and math.isfinite(value):
                drawn.append(value)
                fill = _colour(index) if split == "train" else "none"
                axis.plot(run.epochs[-1], value, "*", color=_colour(index), ms=9, mfc=fill)
        for split in panel.splits:
            for points in _segments(run.records, panel, split):
                drawn += [value for _, value in points]
                axis.plot(
                    *zip(*points, strict=True),
                    color=_colour(index),
                    linestyle=_SPLITS[split],
                    linewidth=1.1,
                    marker="." if len(points) <= _FEW else "",
                    markersize=4,
                )
        for _, first in run.stages[1:]:
            axis.axvline(first - 0.5, color=_stage_colour(index, runs), ls=":", linewidth=0.9)
    axis.set_title(panel.title, fontsize=9)
    axis.set_xlabel("epoch", fontsize=8)
    axis.tick_params(which="both", labelsize=8)
    axis.set_xlim(*span)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.grid(alpha=0.3)
    if not drawn:
        axis.text(0.5, 0.5, "no data", ha="center", transform=axis.transAxes, color="grey")
    _set_scale(axis, panel, drawn)


def _set_scale(axis: Axes, panel: _Panel, drawn: Sequence[float]) -> None:
    positive = [value for value in drawn if value > 0]
    if panel.limits is not None:
        axis.set_ylim(*panel.limits)
    elif panel.scale == "log" and drawn and max(drawn) < _EXACT:
        axis.set_ylim(0.0, _EXACT)
        axis.text(0.5, 0.5, "exact", ha="center", transform=axis.transAxes, color="grey")
    elif panel.scale == "log" and positive:
        axis.set_yscale("log", nonpositive="mask")
        if min(positive) <= _EXACT:
            axis.set_ylim(bottom=_EXACT)
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_major_formatter(plain)
        narrow = max(positive) < 60.0 * min(positive)
        subs = (2.0, 3.0, 4.0, 6.0) if max(positive) < 4.0 * min(positive) else (2.0, 5.0)
        axis.yaxis.set_minor_locator(LogLocator(subs=subs))
        axis.yaxis.set_minor_formatter(plain if narrow else NullFormatter())
    elif drawn:
        axis.set_ylim(bottom=min(0.0, *drawn))


def _stage_colour(index: int, runs: Sequence[Run]) -> str:
    return "grey" if len(runs) == 1 else _colour(index)


def _segments(
    records: Sequence[Record], panel: _Panel, split: str
) -> list[list[tuple[int, float]]]:
    """Points of each stage: losses of different stages are weighted differently."""
    stages: dict[int, list[tuple[int, float]]] = {}
    for record in records:
        value = panel.value(record, split)
        if value is not None and math.isfinite(value):
            point = (int(record["epoch"]), float(value))
            stages.setdefault(int(record["stage"]), []).append(point)
    return list(stages.values())
