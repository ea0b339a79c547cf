"""What the map looks like at its fixed point, in numbers; found by :mod:`fpmace.scf.spectrum`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScfDiagnostics:
    """Estimates per graph, [n_graphs] each.

    Attributes:
        spectral_radius: largest modulus of an eigenvalue of the map's Jacobian. Plain iteration
            (mixing 1) converges if it is below 1.
        largest_real, smallest_real: extreme real parts. No linear mixing converges where
            ``largest_real`` is 1 or more; a very negative ``smallest_real`` needs small mixing.
        optimal_mixing: the mixing in (0, 1] with which linear mixing converges fastest; NaN
            where none converges.
        mixing_rate: factor by which the error shrinks in a pass with that mixing.
        n_map_evaluations: evaluations of the map that the solve took, for the whole batch.
        n_matvecs: products with the Jacobian that the solve took, for the whole batch.
    """

    spectral_radius: Tensor
    largest_real: Tensor
    smallest_real: Tensor
    optimal_mixing: Tensor
    mixing_rate: Tensor
    n_map_evaluations: int
    n_matvecs: int

    def describe(self, graph: int) -> str:
        """One line on one graph."""
        mixing = float(self.optimal_mixing[graph])
        text = (
            f"eigenvalues of the map from {float(self.smallest_real[graph]):.2f} to "
            f"{float(self.largest_real[graph]):.2f} (modulus at most "
            f"{float(self.spectral_radius[graph]):.2f}); "
        )
        if np.isnan(mixing):
            return text + "no linear mixing converges"
        return text + (
            f"best linear mixing {mixing:.2g}, error x {float(self.mixing_rate[graph]):.2f} a pass"
        )

    def __str__(self) -> str:
        worst = int(torch.nan_to_num(self.spectral_radius, nan=-1.0).argmax())
        return (
            f"map: spectral radius {float(self.spectral_radius[worst]):.2f} at most "
            f"(structure {worst}: {self.describe(worst)})"
        )


@dataclass
class DiagnosticsSummary:
    """Diagnostics of many batches in a few numbers; ``add`` each result's."""

    spectral_radius: list[float] = field(default_factory=list)
    optimal_mixing: list[float] = field(default_factory=list)
    n_map_evaluations: int = 0
    n_matvecs: int = 0
    n_batches: int = 0

    def add(self, diagnostics: ScfDiagnostics | None) -> None:
        """Add those of one batch; None (not asked for) adds nothing."""
        if diagnostics is None:
            return
        self.spectral_radius += diagnostics.spectral_radius.tolist()
        self.optimal_mixing += diagnostics.optimal_mixing.tolist()
        self.n_map_evaluations += diagnostics.n_map_evaluations
        self.n_matvecs += diagnostics.n_matvecs
        self.n_batches += 1

    def merge(self, other: DiagnosticsSummary) -> None:
        """Add those of other structures."""
        self.spectral_radius += other.spectral_radius
        self.optimal_mixing += other.optimal_mixing
        self.n_map_evaluations += other.n_map_evaluations
        self.n_matvecs += other.n_matvecs
        self.n_batches += other.n_batches

    def to_json(self) -> dict[str, float | int] | None:
        """Plain numbers; None if nothing was added."""
        if not self.spectral_radius:
            return None
        radius = np.array(self.spectral_radius)
        mixing = np.array(self.optimal_mixing)
        result: dict[str, float | int] = {
            "n_structures": len(radius),
            "n_without_linear_mixing": int(np.isnan(mixing).sum()),
            "mean_map_evaluations": self.n_map_evaluations / self.n_batches,
            "mean_matvecs": self.n_matvecs / self.n_batches,
        }
        if np.isfinite(radius).any():
            result["median_spectral_radius"] = float(np.nanmedian(radius))
            result["max_spectral_radius"] = float(np.nanmax(radius))
        if np.isfinite(mixing).any():
            result["min_optimal_mixing"] = float(np.nanmin(mixing))
            result["median_optimal_mixing"] = float(np.nanmedian(mixing))
        return result

    def warning(self) -> str:
        """What endangers the self-consistency, and what to do; empty if nothing does."""
        found = self.to_json()
        if found is None or not found["n_without_linear_mixing"]:
            return ""
        radius = found.get("max_spectral_radius", float("nan"))
        return (
            f"in {found['n_without_linear_mixing']} of {found['n_structures']} structures the "
            "density answers to its own potential by more than its change (eigenvalue of the map "
            f"of 1 or more, spectral radius up to {radius:.2f}): no linear mixing converges, and "
            "the loop may run away or end in another solution at geometries nearby; train longer "
            "in mode implicit, add the loss response_bound, or use "
            "fixedpoint_update_config: {type: OneBodyPassiveUpdate}"
        )

    def __str__(self) -> str:
        found = self.to_json()
        if found is None:
            return "no diagnostics of the map"
        text = (
            f"map of {found['n_structures']} structures: {found['mean_map_evaluations']:.1f} "
            f"evaluations and {found['mean_matvecs']:.1f} products with its Jacobian a batch"
        )
        if "max_spectral_radius" in found:
            text += (
                f", spectral radius {found['median_spectral_radius']:.2f} (median), "
                f"{found['max_spectral_radius']:.2f} (largest)"
            )
        if "min_optimal_mixing" in found:
            text += (
                f", best linear mixing {found['median_optimal_mixing']:.2g} (median), "
                f"{found['min_optimal_mixing']:.2g} (smallest)"
            )
        if found["n_without_linear_mixing"]:
            text += f", none for {found['n_without_linear_mixing']} structures"
        return text
