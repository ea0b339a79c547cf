"""Plots of line cuts and slices of potential and density."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from fpmace.observables.fields import LineCut, Slice
from fpmace.plots.canvas import save_figure


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
    save_figure(figure, path, dpi=150)


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
    save_figure(figure, path, dpi=150)
