"""Plots of line cuts and slices of potential and density."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fpmace.files import atomic_write
from fpmace.observables.fields import LineCut, Slice


def plot_lines(lines: Mapping[str, LineCut], path: str | Path, *, label: str) -> None:
    """Draw line cuts over the distance in Angstrom.

    Args:
        lines: legend -> cut.
        path: the file; its suffix chooses the format.
        label: what is drawn, with its unit.
    """
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, cut in lines.items():
        axis.plot(cut.distance, cut.values, label=name)
    axis.set_xlabel("distance / Å")
    axis.set_ylabel(label)
    if len(lines) > 1:
        axis.legend()
    _save(figure, path)


def plot_slice(cut: Slice, path: str | Path, *, label: str) -> None:
    """Draw a slice as colours over its two sides in Angstrom, zero in the middle of the scale."""
    figure = Figure(figsize=(5.0, 4.2), layout="constrained")
    axis = figure.subplots()
    limit = float(abs(cut.values).max()) or 1.0
    image = axis.imshow(
        cut.values.T,
        origin="lower",
        extent=(0.0, cut.sides[0], 0.0, cut.sides[1]),
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
    )
    axis.set_xlabel("u / Å")
    axis.set_ylabel("v / Å")
    figure.colorbar(image, label=label)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
