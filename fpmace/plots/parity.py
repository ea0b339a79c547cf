"""Plots of a run: losses and errors over epochs, predictions against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fpmace.files import atomic_write
from fpmace.metrics.parity import ParityData
from fpmace.plots.run_records import Run
from fpmace.plots.training_runs import plot_training_runs

PARITY_QUANTITIES = {
    "energy_per_atom": ("energy", "eV/atom"),
    "forces": ("forces", "eV/A"),
    "charges": ("atomic charges", "e"),
    "atomic_dipoles": ("atomic dipoles", "e A"),
    "dipole": ("dipole", "e A"),
}
"""Quantity -> title and unit of its parity plot."""


def plot_training(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the epochs of one run, as ``fpmace-plot-train`` does."""
    name = path.stem.removesuffix("_training")
    plot_training_runs([Run(name, path, [dict(item) for item in records])], path)


def plot_parity(parity: Mapping[str, ParityData], title: str, path: Path) -> bool:
    """Draw predicted against reference values, one panel per quantity.

    Returns:
        Whether there was anything to draw.
    """
    shown = [name for name in PARITY_QUANTITIES if name in parity and parity[name].count > 0]
    if not shown:
        return False
    figure = Figure(figsize=(3.8 * len(shown), 3.8), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, name in zip(axes, shown, strict=True):
        reference = np.concatenate([item.numpy() for item in parity[name].reference])
        predicted = np.concatenate([item.numpy() for item in parity[name].predicted])
        low = float(min(reference.min(), predicted.min()))
        high = float(max(reference.max(), predicted.max()))
        axis.plot([low, high], [low, high], color="grey", linewidth=0.8)
        axis.plot(reference, predicted, ".", markersize=2.5, rasterized=True)
        what, unit = PARITY_QUANTITIES[name]
        axis.set_title(what)
        axis.set_xlabel(f"reference / {unit}")
        axis.set_ylabel(f"predicted / {unit}")
    figure.suptitle(title)
    _save(figure, path)
    return True


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
