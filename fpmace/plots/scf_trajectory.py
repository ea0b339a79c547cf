"""The passes of a self-consistency loop as structures, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from matplotlib.figure import Figure

from fpmace.annotations import Values
from fpmace.plots.canvas import save_figure


def scf_frames(atoms: Atoms, results: Values) -> list[Atoms]:
    """One structure per pass, the start first.

    Args:
        atoms: the structure.
        results: of a calculation with the full history.

    Returns:
        Copies with arrays ``density_coefficients`` and ``charges`` and, in info, ``scf_step``,
        ``fermi_level``, ``total_charge``, ``density_change`` and ``charge_error`` (not for the
        start). Passes whose density is not finite are left out.
    """
    history = results["full_scf_history"]
    changes = results["convergence_history"]
    frames = []
    for step, (density, level) in enumerate(
        zip(history["densities"], history["fermi_levels"], strict=True)
    ):
        if not np.isfinite(density).all():
            break
        frame = atoms.copy()
        frame.arrays["density_coefficients"] = density
        frame.arrays["charges"] = density[:, 0].copy()
        frame.info.update(
            scf_step=step, fermi_level=float(level), total_charge=float(density[:, 0].sum())
        )
        if step > 0:
            frame.info["density_change"] = float(changes["density_change"][step - 1])
            frame.info["charge_error"] = float(changes["charge_error"][step - 1])
        frames.append(frame)
    return frames


def plot_scf(runs: Sequence[tuple[str, Values]], path: str | Path, *, tolerance: float) -> None:
    """Draw density change, charge error and Fermi level over the passes.

    Args:
        runs: legend and results of calculations with the full history.
        path: the file; its suffix chooses the format.
        tolerance: drawn as a line, e Angstrom^l.
    """
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for name, results in runs:
        changes = results["convergence_history"]
        steps = np.arange(1, len(changes["density_change"]) + 1)
        axes[0].semilogy(steps, _positive(changes["density_change"]), "o-", ms=3, label=name)
        axes[1].semilogy(steps, _positive(np.abs(changes["charge_error"])), "o-", ms=3)
        levels = results["full_scf_history"]["fermi_levels"]
        axes[2].plot(np.arange(len(levels)), levels, "o-", ms=3)
    axes[0].axhline(tolerance, color="grey", linewidth=0.8, linestyle=":")
    titles = ("density change / e Å$^l$", "charge error / e", "Fermi level / eV")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel("pass")
    if len(runs) > 1:
        axes[0].legend()
    save_figure(figure, path, dpi=130)


def _positive(values: np.ndarray) -> np.ndarray:
    """Zeros and what is not finite cannot stand on a logarithmic axis."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)
