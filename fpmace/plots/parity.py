"""Plots of a run: losses and errors over epochs, predictions against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fpmace.annotations import Values
from fpmace.metrics.parity import ParityData
from fpmace.plots.canvas import save_figure
from fpmace.plots.run_records import Run
from fpmace.plots.training_runs import plot_training_runs

PARITY_QUANTITIES = {
    "energy_per_atom": ("energy less free atoms", "eV/atom"),
    "forces": ("forces", "eV/Å"),
    "charges": ("atomic charges", "e"),
    "atomic_dipoles": ("atomic dipoles", "e Å"),
    "dipole": ("dipole", "e Å"),
    "fermi_level": ("Fermi level", "eV"),
}
"""Quantity -> title and unit of its parity plot."""

_MOST_COLOURS = 20
_COLUMNS = 3


def plot_training(records: Sequence[Values], path: Path) -> None:
    """Draw the epochs of one run, as ``fpmace-plot-train`` does."""
    name = path.stem.removesuffix("_training")
    plot_training_runs([Run(name, path, [dict(item) for item in records])], path)


def plot_parity(
    parity: Mapping[str, ParityData], title: str, path: Path, groups: Sequence[str] = ()
) -> bool:
    """:func:`draw_parity` to a file.

    Returns:
        Whether there was anything to draw.
    """
    figure = draw_parity(parity, title, groups)
    if figure is not None:
        save_figure(figure, path, dpi=120)
    return figure is not None


def draw_parity(
    parity: Mapping[str, ParityData], title: str, groups: Sequence[str] = ()
) -> Figure | None:
    """Draw predicted against reference values, one panel per quantity, a colour per group."""
    shown = [name for name in PARITY_QUANTITIES if name in parity and parity[name].count > 0]
    if not shown:
        return None
    columns = min(len(shown), _COLUMNS)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.8 * columns, 3.8 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, shown, strict=False):
        _panel(axis, parity[name], groups)
        what, unit = PARITY_QUANTITIES[name]
        axis.set_title(what if name != "energy_per_atom" or parity[name].free_atoms else "energy")
        axis.set_xlabel(f"reference / {unit}")
        axis.set_ylabel(f"predicted / {unit}")
    if len(groups) > 1:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5, markerscale=4)
    figure.suptitle(title)
    return figure


def _panel(axis: Axes, data: ParityData, groups: Sequence[str]) -> None:
    reference, predicted, group = (
        np.concatenate([item.numpy() for item in part])
        for part in (data.reference, data.predicted, data.groups)
    )
    ends = [min(reference.min(), predicted.min()), max(reference.max(), predicted.max())]
    axis.plot(ends, ends, color="grey", linewidth=0.8)
    for number, label in enumerate(groups or ("all",)):
        mine = (group == number) | (not groups)
        colour = colormaps["tab20"](number) if number < _MOST_COLOURS else "lightgrey"
        style: Values = {"color": colour, "markersize": 2.5, "rasterized": True, "label": label}
        axis.plot(reference[mine], predicted[mine], ".", **style)
    error = predicted - reference
    text = f"RMSE {np.sqrt((error**2).mean()):.3g}\nMAE {np.abs(error).mean():.3g}"
    axis.text(0.04, 0.96, text, transform=axis.transAxes, va="top", fontsize=9)
