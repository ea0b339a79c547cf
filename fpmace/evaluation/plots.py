"""Plots of a run: losses and errors over epochs, predictions against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fpmace.files import atomic_write
from fpmace.training.evaluate import ParityData

PARITY_QUANTITIES = {
    "energy_per_atom": ("energy", "eV/atom"),
    "forces": ("forces", "eV/A"),
    "charges": ("atomic charges", "e"),
    "atomic_dipoles": ("atomic dipoles", "e A"),
    "dipole": ("dipole", "e A"),
}
"""Quantity -> title and unit of its parity plot."""

_ERRORS = (
    ("energy_per_atom", "RMSE E / meV/atom"),
    ("forces", "RMSE F / meV/A"),
    ("charges", "RMSE charge / me"),
    ("dipole_per_atom", "RMSE dipole / me A/atom"),
)


def plot_training(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw losses and validation errors over epochs; stages are separated by lines."""
    validated = [item for item in records if item["valid"] is not None]
    shown = [
        (name, label)
        for name, label in _ERRORS
        if any(name in item["valid"]["errors"] for item in validated)
    ]
    figure = Figure(figsize=(4.2 * (1 + len(shown)), 3.4), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    epochs = [item["epoch"] for item in records]
    axes[0].plot(epochs, [_number(item["train"]["loss"]) for item in records], label="train")
    axes[0].plot(
        [item["epoch"] for item in validated],
        [_number(item["valid"]["loss"]) for item in validated],
        label="valid",
    )
    axes[0].set_title("loss")
    axes[0].legend()
    for axis, (name, label) in zip(axes[1:], shown, strict=True):
        points = [item for item in validated if name in item["valid"]["errors"]]
        axis.plot(
            [item["epoch"] for item in points],
            [1000 * _number(item["valid"]["errors"][name]["rmse"]) for item in points],
        )
        axis.set_title(label)
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xlabel("epoch")
        for before, after in pairwise(records):
            if before["stage"] != after["stage"]:
                axis.axvline(after["epoch"] - 0.5, color="grey", linewidth=0.8, linestyle=":")
    _save(figure, path)


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


def _number(value: float | None) -> float:
    """Metrics files hold null for what is not finite."""
    return float("nan") if value is None else value


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
